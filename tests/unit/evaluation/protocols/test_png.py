"""Only complete, still 8-bit RGB PNGs are read."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.errors import InputError
from export3d.evaluation.protocols.predictions import SavedClip, read_predictions
from tests.saved_clips import SIZE, pictures


def refusal(folder: Path) -> str:
    """The message of a folder that must be refused."""
    with pytest.raises(InputError) as caught:
        read_predictions(folder)
    return str(caught.value)


def test_interlaced_pictures_are_read(folder: Path) -> None:
    """Seven passes, each a small picture of its own, every row behind a filter byte of 0 (none)."""
    picture = pictures(1, 7)[0]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, across, down in passes for row in picture[y::down, x::across])
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 1)
    for file, data in (("target/00000.png", rows), ("prediction/00000.png", rows[:-1])):
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
        (folder / "anna" / file).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    message = refusal(folder)
    assert "anna/prediction/00000.png: not complete" in message
    assert "anna/target" not in message
    shutil.copy(folder / "anna" / "target" / "00000.png", folder / "anna" / "prediction" / "00000.png")
    np.testing.assert_array_equal(read_predictions(folder)[0].frames(0, 1)[1][0], picture)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def insert_chunk(path: Path, kind: bytes, data: bytes) -> None:
    """Put a chunk behind a PNG's header."""
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk(kind, data) + whole[33:])


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def sixteen_bit_rgb(path: Path) -> None:
    """Pillow cannot write one, and reads it as 8 bits without a word."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(6 * SIZE) for _ in range(SIZE)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def too_few_rows(path: Path) -> None:
    """A whole file with good checksums that holds half a picture."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * SIZE) for _ in range(SIZE // 2)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def huge(path: Path) -> None:
    """A small file that promises a large picture."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def as_mode(mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(pictures(1)[0]).convert(mode).save(path, "PNG")

    return write


def as_format(name: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(pictures(1)[0]).save(path, name)


def of_shape(height: int, width: int) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, "PNG")


def animated(path: Path) -> None:
    frames = [Image.fromarray(picture) for picture in pictures(3)]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "JPEG renamed": (as_format("JPEG"), "JPEG under the name of a PNG"),
    "WebP renamed": (as_format("WEBP"), "WebP under the name of a PNG"),
    "GIF renamed": (as_format("GIF"), "GIF under the name of a PNG"),
    "BMP renamed": (as_format("BMP"), "BMP under the name of a PNG"),
    "text": (lambda path: path.write_text("see the other folder"), "not a PNG"),
    "empty": (lambda path: path.write_bytes(b""), "empty (0 bytes)"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "not complete"),
    "without its end": (lambda path: path.write_bytes(path.read_bytes()[:-12]), "not complete"),
    "signature only": (lambda path: path.write_bytes(path.read_bytes()[:8]), "not complete"),
    "a bit flipped in the pixels": (
        lambda path: flip_byte(path, path.stat().st_size // 2),
        "damaged (a checksum differs)",
    ),
    "a bit flipped in the header": (lambda path: flip_byte(path, 19), "damaged (a checksum differs)"),
    "too few rows": (too_few_rows, "not complete, rows of pixels are missing"),
    "grey": (as_mode("L"), "8-bit grey; save 8-bit RGB"),
    "grey with alpha": (as_mode("LA"), "8-bit grey with transparency"),
    "alpha": (as_mode("RGBA"), "8-bit RGB with transparency"),
    "palette": (as_mode("P"), "8-bit palette"),
    "black and white": (as_mode("1"), "1-bit grey"),
    "16-bit grey": (as_mode("I;16"), "16-bit grey"),
    "16-bit": (sixteen_bit_rgb, "16-bit RGB"),
    "a transparent colour": (lambda path: insert_chunk(path, b"tRNS", bytes(6)), "8-bit RGB with a transparent colour"),
    "animated": (animated, "an animation"),
    "not square": (of_shape(SIZE, SIZE + 8), f"{SIZE + 8} x {SIZE}, not square"),
    "too small": (of_shape(16, 16), "16 x 16; sides of 32 to 4096"),
    "huge": (huge, "50000 x 50000"),
    "link to nothing": (link_to_nothing, "a link to something that does not exist"),
    "link to itself": (link_to_itself, "cannot be opened"),
}
if hasattr(os, "mkfifo"):
    BAD_PICTURES["pipe"] = (pipe, "not a regular file")


@pytest.mark.parametrize("kind", BAD_PICTURES)
@pytest.mark.parametrize("file", ["source.png", "target/00001.png", "prediction/00003.png"])
def test_a_bad_picture_is_refused(kind: str, file: str, folder: Path) -> None:
    spoil, words = BAD_PICTURES[kind]
    spoil(folder / "anna" / file)
    message = refusal(folder)
    assert f"anna/{file}: {words}" in message
    assert "bob" not in message
    if file != "source.png":
        assert "problems" not in message, "one cause, one problem"


def write(file: str, data: bytes = b"notes") -> Callable[[Path], object]:
    return lambda clip: (clip / file).write_bytes(data)


@pytest.fixture
def clip(folder: Path) -> SavedClip:
    return read_predictions(folder)[0]
