"""Detects faces in an image: 478 landmarks and 52 ARKit scores from MediaPipe's Face Landmarker, behind a Protocol.

MediaPipe runs in image mode, which keeps no state between images: the same image always gives the same numbers. It
detects faces in a 128-pixel thumbnail, and therefore misses faces smaller than a fifth of the image's long side and
some faces that fill the image. `search` looks again in a padded image and in parts of the image. One detection may be
of no face at all, such as a coin or a cat's eye: `confirmed` detects again in ten squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.face.crop import MOST_PIXELS, CropBox, check_image, crop
from export3d.face.landmark_sets import CHIN, FOREHEAD
from export3d.face.mesh import model_bytes
from export3d.face.native import Task
from export3d.motion.arkit import ARKIT52

LONG_SIDE = 640
"""Whole images are downscaled to this long side before detection; larger ones take longer, with no better result."""
_SMALLEST_SQUARE = 128
"""Smaller squares are enlarged to this side, pixels."""
_SHARP_SQUARE = 448
"""Squares are reduced to this side or more, pixels: in `Face.region` a face then has the 256 that the network sees."""
MAX_FACES = 4
_SMALLEST = 16
_WINDOW = 256
_SLIMMEST = 8
"""Ratio of an image's sides above which the padded image would show it less than `_SMALLEST` pixels wide."""
_FINEST_PX = 400.0
"""Side of the smallest windows of a large image: faces of 50 pixels are found in it."""
_FINEST_SHARE = 0.08
"""Smallest side over the square root of the image's area: an image has at most about 600 windows of it."""
_SAME_FACE = 0.4
_SQUARES = (
    (2.5, 0.0, 0.0),
    (1.8, 0.0, 0.0),
    (3.0, 0.0, 0.0),
    (2.2, 0.2, 0.1),
    (2.2, -0.2, -0.1),
    (2.7, -0.25, 0.2),
    (2.7, 0.25, -0.2),
    (2.0, 0.1, -0.15),
    (3.4, -0.3, -0.3),
    (3.8, 0.3, 0.3),
)
"""Squares in which a face is detected again: side and shift to the right and down, face sizes."""
_VOTES = 8
"""Squares out of ten in which a face must be found."""
LARGEST_SPREAD = 0.015
"""Largest `spread` of what counts as a face."""


@dataclass(frozen=True)
class Face:
    """One face.

    Attributes:
        landmarks: (478, 3) float32, pixels of the image; z is in pixels too, smaller is nearer.
        scores: (52,) float32, 0..1, in the order of `motion.arkit.ARKIT52`; `tongueOut` is always 0, since MediaPipe
            does not detect it.
    """

    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the landmarks, pixels."""
        low, high = self.landmarks[:, :2].min(0), self.landmarks[:, :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def centre(self) -> NDArray[np.float64]:
        """(2,) centre of the bounds, pixels."""
        left, top, right, bottom = self.bounds
        return np.array([(left + right) / 2, (top + bottom) / 2])

    @property
    def size(self) -> float:
        """Square root of the area of the bounds, pixels."""
        left, top, right, bottom = self.bounds
        return float(np.sqrt((right - left) * (bottom - top)))

    def region(self, faces_wide: float = 2.5) -> CropBox:
        """A square around the face, of the size at which the detector works best."""
        x, y = self.centre
        return CropBox((float(x), float(y)), max(self.size * faces_wide, 1.0))


class Landmarker(Protocol):
    """The face detector that the tracker needs: the faces of a uint8 (H, W, 3) RGB image, largest first."""

    def detect(self, image: NDArray[np.uint8], region: CropBox | None = None) -> list[Face]:
        """Faces in the image, or in a square region of it; landmarks are in pixels of the image in both cases."""
        ...

    def search(self, image: NDArray[np.uint8], coarse: bool = False) -> list[Face]:
        """As `detect`, but slower: also finds small faces and faces that fill the image; only `confirmed` ones.

        A coarse search takes less time, and misses faces smaller than about a thirtieth of the image's short side.
        """
        ...

    def close(self) -> None:
        """Free all resources."""
        ...


class FaceLandmarker(Task):
    """MediaPipe's Face Landmarker with the packaged model; close it, or use it in a `with` statement.

    Create one per process: it does not survive a fork.

    Raises:
        MissingExtra: mediapipe is not installed.
        Export3DError: mediapipe is installed but cannot be loaded (it needs libEGL and libGLESv2 on Linux).
    """

    def __init__(self, model: bytes | None = None) -> None:
        def create(mediapipe: Any) -> Any:
            vision = mediapipe.tasks.vision
            options = vision.FaceLandmarkerOptions(
                base_options=mediapipe.tasks.BaseOptions(model_asset_buffer=model_bytes() if model is None else model),
                running_mode=vision.RunningMode.IMAGE,
                num_faces=MAX_FACES,
                output_face_blendshapes=True,
            )
            return vision.FaceLandmarker.create_from_options(options)

        super().__init__(create, "detect", "landmark model")

    def detect(self, image: NDArray[np.uint8], region: CropBox | None = None) -> list[Face]:
        """See `Landmarker.detect`."""
        self._check_open("face landmarker")
        check_image(image)
        if region is not None:
            seen, region = _square(image, region)
            corner, scale = region.corner, region.side / len(seen)
        else:
            seen = _shrink(image)
            corner, scale = np.zeros(2), image.shape[1] / seen.shape[1]
        if min(seen.shape[:2]) < _SMALLEST:
            return []
        result = self._native.detect(self._picture(seen))
        height, width = seen.shape[:2]
        unit = np.array([width, height, width]) * scale
        faces = []
        for points, scores in zip(result.face_landmarks, result.face_blendshapes):
            landmarks = np.array([(p.x, p.y, p.z) for p in points]) * unit
            landmarks[:, :2] += corner
            named = {score.category_name: score.score for score in scores}
            faces.append(
                Face(landmarks.astype(np.float32), np.array([named.get(name, 0.0) for name in ARKIT52], np.float32))
            )
        return distinct(faces)

    def search(self, image: NDArray[np.uint8], coarse: bool = False) -> list[Face]:
        """See `Landmarker.search`."""
        faces = [face for face in self.detect(image) if confirmed(self, image, face)]
        for regions in _search_regions(*image.shape[:2], coarse=coarse):
            if faces:
                break
            seen = distinct(_seen_in(self, image, regions))
            faces = [face for face in seen if confirmed(self, image, face)]
        return faces


def glance(landmarker: Landmarker, image: NDArray[np.uint8]) -> list[Face]:
    """The detections in the whole image and in windows as large as its short side, largest first; not confirmed."""
    seen = landmarker.detect(image)
    for regions in islice(_search_regions(*image.shape[:2]), 2):
        seen += _seen_in(landmarker, image, regions)
    return distinct(seen)


def all_faces(landmarker: Landmarker, image: NDArray[np.uint8]) -> list[Face]:
    """Every face of an image, largest first, each detected in a square around it.

    One detection returns at most `MAX_FACES` faces and misses small ones. Therefore the image is also searched in
    windows of all sizes. Textures that look like a face in one window are dropped (see `confirmed`).
    """
    seen = landmarker.detect(image)
    for regions in _search_regions(*image.shape[:2]):
        seen += _seen_in(landmarker, image, regions)
    candidates: list[Face] = []
    for face in seen:
        if not any(alike(face, other) for other in candidates):
            candidates.append(face)
    again = [_again(landmarker, image, face, face.region()) for face in candidates]
    return distinct([face for face in again if face is not None and confirmed(landmarker, image, face)])


def confirmed(landmarker: Landmarker, image: NDArray[np.uint8], face: Face) -> bool:
    """Whether a detection is of a face: its `spread` is at most 0.015.

    The spread of 561 whole faces in portraits and films (dark, blurred, tilted by up to 50 degrees, down to 32 pixels)
    was at most 0.009. Of 77 detections in images without a face, 61 had none and the others at least 0.022. Faces that
    are upside down may be detected as upright ones, with a spread of 0.006 to 0.14; the same faces upright: at most
    0.003.
    """
    return spread(landmarker, image, face) <= LARGEST_SPREAD


def spread(landmarker: Landmarker, image: NDArray[np.uint8], face: Face) -> float:
    """How far the landmarks move when the face is detected again in shifted and scaled squares around it.

    Mean distance of the landmarks from their median over the squares, face heights; the median over the squares.
    Infinite unless the face is found in 8 of ten squares.
    """
    seen: list[Face] = []
    for number, (wide, right, down) in enumerate(_SQUARES):
        x, y = face.centre + face.size * np.array([right, down])
        again = _again(landmarker, image, face, CropBox((float(x), float(y)), max(wide * face.size, 1.0)))
        if again is not None:
            seen.append(again)
        if len(seen) == _VOTES or number + 1 - len(seen) > len(_SQUARES) - _VOTES:
            break
    if len(seen) < _VOTES:
        return float("inf")
    points = np.stack([again.landmarks[:, :2] for again in seen])
    middle = np.median(points, axis=0)
    away = np.median(np.linalg.norm(points - middle, axis=-1).mean(axis=-1))
    return float(away / max(np.linalg.norm(middle[FOREHEAD] - middle[CHIN]), 1e-6))


def _again(landmarker: Landmarker, image: NDArray[np.uint8], face: Face, region: CropBox) -> Face | None:
    same = [other for other in landmarker.detect(image, region) if alike(face, other)]
    return min(same, key=lambda other: float(np.linalg.norm(other.centre - face.centre)), default=None)


def alike(a: Face, b: Face) -> bool:
    """Whether two detections are of one face: centres within a third of its size, sizes within a factor of 1.5."""
    small, large = sorted((a.size, b.size))
    return large < 1.5 * small and float(np.linalg.norm(a.centre - b.centre)) < small / 3


def _seen_in(landmarker: Landmarker, image: NDArray[np.uint8], regions: list[CropBox]) -> list[Face]:
    """The faces of regions of one size, in pixels of the image."""
    if not regions:
        return []
    small = _shrink(image, max(image.shape[:2]) * _WINDOW / regions[0].side)
    scale = image.shape[1] / small.shape[1]
    seen = [face for region in regions for face in landmarker.detect(small, region.scaled(1.0 / scale))]
    return [Face(face.landmarks * np.float32(scale), face.scores) for face in seen]


def _search_regions(height: int, width: int, *, coarse: bool = False) -> Iterator[list[CropBox]]:
    """Squares to search, from coarse to fine: the padded image, then windows of 1, 1/2, 1/4, ... of its short side.

    The smallest windows have a quarter of the short side, or `_FINEST_PX` if that is less and the search not coarse;
    in images of more than 25 megapixels, and in long strips, `_FINEST_SHARE`.
    """
    long, short = max(height, width), min(height, width)
    yield [CropBox((width / 2, height / 2), 2.0 * long)] if long <= _SLIMMEST * short else []
    for side in _sides(short, _FINEST_SHARE * (height * width) ** 0.5, coarse):
        if side >= 4 * _SMALLEST:
            yield [CropBox((x, y), side) for y in _steps(height, side) for x in _steps(width, side)]


def _sides(short: int, least: float, coarse: bool) -> list[float]:
    sides = [side for side in (short * part for part in (1.0, 0.5, 0.25)) if side >= least]
    finest = max(_FINEST_PX, least)
    while sides and sides[-1] > finest and not coarse:
        finer = sides[-1] / 2.5
        sides.append(finer if finer > 1.25 * finest else finest)
    return sides


def _steps(length: float, side: float) -> list[float]:
    """Centres of windows that cover a length and overlap by half."""
    count = max(int(np.ceil(2 * (length - side) / side)), 0) + 1
    if count == 1:
        return [length / 2]
    return [float(centre) for centre in np.linspace(side / 2, length - side / 2, count)]


def _square(image: NDArray[np.uint8], region: CropBox) -> tuple[NDArray[np.uint8], CropBox]:
    """The pixels of a square, and the square that they cover exactly.

    A square is copied, or reduced by a whole factor: resampling by any other factor takes as long as the networks.
    """
    if not _SMALLEST_SQUARE < round(region.side) <= MOST_PIXELS:
        return crop(image, region, min(max(round(region.side), _SMALLEST_SQUARE), LONG_SIDE)), region
    factor = max(int(region.side // _SHARP_SQUARE), 1)
    region = CropBox(region.centre, float(factor * round(region.side / factor))).whole()
    pixels = crop(image, region, round(region.side))
    return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels, region


def _shrink(image: NDArray[np.uint8], long_side: float = LONG_SIDE) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1.0:
        return image
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def distinct(faces: list[Face]) -> list[Face]:
    """Sorted, largest first; of two faces that overlap by more than 40 %, only the larger is kept."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.size):
        if all(_overlap(face, other) < _SAME_FACE for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Face, b: Face) -> float:
    """Area of the intersection over the smaller area."""
    (al, at, ar, ab), (bl, bt, br, bb) = a.bounds, b.bounds
    common = max(min(ar, br) - max(al, bl), 0.0) * max(min(ab, bb) - max(at, bt), 0.0)
    return common / max(min(a.size, b.size) ** 2, 1e-6)
