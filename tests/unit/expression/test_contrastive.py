"""CLeBS: both towers and the contrastive objective (Eq. 1)."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from export3d.errors import ConfigError, ShapeError
from export3d.expression.contrastive import (
    CLeBS,
    CLeBSConfig,
    Objective,
    ResNetSE18,
    SEBlock,
    contrastive_loss,
    unit,
)
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder

OBJECTIVES = get_args(Objective)
SMALL = CLeBSConfig(width=8, groups=4, expression=ExpressionConfig(hidden=16, n=4, d=12))


def embeddings(clips: int = 3, frames: int = 6, d: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(clips, frames, d), torch.randn(clips, frames, d)


def some_same(clips: int = 3, frames: int = 6) -> Tensor:
    """Symmetric pairs that are not negatives; every frame keeps at least one negative."""
    same = torch.eye(frames, dtype=torch.bool).repeat(clips, 1, 1)
    for clip, (a, b) in enumerate([(0, 1), (2, 5), (3, 4)][:clips]):
        same[clip, a, b] = same[clip, b, a] = True
    return same


def simplex(frames: int) -> Tensor:
    """(1, T, T): T vectors as far apart as possible; the cosine of any two is -1 / (T - 1)."""
    return (torch.eye(frames) - 1.0 / frames)[None]


def minimum(objective: str, frames: int, tau: float) -> float:
    spread = frames / ((frames - 1) * tau)
    if objective == "printed":
        return math.log(frames - 1) - spread
    return math.log1p((frames - 1) * math.exp(-spread))


# ---- Eq. 1 -----------------------------------------------------------------------------------------------------------


def equation_1(image: Tensor, expression: Tensor, tau: float, objective: str, same: Tensor | None) -> float:
    """The slow twin: one anchor, one positive, its negatives, in float64."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    def one(anchors: Tensor, others: Tensor, j: int, clip: int) -> float:
        positive = math.exp(cosine(anchors[j], others[j]) / tau)
        total = 0.0 if objective == "printed" else positive
        for k in range(len(anchors)):
            if k != j and not (same is not None and bool(same[clip, j, k])):
                total += math.exp(cosine(anchors[j], others[k]) / tau)
        return -math.log(positive / total)

    losses = []
    for clip in range(len(image)):
        x, beta = image[clip].double(), expression[clip].double()
        for j in range(len(x)):
            loss = one(beta, x, j, clip)
            losses.append((loss + one(x, beta, j, clip)) / 2 if objective == "symmetric" else loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_equation_1_written_out(objective: Objective, masked: bool) -> None:
    image, expression = embeddings()
    same = some_same() if masked else None
    found = contrastive_loss(image, expression, 0.07, objective, same)
    assert found.shape == ()
    assert float(found) == pytest.approx(equation_1(image, expression, 0.07, objective, same), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_positive_per_clip_is_equation_1_for_that_frame(objective: Objective) -> None:
    image, expression = embeddings(2, 33)
    positive = torch.tensor([4, 30])
    found = contrastive_loss(image, expression, 0.07, objective, positive=positive)
    first = [[int(k), *(j for j in range(33) if j != k)] for k in positive]  # that frame first, then its 32 negatives
    each = []
    for clip, order in enumerate(first):
        cosines = unit(image[clip, order]) @ unit(expression[clip, order]).mT / 0.07
        own, others = cosines[0, 0], cosines[1:, 0]
        losses = {"printed": others.logsumexp(0) - own, "infonce": cosines[:, 0].logsumexp(0) - own}
        losses["symmetric"] = (losses["infonce"] + cosines[0].logsumexp(0) - own) / 2
        each.append(losses[objective])
    torch.testing.assert_close(found, torch.stack(each).mean())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_mean_over_all_positives_is_the_loss_without_a_choice(objective: Objective) -> None:
    image, expression = embeddings()
    chosen = [contrastive_loss(image, expression, 0.07, objective, positive=torch.full((3,), k)) for k in range(6)]
    torch.testing.assert_close(torch.stack(chosen).mean(), contrastive_loss(image, expression, 0.07, objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_permuting_the_batch_permutes_the_loss(objective: Objective) -> None:
    """Permuted clips give permuted losses; permuted frames give the same loss."""
    image, expression = embeddings()
    same = some_same()

    def losses(image: Tensor, expression: Tensor, same: Tensor) -> Tensor:
        clips = zip(image.split(1), expression.split(1), same.split(1))
        return torch.stack([contrastive_loss(x, e, 0.07, objective, s) for x, e, s in clips])

    each = losses(image, expression, same)
    torch.testing.assert_close(each.mean(), contrastive_loss(image, expression, 0.07, objective, same))
    clips, frames = torch.tensor([2, 0, 1]), torch.randperm(6)
    torch.testing.assert_close(losses(image[clips], expression[clips], same[clips]), each[clips])
    turned = (image[:, frames], expression[:, frames], same[:, frames][:, :, frames])
    torch.testing.assert_close(losses(*turned), each)
    apart = contrastive_loss(image[:, frames], expression, 0.07, objective, same)
    assert abs(float(apart - each.mean())) > 0.01  # permuting one tower only gives other pairs


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("frames", [2, 5, 33])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_encoder_reaches_the_analytic_minimum(objective: Objective, frames: int, tau: float) -> None:
    image = simplex(frames).requires_grad_()
    expression = (3.0 * simplex(frames)).requires_grad_()  # lengths have no effect
    loss = contrastive_loss(image, expression, tau, objective)
    assert float(loss.detach()) == pytest.approx(minimum(objective, frames, tau), abs=2e-6 / tau)
    loss.backward()
    for embedding in (image, expression):
        assert embedding.grad is not None
        assert embedding.grad.abs().max() < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_embedding_is_below_the_minimum_and_descent_approaches_it(objective: Objective) -> None:
    image, expression = (x.requires_grad_() for x in embeddings(1, 5, 8))
    optimizer = torch.optim.Adam([image, expression], lr=0.05)
    lowest = minimum(objective, 5, 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss = contrastive_loss(image, expression, 0.5, objective)
        assert float(loss.detach()) > lowest - 1e-5
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < lowest + 0.01


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_stay_finite_at_zero_vectors(objective: Objective) -> None:
    for silent in ((0,), (1,), (0, 1)):
        given = [*embeddings(1, 4)]
        for which in silent:
            given[which][0, 1:3] = 0.0
        image, expression = (x.requires_grad_() for x in given)
        contrastive_loss(image, expression, 0.07, objective).backward()
        for x in (image, expression):
            assert x.grad is not None
            assert x.grad.isfinite().all()
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_an_encoder_with_constant_output_gets_a_finite_gradient() -> None:
    encoder = ExpressionEncoder(SMALL.expression)
    nn.init.zeros_(encoder.second.weight)
    contrastive_loss(torch.randn(1, 5, 12), encoder(torch.rand(5, 52))[None], 0.07).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_near_duplicates_are_not_negatives_of_each_other() -> None:
    """Two equal frames in a perfect clip: as negatives each costs log 2, otherwise nothing."""
    perfect = simplex(5)[:, [0, 1, 2, 3, 4, 4]]
    same = torch.eye(6, dtype=torch.bool)[None].clone()
    same[0, 4, 5] = same[0, 5, 4] = True
    charged = contrastive_loss(perfect, perfect, 0.07)
    spared = contrastive_loss(perfect, perfect, 0.07, same=same)
    assert float(spared) < 1e-5
    assert float(charged) == pytest.approx(2 / 6 * math.log(2), abs=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_frame_without_a_negative_has_no_loss_and_finite_gradients(objective: Objective) -> None:
    image, expression = (x.requires_grad_() for x in embeddings(1, 4))
    loss = contrastive_loss(image, expression, 0.07, objective, torch.ones(1, 4, 4, dtype=torch.bool))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    loss.backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_the_loss_is_computed_in_float32_under_autocast() -> None:
    image, expression = embeddings()
    exact = contrastive_loss(image, expression, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(image, expression, 0.07), exact)


def test_embeddings_that_do_not_pair_are_refused() -> None:
    image, expression = embeddings()
    with pytest.raises(ShapeError, match="expression embeddings"):
        contrastive_loss(image, expression[:, :4], 0.07)
    with pytest.raises(ConfigError, match="two frames"):
        contrastive_loss(image[:, :1], expression[:, :1], 0.07)


def test_the_basis_stays_orthonormal_while_the_loss_falls() -> None:
    encoder = ExpressionEncoder(SMALL.expression)
    image, expression = torch.randn(2, 9, 12), torch.rand(2, 9, 52)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = contrastive_loss(image, encoder(expression.flatten(0, 1)).view(2, 9, 12), 0.07)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    basis = encoder.basis().detach().double()
    assert (basis @ basis.T - torch.eye(4)).abs().max() < 1e-5


# ---- towers ----------------------------------------------------------------------------------------------------------


def test_the_image_encoder_is_a_resnet18_with_squeeze_and_excitation() -> None:
    with torch.device("meta"):
        tower = ResNetSE18(64, 256, 8)
        assert tower(torch.zeros(2, 3, 64, 64)).shape == (2, 256)
        blocks = [block for block in tower.blocks if isinstance(block, SEBlock)]
        assert [block.first.out_channels for block in blocks] == [64, 64, 128, 128, 256, 256, 512, 512]
        assert [block.first.stride[0] for block in blocks] == [1, 1, 2, 1, 2, 1, 2, 1]
        assert [block.squeeze.out_features for block in blocks] == [8, 8, 16, 16, 32, 32, 64, 64]
        # torchvision's resnet18 without its classifier, plus squeeze and excitation
        excitation = sum(p.numel() for b in blocks for layer in (b.squeeze, b.excite) for p in layer.parameters())
        assert sum(p.numel() for p in tower.parameters()) == 11_176_512 + excitation + 512 * 256 + 256


def test_a_block_scales_its_channels_by_the_excitation() -> None:
    block, x = SEBlock(8, 8, 1, 4), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(block.excite.weight)
    nn.init.constant_(block.excite.bias, -50.0)
    torch.testing.assert_close(block(x), x.relu())  # only the input passes
    nn.init.constant_(block.excite.bias, 50.0)
    inner = block.second_norm(block.second(block.first_norm(block.first(x)).relu()))
    torch.testing.assert_close(block(x), (inner + x).relu())


def test_both_towers_see_every_frame_of_every_clip_in_its_place() -> None:
    clebs = CLeBS(SMALL)
    image, expression = torch.rand(2, 3, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 52)
    with torch.no_grad():
        x, beta = clebs(image, expression)
        assert x.shape == beta.shape == (2, 3, 12)
        torch.testing.assert_close(x[1, 2:], clebs.image(image[1, 2:]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(beta[1, 2:], clebs.expression(expression[1, 2:]))


def test_frames_influence_each_other_with_batchnorm_only() -> None:
    image = torch.rand(4, 3, 32, 32)
    for groups, coupled in ((4, False), (0, True)):
        tower = ResNetSE18(8, 12, groups).train()
        apart = (tower(image)[:2] - tower(image[:2])).abs().max()
        assert (float(apart.detach()) > 1e-3) == coupled


def test_every_weight_of_both_towers_learns() -> None:
    clebs = CLeBS(SMALL)
    image, expression = clebs(torch.rand(1, 4, 3, 64, 64) * 2 - 1, torch.rand(1, 4, 52))
    contrastive_loss(image, expression, 0.07).backward()
    for name, parameter in clebs.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("changes", [{"width": 0}, {"width": 10, "groups": 4}, {"temperature": 0.0}])
def test_settings_that_cannot_work_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        CLeBSConfig(**changes)  # type: ignore[arg-type]
