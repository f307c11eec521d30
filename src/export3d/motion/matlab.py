"""Reads the numbers in MATLAB files of level 5 (`save -v6` and `-v7`), by the published layout of MAT files.

scipy reads more kinds of them, but a damaged file can crash its native code, and the process with it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Element types that hold numbers."""
_ARRAY, _COMPRESSED = 14, 15
"""Element types of an array, and of a zlib stream that holds one."""
_NUMERIC_CLASSES = range(6, 16)
"""Classes of arrays: double, single and integers; the others are cells, structures, text and sparse matrices."""
_COMPLEX = 0x800


def read_numbers(path: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    """The real numeric arrays of a MATLAB file by name; arrays of other classes are left out.

    Args:
        path: the file.
        max_bytes: a file that is larger, or whose compressed arrays unpack to more together, is refused.

    Raises:
        ValueError: damaged, incomplete or too large.
    """
    if path.stat().st_size > max_bytes:
        raise ValueError("it is too large")
    data = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("its byte order is not stated")
    arrays: dict[str, NDArray[Any]] = {}
    left = max_bytes
    try:
        for kind, content in _elements(data[128:], order):
            if kind == _COMPRESSED:
                unpacked = zlib.decompressobj().decompress(content, left + 1)
                left -= len(unpacked)
                if left < 0:
                    break
                kind, content = next(_elements(memoryview(unpacked), order))
            if kind == _ARRAY:
                arrays.update(_array(content, order))
    except (struct.error, zlib.error, ValueError, StopIteration) as problem:
        raise ValueError("an array is damaged or incomplete") from problem
    if left < 0:
        raise ValueError(f"its arrays unpack to more than {max_bytes / 2**20:.0f} MB")
    return arrays


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each data element: a tag of two words, and content padded to 8 bytes."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, at)
        start = at + 8
        if kind >> 16:  # the short form: size and type share a word, the content is the other
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        content = data[start : start + size]
        if len(content) < size:
            raise ValueError
        yield kind, content
        at = start + size
        if kind != _COMPRESSED:
            at += -at % 8


def _array(content: memoryview, order: str) -> dict[str, NDArray[Any]]:
    """The array in an element as {name: array}; {} if it is not of real numbers."""
    (_, flags), (_, shape), (_, name), *values = islice(_elements(content, order), 4)
    word = struct.unpack_from(f"{order}I", flags)[0]
    if word & 0xFF not in _NUMERIC_CLASSES or word & _COMPLEX or not values:
        return {}
    kind, numbers = values[0]
    if kind not in _NUMBERS:
        raise ValueError
    sizes = np.frombuffer(shape, f"{order}i4").tolist()
    return {bytes(name).decode("latin-1"): np.frombuffer(numbers, order + _NUMBERS[kind]).reshape(sizes, order="F")}
