"""Frames at the photo's own resolution: what must stay, what must move, and what must not show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera, projected
from export3d.face.crop import CropBox
from export3d.image import to_tensor
from export3d.photo import compositor
from export3d.photo.canvas import MARGIN, canvas
from export3d.photo.compositor import Compositor
from export3d.photo.extension import extended_crop
from export3d.photo.layers import Layers
from export3d.warping.dental_arch import dental_arches
from export3d.warping.inner_mouth import Teeth
from export3d.warping.landmark_motion import average_landmarks
from export3d.warping.origin import Origin

SIZE = 64


def photo(height: int = 240, width: int = 300, smooth: bool = False) -> np.ndarray:
    rng = np.random.default_rng(1)
    if not smooth:
        return rng.integers(80, 180, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17.0) + np.cos(y / 23.0), np.cos((x + y) / 29.0), np.sin((x - y) / 31.0)]
    return np.stack([127.5 + 50.0 * wave for wave in waves], axis=-1).astype(np.uint8)


def source(image: np.ndarray, box: CropBox) -> Tensor:
    return to_tensor(extended_crop(image, box, SIZE, MARGIN))[None]


def origin(across_px: float = 0.0, down_px: float = 0.0, side: float = 1.0, trust: float = 1.0) -> Origin:
    """The same offset everywhere, in pixels of a photo whose crop has `side`."""
    offset = torch.tensor([across_px, down_px]).view(1, 2, 1, 1).expand(1, 2, SIZE, SIZE) * 2.0 / side
    return Origin(offset, torch.full((1, 1, SIZE, SIZE), trust))


BOX = CropBox((150.0, 120.0), 100.0)


@pytest.mark.parametrize("frame", ["photo", "crop"])
@pytest.mark.parametrize("box", [BOX, CropBox((30.0, 40.0), 130.0), CropBox((150.0, 120.0), 40.0)])
def test_where_nothing_moves_frames_are_the_photo_to_the_bit(frame: str, box: CropBox) -> None:
    image = photo()
    grid = canvas(image, box, frame=frame)
    small = source(image, box)
    made = Compositor(grid, Layers.opaque(grid.image), [(grid.place(box), small)]).frame([(small, origin())])
    assert np.array_equal(made, grid.image[grid.window])


def test_pixels_are_looked_up_in_the_photo() -> None:
    image = photo()
    grid = canvas(image, BOX)
    small, moved = source(image, BOX), origin(5.0, -3.0, BOX.side)
    drawn = compositor.look_up(small, moved.offset)
    made = Compositor(grid, Layers.opaque(grid.image), [(BOX, small)]).frame([(drawn, moved)])
    shifted = image[97:137, 135:175].astype(float)
    assert np.abs(made[100:140, 130:170] - shifted).mean() < 5
    assert np.abs(made[100:140, 130:170] - image[100:140, 130:170].astype(float)).mean() > 20


def test_a_reduced_frame_is_the_models_image() -> None:
    image = photo(smooth=True)
    grid = canvas(image, BOX)
    small, wrong = source(image, BOX), origin(4.0, 0.0, BOX.side)
    drawn = small + 0.2 * torch.sin(torch.linspace(0.0, 9.0, SIZE))
    made = Compositor(grid, Layers.opaque(grid.image), [(BOX, small)]).frame([(drawn, wrong)])
    inside = (..., slice(12, -12), slice(12, -12))
    assert float((source(made, BOX) - drawn)[inside].abs().max()) * 127.5 < 4


def test_without_trust_the_models_image_is_enlarged() -> None:
    image = photo(smooth=True)
    grid = canvas(image, BOX)
    drawn = torch.full((1, 3, SIZE, SIZE), 0.5)
    made = Compositor(grid, Layers.opaque(grid.image), [(BOX, source(image, BOX))]).frame([(drawn, origin(trust=0.0))])
    assert (made[100:140, 130:170] == 191).all()
    assert np.array_equal(made[:50], image[:50])


def test_where_nobody_is_the_background_stays_to_the_bit() -> None:
    image = photo()
    grid = canvas(image, BOX)
    layers = Layers.opaque(grid.image)
    layers.person[:, :150, 3] = 0
    made = Compositor(grid, layers, [(BOX, source(image, BOX))]).frame(
        [(torch.ones(1, 3, SIZE, SIZE), origin(-4.0, 0.0, BOX.side, 0.0))]
    )
    assert np.array_equal(made[:, :150], image[:, :150])
    assert (made[100:140, 160:180] == 255).all()


def test_a_contour_shows_nothing_that_lies_between_its_two_sides_in_the_photo() -> None:
    """A face (200) turns in front of the background (160); the black hair between them in the photo is hidden."""
    image = np.full((480, 600, 3), 160, np.uint8)
    image[:, :300], image[:, 300:350] = 200, 0
    box = CropBox((300.0, 240.0), 400.0)
    grid = canvas(image, box)
    layers = Layers.opaque(grid.image)
    left = grid.window[1].start
    layers.person[:, left + 350 :, 3] = 0
    layers.matte[:, left + 350 :] = 0
    layers = replace(layers, behind=np.full_like(layers.behind, 160))
    offset = torch.zeros(1, 2, SIZE, SIZE)
    for row in range(SIZE):  # the contour is slanted
        offset[:, 0, row, 26 + row // 10 :] = 2.0 * 90.0 / box.side
    small = source(image, box)
    made = Compositor(grid, layers, [(grid.place(box), small)]).frame(
        [(compositor.look_up(small, offset), Origin(offset, 1.0 - compositor.torn(offset, 2.0)))]
    )
    assert made[80:400, 180:330].min() > 150


def test_a_torn_contour_is_not_continued_beyond_the_crop() -> None:
    """Hair (0) that the crop cuts is torn at its border; above it nobody is, neither in the photo nor in the frame."""
    image = np.full((240, 300, 3), 160, np.uint8)
    image[50:, 110:190] = 0
    grid = canvas(image, BOX)
    layers = Layers.opaque(grid.image)
    nobody = grid.image[..., 0] != 0
    layers.person[nobody, 3], layers.matte[nobody] = 0, 0
    still = layers.still.copy()
    still[nobody] = 200
    layers = replace(layers, behind=np.full_like(still, 200), still=still)
    offset = origin(12.0, 0.0, BOX.side).offset.clone()
    offset[..., :55] = 0.0
    small = source(image, BOX)
    drawn = compositor.look_up(small, offset)
    made = Compositor(grid, layers, [(BOX, small)]).frame([(drawn, Origin(offset, torch.ones(1, 1, SIZE, SIZE)))])
    assert (made[:40] == 200).all()
    assert (made[80:, 130:170] < 8).all()


def test_shoulders_below_the_crop_move_with_the_neck() -> None:
    """A neck (200) that moves down by 8 pixels reaches the crop's lower border; shoulders begin 4 pixels below it."""
    image = np.full((480, 600, 3), 100, np.uint8)
    image[:, 270:330], image[304:, 150:450] = 200, 200
    box = CropBox((300.0, 200.0), 200.0)
    grid = canvas(image, box)
    layers = Layers.opaque(grid.image)
    background = grid.image[..., 0] < 150
    layers.person[background, 3] = 0
    layers.matte[background] = 0
    layers = replace(layers, behind=np.full_like(layers.behind, 100))
    offset = torch.zeros(1, 2, SIZE, SIZE)
    offset[:, 1, :, 20:44] = -2.0 * 8.0 / box.side
    small = source(image, box)
    made = Compositor(grid, layers, [(grid.place(box), small)]).frame(
        [(compositor.look_up(small, offset), Origin(offset, torch.ones(1, 1, SIZE, SIZE)))]
    )
    top = (made[290:330, :, 0] > 150).argmax(axis=0)[180:260] + 290
    assert top.min() >= 310, "they have moved down by 6 to 8 pixels"
    assert np.abs(np.diff(top)).max() <= 1
    assert (made[:280, :260] == 100).all(), "the background stays"


def test_the_border_of_the_crop_cannot_be_found() -> None:
    """Gradients across the crop's border are no larger than those just beside it."""
    image = photo(smooth=True)
    grid = canvas(image, BOX)
    small = source(image, BOX)
    wave = 0.1 * torch.sin(torch.linspace(0.0, 3.0, SIZE)).view(1, 1, 1, SIZE).expand(1, 2, SIZE, SIZE)
    moved = Origin(wave + 0.05, torch.full((1, 1, SIZE, SIZE), 0.7))
    made = Compositor(grid, Layers.opaque(grid.image), [(BOX, small)]).frame([(small + 0.3, moved)]).astype(float)
    steps = np.abs(np.diff(made, axis=1)).mean(axis=(0, 2))
    for border in (100, 200):
        beside = np.r_[steps[border - 12 : border - 3], steps[border + 2 : border + 11]]
        assert steps[border - 2 : border + 1].max() <= 1.1 * beside.max()


def test_a_head_that_leaves_the_crop_is_not_cut() -> None:
    image = photo(smooth=True)
    grid = canvas(image, BOX)
    small, moved = source(image, BOX), origin(-15.0, 0.0, BOX.side)
    offset = moved.offset.clone()
    offset[..., -4:] = 0.0  # the model does not move what goes out
    moved = Origin(offset, moved.trust)
    drawn = compositor.look_up(small, offset)
    made = Compositor(grid, Layers.opaque(grid.image), [(BOX, small)]).frame([(drawn, moved)])
    beyond = made[100:140, 200:206]
    assert np.abs(beyond - image[100:140, 185:191].astype(float)).mean() < 8
    assert np.abs(beyond - image[100:140, 200:206].astype(float)).mean() > 12


def test_small_motion_is_not_continued_beyond_the_crop() -> None:
    image = photo(smooth=True)
    grid = canvas(image, BOX)
    small, moved = source(image, BOX), origin(-1.0, 0.0, BOX.side)
    offset = moved.offset.clone()
    offset[..., -4:] = 0.0
    made = Compositor(grid, Layers.opaque(grid.image), [(BOX, small)]).frame([(small, Origin(offset, moved.trust))])
    assert np.array_equal(made[100:140, 201:], image[100:140, 201:])


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo()
    grid = canvas(image, BOX)
    made = []
    for pixels in (1 << 20, 700):
        monkeypatch.setattr(compositor, "_BAND", pixels)
        faces = [(BOX, source(image, BOX))]
        part = (torch.zeros(1, 3, SIZE, SIZE), origin(2.5, 1.5, BOX.side, 0.5))
        made.append(Compositor(grid, Layers.opaque(grid.image), faces).frame([part]))
    assert np.abs(made[0].astype(int) - made[1]).max() <= 1


def mouth() -> Teeth:
    """Pale teeth before a dark mouth, of which the model's image shows the mean."""
    head, camera = average_landmarks()[None], torch.from_numpy(Camera.orbit().label[None]).float()
    values = torch.tensor([1.0, 1.0, 0.1, 0.7, 0.8, 0.5, 1.0]).view(1, 7, 1, 1)
    lips, _ = projected(head, camera)
    return Teeth(dental_arches(head, head, torch.ones(1, 1, 1, 1), camera), lips, values.expand(1, 7, 128, 128))


def test_teeth_are_as_fine_as_the_photo_and_change_the_mouth_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    image, box, teeth = photo(480, 600, smooth=True), CropBox((300.0, 240.0), 400.0), mouth()
    grid, small = canvas(image, box), source(image, box)
    whole = Compositor(grid, Layers.opaque(grid.image), [(grid.place(box), small)])
    plain = whole.frame([(small, origin())]).astype(int)
    made = whole.frame([(small, replace(origin(), teeth=teeth))]).astype(int)
    changed = (made != plain).any(axis=-1)
    first, last = teeth.box() or (None, None)
    assert first is not None
    assert last is not None
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    corner = np.array(box.corner)
    assert (np.array([columns.min(), rows.min()]) >= corner + box.side * first.numpy() - 2.0).all()
    assert (np.array([columns.max(), rows.max()]) <= corner + box.side * last.numpy() + 2.0).all()
    light = (made - plain)[rows.min() : rows.max(), columns.min() : columns.max(), 1]
    assert np.abs(np.diff(light, axis=1)).max() > 10, "lines of single pixels"
    monkeypatch.setattr(compositor, "_BAND", 3 * grid.image.shape[1])
    banded = Compositor(grid, Layers.opaque(grid.image), [(grid.place(box), small)])
    assert np.array_equal(banded.frame([(small, replace(origin(), teeth=teeth))]), made)


def test_a_mouth_that_lies_beyond_the_photo_changes_nothing() -> None:
    image, box = photo(240, 300), CropBox((150.0, 230.0), 150.0)
    grid, small = canvas(image, box), source(image, box)
    whole = Compositor(grid, Layers.opaque(grid.image), [(grid.place(box), small)])
    assert np.array_equal(whole.frame([(small, replace(origin(), teeth=mouth()))]), whole.frame([(small, origin())]))


def test_several_faces_move_each_in_its_place() -> None:
    image = photo(200, 400)
    boxes = [CropBox((100.0, 100.0), 120.0), CropBox((200.0, 100.0), 120.0), CropBox((310.0, 100.0), 120.0)]
    grid = canvas(image, boxes[0])
    placed = [grid.place(box) for box in boxes]
    faces = [(there, source(image, box)) for there, box in zip(placed, boxes)]
    part = (torch.zeros(1, 3, SIZE, SIZE), origin(trust=0.0))
    one = Compositor(grid, Layers.opaque(grid.image), faces[1:2], [placed[0], placed[2]]).frame([part])
    assert np.array_equal(one[:, :130], image[:, :130])
    assert np.array_equal(one[:, 280:], image[:, 280:])
    assert np.abs(one[90:110, 190:210].astype(int) - 127).max() <= 1
    every = Compositor(grid, Layers.opaque(grid.image), faces).frame([part] * 3)
    for box in boxes:
        x = int(box.centre[0])
        assert np.abs(every[90:110, x - 10 : x + 10].astype(int) - 127).max() <= 1


@pytest.mark.parametrize("y", [189.0, 210.0])
def test_where_the_photo_ends_below_a_crop_it_is_stretched_and_nothing_comes_in(y: float) -> None:
    """Everything moves up by 10 pixels, but the last rows, which are stretched."""
    image = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None], (240, 300, 3)).copy()
    box = CropBox((150.0, y), 100.0)
    small, grid, up = source(image, box), canvas(image, box), origin(0.0, 10.0, box.side)
    drawn = compositor.look_up(small, up.offset)
    made = Compositor(grid, Layers.opaque(grid.image), [(grid.place(box), small)]).frame([(drawn, up)])
    assert made.shape == image.shape
    rows = made[160:, 150, 0].astype(int)
    assert np.abs(rows[:50] - np.arange(170, 220)).max() <= 2
    assert 236 <= rows[-1] <= 239
    assert np.diff(rows).min() >= -1


def test_what_the_model_draws_below_the_photo_does_not_glow_at_its_border() -> None:
    """A grey person moves down by 10 pixels, out of the photo; the model shows the rows below it, brighter."""
    image = np.full((240, 300, 3), 100, dtype=np.uint8)
    box = CropBox((150.0, 210.0), 100.0)
    small, grid = source(image, box), canvas(image, box)
    drawn = small.clone()
    drawn[..., round(SIZE * 0.8) + 1 :, :] = 1.0  # the photo ends at 0.8 of the crop
    made = Compositor(grid, Layers.opaque(grid.image), [(grid.place(box), small)]).frame(
        [(drawn, origin(0.0, -10.0, box.side))]
    )
    assert np.abs(made[230:].astype(int) - 100).max() <= 15  # what bicubic enlarging spreads; the glow is 40
