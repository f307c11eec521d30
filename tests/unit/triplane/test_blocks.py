"""ViT and EAdaLN-ViT blocks (Eq. 5)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from export3d.triplane.blocks import EAdaLN, ViTBlock


def test_a_new_eadaln_is_layer_normalisation_for_every_expression() -> None:
    norm = EAdaLN(16, 6)
    x = torch.randn(3, 5, 16) * 4 + 2
    assert torch.equal(norm(x, torch.randn(3, 6) * 100), F.layer_norm(x, (16,), eps=1e-6))


def test_sigma_starts_at_one_and_mu_at_zero() -> None:
    norm = EAdaLN(16, 6)
    sigma, mu = norm.modulation(torch.randn(2, 6)).chunk(2, dim=-1)
    assert torch.equal(sigma, torch.ones(2, 16))
    assert torch.equal(mu, torch.zeros(2, 16))


def test_eadaln_scales_and_shifts_each_channel_by_the_expression() -> None:
    norm = EAdaLN(8, 3)
    torch.nn.init.normal_(norm.modulation.weight)
    x, embedding = torch.randn(2, 5, 8), torch.randn(2, 3)
    factors = 3**0.5 * embedding @ norm.modulation.weight.T + norm.modulation.bias
    for b in range(2):
        for token in range(5):
            row = x[b, token]
            normal = (row - row.mean()) / (row.var(correction=0) + 1e-6).sqrt()
            torch.testing.assert_close(norm(x, embedding)[b, token], factors[b, :8] * normal + factors[b, 8:])


def test_the_norm_inside_eadaln_has_no_weights_of_its_own() -> None:
    assert {name for name, _ in EAdaLN(8, 3).named_parameters()} == {"modulation.weight", "modulation.bias"}


def test_a_new_conditioned_block_is_a_plain_vit_block() -> None:
    conditioned, plain = ViTBlock(16, 4, 2, embedding=6), ViTBlock(16, 4, 2)
    for name in ("attention", "ffn"):
        getattr(plain, name).load_state_dict(getattr(conditioned, name).state_dict())
    x = torch.randn(2, 12, 16)
    torch.testing.assert_close(conditioned(x, 3, 4, torch.randn(2, 6)), plain(x, 3, 4))


def test_each_norm_of_a_conditioned_block_depends_on_the_expression() -> None:
    x, embedding = torch.randn(1, 12, 16), torch.randn(1, 6)
    for name in ("norm_attention", "norm_ffn"):
        block = ViTBlock(16, 4, 2, embedding=6)
        before = block(x, 3, 4, embedding)
        torch.nn.init.normal_(getattr(block, name).modulation.weight)
        assert (block(x, 3, 4, embedding) - before).abs().max() > 1e-4
        assert (block(x, 3, 4, embedding) - block(x, 3, 4, -embedding)).abs().max() > 1e-4


def test_a_new_block_gets_a_gradient_for_the_expression_it_still_ignores() -> None:
    block = ViTBlock(16, 4, 2, embedding=6)
    block(torch.randn(2, 12, 16), 3, 4, torch.randn(2, 6)).square().sum().backward()
    for norm in (block.norm_attention, block.norm_ffn):
        gradient = norm.modulation.weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_a_block_is_two_residual_steps() -> None:
    block, x = ViTBlock(16, 4, 2), torch.randn(2, 12, 16)
    middle = x + block.attention(block.norm_attention(x))
    torch.testing.assert_close(block(x, 3, 4), middle + block.ffn(block.norm_ffn(middle), 3, 4))


@pytest.mark.parametrize("embedding", [0, 6])
def test_items_of_a_batch_are_independent(embedding: int) -> None:
    block, x = ViTBlock(16, 4, 2, embedding), torch.randn(3, 12, 16)
    given = (torch.randn(3, 6),) if embedding else ()
    together = block(x, 3, 4, *given)
    for b in range(3):
        alone = block(x[b : b + 1], 3, 4, *(value[b : b + 1] for value in given))
        torch.testing.assert_close(together[b : b + 1], alone)
