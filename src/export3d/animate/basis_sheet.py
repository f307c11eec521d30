"""What each direction v_i of the learned basis does (Eq. 3; Fig. 8, 12), as contact sheets and a table.

Directions are numbered from 1 (v1 to vn) in everything a user sees. The effect of a direction is measured on rendered
images: they are tracked again and compared pixel by pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export3d.animate.export import sheet_paths, write_sheet
from export3d.camera import head_angles
from export3d.errors import ConfigError, NoFaceFound
from export3d.expression.sliders import check_limits, coefficients, natural_range
from export3d.files import write_bytes
from export3d.motion.arkit import ARKIT52
from export3d.photo.options import Size
from export3d.provenance.writing import MARKED, Marks

if TYPE_CHECKING:
    from export3d.animate.animator import Animator, Source
    from export3d.face.tracker import Tracker

log = logging.getLogger(__name__)

Array = NDArray[np.floating]
Picture = NDArray[np.uint8]

STEPS = 7
"""Images in a strip; the middle one is the portrait's own."""
STILL_DEG = 1.5
"""A direction that changes a head angle by this much moves the head."""

_NUDGES_PX = tuple(product((-4, 0, 4), repeat=2))
"""An image is tracked under each of these shifts and the mean taken: one shift alone changes angles by 0.3 degrees."""
_SCORES_NAMED = 4


@dataclass(frozen=True, eq=False)
class Strip:
    """A portrait moved along one direction, everything else its own.

    Attributes:
        values: (7,) lambda of that direction. Over its natural range ascending: low, in the middle the portrait's own,
            high. (A portrait beyond the range has its own value out of order.)
        pictures: uint8 (H, W, 3), one for each value.
    """

    values: Array
    pictures: list[Picture]


def strips(
    animator: Animator, source: Source, limits: tuple[float, float] | None = None, size: Size | None = None
) -> list[Strip]:
    """One strip for every direction, v1 first.

    Args:
        limits: lambda of every direction runs linearly from the first to the second, whatever the portrait's own is
            (Fig. 8, 12), in place of its natural range.
        size: see `Animator.animate`.

    Raises:
        ConfigError: an impossible size or limits, or weights without a basis or, without limits, without natural
            ranges.
    """
    own, bounds = coefficients(animator.model.expression, source.expression), natural_range(animator.model.expression)
    if limits is not None:
        check_limits(*limits)
    elif not (bounds[:, 0] < bounds[:, 1]).all():
        raise ConfigError("the natural ranges of these weights' directions were never measured; use trained weights")
    unmoved = animator.render(source, source.expression, source.camera, size=size)
    found = []
    for i, (low, high) in enumerate(bounds):
        half = STEPS // 2 + 1
        values = np.concatenate([np.linspace(low, own[i], half), np.linspace(own[i], high, half)[1:]])
        if limits is not None:
            values = np.linspace(*limits, STEPS)
        pictures = []
        for value in values:
            step = np.zeros_like(own)
            step[i] = value - own[i]
            if step.any():
                pictures.append(animator.render(source, source.expression, source.camera, step, size=size))
            else:
                pictures.append(unmoved)
        found.append(Strip(values, pictures))
    return found


@dataclass(frozen=True, eq=False)
class Effect:
    """What a strip shows, tracked again.

    Attributes:
        scores: (52,) ARKit scores at the high end minus those at the low end; NaN where an end shows no face.
        angles: (3,) yaw, pitch and roll: largest minus smallest over the strip, degrees; NaN if no image has a face.
        pixels: (2,) mean absolute difference of the ends inside the face mesh and outside, 0..255; NaN likewise.
        lost: images in which no face was found.
    """

    scores: Array
    angles: Array
    pixels: Array
    lost: int


def effect(tracker: Tracker, strip: Strip) -> Effect:
    """Track a strip's images again."""
    scores = np.full((len(strip.pictures), len(ARKIT52)), np.nan)
    angles = np.full((len(strip.pictures), 3), np.nan)
    inside = np.zeros(strip.pictures[0].shape[:2], dtype=bool)
    for k, picture in enumerate(strip.pictures):
        try:
            scores[k], angles[k], region = read_face(tracker, picture)
        except NoFaceFound:
            continue
        inside |= region
    seen = np.isfinite(angles[:, 0])
    change = np.abs(strip.pictures[-1].astype(float) - strip.pictures[0]).mean(-1)
    return Effect(
        scores=scores[-1] - scores[0],
        angles=np.ptp(angles[seen], axis=0) if seen.any() else np.full(3, np.nan),
        pixels=np.array([change[inside].mean(), change[~inside].mean()]) if seen.any() else np.full(2, np.nan),
        lost=int((~seen).sum()),
    )


@dataclass(frozen=True, eq=False)
class Summary:
    """What every direction does to several portraits.

    Attributes:
        portraits: their names.
        bounds: (n, 2) the ranges: first and last lambda.
        effects: for every direction, one for each portrait.
        natural: whether they are the natural ranges.
    """

    portraits: list[str]
    bounds: Array
    effects: list[list[Effect]]
    natural: bool = True

    @property
    def angles(self) -> Array:
        """(n, 3) the largest change of yaw, pitch and roll over the portraits, degrees; NaN where none has a face."""
        return np.array([_over([e.angles for e in effects], np.max) for effects in self.effects])

    @property
    def moving(self) -> list[int]:
        """Numbers of the directions that do not leave the head still to within 1.5 degrees, or show no face."""
        return [int(i) + 1 for i in np.flatnonzero(~(self.angles < STILL_DEG).all(axis=1))]

    def markdown(self) -> str:
        """A table, one row for each direction."""
        pictures = len(self.portraits) * len(self.bounds) * STEPS
        lost = sum(effect.lost for effects in self.effects for effect in effects)
        span = "natural range" if self.natural else "range"
        lines = [
            "# Directions of the expression basis",
            "",
            f"Portraits: {', '.join(self.portraits)}; in {lost} of {pictures} pictures no face was found.",
            "",
            f"| direction | {span} | scores that move most, low to high | yaw | pitch | roll | face | rest |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for i, ((low, high), effects) in enumerate(zip(self.bounds, self.effects)):
            scores = _over([e.scores for e in effects], np.mean)
            most = np.argsort(-np.abs(scores))[:_SCORES_NAMED]
            named = ", ".join(f"{ARKIT52[j]} {scores[j]:+.2f}" for j in most if np.isfinite(scores[j]))
            pixels = _over([e.pixels for e in effects], np.mean)
            numbers = [f"{angle:.2f}" for angle in self.angles[i]] + [f"{value:.1f}" for value in pixels]
            lines.append(
                f"| v{i + 1} | {low:+.2f} to {high:+.2f} | {named or 'no face found'} | {' | '.join(numbers)} |"
            )
        return "\n".join(
            [
                *lines,
                "",
                "Scores, yaw, pitch and roll are those of the rendered pictures, tracked again: scores at the high end "
                "minus the low end, mean of the portraits; angles as largest minus smallest over the range, degrees, "
                "of the portrait that turns most. Face and rest: mean absolute difference of the two ends (of 255) "
                "inside and outside the face mesh.",
                "",
            ]
        )


def write_basis(
    animator: Animator,
    portraits: Sequence[str | Path],
    folder: str | Path,
    progress: Callable[[], object] = lambda: None,
    limits: tuple[float, float] | None = None,
    size: Size | None = None,
    marks: Marks = MARKED,
) -> Summary:
    """Write `basis_NAME.png` for every portrait, a row for each direction, and the table `basis.md`.

    Args:
        portraits: image files; NAME is the file's name without its ending.
        folder: made if missing.
        progress: called after each portrait.
        limits, size: see `strips`.
        marks: of every sheet; portrait and weights are added to their statement.

    Raises:
        ConfigError: two portraits of one name, or as in `strips`.
        BadImage, NoFaceFound: a portrait cannot be used.  OutputError: the folder cannot be written.
    """
    paths = sheet_paths("basis", portraits, folder)
    bounds = natural_range(animator.model.expression)
    if limits is not None:
        bounds = np.tile(limits, (len(bounds), 1))
    effects: list[list[Effect]] = [[] for _ in bounds]
    for path, portrait in zip(paths, portraits):
        source = animator.encode(portrait)
        drawn = strips(animator, source, limits, size)
        for found, strip in zip(effects, drawn):
            found.append(effect(animator.tracker, strip))
        own = STEPS // 2 if limits is None else None
        labels = [[_heading(i, value, k == own) for k, value in enumerate(s.values)] for i, s in enumerate(drawn)]
        write_sheet(path, [strip.pictures for strip in drawn], labels, marks.about(animator.statement(source)))
        progress()
    summary = Summary([Path(portrait).stem for portrait in portraits], bounds, effects, limits is None)
    write_bytes(Path(folder) / "basis.md", summary.markdown().encode())
    return summary


def _heading(direction: int, value: float, own: bool) -> str:
    return f"v{direction + 1} {value:+.2f}" + (" (own)" if own else "")


def read_face(tracker: Tracker, picture: Picture) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Scores (52,), head angles (3,) and the pixels of the face mesh (H, W), averaged over shifts of the image.

    The angles are those of `face.pose.still_cameras`: degrees by which the head itself turned.
    """
    from export3d.face.crop import CROP_SIZE, CropBox, crop
    from export3d.face.pose import still_cameras

    size = picture.shape[0]
    scores, angles, landmarks = [], [], []
    for x, y in _NUDGES_PX:
        box = CropBox((size / 2 + x, size / 2 + y), size)
        track = tracker.track_image(crop(picture, box, size), "a rendered picture")
        scores.append(track.motion.expression[0])
        angles.append(head_angles(still_cameras(track.landmarks, CROP_SIZE)[0][0]))
        landmarks.append(box.from_crop(track.crop.from_crop(track.landmarks[0]), size))
    return np.mean(scores, axis=0), np.mean(angles, axis=0), _mesh(np.mean(landmarks, axis=0), size)


def _mesh(landmarks: Array, size: int) -> NDArray[np.bool_]:
    """The pixels (size, size) that the face mesh covers."""
    from PIL import Image, ImageDraw

    from export3d.face.mesh import canonical_mesh

    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    for corners in landmarks[canonical_mesh().triangles]:
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.array(canvas, dtype=bool)


def _over(values: Sequence[Array], how: Callable[..., Array]) -> Array:
    """Mean or maximum over the portraits that were measured; NaN where none was."""
    measured = [value for value in values if np.isfinite(value).all()]
    return how(measured, axis=0) if measured else np.full_like(values[0], np.nan)
