"""Decodes the media of a record into images: PyAV for clips, Pillow for stills."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError, MissingExtra


def decode(record: Record, resolution: int) -> NDArray[np.uint8]:
    """The images of a record: (T, 3, R, R) uint8 RGB, downsampled with antialiasing if R is below their size.

    Raises:
        InputError: the media is damaged, or its number of frames differs from the track's.
        ConfigError: the images are smaller than R.
    """
    try:
        pictures = decode_still(record.media) if record.suffix == "png" else _decode_video(record.media)
    except InputError as error:
        raise InputError(f"record {record.key} cannot be decoded ({error}); prepare it again") from error
    if len(pictures) != record.frames:
        raise InputError(
            f"record {record.key} has {len(pictures)} images for {record.frames} tracked frames; prepare it again"
        )
    if pictures.shape[-1] < resolution:
        raise ConfigError(f"record {record.key} is {pictures.shape[-1]} px, resolution {resolution} needs larger crops")
    return _reduce(pictures, resolution)


def _decode_video(media: bytes) -> NDArray[np.uint8]:
    """Decode an MP4 that preparation wrote: (T, 3, H, W)."""
    try:
        import av
        from av.video.reformatter import VideoReformatter
    except ImportError as error:
        remedy = "install it, or use frames that `export3d pack` wrote on a machine that has it"
        raise MissingExtra("video", "PyAV, which decodes shards of videos,", remedy) from error

    from export3d.video.view import BT709, FULL, LIMITED, SWS_QUALITY

    reformatter: Any = VideoReformatter()
    colours = {"src_colorspace": BT709, "dst_colorspace": BT709, "src_color_range": LIMITED, "dst_color_range": FULL}
    pictures: list[NDArray[np.uint8]] = []
    try:
        with av.open(io.BytesIO(media), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            # The pool already decodes one clip per core.
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                rgb = reformatter.reformat(
                    frame, frame.width, frame.height, "rgb24", interpolation=SWS_QUALITY, **colours
                )
                pictures.append(rgb.to_ndarray())
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(str(error)) from error
    if not pictures:
        raise InputError("it has no images")
    stacked: NDArray[np.uint8] = np.stack(pictures)
    return stacked.transpose(0, 3, 1, 2)


def decode_still(media: bytes) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG that this package wrote: (1, 3, H, W)."""
    try:
        with Image.open(io.BytesIO(media), formats=("PNG", "JPEG")) as image:
            pixels: NDArray[np.uint8] = np.array(image.convert("RGB"), dtype=np.uint8)
            return pixels.transpose(2, 0, 1)[None]
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(str(error)) from error


def decode_exactly(media: bytes, stored: int, resolution: int) -> NDArray[np.uint8]:
    """A still of `stored` pixels per side as (1, 3, R, R) uint8 RGB, downsampled with antialiasing if R is smaller.

    Raises:
        InputError: it is damaged or of another size.
    """
    picture = decode_still(media)
    if picture.shape[-2:] != (stored, stored):
        raise InputError(
            f"an image has {picture.shape[-1]} x {picture.shape[-2]} pixels instead of {stored} x {stored}"
        )
    return _reduce(picture, resolution)


def _reduce(pictures: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    if pictures.shape[-2:] == (resolution, resolution):
        return pictures
    small = torch.nn.functional.interpolate(
        torch.from_numpy(pictures), size=(resolution, resolution), mode="bilinear", antialias=True
    )
    reduced: NDArray[np.uint8] = small.numpy()
    return reduced


def decoders(threads: int | None) -> int:
    """Number of clips to decode in parallel; by default one per core."""
    return max(1, threads if threads is not None else (os.cpu_count() or 1))
