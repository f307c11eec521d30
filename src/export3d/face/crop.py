"""The square crop around a face, centred on the nose and constant over a clip, and its inverse.

Pixel coordinates are continuous: the image spans (0, 0) to (width, height); pixel centres lie at +0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from export3d.errors import ShapeError
from export3d.face.landmark_sets import CHIN, FOREHEAD, NOSE_TIP

CROP_SIZE = 256
"""Default side of a crop, pixels."""
MOST_PIXELS = 6000
"""Side of a patch, pixels, up to which a square beyond the image's border is read at full resolution."""
FACE_HEIGHTS = 1.9
"""Side of the crop over the distance from the top of the forehead to the chin; includes hair and some shoulder."""


@dataclass(frozen=True)
class CropBox:
    """A square in image pixels; it may extend beyond the image.

    Attributes:
        centre: (x, y), pixels.
        side: length of a side, pixels, positive.

    >>> box = CropBox((100.0, 60.0), 50.0)
    >>> box.to_crop([[100.0, 60.0]], 256).tolist()
    [[128.0, 128.0]]
    >>> box.from_crop([[0.0, 0.0]], 256).tolist()
    [[75.0, 35.0]]
    """

    centre: tuple[float, float]
    side: float

    def __post_init__(self) -> None:
        if not (np.isfinite([*self.centre, self.side]).all() and self.side > 0):
            raise ShapeError(f"a crop needs a finite centre and a positive side, got {self.centre} and {self.side}")

    @property
    def corner(self) -> NDArray[np.float64]:
        """(2,) top left corner, image pixels."""
        return np.array(self.centre, dtype=np.float64) - self.side / 2

    def to_crop(self, points: ArrayLike, size: float = CROP_SIZE) -> NDArray[np.float64]:
        """Image pixels (..., 2) to pixels of the crop resized to `size`."""
        return (np.asarray(points, dtype=np.float64) - self.corner) * (size / self.side)

    def scaled(self, factor: float) -> CropBox:
        """The same square in the image enlarged by `factor`."""
        return CropBox((self.centre[0] * factor, self.centre[1] * factor), self.side * factor)

    def whole(self) -> CropBox:
        """The square of whole pixels nearest to it: what lies in it is copied, not resampled.

        >>> CropBox((100.2, 60.0), 50.4).whole()
        CropBox(centre=(100.0, 60.0), side=50.0)
        """
        side = max(float(round(self.side)), 1.0)
        x, y = (round(middle - side / 2) + side / 2 for middle in self.centre)
        return CropBox((x, y), side)

    def from_crop(self, points: ArrayLike, size: float = CROP_SIZE) -> NDArray[np.float64]:
        """Inverse of `to_crop`."""
        return np.asarray(points, dtype=np.float64) * (self.side / size) + self.corner


def crop_box(landmarks: ArrayLike) -> CropBox:
    """The crop of a clip: centred on the median nose tip, 1.9 median face heights wide.

    Args:
        landmarks: (T, 478, 2 or 3) image pixels, or one frame (478, 2 or 3).

    Raises:
        ShapeError: landmarks of another shape.
    """
    points = np.asarray(landmarks)[..., :2]
    if points.ndim == 2:
        points = points[None]
    if points.ndim != 3 or not len(points) or points.shape[1] <= CHIN:
        raise ShapeError(f"landmarks must have shape (T, 478, 2), got {np.shape(landmarks)}")
    nose, forehead, chin = (points[:, number].astype(np.float64) for number in (NOSE_TIP, FOREHEAD, CHIN))
    x, y = np.median(nose, axis=0)
    height = float(np.median(np.linalg.norm(forehead - chin, axis=-1)))
    return CropBox((float(x), float(y)), max(FACE_HEIGHTS * height, 1.0))


def crop(image: NDArray[np.uint8], box: CropBox, size: int = CROP_SIZE) -> NDArray[np.uint8]:
    """The pixels inside the box: (H, W, 3) to (size, size, 3), antialiased bicubic; outside the image, edges repeat."""
    image, box = reduced(image, box, size)
    pixels, (first_x, first_y) = patch(image, box)
    left, top = box.corner
    x, y = left - first_x, top - first_y
    if x == y == 1.0 and box.side == size:  # whole pixels
        return np.ascontiguousarray(pixels[1 : size + 1, 1 : size + 1])
    picture = Image.fromarray(pixels)
    drawn = picture.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + box.side, y + box.side))
    return np.asarray(drawn)


def patch(image: NDArray[np.uint8], box: CropBox) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The whole pixels that cover the box and at least one more on every side; outside the image, edges repeat.

    Returns:
        uint8 (h, h, 3), a view where possible, and the x and y of its first pixel in the image.
    """
    check_image(image)
    x, y = (int(np.floor(first)) - 1 for first in box.corner)
    reach = int(np.ceil(box.side)) + 3
    return image[_inside(y, reach, image.shape[0])][:, _inside(x, reach, image.shape[1])], (x, y)


def reduced(image: NDArray[np.uint8], box: CropBox, size: int, reach: float = 1.0) -> tuple[NDArray[np.uint8], CropBox]:
    """An image reduced before its patch is made, and the square in it, if the patch would be far larger than needed.

    A patch beyond the image's border is made of repeated edges: a square around a head that fills a large photo would
    take gigabytes. Squares inside the image, and those of up to `MOST_PIXELS`, leave the image as it is.

    Args:
        image: uint8 (H, W, 3).
        box: the square.
        size: pixels across what is made of the square; at least twice as many are left.
        reach: side of the patch over that of the square.
    """
    check_image(image)
    patched = CropBox(box.centre, box.side * reach)
    factor = min(int(np.ceil(patched.side / MOST_PIXELS)), int(box.side // (2 * size)))
    if factor < 2 or not reaches_beyond(image, patched):
        return image, box
    return np.asarray(Image.fromarray(image).reduce(factor)), box.scaled(1.0 / factor)


def reaches_beyond(image: NDArray[np.uint8], box: CropBox) -> bool:
    """Whether a part of a square lies outside the image."""
    return bool((box.corner < 0.0).any() or (box.corner + box.side > image.shape[1::-1]).any())


def upright(image: NDArray[np.uint8], quarter_turns: int) -> NDArray[np.uint8]:
    """The image turned by so many times 90 degrees counter-clockwise; the same array for 0."""
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def paste(image: NDArray[np.uint8], cropped: NDArray[np.uint8], box: CropBox) -> NDArray[np.uint8]:
    """A copy of the image with the crop pasted back into its box; parts outside the image are cut off.

    Only pixels that lie entirely inside the box change.
    """
    check_image(image)
    check_image(cropped)
    height, width = image.shape[:2]
    left, top = box.corner
    x0, y0 = max(int(np.ceil(left - 1e-6)), 0), max(int(np.ceil(top - 1e-6)), 0)
    x1, y1 = min(int(np.floor(left + box.side + 1e-6)), width), min(int(np.floor(top + box.side + 1e-6)), height)
    out = image.copy()
    if x1 <= x0 or y1 <= y0:
        return out
    limit = float(cropped.shape[0])
    corners = box.to_crop([[x0, y0], [x1, y1]], limit).clip(0.0, limit).ravel().tolist()
    drawn = Image.fromarray(cropped).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=tuple(corners))
    out[y0:y1, x0:x1] = np.asarray(drawn)
    return out


def _inside(first: int, count: int, limit: int) -> slice | NDArray[np.int64]:
    """`count` indices from `first`, clamped to 0..limit - 1."""
    if first >= 0 and first + count <= limit:
        return slice(first, first + count)
    return np.arange(first, first + count).clip(0, limit - 1)


def check_image(image: NDArray[np.uint8]) -> None:
    """`ShapeError` unless the image is uint8 (H, W, 3) and has pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ShapeError(f"an image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
