"""Where the shoulders of a person are in a clip, frame by frame.

No landmark says it. The part of the picture below the chin is compared with the same part of an earlier frame by
optical flow (dense inverse search, Kroeger et al. 2016, OpenCV's), and its median tells how far the shoulders have
moved. Most of what lies there must be the person, and no hand.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.face.crop import CropBox, crop, crop_box
from export3d.face.landmark_sets import CHIN, FOREHEAD

_SIZE = 128
"""Side of the compared crops, pixels."""
_FEWEST = 250
"""Pixels of a crop, inside the image, that must lie below the chin."""
_BELOW, _SIDEWAYS, _WIDER = 0.1, (0.15, 0.7), 1.1
"""In face heights from forehead to chin: from so far below the chin on; half the width there, and at most; and how much
wider it becomes on the way down."""
_ALIKE = 0.3, 0.6
"""Correlation with what lies there now from which the way counts, and from which it counts wholly."""
_BELIEVED = 0.5
"""How sure a way must be to be taken."""
_FAR = 0.06
"""Distance from the nearest known frame at which a frame becomes another one, see `_Reference.distance`."""
_MOST = 12
"""Known frames that are kept, the first among them."""
_UNSURE = 12
"""So does a frame after so many in which it was not sure."""
_STAYED, _MOST_DIFFERENT = 0.9, 30.0
"""Shoulders stayed if the frame then differs by less than this share of what it else would; of each pixel at most so
many grey levels count."""
_FASTEST = 0.03
"""Sides of the crop, per frame, faster than which shoulders do not move."""
UNKNOWN: NDArray[np.float32] = np.zeros(3, np.float32)
"""What `Shoulders.step` returns where nothing is known."""


class Shoulders:
    """Follows the shoulders of one person, from the first face on.

    Without OpenCV nothing is known about them.
    """

    def __init__(self) -> None:
        self._search = search()
        self._known: list[_Reference] = []
        self._place: NDArray[np.floating] = np.zeros(2)
        self._unsure = 0

    def step(self, image: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> NDArray[np.float32]:
        """The next frame (H, W, 3) and the landmarks (478, 2 or more) of its face, pixels.

        Returns:
            (3,): the place of the shoulders, pixels of the frame, counted from the face in the first frame; and how
            sure it is, 0 to 1. Where that is too little the last place is given.
        """
        if self._search is None:
            return UNKNOWN
        image, points = np.asarray(image), landmarks[:, :2]
        if not self._known:
            self._place = points.mean(axis=0)
            self._known.append(_Reference(image, points, self._place))
            return self._told(0.0 if self._known[0].inside is None else 1.0)
        nearest = min(reversed(self._known), key=lambda one: one.distance(points, self._place))
        oldest = next((one for one in self._known if one.distance(points) < _FAR), nearest)
        seen = [one.find(image, self._place, self._search) for one in dict.fromkeys((nearest, oldest))]
        _, place, sure = min(seen, key=lambda one: one[0])
        if np.linalg.norm(place - self._place) > _FASTEST * (1 + self._unsure) * nearest.box.side:
            sure = 0.0
        self._unsure = 0 if sure >= _BELIEVED else self._unsure + 1
        if sure >= _BELIEVED:
            self._place = place
        if self._unsure == _UNSURE or nearest.distance(points, self._place) > _FAR:
            self._known = [*self._known[:1], *self._known[1:][1 - _MOST :], _Reference(image, points, self._place)]
            self._unsure = 0
        return self._told(sure)

    def _told(self, sure: float) -> NDArray[np.float32]:
        return np.array([*self._place, sure], np.float32)


class _Reference:
    """A frame that later ones are compared with."""

    def __init__(self, image: NDArray[np.uint8], points: NDArray[np.floating], place: NDArray[np.floating]) -> None:
        self.place = place
        self.points = points
        self.box = crop_box(points)
        self.grey = _grey(image, self.box)
        self.inside = self._below_chin(image)

    def _below_chin(self, image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """(128, 128) where the shoulders are expected; None where the image shows hardly anything of that."""
        chin, forehead = self.box.to_crop(self.points[[CHIN, FOREHEAD]], _SIZE)
        height = max(float(np.linalg.norm(chin - forehead)), 1.0)
        y, x = np.mgrid[:_SIZE, :_SIZE] + 0.5
        below, aside = (y - chin[1]) / height, np.abs(x - chin[0]) / height
        expected = (below > _BELOW) & (aside < np.minimum(_SIDEWAYS[0] + _WIDER * below, _SIDEWAYS[1]))
        places = self.box.from_crop(np.stack([x, y], axis=-1), _SIZE)
        expected &= ((places >= 0.0) & (places <= image.shape[1::-1])).all(axis=-1)
        return expected if np.count_nonzero(expected) >= _FEWEST else None

    def find(
        self, image: NDArray[np.uint8], last: NDArray[np.floating], search: Any
    ) -> tuple[float, NDArray[np.floating], float]:
        """The shoulders in another frame.

        What moves before them, such as a hand, misleads the search. Then they are where they were `last`.

        Returns:
            How much the frame differs there, their place (2,), and how sure that is, 0 to 1.
        """
        if self.inside is None:
            return np.inf, last, 0.0
        scale, now = self.box.side / _SIZE, _grey(image, self.box)
        way = np.median(search.calc(self.grey, now, None)[self.inside], axis=0) * scale
        found, stayed = (self._compared(now, one / scale) for one in (way, last - self.place))
        place, (difference, alike) = (last, stayed) if stayed[0] < _STAYED * found[0] else (self.place + way, found)
        low, high = _ALIKE
        return difference, place, float(np.clip((alike - low) / (high - low), 0.0, 1.0))

    def _compared(self, now: NDArray[np.uint8], way: NDArray[np.floating]) -> tuple[float, float]:
        """How much another crop differs after a way (2,), pixels, on average and at most `_MOST_DIFFERENT` each.

        And the correlation of both.
        """
        assert self.inside is not None
        y, x = np.nonzero(self.inside)
        there = (np.rint(place).astype(int).clip(0, _SIZE - 1) for place in (y + way[1], x + way[0]))
        before, after = self.grey[y, x].astype(float), now[tuple(there)].astype(float)
        apart = after - before
        difference = float(np.abs(apart - np.median(apart)).clip(max=_MOST_DIFFERENT).mean())
        before, after = before - before.mean(), after - after.mean()
        return difference, float((before * after).mean() / max(before.std() * after.std(), 1e-6))

    def distance(self, points: NDArray[np.floating], place: NDArray[np.floating] | None = None) -> float:
        """How far the face, or the shoulders, have moved from here, sides of the crop, or how much its size differs."""
        box = crop_box(points)
        ways = [np.subtract(box.centre, self.box.centre), *([] if place is None else [place - self.place])]
        moved = max(float(np.linalg.norm(way)) for way in ways) / self.box.side
        return max(moved, abs(float(np.log(box.side / self.box.side))))


def _grey(image: NDArray[np.uint8], box: CropBox) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(crop(image, box, _SIZE)).convert("L"))


def search() -> Any:
    """OpenCV's search, for one thread; None where OpenCV is not installed or lacks a library."""
    try:
        cv2: Any = importlib.import_module("cv2")
        return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    except ImportError:
        return None
