"""MATLAB files, against scipy's reader."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from export3d.motion.matlab import read_numbers

scipy_io = pytest.importorskip("scipy.io")

LIMIT = 1 << 20


def arrays_of(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "a": rng.normal(size=(4, 5)),
        "exp": rng.normal(size=(3, 64)).astype(np.float32),
        "a_long_name": rng.integers(-9, 9, (2, 3, 4)).astype(np.int16),
        "b": np.array([[7]], np.uint8),
        "none": np.zeros((0, 3)),
        "words": np.arange(6).reshape(2, 3),
    }


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_are_those_that_scipy_reads(rng: np.random.Generator, tmp_path: Path, packed: bool) -> None:
    arrays = arrays_of(rng)
    others = {"text": "hello", "cells": np.array([1, "b"], object), "z": np.ones((2, 2)) * 1j, "s": {"x": 1.0}}
    scipy_io.savemat(tmp_path / "a.mat", arrays | others, do_compression=packed)
    read, wanted = read_numbers(tmp_path / "a.mat", LIMIT), scipy_io.loadmat(tmp_path / "a.mat")
    assert read.keys() == arrays.keys()
    for name, values in read.items():
        np.testing.assert_array_equal(values, wanted[name])
        assert values.dtype == wanted[name].dtype


def test_big_endian_numbers_and_shrunk_ones_are_read(tmp_path: Path) -> None:
    """MATLAB stores whole doubles as small integers, and both byte orders exist."""
    for order, mark in ((">", b"MI"), ("<", b"IM")):
        flags = struct.pack(f"{order}4I", 6, 8, 6, 0)
        shape = struct.pack(f"{order}2I2i", 5, 8, 2, 3)
        name = struct.pack(f"{order}I4s", 1 << 16 | 1, b"x")
        numbers = struct.pack(f"{order}2I6b2x", 1, 6, 1, -2, 3, 4, 5, 6)
        body = flags + shape + name + numbers
        content = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + mark
        (tmp_path / "a.mat").write_bytes(content + struct.pack(f"{order}2I", 14, len(body)) + body)
        np.testing.assert_array_equal(read_numbers(tmp_path / "a.mat", LIMIT)["x"], [[1, 3, 5], [-2, 4, 6]])


def test_a_damaged_file_gives_numbers_or_a_value_error(rng: np.random.Generator, tmp_path: Path) -> None:
    for packed in (False, True):
        scipy_io.savemat(tmp_path / "a.mat", arrays_of(rng), do_compression=packed)
        whole = (tmp_path / "a.mat").read_bytes()
        refusals = 0
        for _ in range(100):
            content = bytearray(whole)
            content[rng.integers(126, len(whole))] = rng.integers(256)
            (tmp_path / "b.mat").write_bytes(content[: rng.integers(126, 4 * len(whole))])
            try:
                read_numbers(tmp_path / "b.mat", LIMIT)
            except ValueError:
                refusals += 1
        assert 0 < refusals < 100


def test_an_element_type_that_crashed_scipy_is_refused(tmp_path: Path) -> None:
    scipy_io.savemat(tmp_path / "a.mat", {"exp": np.zeros((4, 64))})
    content = bytearray((tmp_path / "a.mat").read_bytes())
    at = content.index(struct.pack("<2I", 9, 4 * 64 * 8))
    content[at + 1] = 128
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        read_numbers(tmp_path / "a.mat", LIMIT)


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    packed = zlib.compress(struct.pack("<2I", 14, 5_000_000) + bytes(5_000_000), 1)
    content = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + struct.pack("<2I", 15, len(packed)) + packed
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match="unpack to more than 1 MB"):
        read_numbers(tmp_path / "a.mat", LIMIT)
    with pytest.raises(ValueError, match="too large"):
        read_numbers(tmp_path / "a.mat", 1000)


def test_what_unpacks_to_too_much_in_several_arrays_is_refused(tmp_path: Path) -> None:
    arrays = {f"a{k}": np.zeros((100, 257)) for k in range(8)}
    scipy_io.savemat(tmp_path / "a.mat", arrays, do_compression=True)
    size = 100 * 257 * 8 + 200
    assert len(read_numbers(tmp_path / "a.mat", 8 * size)) == 8
    with pytest.raises(ValueError, match="its arrays unpack to more than"):
        read_numbers(tmp_path / "a.mat", 7 * size)
