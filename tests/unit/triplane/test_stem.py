"""From the source image to visual tokens."""

from __future__ import annotations

import pytest
import torch

from export3d.triplane.stem import ConvStem, OverlapPatchMerge


@pytest.mark.parametrize(("height", "width"), [(256, 256), (64, 96)])
def test_the_stem_gives_features_at_a_half_a_quarter_and_an_eighth_of_the_image(height: int, width: int) -> None:
    with torch.device("meta"):
        found = ConvStem(32)(torch.zeros(2, 3, height, width))
    assert [tuple(x.shape) for x in found] == [
        (2, 8, height // 2, width // 2),
        (2, 16, height // 4, width // 4),
        (2, 32, height // 8, width // 8),
    ]


def test_patches_are_merged_two_by_two_into_row_major_tokens() -> None:
    with torch.device("meta"):
        tokens, height, width = OverlapPatchMerge(8, 20)(torch.zeros(2, 8, 6, 10))
    assert tokens.shape == (2, 15, 20)
    assert (height, width) == (3, 5)


def test_tokens_are_normalised() -> None:
    tokens, _, _ = OverlapPatchMerge(8, 20)(torch.randn(2, 8, 6, 6) * 30 + 5)
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(2, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.std(dim=-1, correction=0), torch.ones(2, 9), atol=1e-3, rtol=0)


def test_patches_overlap() -> None:
    """A pixel at the border of two patches is seen by both tokens."""
    merge = OverlapPatchMerge(1, 4)
    image = torch.zeros(1, 1, 4, 4, requires_grad=True)
    projected = merge.project(image)
    seen = []
    for column in range(2):
        (gradient,) = torch.autograd.grad(projected[0, :, 0, column].sum(), image, retain_graph=True)
        seen.append({int(i) for i in gradient[0, 0, 0].nonzero()})
    assert seen[0] & seen[1]


def test_a_moved_image_gives_moved_features() -> None:
    """The stem has no positional encoding: away from the border, eight pixels of shift are one feature of shift."""
    stem = ConvStem(16)
    image = torch.randn(1, 3, 96, 96)
    for found, moved, step in zip(stem(image), stem(image.roll(8, dims=-1)), (4, 2, 1), strict=True):
        middle = slice(4 * step, 8 * step)
        shifted = slice(5 * step, 9 * step)
        torch.testing.assert_close(moved[..., middle, shifted], found[..., middle, middle], rtol=1e-4, atol=1e-4)
