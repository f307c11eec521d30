"""ICC profiles, written byte by byte (ICC.1:2001-04), and the values they describe, by NumPy alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

D50 = (0.9642, 1.0, 0.8249)
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
"""X, Y and Z of red, green and blue under D50."""
WIDE = {
    "Display P3": ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    "ProPhoto RGB": ((0.7977, 0.288, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)),
}
GAMMA = {"Adobe RGB": 2.19921875, "ProPhoto RGB": 1.8}
"""Display P3 has sRGB's curve."""

Array = NDArray[np.float64]


def linear(values: Array) -> Array:
    """sRGB values in 0..1 to light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: Array) -> Array:
    """Light in 0..1 to sRGB values; light outside is clipped."""
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def in_space(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of sRGB as the same colours in a wider space."""
    light = linear(pixels / 255.0) @ np.array(SRGB) @ np.linalg.inv(np.array(WIDE[name]))
    values = encoded(light) if name not in GAMMA else np.clip(light, 0, 1) ** (1 / GAMMA[name])
    return np.round(values * 255).astype(np.uint8)


def rgb_profile(name: str) -> bytes:
    ramp = np.linspace(0, 1, 1024)
    curve = _curve(linear(ramp) if name not in GAMMA else ramp ** GAMMA[name])
    tags = {f"{letter}XYZ".encode(): _xyz(column) for letter, column in zip("rgb", WIDE[name])}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(np.linspace(0, 1, 1024) ** gamma)})


def cmyk_profile(inks: Mapping[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A printer whose 16 full mixtures of inks (0 or 1 each) have these CIE Lab colours; all others are black."""
    nodes = bytearray()
    for mixture in np.ndindex(2, 2, 2, 2):
        lightness, a, b = inks.get(mixture, (0.0, 0.0, 0.0))
        nodes += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    identity = bytes(range(256))
    matrix = b"".join(_fixed(float(row == column)) for row in range(3) for column in range(3))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + bytes(nodes) + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})


def srgb_of_lab(lightness: float, a: float, b: float) -> Array:
    """CIE Lab under D50 to sRGB values, 0..255."""
    y = (lightness + 16) / 116
    powers = np.array([y + a / 500, y, y - b / 200])
    xyz = np.array(D50) * np.where(powers > 6 / 29, powers**3, (powers - 4 / 29) * 3 * (6 / 29) ** 2)
    return encoded(xyz @ np.linalg.inv(np.array(SRGB))) * 255


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(values: Array) -> bytes:
    table = np.clip(np.round(values * 65535), 0, 65535).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(table)) + table.tobytes()


def _profile(device: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    label = b"made up\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(label)) + label + bytes(79)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(D50), **tags}
    at, index, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        index += key + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = 128 + len(index) + len(body)
    date = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, device, space, connection) + date + b"acsp"
    head += bytes(28) + b"".join(map(_fixed, D50))
    return head.ljust(128, b"\0") + index + body
