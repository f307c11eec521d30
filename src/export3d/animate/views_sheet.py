"""Novel views with expression transfer (Fig. 9, 14): contact sheets of expressions by cameras, with depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.drive import rebase, reference_frame
from export3d.animate.export import sheet_paths, write_sheet
from export3d.camera import head_position, turned
from export3d.errors import ConfigError, check_shape
from export3d.image import resize
from export3d.motion.arkit import warn_of_unlearned, with_scores
from export3d.motion.motion import AWAY, Motion
from export3d.photo.options import Size
from export3d.provenance.writing import MARKED, Marks
from export3d.render.rays import camera_rays

if TYPE_CHECKING:
    from export3d.animate.animator import Animator, Source

Array = NDArray[np.floating]
Picture = NDArray[np.uint8]

TURNS: dict[str, tuple[float, float, float]] = {
    "own view": (0.0, 0.0, 0.0),
    "yaw -30": (-30.0, 0.0, 0.0),
    "yaw -15": (-15.0, 0.0, 0.0),
    "yaw +15": (15.0, 0.0, 0.0),
    "yaw +30": (30.0, 0.0, 0.0),
    "pitch -15": (0.0, -15.0, 0.0),
    "pitch +15": (0.0, 15.0, 0.0),
}
"""Columns of a sheet: yaw, pitch and roll added to the portrait's own, degrees."""
EXPRESSIONS: dict[str, dict[str, float]] = {
    "own": {},
    "jaw open": {"jawOpen": 0.7},
    "pucker": {"mouthPucker": 0.9, "mouthSmileLeft": 0.0, "mouthSmileRight": 0.0},
    "eyes closed": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0, "eyeLookDownLeft": 0.8, "eyeLookDownRight": 0.8},
}
"""Rows of a sheet by default: ARKit scores set in the portrait's own expression. (Gaze falls as eyelids close; without
it the eyes stay half open.)"""
MOMENTS = 3
"""Frames of a motion that a sheet shows."""
HEAD_RADIUS, HEAD_BACK = 0.25, 0.035
"""A depth map takes for the head what is nearer to the head's origin than 13.5 cm and less than 2 cm behind it, scene
units. The volume has no more of a head than the front; behind it stands the background, like a wall that turns along.
"""

_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""matplotlib's colour map viridis at 0, 1/4, ... 1: its lightness rises evenly (CC0)."""
_BACKGROUND = 225


def moments(motion: Motion) -> list[int]:
    """The frames of a motion whose expressions differ most, ascending: three, or all where there are fewer.

    The first is farthest from the most neutral frame, each further one from all before it (Euclidean distance). Frames
    without the face are not chosen where there are others.
    """
    chosen = [reference_frame(motion)]
    for _ in range(min(MOMENTS, len(motion) - 1)):
        gaps = [np.linalg.norm(motion.expression - motion.expression[k], axis=-1) for k in chosen]
        chosen.append(int(np.argmax(np.where(motion.shot == AWAY, -1.0, np.min(gaps, axis=0)))))
    return sorted(set(chosen[1:] or chosen))


def expressions(
    source: Source, space: str, motion: Motion | None = None, scores: Mapping[str, float] | None = None
) -> dict[str, Array]:
    """Rows of a sheet by name, the portrait's own first.

    Args:
        source: from `Animator.encode`.
        space: its expression space.
        motion: frames of it (`moments`), relative to its most neutral one, named by their time.
        scores: one expression with these ARKit scores, in place of a motion. Without either: `EXPRESSIONS`.

    Returns:
        names and expressions (E,).

    Raises:
        BadMotionFile: the motion is of another space.
        ConfigError: an unknown score, or a space without named scores and no motion.
    """
    rows = {"own": source.expression}
    if motion is not None:
        motion.require_space(space)
        rebased = rebase(motion, source.camera, source.expression).expression
        return rows | {f"{k / motion.fps:.2f} s": rebased[k] for k in moments(motion)}
    if space != "arkit52":
        raise ConfigError(f"these weights take expressions in {space}, which has no ARKit scores; give a motion")
    warn_of_unlearned(scores)
    label = ", ".join(f"{name} {value:g}" for name, value in (scores or {}).items())
    named = {"own": {}, label: scores} if scores else EXPRESSIONS
    return {name: with_scores(source.expression, values) for name, values in named.items()}


def depth_maps(depths: Array, cameras: Array, size: int) -> list[Picture]:
    """Depths of one head from several cameras as images: yellow is near, violet is far, grey is no part of the head.

    Depth is measured along each ray from the distance of the head's origin. One scale for all images: the 1st to the
    99th percentile over the head (`HEAD_RADIUS`, `HEAD_BACK`).

    Args:
        depths: (T, R, R), scene units, along rays as the renderer gives them.
        cameras: (T, 25).
        size: height and width of the images, pixels.

    Returns:
        T images, uint8 (size, size, 3).
    """
    check_shape(depths, f"{len(cameras)} R R", "depths")
    origins, directions = camera_rays(torch.tensor(np.asarray(cameras), dtype=torch.float32), depths.shape[1])
    along = depths.reshape(len(depths), -1)
    points = origins.numpy() + along[..., None] * directions.numpy()
    margin = np.minimum(HEAD_RADIUS - np.linalg.norm(points, axis=-1), HEAD_BACK - points[..., 2])
    inside = margin.clip(-HEAD_BACK, HEAD_BACK).reshape(depths.shape)  # clipped, it runs midway along a sharp edge
    relative = depths - np.linalg.norm(head_position(cameras), axis=-1)[:, None, None]
    near, far = np.percentile(relative[inside > 0], [1, 99]) if (inside > 0).any() else (0.0, 1.0)
    scaled = (far - relative) / max(far - near, 1e-6)
    smooth = resize(torch.tensor(np.stack([scaled, inside], axis=1), dtype=torch.float32), size).numpy()
    stops = np.linspace(0.0, 1.0, len(_VIRIDIS))
    colours = np.stack([np.interp(smooth[:, 0], stops, channel) for channel in zip(*_VIRIDIS)], axis=-1)
    pictures = np.where(smooth[:, 1, ..., None] > 0.0, colours, _BACKGROUND).round().astype(np.uint8)
    return list(pictures)


def views_sheet(
    animator: Animator, source: Source, rows: Mapping[str, Array], size: Size | None = None
) -> tuple[list[list[Picture]], list[str | list[str]]]:
    """Rows of images and their headings, for `write_sheet`: the source, then each expression from all cameras.

    Below each row of images lie its depth maps, all on one scale. `size`: see `Animator.animate`.
    """
    cameras = turned(np.tile(source.camera, (len(TURNS), 1)), np.array(list(TURNS.values())))
    images, depths = [], []
    for expression in rows.values():
        for image, depth in animator.views(source, expression, cameras, size=size):
            images.append(image)
            depths.append(depth)
    maps = depth_maps(np.stack(depths), np.tile(cameras, (len(rows), 1)), len(images[0]))
    pictures: list[list[Picture]] = [[source.image]]
    labels: list[str | list[str]] = ["source"]
    for k, name in enumerate(rows):
        part = slice(k * len(TURNS), (k + 1) * len(TURNS))
        pictures += [images[part], maps[part]]
        labels += [[name, *list(TURNS)[1:]], "depth: yellow near, violet far"]
    return pictures, labels


def write_views(
    animator: Animator,
    portraits: Sequence[str | Path],
    folder: str | Path,
    motion: Motion | None = None,
    scores: Mapping[str, float] | None = None,
    progress: Callable[[], object] = lambda: None,
    size: Size | None = None,
    marks: Marks = MARKED,
) -> list[Path]:
    """Write `views_NAME.png` for every portrait; returns the files.

    Args:
        portraits: image files; NAME is the file's name without its ending.
        folder: made if missing.
        motion, scores: see `expressions`.
        progress: called after each portrait.
        size: see `Animator.animate`.
        marks: of every sheet; portrait and weights are added to their statement.

    Raises:
        ConfigError: two portraits of one name, an impossible size, or as in `expressions`.
        BadImage, NoFaceFound: a portrait cannot be used.  OutputError: the folder cannot be written.
    """
    paths = sheet_paths("views", portraits, folder)
    for path, portrait in zip(paths, portraits):
        source = animator.encode(portrait)
        sheet = views_sheet(animator, source, expressions(source, animator.space, motion, scores), size)
        write_sheet(path, *sheet, marks.about(animator.statement(source)))
        progress()
    return paths
