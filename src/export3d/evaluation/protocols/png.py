"""Reads 8-bit RGB PNGs strictly: nothing is resized or converted, and damaged files are refused.

Pillow alone is not enough. It silently reduces 16-bit colours to 8 bits, skips the checksums of pixel data and leaves
missing rows black.
"""

from __future__ import annotations

import io
import stat
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.files import reason, sniff

Picture = NDArray[np.uint8]

MIN_SIDE, MAX_SIDE = 32, 4096
"""Pixels per side; below 32 the feature maps of LPIPS vanish."""
_MAX_BYTES = 256 * 2**20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHERS = {b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"BM": "BMP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG: first column and row, and their steps."""
_COLOURS = {0: "grey", 3: "palette", 4: "grey with transparency", 6: "RGB with transparency"}


class UnfitImage(Exception):
    """Why an image cannot be scored, worded to follow the file's name and a colon."""


def decode_png(path: Path) -> Picture:
    """The stored pixels, uint8 (H, W, 3), of a complete 8-bit RGB PNG.

    Raises:
        UnfitImage: the file is anything else.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnfitImage("not a regular file")
        if status.st_size == 0:
            raise UnfitImage("empty (0 bytes); copy it again")
        if status.st_size > _MAX_BYTES:
            raise UnfitImage(f"larger than {_MAX_BYTES // 2**20} MB, too large for an image of a clip")
        data = path.read_bytes()
    except FileNotFoundError as error:
        gone = "a link to something that does not exist" if path.is_symlink() else "it does not exist"
        raise UnfitImage(gone) from error
    except OSError as error:
        raise UnfitImage(f"cannot be opened ({reason(error)}); check its permissions") from error
    _check_png(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken text chunks, which say nothing about the pixels
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                pixels: Picture = np.array(image, dtype=np.uint8)
    except Exception as error:  # a parser fails on hostile bytes in any way it likes
        raise UnfitImage("damaged; copy it again or save it anew") from error
    return pixels


def _check_png(data: bytes) -> None:
    """Refuse all but complete, still 8-bit RGB PNGs, by their chunks."""
    if not data.startswith(_SIGNATURE):
        other = next((name for head, name in _OTHERS.items() if data.startswith(head)), None)
        what = "not a PNG" if other is None else f"{other} under the name of a PNG"
        raise UnfitImage(f"{what}; save 8-bit RGB PNGs from the start, since other formats lose or change pixels")
    chunks: dict[bytes, bytes] = {}
    at = len(_SIGNATURE)
    while b"IEND" not in chunks:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            raise UnfitImage("not complete; copy it again")
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            raise UnfitImage("damaged (a checksum differs); copy it again")
        chunks[kind] = chunks.get(kind, b"") + body if kind == b"IDAT" else body
        at += 12 + length
    header = chunks.get(b"IHDR", b"")
    if len(header) != 13:
        raise UnfitImage("damaged (it has no header); copy it again")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colour = header[8], header[9]
    if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise UnfitImage(f"{width} x {height}; sides of {MIN_SIDE} to {MAX_SIDE} pixels can be scored")
    if colour != 2 or depth != 8 or b"tRNS" in chunks:
        mode = "RGB with a transparent colour" if (colour, depth) == (2, 8) else _COLOURS.get(colour, "RGB")
        raise UnfitImage(f"{depth}-bit {mode}; save 8-bit RGB")
    if b"acTL" in chunks:
        raise UnfitImage("an animation; save each frame as a file of its own")
    passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
    sizes = [(len(range(x, width, across)), len(range(y, height, down))) for x, y, across, down in passes]
    expected = sum(rows * (1 + 3 * columns) for columns, rows in sizes if columns)
    try:
        found = len(zlib.decompressobj().decompress(chunks.get(b"IDAT", b""), expected + 1))
    except zlib.error as error:
        raise UnfitImage("damaged; copy it again or save it anew") from error
    if found < expected:
        raise UnfitImage("not complete, rows of pixels are missing; save it anew")


def is_png(path: Path) -> bool:
    """Whether a file begins as a PNG does."""
    try:
        return stat.S_ISREG(path.stat().st_mode) and sniff(path, 8) == _SIGNATURE
    except OSError:
        return False
