"""The mark survives what files go through, and is found nowhere else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from export3d.errors import ConfigError, ShapeError
from export3d.provenance.watermark import pattern
from export3d.provenance.watermark.detect import LARGEST_FALSE_POSITIVE, find_watermark
from export3d.provenance.watermark.embed import Watermark
from export3d.video.reading import read_frames
from export3d.video.writing import VideoWriter

PAYLOAD = 0xC0FFEE42


def resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.fixture
def face(astronaut: np.ndarray) -> np.ndarray:
    """The bundled portrait's upper part, uint8 (256, 256, 3)."""
    return resized(astronaut[:320, 60:380], 256, 256)


@pytest.fixture
def marked(face: np.ndarray) -> np.ndarray:
    return Watermark(PAYLOAD).apply(face)


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


ATTACKS = {
    "none": lambda frame: frame,
    "jpeg 75": lambda frame: jpeg(frame, 75),
    "75 % scale and back": lambda frame: resized(resized(frame, 192, 192), 256, 256),
    "twice as large": lambda frame: resized(frame, 512, 512),
    "90 % crop": lambda frame: np.ascontiguousarray(frame[20:250, 5:235]),
    "90 % crop, larger": lambda frame: resized(frame[3:233, 20:250], 384, 384),
    "20 % brighter": lambda frame: np.clip(frame * 1.2, 0, 255).astype(np.uint8),
    "20 % darker": lambda frame: (frame * 0.8).astype(np.uint8),
    "grey": lambda frame: np.repeat(np.asarray(Image.fromarray(frame).convert("L"))[:, :, None], 3, axis=2),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_all_bits_survive(attack, marked):
    finding = find_watermark([ATTACKS[attack](marked)])
    assert finding.payload == PAYLOAD
    assert finding.found
    assert not finding.mirrored
    assert finding.scale == pytest.approx(0.9 if "crop" in attack else 1, abs=0.005)
    assert finding.false_positive <= LARGEST_FALSE_POSITIVE


def test_a_mirrored_mark_is_read_and_told(marked):
    finding = find_watermark([marked[:, ::-1]])
    assert (finding.payload, finding.mirrored) == (PAYLOAD, True)


def test_all_bits_survive_h264_at_crf_28(astronaut_turns, tmp_path):
    watermark = Watermark(PAYLOAD)
    with VideoWriter(tmp_path / "marked.mp4", 25, 256, crf=28) as writer:
        for frame in astronaut_turns:
            writer.write(watermark.apply(frame))
    finding = find_watermark(read_frames(tmp_path / "marked.mp4"))
    assert finding.payload == PAYLOAD
    assert finding.frames == len(astronaut_turns)


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (300, 533), (600, 400)])
def test_psnr_is_at_least_43_3_db_and_the_mark_reads(size, astronaut):
    frame = resized(astronaut, *size)
    marked = Watermark(PAYLOAD).apply(frame)
    assert psnr_db(frame, marked) >= 43.3
    assert find_watermark([marked]).payload == PAYLOAD


@pytest.mark.parametrize("seed", range(3))
def test_psnr_is_at_least_43_3_db_on_the_busiest_image(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert psnr_db(noise, Watermark(seed).apply(noise)) >= 43.3


def test_flat_areas_change_by_few_levels():
    flat = np.full((256, 256, 3), 180, np.uint8)
    change = Watermark(PAYLOAD).apply(flat).astype(int) - 180
    assert np.abs(change).max() <= 5
    assert change.std() < 1.2


def test_only_luminance_changes(face, marked):
    change = marked.astype(int) - face
    unclipped = ((face > 20) & (face < 235)).all(axis=2)
    assert np.ptp(change[unclipped], axis=1).max() == 0


def test_marking_changes_no_input_and_repeats_itself(face):
    kept = face.copy()
    watermark = Watermark(PAYLOAD)
    assert (watermark.apply(face) == watermark.apply(face)).all()
    assert (face == kept).all()


def _images() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:256, :256]
    rng = np.random.default_rng(0)
    grey = {
        "black": 0 * x,
        "white": 0 * x + 255,
        "noise": rng.integers(0, 256, x.shape),
        "noise of the tile's period": np.tile(rng.integers(0, 256, (128, 128)), (2, 2)),
        "checkerboard": 255 * ((x // 8 + y // 8) % 2),
        "fine checkerboard": 255 * ((x // 2 + y // 2) % 2),
        "stripes": 127 + 120 * np.sin(2 * np.pi * (x + y) / 8),
        "16 x 16": rng.integers(0, 256, (16, 16)),
        "one column": rng.integers(0, 256, (300, 1)),
        "one row": rng.integers(0, 256, (1, 9000)),
        "one pixel": np.array([[7]]),
    }
    return {name: np.repeat(image.astype(np.uint8)[:, :, None], 3, axis=2) for name, image in grey.items()}


@pytest.mark.parametrize("name", _images())
def test_an_unmarked_image_is_unmarked(name):
    image = _images()[name]
    finding = find_watermark([image])
    assert not finding.found
    assert finding.payload is None
    assert finding.false_positive > 1e-5
    assert Watermark(PAYLOAD).apply(image).shape == image.shape


def test_an_unmarked_portrait_is_unmarked(face):
    finding = find_watermark([face])
    assert (finding.found, finding.payload, finding.frames) == (False, None, 1)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.full((8, 8, 3), np.nan),
        None,
    ],
)
def test_other_arrays_are_refused(frame):
    with pytest.raises(ShapeError, match=r"give uint8 \(H, W, 3\), RGB"):
        Watermark(1).apply(frame)
    with pytest.raises(ShapeError, match=r"give uint8 \(H, W, 3\), RGB"):
        find_watermark([frame])


def test_no_frames_and_frames_of_two_sizes_are_refused():
    with pytest.raises(ShapeError, match="at least one"):
        find_watermark(iter(()))
    with pytest.raises(ShapeError, match="one size"):
        find_watermark([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 40, 3), np.uint8)])


def test_a_payload_outside_32_bits_is_refused():
    with pytest.raises(ConfigError, match="32 bits"):
        Watermark(2**32)


def test_a_reference_pattern_without_data_is_found_and_gives_no_payload(face: np.ndarray) -> None:
    """What is left where the patterns of many files were averaged: no payload is better than any."""
    reference = np.tile(pattern.from_band(pattern.phases()[0]), (2, 2))[..., None]
    finding = find_watermark([np.clip(np.rint(face + 3.0 * reference / reference.std()), 0, 255).astype(np.uint8)])
    assert finding.found
    assert finding.payload is None
