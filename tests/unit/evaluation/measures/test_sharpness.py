"""Sharpness of made-up faces: known blurs lose known energy, a moved face keeps it, and noise is not detail."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from export3d.camera import Camera
from export3d.errors import ShapeError
from export3d.evaluation.measures.sharpness import FaceDetail, sharpness
from export3d.face import pose
from export3d.face.mesh import canonical_mesh

SIZE = 256
Picture = np.ndarray
Points = np.ndarray


def landmarks(size: int = SIZE) -> Points:
    """(478, 2) of a frontal face in the middle of a square picture, pixels."""
    points = pose.project(canonical_mesh().vertices, Camera.orbit().label, size)
    return np.concatenate([points, points[[33] * 5 + [263] * 5]])


def textured(rng: np.random.Generator, size: int = SIZE) -> Picture:
    """A face's statistics: smooth shading, and fine texture that is stronger in some places than in others."""
    x, y = np.meshgrid(*(np.arange(size) / size,) * 2)
    strength = 2.0 + 25.0 * (np.sin(23 * x) * np.sin(19 * y) > 0.4)
    grey = 128 + 50 * np.sin(5 * x + 3 * y) + strength * rng.normal(size=(size, size))
    return eight_bits(np.repeat(grey[..., None], 3, axis=-1))


def eight_bits(picture: np.ndarray) -> Picture:
    return picture.round().clip(0, 255).astype(np.uint8)


def wave(frequency: float, size: int = SIZE, amplitude: float = 60.0) -> np.ndarray:
    """Horizontal waves of a frequency in cycles per pixel, not rounded: (size, size, 3)."""
    return np.tile(128 + amplitude * np.sin(2 * np.pi * frequency * np.arange(size))[None, :, None], (size, 1, 3))


def blurred(picture: Picture, sigma: float) -> Picture:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def score(picture: Picture, source: Picture, at: Points | None = None) -> float:
    at = landmarks(len(source)) if at is None else at
    return float(sharpness(picture[None], at[None], source, landmarks(len(source)))[0])


def moved(picture: Picture, matrix: np.ndarray, offset: np.ndarray) -> Picture:
    """The picture with each point p at matrix p + offset."""
    back = np.linalg.inv(matrix)
    start = -back @ offset
    numbers = (back[0, 0], back[0, 1], start[0], back[1, 0], back[1, 1], start[1])
    return np.asarray(Image.fromarray(picture).transform(picture.shape[1::-1], Image.Transform.AFFINE, numbers,
                                                         Image.Resampling.BICUBIC))  # fmt: skip


def test_the_source_is_as_sharp_as_itself(rng: np.random.Generator) -> None:
    picture = textured(rng)
    assert score(picture, picture) == 1.0


@pytest.mark.parametrize(("frequency", "energy"), [(0.0517, 0.0), (0.2, 0.0), (0.3, 1800.0), (0.45, 1800.0)])
def test_only_the_upper_half_of_the_band_counts(frequency: float, energy: float) -> None:
    """A wave of amplitude A has the energy A^2 / 2, and the window leaks nothing from below."""
    found = FaceDetail(eight_bits(wave(frequency)), landmarks()).energy(0.25, 0.5)[0]
    assert found == pytest.approx(energy, rel=0.01, abs=0.06)  # rounding to 8 bits leaves 1/12 * 0.59


def test_a_known_kernel_loses_the_known_energy() -> None:
    """[1, 2, 1] / 4 multiplies a wave by cos^2(pi f), so its energy by the square of that."""
    frequency = 0.3137
    picture = wave(frequency, amplitude=120.0)
    soft = (np.roll(picture, 1, axis=1) + 2 * picture + np.roll(picture, -1, axis=1)) / 4
    face = landmarks()
    before, after = (FaceDetail(eight_bits(x), face).energy(0.25, 0.5)[0] for x in (picture, soft))
    assert after / before == pytest.approx(np.cos(frequency * np.pi) ** 4, rel=0.01)


def test_a_gaussian_blur_of_white_noise_loses_its_share_of_the_band(rng: np.random.Generator) -> None:
    """The mean of exp(-4 pi^2 sigma^2 f^2) over the ring 0.25 <= f < 0.5."""
    sigma, size = 0.6, SIZE
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    passed = np.exp(-2 * np.square(np.pi * sigma * frequency))
    noise = 30 * rng.normal(size=(size, size))
    pictures = [noise, np.fft.ifft2(np.fft.fft2(noise) * passed).real]
    a = 4 * np.square(np.pi * sigma)
    share = (np.exp(-a / 16) - np.exp(-a / 4)) / a / (3 / 16)
    before, after = (
        FaceDetail(eight_bits(128 + np.repeat(x[..., None], 3, -1)), landmarks()).energy(0.25, 0.5)[0] for x in pictures
    )
    assert after / before == pytest.approx(share, rel=0.03)


def test_smooth_shading_is_no_detail() -> None:
    """A steep ramp across the face, which any hard edge of the window would spread over all frequencies."""
    ramp = np.tile(np.linspace(0, 255, SIZE)[None, :, None], (SIZE, 1, 3))
    assert FaceDetail(eight_bits(ramp), landmarks()).energy(0.25, 0.5)[0] < 0.1


def test_what_surrounds_the_face_does_not_count(rng: np.random.Generator) -> None:
    source = textured(rng)
    x, y = np.meshgrid(*(np.arange(SIZE) - SIZE / 2,) * 2)
    far = np.hypot(x, y) > 0.4 * SIZE
    blurry, noisy = source.copy(), source.copy()
    blurry[far] = 128
    noisy[far] = rng.integers(0, 255, (int(far.sum()), 3))
    assert score(blurry, source) == score(noisy, source) == 1.0


@pytest.mark.parametrize(("turn_deg", "shift"), [(0.0, (17.0, -9.0)), (90.0, (0.0, 0.0)), (90.0, (-21.0, 12.0))])
def test_a_moved_face_is_as_sharp_as_the_source(
    rng: np.random.Generator, turn_deg: float, shift: tuple[float, float]
) -> None:
    """Whole pixels and right angles, which no interpolation blurs."""
    source, turn = textured(rng), np.radians(turn_deg)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).round()
    offset = np.array([SIZE / 2, SIZE / 2]) - matrix @ [SIZE / 2, SIZE / 2] + shift
    assert score(moved(source, matrix, offset), source, landmarks() @ matrix.T + offset) == pytest.approx(1.0, abs=0.02)


def test_a_face_of_twice_the_size_is_as_sharp_if_it_shows_the_same(rng: np.random.Generator) -> None:
    large = textured(rng, 2 * SIZE)
    spectrum = np.fft.fftshift(np.fft.fft2(large[..., 0].astype(float)))[SIZE // 2 : -SIZE // 2, SIZE // 2 : -SIZE // 2]
    small = np.repeat(np.fft.ifft2(np.fft.ifftshift(spectrum)).real[..., None] / 4, 3, axis=-1)
    found = sharpness(large[None], landmarks(2 * SIZE)[None], eight_bits(small), landmarks())
    assert found[0] == pytest.approx(1.0, abs=0.03)


def test_noise_is_not_detail(rng: np.random.Generator) -> None:
    """Neither on the source nor on a blurred face, which has lost all of it."""
    source = textured(rng)
    soft = blurred(source, 2.0)
    noise = 6.0 * rng.normal(size=source.shape)
    assert score(eight_bits(source + noise), source) == pytest.approx(1.0, abs=0.05)
    assert score(soft, source) < 0.01
    assert score(eight_bits(soft + noise), source) < 0.05


def test_smoothed_skin_does_not_count_as_sharper(rng: np.random.Generator) -> None:
    source = textured(rng)
    local = np.asarray(Image.fromarray(source).filter(ImageFilter.GaussianBlur(3)), dtype=float)
    weak = np.abs(source - local).mean(axis=-1, keepdims=True) < 6.0
    assert 0.9 < score(np.where(weak, blurred(source, 1.5), source), source) <= 1.0


def test_over_sharpening_is_above_one(rng: np.random.Generator) -> None:
    source = textured(rng)
    assert score(np.asarray(Image.fromarray(source).filter(ImageFilter.UnsharpMask(2, 60, 0))), source) > 1.3


def test_what_cannot_be_compared_is_undefined(rng: np.random.Generator) -> None:
    source = textured(rng)
    flat, missing, small = np.full_like(source, 128), np.full((478, 2), np.nan), landmarks() * 0.3
    assert np.isnan(score(source, flat))
    assert np.isnan(score(source, source, missing))
    assert np.isnan(sharpness(source[None], landmarks()[None], source, missing)[0])
    assert np.isnan(score(source, source, small))
    assert np.isnan(score(source, source, landmarks() + 2 * SIZE))
    assert score(source, source, landmarks() + np.array([90.0, 0.0])) > 0.0  # partly outside


def test_other_shapes_are_refused(rng: np.random.Generator) -> None:
    source = textured(rng)
    with pytest.raises(ShapeError, match="landmarks"):
        sharpness(source[None], landmarks()[None, :68], source, landmarks())
    with pytest.raises(ShapeError, match="landmarks"):
        sharpness(source[None], np.repeat(landmarks()[None], 2, 0), source, landmarks())
    with pytest.raises(ShapeError, match="picture"):
        sharpness(source[None], landmarks()[None], source[..., 0], landmarks())
