"""The building blocks that several parts share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from export3d.errors import ConfigError, ShapeError
from export3d.layers import (
    GaussianLowPass,
    MixFFN,
    ResidualConvs,
    SelfAttention,
    constant,
    conv3x3,
    image_to_tokens,
    linear,
    tokens_to_image,
)


def checkerboard(size: int = 12) -> torch.Tensor:
    i = torch.arange(size)
    return ((-1.0) ** (i[:, None] + i[None, :]))[None, None]


def test_the_low_pass_removes_the_checkerboard_at_nyquist() -> None:
    assert GaussianLowPass(1.0)(checkerboard()).abs().max() < 1e-3


def test_the_low_pass_nearly_removes_stripes_of_period_two() -> None:
    stripes = ((-1.0) ** torch.arange(12))[None, None, None, :].expand(1, 1, 12, 12)
    for image in (stripes, stripes.transpose(2, 3)):
        assert GaussianLowPass(1.0)(image).abs().max() < 0.02


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.3])
def test_the_low_pass_leaves_a_constant_alone_also_at_the_border(sigma: float) -> None:
    image = torch.full((2, 3, 16, 16), 0.37)
    torch.testing.assert_close(GaussianLowPass(sigma)(image), image)


def test_a_low_pass_without_width_is_the_identity() -> None:
    image = torch.randn(2, 3, 5, 5)
    assert torch.equal(GaussianLowPass(0.0)(image), image)


def test_the_low_pass_answers_a_point_with_a_gaussian() -> None:
    image = torch.zeros(1, 2, 15, 15)
    image[0, 1, 7, 7] = 1.0
    out = GaussianLowPass(1.0)(image)
    assert out[0, 0].count_nonzero() == 0  # channels do not mix
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    bump = out[0, 1]
    torch.testing.assert_close(bump, bump.T)
    torch.testing.assert_close(bump, bump.flip(0))
    for offset in (1, 2):
        assert float(bump[7, 7 + offset] / bump[7, 7]) == pytest.approx(math.exp(-0.5 * offset**2), rel=1e-5)


def test_the_low_pass_wants_a_batch() -> None:
    with pytest.raises(ShapeError, match="feature map"):
        GaussianLowPass(1.0)(torch.zeros(3, 8, 8))


def test_tokens_are_pixels_in_reading_order() -> None:
    image = torch.randn(2, 5, 3, 4)
    tokens = image_to_tokens(image)
    assert torch.equal(tokens[1, 4 * 2 + 3], image[1, :, 2, 3])
    assert torch.equal(tokens_to_image(tokens, 3, 4), image)


def test_residual_convolutions_start_as_the_identity_and_can_leave_it() -> None:
    block, x = ResidualConvs(4), torch.randn(1, 4, 6, 6)
    assert torch.equal(block(x), x)
    torch.nn.init.normal_(block.second.weight)
    expected = x + block.second(F.leaky_relu(block.first(F.leaky_relu(x, 0.2)), 0.2))
    torch.testing.assert_close(block(x), expected)
    assert not torch.equal(block(x), x)


def test_attention_is_the_softmax_of_products_head_by_head() -> None:
    attention, x = SelfAttention(12, 3), torch.randn(2, 5, 12)
    torch.nn.init.normal_(attention.qkv.weight)
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    expected = torch.cat(heads, dim=-1) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x), expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads"):
        SelfAttention(10, 4)


def test_mix_ffn_mixes_neighbours_on_the_token_grid_only() -> None:
    """Linear, depth-wise 3x3, GELU, linear: a token reaches its eight neighbours and no further."""
    ffn = MixFFN(6, 2)
    x = torch.randn(1, 20, 6, requires_grad=True)  # a grid of 4 rows and 5 columns
    ffn(x, 4, 5)[0, 5 * 1 + 2].sum().backward()
    assert x.grad is not None
    reached = {(int(i) // 5, int(i) % 5) for i in x.grad[0].abs().sum(dim=-1).nonzero()}
    assert reached == {(row, column) for row in (0, 1, 2) for column in (1, 2, 3)}


def test_mix_ffn_is_what_its_layers_say() -> None:
    ffn, x = MixFFN(6, 2), torch.randn(2, 12, 6)
    grid = (x @ ffn.expand.weight.T + ffn.expand.bias).view(2, 3, 4, 12).permute(0, 3, 1, 2)
    mixed = F.conv2d(F.pad(grid, (1, 1, 1, 1)), ffn.mix.weight, ffn.mix.bias, groups=12)
    expected = F.gelu(mixed.permute(0, 2, 3, 1).reshape(2, 12, 12)) @ ffn.reduce.weight.T + ffn.reduce.bias
    torch.testing.assert_close(ffn(x, 3, 4), expected)


def test_convolutions_keep_the_variance_of_what_went_through_a_leaky_relu() -> None:
    layer = conv3x3(64, 64)
    out = layer(F.leaky_relu(torch.randn(1, 64, 32, 32), 0.2))[..., 1:-1, 1:-1]
    assert float(out.detach().std()) == pytest.approx(1.0, rel=0.15)
    assert layer.bias is not None
    assert layer.bias.count_nonzero() == 0


def test_linear_layers_start_small() -> None:
    layer = linear(256, 256)
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert layer.bias.count_nonzero() == 0


def test_a_constant_is_made_once_and_never_kept_from_a_pass_that_only_traces_shapes() -> None:
    values, device = (0.5, 1.5, 2.5), torch.device("cpu")
    with FakeTensorMode():
        assert isinstance(constant(values, device), FakeTensor)
    with torch.inference_mode():
        kept = constant(values, device)
    assert kept.tolist() == list(values)
    assert not kept.is_inference()
    assert constant(values, device) is kept
    assert constant(values, device, torch.float64).dtype == torch.float64
