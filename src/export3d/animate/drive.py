"""What moves the portrait: a driving video or a motion file, rebased on the source.

Motion is transferred in one of two ways. *Relative* (the default) adds the change of the driving face, measured from
its most neutral frame, to the source's pose and expression: the portrait keeps its own head pose and its own smile.
*Absolute* uses the driving face's cameras and expressions unchanged: the portrait gets the pose and framing of the
driving face. Same-identity scores are measured this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export3d import camera
from export3d.errors import BadMotionFile, check_shape
from export3d.files import kind_at
from export3d.motion.arkit import ARKIT52, with_scores
from export3d.motion.bfm64 import load_bfm64
from export3d.motion.livelink import load_live_link_face
from export3d.motion.motion import Motion
from export3d.video.reading import frame_range, nothing_selected

if TYPE_CHECKING:
    from export3d.face.crop import CropBox
    from export3d.face.tracker import Tracker

FPS = 25.0
"""Frames per second of everything the model sees and makes."""
MOTION_SUFFIXES = (".motion", ".csv", ".mat", ".npz")
"""Endings of the files that hold a motion; everything else is taken for a video."""
BUNDLED = ("speech", "expressions", "turns")
"""Names of the motions inside the package."""

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_AT_REST = (
    "jawOpen",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "mouthSmileLeft",
    "mouthSmileRight",
    "browInnerUp",
    "mouthPucker",
)
"""Scores that say how far a face is from rest, for choosing the reference frame."""


@dataclass(frozen=True)
class Driving:
    """A motion and where it came from.

    Attributes:
        motion: at 25 fps.
        video: the driving video, or None for a motion file.
        crop: the face crop within the video, or None.
        start_s: time of the video at which the motion begins, seconds.
    """

    motion: Motion
    video: Path | None = None
    crop: CropBox | None = None
    start_s: float = 0.0

    def pictures(self, frames: list[int], size: int = 256) -> list[NDArray[np.uint8]]:
        """The driving face at these frame numbers (ascending), cropped as the tracker saw it; [] for a motion file."""
        if self.video is None or self.crop is None:
            return []
        from export3d.face.crop import crop
        from export3d.video import read_frames

        wanted, out = set(frames), []
        for number, frame in enumerate(read_frames(self.video, FPS, start_s=self.start_s)):
            if number in wanted:
                out.append(crop(frame, self.crop, size))
            if number >= max(wanted, default=-1):
                break
        return out


def driving(
    path: str | Path,
    tracker: Tracker | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    start_s: float = 0.0,
    seconds: float | None = None,
) -> Driving:
    """Track a driving video at 25 fps; what `read_motion` reads is read.

    Args:
        path: a video, a motion file by its ending, or the name of a bundled motion.
        tracker: one to use; by default a new one.
        progress: called with the number of frames tracked.
        start_s: start at this time of the video or motion, seconds, rounded to a frame.
        seconds: maximum duration, seconds; a video is read no further.

    Raises:
        BadVideo, NoFaceFound, BadMotionFile
        ConfigError: `start_s` and `seconds` select no frame.
    """
    path = motion_path(path)
    if path.suffix.lower() in MOTION_SUFFIXES:
        return read_motion(path, start_s, seconds)
    from export3d.face.tracker import Tracker

    track = (tracker or Tracker()).track_video(path, FPS, progress, start_s=start_s, seconds=seconds)
    return Driving(track.motion, video=path, crop=track.crop, start_s=frame_range(start_s, seconds, FPS)[0] / FPS)


def read_motion(path: str | Path, start_s: float = 0.0, seconds: float | None = None) -> Driving:
    """Read a motion file, resampled to 25 fps, or a part of it (see `driving`).

    The ending says what it is: .csv a Live Link Face recording, .mat and .npz Deep3DFaceRecon coefficients, all else a
    `.motion` file. Raises `BadMotionFile` for anything else.
    """
    path = Path(path)
    readers = {".csv": load_live_link_face, ".mat": load_bfm64, ".npz": load_bfm64}
    return Driving(part(readers.get(path.suffix.lower(), Motion.load)(path).resampled(FPS), path, start_s, seconds))


def part(motion: Motion, path: str | Path, start_s: float = 0.0, seconds: float | None = None) -> Motion:
    """A part of a motion, rounded to its frames; `ConfigError`, which names `path`, if it has no frame."""
    first, end = frame_range(start_s, seconds, motion.fps)
    if first >= len(motion):
        raise nothing_selected(path, motion.duration_s)
    return motion[first:end]


def driving_motion(path: str | Path) -> Motion:
    """The motion of a driving video, of a motion file or of a bundled motion, at 25 fps (see `driving`)."""
    return driving(path).motion


def bundled_motion(name: str) -> Path:
    """The path of a motion inside the package, by name (`BUNDLED`)."""
    if name not in BUNDLED:
        raise BadMotionFile(f"there is no bundled motion {name!r}; the names are {', '.join(BUNDLED)}")
    return _ASSETS / "motions" / f"{name}.motion"


def motion_path(name: str | Path) -> Path:
    """A motion file; a name of `BUNDLED` that is no file here means the one inside the package."""
    path = Path(name)
    return bundled_motion(str(name)) if str(name) in BUNDLED and kind_at(path) is None else path


def bundled_portrait() -> Path:
    """The path of the portrait inside the package: NASA's astronaut Eileen Collins, public domain."""
    return _ASSETS / "astronaut.png"


def reference_frame(motion: Motion) -> int:
    """The frame that relative motion counts from: the head most frontal and the face most at rest.

    Each 10 degrees of head rotation cost as much as one ARKit score of 1; without ARKit scores the pose alone decides.
    Ties go to the first frame.
    """
    cost = np.linalg.norm(camera.head_angles(motion.camera), axis=-1) / 10.0
    if motion.space == "arkit52":
        cost = cost + motion.expression[:, [ARKIT52.index(name) for name in _AT_REST]].sum(axis=-1)
    return int(np.argmin(cost))


def rebase(
    motion: Motion,
    source_camera: NDArray[np.floating],
    source_expression: NDArray[np.floating],
    relative: bool = True,
    reference: int | None = None,
) -> Motion:
    """Cameras and expressions to render the source with.

    Relative: with W the world-to-camera rotation and t the head's position in camera axes, frame k of the result has
    W = W_k W_ref^-1 W_source, t = t_source + t_k - t_ref and expression source + driving_k - driving_ref, clipped to
    0..1 for ARKit scores. At the reference frame the source keeps its own pose and expression exactly.

    Args:
        motion: the driving motion, T frames.
        source_camera: (25,) label of the source portrait.
        source_expression: (E,) of the source portrait, in the motion's expression space.
        relative: False returns the motion as it is.
        reference: frame number to count from; by default `reference_frame(motion)`.

    Returns:
        T frames, the same fps and space.
    """
    check_shape(np.asarray(source_camera), str(camera.LABEL_SIZE), "source_camera")
    check_shape(np.asarray(source_expression), str(motion.expression.shape[1]), "source_expression")
    if not relative:
        return motion
    start = reference_frame(motion) if reference is None else reference
    rotation = np.swapaxes(camera.unpack(motion.camera.astype(np.float64))[0][:, :3, :3], -1, -2)
    source_pose, source_intrinsics = camera.unpack(np.asarray(source_camera, dtype=np.float64))
    turned = rotation @ rotation[start].T @ source_pose[:3, :3].T
    moved = camera.head_position(motion.camera)
    position = camera.head_position(source_camera) + moved - moved[start]
    cam2world = np.tile(np.eye(4), (len(motion), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(turned, -1, -2)
    cam2world[:, :3, 3] = -(cam2world[:, :3, :3] @ position[:, :, None])[:, :, 0]
    labels = camera.pack(cam2world, np.broadcast_to(source_intrinsics, (len(motion), 3, 3)))
    expression = np.asarray(source_expression) + motion.expression - motion.expression[start]
    if motion.space == "arkit52":
        expression = expression.clip(0.0, 1.0)
    return replace(motion, expression=expression.astype(np.float32), camera=labels.astype(np.float32))


def hold(motion: Motion, scores: Mapping[str, float]) -> Motion:
    """The motion with some ARKit scores held at one value in every frame (names as in `motion.arkit.with_scores`).

    What is held must not be measured from the reference frame again: `hold` comes after `rebase`, and its result is
    animated with `relative=False`.

    Raises:
        BadMotionFile: the motion's expression space has no named scores.
        ConfigError: an unknown name, or a value outside 0..1.
    """
    motion.require_space("arkit52")
    return replace(motion, expression=with_scores(motion.expression, scores))
