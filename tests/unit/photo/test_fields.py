"""Coarse fields over a photo."""

import numpy as np
import pytest
import torch

from export3d.errors import ShapeError
from export3d.photo.fields import at_pixels, blur, check_photo, filled, grid_size, mean, on_grid, strips


@pytest.mark.parametrize("radius", [1, 4, 40])
def test_a_mean_is_that_of_the_square_inside_the_image(radius):
    field = torch.rand(1, 2, 17, 23)
    got = mean(field, radius)
    for y, x in [(0, 0), (8, 11), (16, 22), (3, 20)]:
        square = field[..., max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        torch.testing.assert_close(got[..., y, x], square.mean((2, 3)), atol=1e-5, rtol=0)


def test_a_blur_has_the_standard_deviation_asked_for():
    spot = torch.zeros(1, 1, 101, 101)
    spot[..., 50, 50] = 1
    spread = blur(spot, 6.0)[0, 0].sum(0)
    place = torch.arange(101) - 50.0
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert float((spread * place**2).sum()) ** 0.5 == pytest.approx(6, rel=0.1)


def test_a_hole_is_filled_with_what_is_around_it():
    """What is known stays to the bit, and a ramp goes on across the hole."""
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 48, 64).contiguous()
    known = torch.ones(1, 1, 48, 64)
    known[..., 12:36, 20:44] = 0
    out = filled(torch.where(known > 0, ramp, 99.0), known)
    assert torch.equal(out[known > 0], ramp[known > 0])
    assert float((out - ramp).abs().max()) < 0.08
    assert float(out.diff().abs().max()) < 4 / 64


def test_filling_from_nothing_gives_finite_numbers():
    assert filled(torch.rand(1, 3, 9, 14), torch.zeros(1, 1, 9, 14)).isfinite().all()


def test_a_grid_as_fine_as_the_photo_is_the_photo(rng):
    image = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    field = on_grid(image, 40, 30)
    part = at_pixels(field, (7, 19), (3, 30), 40, 30)
    assert np.abs(part.permute(1, 2, 0).numpy() * 255 - image[7:19, 3:30]).max() < 0.01


def test_strips_cover_every_row_once():
    for height, width in [(1, 1), (7, 10**7), (5000, 6000)]:
        rows = [row for first, last in strips(height, width) for row in range(first, last)]
        assert rows == list(range(height))


def test_a_grid_has_at_most_a_megapixel_and_a_cell():
    assert grid_size(100, 200) == (100, 200)
    assert grid_size(100, 200, 0.5) == (50, 100)
    assert grid_size(5000, 6000)[0] * grid_size(5000, 6000)[1] == pytest.approx(1e6, rel=0.01)
    assert grid_size(1, 3, 1e-3) == (1, 1)


def test_other_shapes_are_refused():
    image = np.zeros((8, 9, 3), np.uint8)
    check_photo(image, np.zeros((8, 9), np.uint8))
    for wrong in (image[..., 0], image.astype(np.float32), image[:0]):
        with pytest.raises(ShapeError, match="an image must be uint8"):
            check_photo(wrong)
    for wrong in (np.zeros((9, 8), np.uint8), np.zeros((8, 9), np.float32)):
        with pytest.raises(ShapeError, match="matte"):
            check_photo(image, wrong)
