"""Still images: files in and out, value ranges, resizing.

Inside the package, images are RGB float32 in [-1, 1], (B, 3, H, W). `uint8 (H, W, 3)` is for files, here and in
`video`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export3d import files
from export3d.errors import BadImage, ShapeError, check_shape

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Formats that Pillow opens here, besides HEIC by pillow-heif; it knows many more, with parsers that see less use."""
MIN_SIDE = 16
MAX_PIXELS = 100_000_000

_PNG = b"\x89PNG\r\n\x1a\n"
READABLE = "PNG, JPEG, WebP, HEIC, AVIF, TIFF, BMP or GIF"
"""Kinds of image files that are read."""


def read_image(path: str | os.PathLike[str], *, most_pixels: int = MAX_PIXELS, reduced_to: int | None = None) -> Pixels:
    """An image as a viewer shows it: upright, in sRGB, without transparency, 8 bits per channel.

    EXIF rotation is applied, embedded colour profiles are converted to sRGB, transparency is laid over white, 16-bit
    values are scaled, CMYK, palette and grey become RGB. Gain maps (HDR) are ignored. Of an animation the first frame
    is taken, which the log says.

    Args:
        path: a PNG, JPEG, WebP, HEIC (extra `heic`), AVIF, TIFF, BMP or GIF file.
        most_pixels: images with more are refused.
        reduced_to: images with more pixels are scaled down to so many, which takes less memory than the whole image
            does.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        BadImage: missing, a folder, empty, truncated, no image, smaller than 16 pixels a side or larger than
            `most_pixels` (known from the header, before anything is decoded), or HEIC without the extra.
    """
    path = files.check_input(path, BadImage, "an image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken tags that do not matter here, and of sizes we check
        with _opened(path) as image:
            with _reported(path):  # counting frames reads the whole file, and fails on damaged ones
                frames = getattr(image, "n_frames", 1) if image.format not in ("MPO", "HEIF") else 1
            if frames > 1:
                log.warning("%s is an animation of %d frames; the first one is used", path, frames)
            return from_pillow(image, path, most_pixels=most_pixels, reduced_to=reduced_to)


def from_pillow(
    image: Image.Image,
    name: str | os.PathLike[str] = "the image",
    *,
    most_pixels: int = MAX_PIXELS,
    reduced_to: int | None = None,
) -> Pixels:
    """A Pillow image of any mode as `read_image` returns it; the image itself stays as it is.

    Args:
        image: opened or made with Pillow. Its EXIF rotation and colour profile are applied, if it has them.
        name: what messages call it.
        most_pixels, reduced_to: see `read_image`.

    Returns:
        uint8 (H, W, 3) RGB, sRGB.

    Raises:
        BadImage: it cannot be decoded, or its size is outside the limits of `read_image`.
    """
    with _reported(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_size(name, image.width, image.height, most_pixels)
        if reduced_to is not None:
            image.draft(None, _size_within(image, reduced_to))  # JPEG alone, while it is decoded: not below that size
        image.load()
        flat = _reduced(_flat(_reduced(image, reduced_to), name), reduced_to)
        return np.array(_upright(flat, _orientation(image)), dtype=np.uint8)


def to_tensor(image: Pixels) -> Tensor:
    """uint8 (H, W, 3) or (T, H, W, 3) to float32 (3, H, W) or (T, 3, H, W) in [-1, 1].

    >>> to_tensor(np.full((2, 2, 3), 255, np.uint8))[:, 0, 0].tolist()
    [1.0, 1.0, 1.0]
    """
    import torch

    image = np.asarray(image)
    check_shape(image, "H W 3" if image.ndim == 3 else "T H W 3", "a uint8 image")
    if image.dtype != np.uint8:
        raise ShapeError(f"a uint8 image is needed, got {image.dtype}")
    tensor = torch.from_numpy(np.array(image)).movedim(-1, -3)
    return tensor.to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_uint8(tensor: Tensor) -> Pixels:
    """Float (3, H, W) or (T, 3, H, W) in [-1, 1] to uint8 (H, W, 3) or (T, H, W, 3); values outside are clipped.

    The inverse of `to_tensor` for every value.
    """
    import torch

    check_shape(tensor, "3 H W" if tensor.ndim == 3 else "T 3 H W", "an image tensor")
    scaled = tensor.detach().to(torch.float32).add(1.0).mul(127.5).round_().clamp_(0.0, 255.0)
    pixels: Pixels = scaled.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()
    return pixels


def resize(tensor: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear resize with antialiasing, (B, C, H, W) or (C, H, W) to `size` (h, w) or a square; range is kept.

    Pixel centres lie at +0.5 (`align_corners=False`); float32 inside, the input's type outside.
    """
    import torch

    target = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if tuple(tensor.shape[-2:]) == target:
        return tensor
    batch = tensor if tensor.ndim == 4 else tensor[None]
    check_shape(batch, "B C H W", "an image tensor")
    out = torch.nn.functional.interpolate(
        batch.to(torch.float32), target, mode="bilinear", align_corners=False, antialias=True
    ).to(tensor.dtype)
    return out if tensor.ndim == 4 else out[0]


def fitted(image: Pixels, height: int) -> Pixels:
    """uint8 (H, W, 3), scaled down to a height in pixels; lower images stay as they are."""
    from PIL import Image

    scale = height / image.shape[0]
    if scale >= 1.0:
        return image
    width = max(round(image.shape[1] * scale), 1)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0))


def contact_sheet(
    rows: Sequence[Sequence[Pixels]], labels: Sequence[str | Sequence[str]] | None = None, gap: int = 4
) -> Pixels:
    """Images in rows on white, for looking at many at once.

    Args:
        rows: uint8 (H, W, 3) images; rows may differ in length, images in size.
        labels: a heading above each row, or a list of headings, one above each of its images; if any.
        gap: white pixels between images and around all.

    Returns:
        uint8 (H, W, 3).
    """
    from PIL import Image, ImageDraw

    for picture in (picture for row in rows for picture in row):
        check_shape(picture, "H W 3", "a picture of a contact sheet")
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ShapeError("a contact sheet needs at least one picture")
    widths = [max((row[c].shape[1] for row in rows if c < len(row)), default=0) for c in range(columns)]
    heights = [max((picture.shape[0] for picture in row), default=0) for row in rows]
    heading = 14 if labels else 0
    height = sum(heights) + (heading + gap) * len(rows) + gap
    sheet = np.full((height, sum(widths) + gap * (columns + 1), 3), 255, np.uint8)
    y, headings = gap, []
    for row, tall in zip(rows, heights):
        headings.append(y)
        x, y = gap, y + heading
        for picture, wide in zip(row, widths):
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += wide + gap
        y += tall + gap
    if not labels:
        return sheet
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    lefts = [gap + sum(widths[:c]) + gap * c for c in range(columns)]
    for top, label in zip(headings, labels):
        for left, text in zip(lefts, [label] if isinstance(label, str) else label):
            draw.text((left, top), text, fill=(0, 0, 0))
    return np.array(canvas)


def write_png(
    path: str | os.PathLike[str], image: Pixels, metadata: dict[str, str] | None = None, level: int = 6
) -> None:
    """Write uint8 (H, W, 3) as a PNG, whole or not at all; raises `OutputError`. Arguments: see `encode_png`."""
    files.write_bytes(path, encode_png(image, metadata, level))


def encode_png(image: Pixels, metadata: dict[str, str] | None = None, level: int = 6) -> bytes:
    """The bytes of a PNG file.

    Args:
        image: uint8 (H, W, 3).
        metadata: text chunks, such as a description.
        level: of compression, 0 to 9; 1 is several times faster and little larger.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    check_shape(image, "H W 3", "a picture")
    if image.dtype != np.uint8:
        raise ShapeError(f"a uint8 picture is needed, got {image.dtype}")
    info = PngInfo()
    for key, value in sorted((metadata or {}).items()):
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", pnginfo=info, compress_level=level)
    return buffer.getvalue()


@contextmanager
def _reported(name: str | os.PathLike[str]) -> Iterator[None]:
    """Report whatever a parser raises inside the block as `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except Exception as problem:  # a parser fails on hostile bytes in any way it likes
        raise BadImage(
            f"{name} is damaged or not complete ({files.reason(problem)}); copy it again or export it anew"
        ) from problem


def _opened(path: Path) -> Image.Image:
    """The image in a file, of which only the header is read so far."""
    from PIL import Image, features

    head = b""
    try:
        head = files.sniff(path)
        still = files.still_kind(head)
        if still == "HEIC":
            return _opened_heic(path)
        if still == "AVIF" and not features.check("avif"):
            raise BadImage(f"{path} is an AVIF image, which this build of Pillow cannot read; export it as JPEG")
        try:
            return Image.open(path, formats=FORMATS)
        except ValueError:  # Pillow does not unpack profiles of over a megabyte
            if head[:8] != _PNG:
                raise
            image = Image.open(_without_profile(path), formats=["PNG"])
            log.warning("%s has a colour profile that is too large to be read; it is ignored", path)
            return image
    except BadImage:
        raise
    except Image.DecompressionBombError as problem:
        raise BadImage(f"{path} has more than {MAX_PIXELS // 10**6} megapixels; shrink it first") from problem
    except Exception as problem:  # as in _reported
        kind = files.foreign_kind(head)
        ours = kind is None or kind.endswith("image")
        what = "not an image that can be read" if ours else f"not an image but {kind}"
        raise BadImage(f"{path} is {what}; give a {READABLE} file") from problem


def _without_profile(path: Path) -> io.BytesIO:
    """A PNG file without its colour profile."""
    data = memoryview(path.read_bytes())
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, kind, content and checksum
        if bytes(data[at + 4 : at + 8]) != b"iCCP":
            kept.append(data[at:end])
        at = end
    return io.BytesIO(b"".join(kept))


def _opened_heic(path: Path) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as problem:
        raise BadImage(
            f"{path} is a HEIC image, which needs pillow-heif; run: pip install -c constraints.txt '.[heic]', or "
            "export it as JPEG"
        ) from problem
    image: Image.Image = HeifImageFile(path)
    return image


def _check_size(path: str | os.PathLike[str], width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise BadImage(f"{path} is {width} x {height}, more than {most_pixels // 10**6} megapixels; shrink it first")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{path} is {width} x {height}, too small; give one of at least 64 x 64 pixels")


def _reduced(image: Image.Image, most_pixels: int | None) -> Image.Image:
    """An image scaled down to at most so many pixels; of modes without a mean, as it is."""
    if most_pixels is None or image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"):
        return image
    from PIL.Image import Resampling

    size = _size_within(image, most_pixels)
    if size == image.size:
        return image
    factor = min(image.width // size[0], image.height // size[1])
    whole = image.reduce(factor) if factor > 1 else image  # apart, so that less is held at a time
    return whole.resize(size, Resampling.LANCZOS)


def _size_within(image: Image.Image, most_pixels: int) -> tuple[int, int]:
    """The largest size of an image's shape that has at most so many pixels, and is not larger than the image."""
    scale = min(1.0, math.sqrt(most_pixels / (image.width * image.height)))
    return max(int(image.width * scale), 1), max(int(image.height * scale), 1)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation (1..8; anything else is taken for 1)."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none, or none that can be read."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken tags are no reason to refuse an image
        return 1


def _flat(image: Image.Image, name: str | os.PathLike[str]) -> Image.Image:
    """Any Pillow mode to 8-bit sRGB, transparency over white."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    grey = Image.getmodebase(image.mode) == "L"
    alpha = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if profile and image.mode != "LAB":  # its values need no profile
        image = _in_srgb(image.convert("L") if grey else image, profile, name)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None:
        return image
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes, name: str | os.PathLike[str]) -> Image.Image:
    """Convert L, RGB, RGBA or CMYK values from their colour profile to RGB; an unusable profile is ignored.

    Relative colorimetric with black point compensation: white stays white and black stays black. Values whose profile
    is sRGB within two levels stay as they are.
    """
    from PIL import Image, ImageChops, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
        if mode is None or (mode != image.mode and (mode != "RGB" or image.mode == "CMYK")):
            raise ValueError(f"it is made for {space or 'no'} values")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
        probe = Image.fromarray(cube if mode == "RGB" else cube[..., 0]).convert(mode)
        if np.asarray(ImageChops.difference(transform.apply(probe), probe.convert("RGB"))).max() <= 2:
            return image
        converted: Image.Image = transform.apply(image.convert(mode))
        return converted
    except Exception as problem:  # also where Pillow was built without LittleCMS
        log.warning("%s has a colour profile that cannot be used (%s); it is ignored", name, files.reason(problem))
        return image


def _eight_bits(values: NDArray[Any], mode: str) -> Pixels:
    """Grey values of more than 8 bits to 0..255 by their full scale.

    16-bit types have theirs; of 32-bit integers and floats it is guessed from the largest value, as no file says it.
    """
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max(initial=0.0))
    if mode.startswith("I;16"):
        full = 65535.0
    elif mode == "F" and largest <= 1.0:
        full = 1.0
    else:
        full = next((scale for scale in (255.0, 65535.0, 2.0**31 - 1) if largest <= scale), largest)
    scaled: Pixels = np.clip(np.round(values * (255.0 / full)), 0, 255).astype(np.uint8)
    return scaled
