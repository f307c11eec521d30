"""Where the shoulders of a person are in a clip, frame by frame.

No landmark says it. The person below the chin, as the segmentation network shows it, is compared with the same part of
an earlier frame by optical flow (dense inverse search, Kroeger et al. 2016, OpenCV's). The similarity that fits the
flow best, with the weights of Geman and McClure against what moves otherwise, tells how far the shoulders have moved,
turned and grown. Most of what lies there must be the person, and no hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from export3d.face.crop import CropBox, crop, crop_box
from export3d.face.landmark_sets import CHIN, FACE_OVAL, FOREHEAD
from export3d.motion.motion import SHOULDERS

Array = NDArray[np.floating]
Mask = Callable[[NDArray[np.uint8], tuple[float, float, float, float]], NDArray[np.float32]]
"""Probability of a person in a rectangle of an image, see `PersonSegmenter.mask`."""

_SIZE = 128
"""Side of the compared crops, pixels."""
_PERSON = 0.7
"""Probability from which a pixel counts as the person's."""
_BELOW = (0.1, 0.0, -0.1, -0.2)
"""In face heights from forehead to chin: the shoulders are seen from so far below the chin on. Where the picture ends
before it shows `_FEWEST` pixels of them, from the next one on, beside the face."""
_BESIDE = 0.15
"""There, at least so far to the left or right of the chin: a neck turns with the head."""
_FACE = 1.1
"""So many times as large as the face's oval is what is left out: a jaw opens."""
_FEWEST = 250
"""Pixels of a crop, inside the image, that must show the shoulders."""
_ANCHOR = 0.25
"""Face heights below the chin of the place that is followed, as of `camera.COLLAR`."""
_SAMPLES = 600
"""Pixels that a similarity is fitted to."""
_ROUNDS, _FEW_PIXELS = 6, 0.3
"""Rounds of the fit, and the least distance that counts as large in it, pixels of the crop."""
_STIFFNESS = 10.0
"""Squared pixels of the crop: what lies closer to the place than its root tells hardly anything of turn and size."""
_MOST_TURNED = 0.15
"""Radians, or log size, beyond which a fit is cut."""
_ALIKE = 0.45
"""Correlation with what lies there now from which a way is believed."""
_FAR = 0.06
"""Distance from the nearest known frame at which a frame becomes another one, see `_Reference.distance`."""
_ARM = 0.5
"""Sides of the crop that a turn by a radian, or a growth by e, counts for in it."""
_MOST = 12
"""Known frames that are kept, the first among them."""
_UNSURE = 12
"""After so many frames that were not sure, the next one becomes a known frame."""
_STAYED, _MOST_DIFFERENT = 0.9, 30.0
"""Shoulders are taken to have stayed if that explains the frame better: the difference is below this share of the one
after the way found. Of each pixel at most so many grey levels count."""
_FASTEST = 0.03, 0.1
"""Sides of the crop per frame faster than which shoulders do not move; and radians, or log size, faster than which they
do not turn or grow."""
UNKNOWN: NDArray[np.float32] = np.zeros(SHOULDERS + 1, np.float32)
"""What `Shoulders.step` returns where nothing is known."""


class Shoulders:
    """Follows the shoulders of one person, from the first face on.

    Without OpenCV nothing is known about them.

    Args:
        mask: tells where a person is; asked for each frame that later ones are compared with.
        origin: number of the first frame. What two origins tell cannot be compared.
    """

    def __init__(self, mask: Mask, origin: int = 0) -> None:
        self._mask, self._origin = mask, origin
        self._search = search()
        self._known: list[_Reference] = []
        self._place: Array = np.zeros(4)
        self._face: Array = np.zeros(2)
        self._unsure = 0

    def step(self, image: NDArray[np.uint8], landmarks: Array) -> NDArray[np.float32]:
        """The next frame (H, W, 3) and the landmarks (478, 2 or more) of its face, pixels.

        Returns:
            (6,): the place of the shoulders, pixels of the frame, which begins below the chin of the first face;
            whether it is sure, 0 or 1; how far they have turned since the first face, radians, clockwise, and the
            logarithm of how much larger they are; and the origin. Where they are not sure, the last ones are given.
        """
        if self._search is None:
            return UNKNOWN
        image, points = np.asarray(image), landmarks[:, :2]
        if not self._known:
            self._place = np.append(points[CHIN] + _ANCHOR * (points[CHIN] - points[FOREHEAD]), (0.0, 0.0))
            self._known.append(_Reference(image, points, self._place, self._mask))
            self._face = points.mean(axis=0)
            return self._told(self._known[0].inside is not None)
        nearest = min(reversed(self._known), key=lambda one: one.distance(points, self._place))
        oldest = next((one for one in self._known if one.distance(points) < _FAR), nearest)
        seen = [one.find(image, self._place, self._search) for one in dict.fromkeys((nearest, oldest))]
        _, place, alike = min(seen, key=lambda one: one[0])
        believed = alike >= _ALIKE and not self._too_fast(place - self._place, points, nearest.box.side)
        self._unsure = 0 if believed else self._unsure + 1
        if believed:
            self._place, self._face = place, points.mean(axis=0)
        if self._unsure == _UNSURE or nearest.distance(points, self._place) > _FAR:
            newest = _Reference(image, points, self._place, self._mask)
            self._known = [*self._known[:1], *self._known[1:][1 - _MOST :], newest]
            self._unsure = 0
        return self._told(believed)

    def _too_fast(self, change: Array, points: Array, side: float) -> bool:
        """Whether shoulders cannot have changed so far (4,), in the frame and beside the face, since they were sure."""
        steps = (change[:2], change[:2] - (points.mean(axis=0) - self._face))
        way = min(float(np.linalg.norm(step)) for step in steps) / side
        return max(way / _FASTEST[0], float(np.abs(change[2:]).max()) / _FASTEST[1]) > 1 + self._unsure

    def _told(self, sure: bool) -> NDArray[np.float32]:
        return np.array([*self._place[:2], sure, *self._place[2:], self._origin], np.float32)


class _Reference:
    """A frame that later ones are compared with, and where the shoulders are in it: x, y, turn and log size (4,)."""

    def __init__(self, image: NDArray[np.uint8], points: Array, place: Array, mask: Mask) -> None:
        self.place = place
        self.points = points
        self.box = crop_box(points)
        self.grey = _grey(image, self.box)
        self.inside = self._shoulders(image, mask)
        self._at: Array = self.box.to_crop(place[:2], _SIZE)

    def _shoulders(self, image: NDArray[np.uint8], mask: Mask) -> NDArray[np.bool_] | None:
        """(128, 128) where they are seen; None where the image shows hardly anything of them."""
        y, x = np.mgrid[:_SIZE, :_SIZE] + 0.5
        places = self.box.from_crop(np.stack([x, y], axis=-1), _SIZE)
        limits = np.array(image.shape[1::-1], dtype=float)
        seen = ((places >= 0.0) & (places <= limits)).all(axis=-1)
        low = np.clip(self.box.corner, 0.0, limits)
        high = np.clip(self.box.corner + self.box.side, 0.0, limits)
        if (high - low < 1.0).any():
            return None
        people = mask(image, (*low, *high)) > _PERSON
        column, row = np.moveaxis(((places - low) / (high - low) * people.shape[::-1]).astype(int), -1, 0)
        seen &= people[row.clip(0, people.shape[0] - 1), column.clip(0, people.shape[1] - 1)]
        face = Image.new("L", (_SIZE, _SIZE))
        oval = self.box.to_crop(self.points[list(FACE_OVAL)], _SIZE)
        middle = oval.mean(axis=0)
        ImageDraw.Draw(face).polygon([*(middle + _FACE * (oval - middle)).ravel()], fill=1)
        seen &= np.asarray(face) == 0
        chin, forehead = self.box.to_crop(self.points[[CHIN, FOREHEAD]], _SIZE)
        height = max(float(np.linalg.norm(chin - forehead)), 1.0)
        below, aside = (y - chin[1]) / height, np.abs(x - chin[0]) / height
        for start in _BELOW:
            shown = seen & (below > start) & ((aside > _BESIDE) | (start == _BELOW[0]))
            if np.count_nonzero(shown) >= _FEWEST:
                return np.asarray(shown)
        return None

    def find(self, image: NDArray[np.uint8], last: Array, search: Any) -> tuple[float, Array, float]:
        """The shoulders in another frame.

        What moves before them, such as a hand, misleads the search. Then they are where they were `last`.

        Returns:
            How much the frame differs there, their place (4,), and the correlation of both.
        """
        if self.inside is None:
            return np.inf, last, 0.0
        now = _grey(image, self.box)
        way = self._way(search.calc(self.grey, now, None))
        way[:2] *= self.box.side / _SIZE
        found, stayed = (self._compared(now, one) for one in (self.place + way, last))
        place, (difference, alike) = (last, stayed) if stayed[0] < _STAYED * found[0] else (self.place + way, found)
        return difference, place, alike

    def _way(self, flow: NDArray[np.float32]) -> Array:
        """(4,) how the place moves, pixels of the crop, how far the shoulders turn, and their log size.

        With p a pixel from the place and f its flow, f = t + [a -b; b a] p. Weighted least squares over t, a and b; a
        and b cost `_STIFFNESS` (a^2 + b^2), so that few pixels around the place turn nothing.
        """
        assert self.inside is not None
        y, x = np.nonzero(self.inside)
        some = slice(None, None, max(1, len(x) // _SAMPLES))
        moved: Array = flow[y[some], x[some]].astype(float)
        px, py = np.stack([x, y], axis=0)[:, some] + 0.5 - self._at[:, None]
        one, none = np.ones_like(px), np.zeros_like(px)
        rows = np.stack([np.stack([one, none, px, -py], 1), np.stack([none, one, py, px], 1)])
        fitted = np.array([*np.median(moved, axis=0), 0.0, 0.0])
        for _ in range(_ROUNDS):
            apart = np.linalg.norm(moved - (rows @ fitted).T, axis=1)
            large = max(1.5 * float(np.median(apart)), _FEW_PIXELS)
            weights = 1.0 / (1.0 + (apart / large) ** 2) ** 2 / len(apart)
            left = np.einsum("cni,n,cnj->ij", rows, weights, rows) + np.diag([0.0, 0.0, _STIFFNESS, _STIFFNESS])
            fitted = np.linalg.solve(left, np.einsum("cni,n,nc->i", rows, weights, moved))
        a, b = fitted[2:].clip(-_MOST_TURNED, _MOST_TURNED)
        return np.array([*fitted[:2], np.arctan2(b, 1.0 + a), np.log(np.hypot(1.0 + a, b))])

    def _compared(self, now: NDArray[np.uint8], place: Array) -> tuple[float, float]:
        """How much another crop differs if the shoulders are at a place (4,): on average, at most `_MOST_DIFFERENT`.

        And the correlation of both.
        """
        assert self.inside is not None
        y, x = np.nonzero(self.inside)
        turn, grown = place[2:] - self.place[2:]
        a, b = np.exp(grown) * np.cos(turn), np.exp(grown) * np.sin(turn)
        px, py = x + 0.5 - self._at[0], y + 0.5 - self._at[1]
        left, top = self.box.to_crop(place[:2], _SIZE)
        there = (np.floor(to).astype(int).clip(0, _SIZE - 1) for to in (top + b * px + a * py, left + a * px - b * py))
        before, after = self.grey[y, x].astype(float), now[tuple(there)].astype(float)
        apart = after - before
        difference = float(np.abs(apart - np.median(apart)).clip(max=_MOST_DIFFERENT).mean())
        before, after = before - before.mean(), after - after.mean()
        return difference, float((before * after).mean() / max(before.std() * after.std(), 1e-6))

    def distance(self, points: Array, place: Array | None = None) -> float:
        """How far the face, or the shoulders, have moved from here, sides of the crop, or how much its size differs."""
        box = crop_box(points)
        side = self.box.side
        apart = [float(np.linalg.norm(np.subtract(box.centre, self.box.centre))) / side, abs(np.log(box.side / side))]
        if place is not None:
            change = place - self.place
            apart += [float(np.linalg.norm(change[:2])) / side, *(_ARM * np.abs(change[2:]))]
        return float(max(apart))


def in_crop(shoulders: NDArray[np.float32], box: CropBox) -> NDArray[np.float64]:
    """`Shoulders.step` (N, 6) with places in a crop, crop widths."""
    return np.concatenate([box.to_crop(shoulders[:, :2], 1.0), shoulders[:, 2:]], axis=1)


def _grey(image: NDArray[np.uint8], box: CropBox) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(crop(image, box, _SIZE)).convert("L"))


def search() -> Any:
    """OpenCV's search, for one thread; None where OpenCV is not installed or lacks a library."""
    try:
        cv2: Any = importlib.import_module("cv2")
        return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    except ImportError:
        return None
