"""Decoded frames as a player shows them: colours, pixel aspect, rotation and transparency."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

Pixels = NDArray[np.uint8]

MAX_SIDE = 8192
"""Longest side of a frame, pixels."""
SWS_QUALITY = 0x4 | 0x2000 | 0x40000
"""Bicubic chroma, full horizontal chroma interpolation, accurate rounding (8 dB better than the default)."""
BT709, _BT601, _FCC, _SMPTE240M, _BT2020 = 1, 5, 4, 7, 9
_MATRICES = {1: BT709, 4: _FCC, 5: _BT601, 6: _BT601, 7: _SMPTE240M, 9: _BT2020, 10: _BT2020}
"""Colour matrix code in the file (ISO 23001-8) to swscale's code."""
LIMITED, FULL = 1, 2


class View:
    """Converts decoded frames to images as a player shows them, with the size and orientation of the first frame.

    Args:
        first: the first frame.
        pixel_aspect: width of a pixel over its height.
        long_side: larger images are reduced to it, pixels.
    """

    def __init__(self, first: VideoFrame, pixel_aspect: Fraction, long_side: int = MAX_SIDE) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter: VideoReformatter = VideoReformatter()
        self._interleaver: VideoReformatter = VideoReformatter()
        self._stored = (first.width, first.height)
        if Fraction(1, 8) <= pixel_aspect <= 8 and pixel_aspect != 1:
            self._stored = (min(MAX_SIDE, max(1, round(first.width * pixel_aspect))), first.height)
        if max(self._stored) > long_side:
            width, height = (max(1, round(side * long_side / max(self._stored))) for side in self._stored)
            self._stored = (width, height)
        self._swap, self._mirror_x, self._mirror_y = _orientation(first)
        self.width, self.height = self._stored[::-1] if self._swap else self._stored
        self.rotation = {
            (False, False, False): 0,
            (True, False, True): 90,
            (False, True, True): 180,
            (True, True, False): 270,
        }.get((self._swap, self._mirror_x, self._mirror_y), 0)

    def picture(self, frame: VideoFrame) -> Pixels:
        """(H, W, 3) uint8 RGB, contiguous."""
        name = frame.format.name
        full = frame.color_range == FULL or name.startswith(("yuvj", "gray", "pal", "mono")) or frame.format.is_rgb
        matrix = _MATRICES.get(int(frame.colorspace), BT709 if frame.height >= 720 else _BT601)
        alpha = name == "pal8" or any(component.is_alpha for component in frame.format.components)
        # swscale's accurate conversion to planes is three times as fast as that to interleaved pixels, and equal to it
        planes = not alpha and not frame.format.is_rgb
        rgb = self._reformatter.reformat(
            frame,
            *self._stored,
            "rgba" if alpha else "gbrp" if planes else "rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            interpolation=SWS_QUALITY,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
            threads=1,
        )
        if planes:
            rgb = self._interleaver.reformat(rgb, format="rgb24", threads=1)
        pixels: Pixels = np.asarray(rgb.to_ndarray())
        if alpha:
            weight = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
        if self._swap:
            pixels = pixels.swapaxes(0, 1)
        if self._mirror_x:
            pixels = pixels[:, ::-1]
        if self._mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """From a frame's display matrix: whether to swap its axes, then mirror x, then mirror y."""
    side_data: Any = frame.side_data
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d, *_ = (float(v) for v in np.frombuffer(bytes(data), dtype=np.int32))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0
