"""The learned orthonormal basis (Eq. 2)."""

from __future__ import annotations

import copy

import pytest
import torch

from export3d.errors import ConfigError
from export3d.expression.basis import OrthonormalBasis


def departure(basis: torch.Tensor) -> float:
    """Largest deviation of the Gram matrix from the identity."""
    return float((basis @ basis.T - torch.eye(len(basis))).abs().max())


def test_a_new_basis_is_orthonormal() -> None:
    basis = OrthonormalBasis(10, 256)().detach()
    assert basis.shape == (10, 256)
    assert departure(basis) < 1e-5


def test_the_basis_stays_orthonormal_over_a_hundred_optimiser_steps() -> None:
    module = OrthonormalBasis(10, 64)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    target = torch.randn(10, 64)
    start = module().detach().clone()
    for _ in range(100):
        optimizer.zero_grad()
        (module() - target).square().mean().backward()
        optimizer.step()
    end = module().detach()
    assert departure(end) < 1e-5
    assert (end - start).abs().max() > 0.1


def test_the_diagonal_of_r_is_positive_whatever_the_weight() -> None:
    """Q^T W = R upper triangular: with a positive diagonal the decomposition is unique."""
    module = OrthonormalBasis(6, 9)
    for scale in (1.0, -3.0, 1e-3):
        with torch.no_grad():
            module.weight.copy_(torch.randn(9, 6) * scale)
            r = module() @ module.weight
        assert (torch.diagonal(r) > 0).all()
        assert r.tril(-1).abs().max() < 1e-5 * abs(scale)


def test_a_small_change_of_the_weight_flips_no_direction() -> None:
    module = OrthonormalBasis(10, 32)
    before = module().detach().clone()
    for _ in range(20):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight) * 1e-4)
        assert (module().detach() * before).sum(dim=1).min() > 0.99


def test_the_first_direction_is_the_first_column_normalised() -> None:
    module = OrthonormalBasis(3, 8)
    column = module.weight.detach()[:, 0] * 2.5
    with torch.no_grad():
        module.weight[:, 0] = column
    torch.testing.assert_close(module()[0].detach(), column / column.norm())


def test_the_basis_is_float32_under_autocast() -> None:
    module = OrthonormalBasis(10, 64)
    expected = module().detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module().detach()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_gradients_through_the_basis_are_exact() -> None:
    def basis(weight: torch.Tensor) -> torch.Tensor:
        q, r = torch.linalg.qr(weight)
        return (q * torch.where(torch.diagonal(r) < 0, -1.0, 1.0)).T

    module = OrthonormalBasis(3, 5)
    weight = module.weight.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(basis, (weight,))
    mix = torch.randn(3, 5)
    (module() * mix).sum().backward()
    (basis(weight) * mix.double()).sum().backward()
    assert module.weight.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(module.weight.grad, weight.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(0, 4), (5, 4)])
def test_more_vectors_than_dimensions_are_refused(n: int, d: int) -> None:
    with pytest.raises(ConfigError, match="orthonormal"):
        OrthonormalBasis(n, d)


def test_a_frozen_basis_is_decomposed_once_until_its_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    basis, count, qr = OrthonormalBasis(3, 8), [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda x: count.append(1) or qr(x))
    other = torch.randn(8, 3)

    def read(times: int) -> torch.Tensor:
        """The basis, which must be that of the weight as it is."""
        seen = [basis() for _ in range(times)]
        fresh = OrthonormalBasis(3, 8).requires_grad_(True)
        with torch.no_grad():
            fresh.weight.copy_(basis.weight)
        count.clear()
        torch.testing.assert_close(seen[-1].double(), fresh().detach().double(), rtol=0, atol=0)
        return seen[-1]

    basis.requires_grad_(True)
    basis(), basis()
    assert len(count) == 2, "every call, while it is trained"
    basis.requires_grad_(False)
    count.clear()
    with torch.inference_mode():
        basis(), basis()
    assert len(count) == 1
    assert not read(1).is_inference()
    for change in (
        lambda: basis.load_state_dict({"weight": other}),
        lambda: basis.load_state_dict({"weight": -other}, assign=True),
        lambda: basis.half().float(),
        lambda: basis.weight.add_(torch.randn(8, 3)),
        lambda: torch._foreach_lerp_([basis.weight], [other], 0.5),
    ):
        before = read(2)
        change()
        count.clear()
        basis(), basis()
        assert len(count) == 1
        assert not torch.equal(read(1), before)
    copied = copy.deepcopy(basis)
    copied.weight.add_(1.0)
    assert not torch.equal(copied(), basis())
