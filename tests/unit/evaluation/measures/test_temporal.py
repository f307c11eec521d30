"""Flicker on made-up clips: what is restless counts, what moves on does not, and only neighbours are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from export3d.camera import Camera
from export3d.errors import ShapeError
from export3d.evaluation.measures import temporal
from export3d.evaluation.measures.temporal import FLOOR, MEASURES, Flicker
from export3d.face import pose
from export3d.face.mesh import canonical_mesh

FRAMES, SIZE = 12, 128
Clip = np.ndarray


def landmarks(size: int = SIZE) -> np.ndarray:
    """(478, 2) of a frontal face that fills the middle of the picture, pixels."""
    points = pose.project(canonical_mesh().vertices, Camera.orbit().label, size)
    return np.concatenate([points, points[[33] * 5 + [263] * 5]])


def room(rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """(2 size, 2 size, 3) float: a smooth texture, details some pixels wide."""
    noise = rng.uniform(0, 255, (2 * size, 2 * size, 3)).astype(np.uint8)
    soft = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2.0)), dtype=np.float64)
    return (soft - 127.5) * 4.0 + 127.5


def clip(rng: np.random.Generator, step: float = 0.0, grain: float = 1.0, count: int = FRAMES) -> tuple[Clip, Clip]:
    """A texture that slides `step` pixels a frame with a little grain, and its landmarks: (T, R, R, 3), (T, 478, 2)."""
    texture = Image.fromarray(room(rng).clip(0, 255).astype(np.uint8))
    shifts = step * (np.arange(count) - count / 2)
    middle = SIZE // 2
    pictures = [
        np.asarray(texture.transform((SIZE, SIZE), Image.Transform.AFFINE, (1, 0, middle - x, 0, 1, middle),
                                     Image.Resampling.BICUBIC))
        for x in shifts
    ]  # fmt: skip
    seen = np.stack([landmarks() + np.array([x, 0.0]) for x in shifts])
    return noisy(np.stack(pictures), rng, grain), seen


def noisy(pictures: Clip, rng: np.random.Generator, sigma: float) -> Clip:
    return (pictures + sigma * rng.normal(size=pictures.shape)).round().clip(0, 255).astype(np.uint8)


def jittered(pictures: Clip, rng: np.random.Generator, sigma: float) -> Clip:
    """Every frame shifted by a random part of a pixel."""
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).transform(picture.shape[:2], Image.Transform.AFFINE,
                                                          (1, 0, dx, 0, 1, dy), Image.Resampling.BICUBIC))
            for picture, (dx, dy) in zip(pictures, sigma * rng.normal(size=(len(pictures), 2)))
        ]
    )  # fmt: skip


def flicker(targets: Clip, predictions: Clip, seen: Clip, rows: np.ndarray | None = None, chunk: int = 64) -> dict:
    found = Flicker()
    rows = np.arange(len(targets)) if rows is None else rows
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        found.add(rows[part], targets[part], predictions[part], seen[part])
    return found.result()


def both(result: dict[str, float]) -> list[float]:
    assert list(result) == [measure.name for measure in MEASURES]
    return list(result.values())


@pytest.mark.parametrize("step", [0.0, 1.5])
def test_the_truth_is_as_restless_as_itself(rng: np.random.Generator, step: float) -> None:
    targets, seen = clip(rng, step)
    assert both(flicker(targets, targets.copy(), seen)) == [1.0, 1.0]


def test_still_clips_divide_by_the_floor(rng: np.random.Generator) -> None:
    targets, seen = clip(rng, grain=0.0)
    assert both(flicker(targets, targets, seen)) == [1.0, 1.0]
    blinking = targets.copy()
    blinking[1::2] = 200
    blinking[::2] = 199  # the second difference of a picture that goes to and fro by 1 is 2
    assert both(flicker(targets, blinking, seen)) == pytest.approx([(2 + FLOOR) / FLOOR] * 2)


def test_noise_raises_it_step_by_step(rng: np.random.Generator) -> None:
    targets, seen = clip(rng)
    found = np.array([both(flicker(targets, noisy(targets, rng, sigma), seen)) for sigma in (0.0, 3.0, 6.0, 12.0)])
    assert (np.diff(found, axis=0) > 0.2).all()


def test_jitter_raises_it_step_by_step(rng: np.random.Generator) -> None:
    targets, seen = clip(rng)
    found = np.array([both(flicker(targets, jittered(targets, rng, sigma), seen)) for sigma in (0.0, 0.1, 0.3, 0.9)])
    assert (np.diff(found, axis=0) > 0.2).all()


@pytest.mark.parametrize("step", [0.0, 1.5])
def test_a_frozen_prediction_is_stiller(rng: np.random.Generator, step: float) -> None:
    targets, seen = clip(rng, step, grain=3.0)
    assert max(both(flicker(targets, np.repeat(targets[:1], FRAMES, axis=0), seen))) < 0.4


def test_smoothing_in_time_lowers_it_step_by_step(rng: np.random.Generator) -> None:
    targets, seen = clip(rng, grain=6.0)
    mean = targets.mean(axis=0)
    made = [((1 - share) * targets + share * mean).round().astype(np.uint8) for share in (0.0, 0.3, 0.6, 1.0)]
    found = np.array([both(flicker(targets, pictures, seen)) for pictures in made])
    assert (np.diff(found, axis=0) < -0.15).all()


def test_each_region_has_its_own(rng: np.random.Generator) -> None:
    targets, seen = clip(rng)
    shaken = noisy(targets, rng, 8.0)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    inside = ((np.abs(x - SIZE / 2) < 0.3 * SIZE) & (np.abs(y - SIZE / 2) < 0.4 * SIZE))[None, :, :, None]
    face = both(flicker(targets, np.where(inside, shaken, targets), seen))
    outside = both(flicker(targets, np.where(inside, targets, shaken), seen))
    assert face[0] > 1.5
    assert face[1] == 1.0
    assert outside[0] == 1.0
    assert outside[1] > 1.5


def test_hair_and_shoulders_are_in_neither_region(rng: np.random.Generator) -> None:
    """A ring around the face, what hangs below it and everything under the chin."""
    targets, seen = clip(rng)
    low, high = landmarks().min(0), landmarks().max(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    centre, half = (low + high) / 2, (high - low) / 2
    away = np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1])
    ring = (away > 1.25) & (away < 1.5)
    hanging = (np.abs(x - centre[0]) < 1.7 * half[0]) & (y > centre[1]) & (away > 1.25)
    made = np.where((ring | hanging | (y > high[1] + 4))[None, :, :, None], noisy(targets, rng, 20.0), targets)
    assert both(flicker(targets, made, seen)) == [1.0, 1.0]


def test_the_regions_lie_where_they_belong() -> None:
    seen = landmarks()
    low, high = seen.min(0), seen.max(0)
    centre, half = (low + high) / 2, (high - low) / 2
    places = temporal.grid_places(SIZE)
    face, background = (region[0] for region in temporal.regions(seen[None], places[None]))
    x, y = ((places - centre) / half).T
    assert face[np.hypot(x, y) < 0.85].all()
    assert not face[np.hypot(x, y) > 1.25].any()
    assert not background[np.hypot(x, y) < 1.8].any()
    assert not background[(y > 0) & (np.abs(x) < 1.85)].any()  # hair and neck
    assert not background[y > 1.05].any()  # shoulders
    assert background[(np.abs(x) > 1.95) & (y < 0.95)].all()
    assert background[(np.abs(x) > 1.6) & (y < -1.6)].all()


@pytest.mark.parametrize("size", [32, 100, 256])
def test_values_are_taken_where_they_are_asked_for(size: int) -> None:
    """In a picture that brightens evenly to the right the value is the place."""
    picture = np.broadcast_to(np.arange(size, dtype=np.uint8)[None, None, :, None], (1, size, size, 3))
    places = np.array([[[8.5, 20.0], [size / 2, 8.0], [size - 9.25, size / 2]]])
    found = temporal._sample(temporal._grey(picture), places, size)
    np.testing.assert_allclose(found[0], places[0, :, 0] - 0.5, atol=1e-3)


def test_a_head_that_moves_does_not_hide_the_flicker(rng: np.random.Generator) -> None:
    """Sliding by more than the texture's details is much more change than the noise; it is taken out of both."""
    found = {}
    for step in (0.0, 4.0):
        targets, seen = clip(rng, step)
        found[step] = both(flicker(targets, noisy(targets, rng, 8.0), seen))
    assert found[4.0][0] > 1.0 + 0.6 * (found[0.0][0] - 1.0)
    assert found[4.0][1] < 1.0 + 0.3 * (found[0.0][1] - 1.0)  # in the background it is not: nothing says how it moves


def test_a_single_jump_does_not_count(rng: np.random.Generator) -> None:
    targets, seen = clip(rng, count=24)
    made = targets.copy()
    made[12:] = np.roll(made[12:], 6, axis=2)
    assert max(both(flicker(targets, made, seen))) < 1.3


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_do_not_matter(rng: np.random.Generator, chunk: int) -> None:
    targets, seen = clip(rng, step=1.0)
    made = noisy(targets, rng, 4.0)
    whole = both(flicker(targets, made, seen))
    np.testing.assert_allclose(both(flicker(targets, made, seen, chunk=chunk)), whole, rtol=1e-5)


def test_only_neighbours_are_compared(rng: np.random.Generator) -> None:
    targets, seen = clip(rng, count=6)
    made = targets.copy()
    made[3:] = noisy(made[3:], rng, 10.0)
    # Two runs of three: the first is calm, and so is the median of both where the second does not count.
    assert both(flicker(targets, made, seen, np.array([0, 1, 2, 10, 12, 13]))) == [1.0, 1.0]
    assert min(both(flicker(targets, made, seen, np.array([0, 1, 3, 10, 11, 12])))) > 1.5
    assert all(math.isnan(value) for value in both(flicker(targets, made, seen, np.arange(0, 12, 2))))
    assert all(math.isnan(value) for value in both(flicker(targets[:2], made[:2], seen[:2])))
    assert all(math.isnan(value) for value in both(Flicker().result()))


def test_frames_without_a_face_are_left_out(rng: np.random.Generator) -> None:
    targets, seen = clip(rng)
    made = targets.copy()
    made[6:] = noisy(made[6:], rng, 20.0)
    seen[6:] = np.nan
    assert both(flicker(targets, made, seen)) == [1.0, 1.0]
    assert all(math.isnan(value) for value in both(flicker(targets, made, np.full_like(seen, np.nan))))


def test_a_face_that_fills_the_picture_leaves_no_background(rng: np.random.Generator) -> None:
    targets, _ = clip(rng)
    near = np.tile((landmarks() - SIZE / 2) * 1.9 + SIZE / 2, (FRAMES, 1, 1))
    face, background = both(flicker(targets, targets, near))
    assert face == 1.0
    assert math.isnan(background)


@pytest.mark.parametrize("size", [32, 64, 100, 256])
def test_any_size_will_do(rng: np.random.Generator, size: int) -> None:
    targets = noisy(np.full((4, size, size, 3), 120.0), rng, 3.0)
    seen = np.tile(landmarks(size), (4, 1, 1))
    assert both(flicker(targets, targets, seen)) == [1.0, 1.0]
    assert min(both(flicker(targets, noisy(targets, rng, 12.0), seen))) > 1.3


def test_what_does_not_fit_is_refused(rng: np.random.Generator) -> None:
    targets, seen = clip(rng, count=3)
    rows = np.arange(3)
    for wrong in (
        (rows[:2], targets, targets, seen),
        (rows, targets, targets[:2], seen),
        (rows, targets, targets[:, ::2, ::2], seen),
        (rows, targets, targets, seen[:, :68]),
        (rows, targets[:, :64], targets[:, :64], seen),
    ):
        with pytest.raises(ShapeError):
            Flicker().add(*wrong)
    begun = Flicker()
    begun.add(rows, targets, targets, seen)
    begun.add(rows[:0], targets[:0], targets[:0], seen[:0])
    with pytest.raises(ShapeError, match="one size"):
        begun.add(rows + 3, targets[:, ::2, ::2], targets[:, ::2, ::2], seen)
