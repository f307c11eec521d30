"""What moves the portrait: a driving video or a motion file, rebased on the source.

Motion is transferred in one of two ways. *Relative* (the default) adds the change of the driving face, measured from
the most neutral frame of each shot, to the source's pose and expression: the portrait keeps its own head pose and its
own smile. How far its head moves through the frame is the subject of `head_motion`.
*Absolute* uses the driving face's cameras and expressions unchanged: the portrait gets the pose and framing of the
driving face. Same-identity scores are measured this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export3d import camera
from export3d.animate.head_motion import (
    PLACE_AND_SIZE,
    SHOULDERS_TURN,
    HeadMotion,
    angles_deg,
    check_head_motion,
    displacement,
    eased,
    eased_expression,
    limited,
    neck_place,
    runs,
    seen_rotation,
    with_neck,
)
from export3d.animate.rest import around, at_rest, changed, looking_ahead, moving
from export3d.errors import BadMotionFile, ConfigError, check_shape
from export3d.face.mesh import canonical_mesh
from export3d.files import kind_at
from export3d.motion.arkit import ARKIT52, columns_of, with_scores
from export3d.motion.bfm64 import load_bfm64
from export3d.motion.livelink import load_live_link_face
from export3d.motion.motion import AWAY, Motion
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
_OPENED = ("jawOpen", "mouthLowerDown", "mouthUpperUp")
"""Scores of a mouth that opens. People speak: that of the reference frame may be open. In many clips it is."""
_CLOSED = 10.0
"""Per cent of a motion's frames in which each of these scores counts as at rest."""
_ALIKE_DEG = 10.0
"""Eyes of a head that turns stay on the camera: looks are compared among heads whose angles differ by less."""
_LEAVING_S = 0.3
"""A face leaves the frame, or comes into it, in about this time, and is then seen in part."""
_RESTLESS = 0.3
"""A shot whose most neutral face is so much farther from rest than the motion's takes the motion's."""


@dataclass(frozen=True)
class Driving:
    """A motion and where it came from.

    Attributes:
        motion: at 25 fps.
        video: the driving video, or None for a motion file.
        crop: the face crop within the video, or None.
        shot_crops: the face crop of each shot by its number; empty for a video without cuts.
        start_s: time of the video, or of the sound, at which the motion begins, seconds.
        quarter_turns: turns by 90 degrees counter-clockwise after which the video is upright; the crop is of these.
        sound: a file whose sound goes with the motion, in place of the video's.
        faces: the driving face at the moments that a contact sheet shows (`export.sheet_frames`), uint8 (H, W, 3), in
            place of the video.
    """

    motion: Motion
    video: Path | None = None
    crop: CropBox | None = None
    start_s: float = 0.0
    quarter_turns: int = 0
    shot_crops: Mapping[int, CropBox] = field(default_factory=dict)
    sound: Path | None = None
    faces: Sequence[NDArray[np.uint8]] = ()

    def pictures(self, frames: list[int], size: int = 256) -> list[NDArray[np.uint8]]:
        """The driving face at these frame numbers (ascending), in the crop of its shot; [] for a motion file.

        Raises:
            ConfigError: the motion has `faces`, but not as many as these frames.
        """
        if self.faces:
            if len(self.faces) != len(frames):
                raise ConfigError(f"a contact sheet of this motion shows {len(frames)} faces, got {len(self.faces)}")
            return list(self.faces)
        if self.video is None or self.crop is None:
            return []
        from export3d.face.crop import crop, reaches_beyond, upright
        from export3d.video import read_frames

        wanted, out = set(frames), []
        for number, frame in enumerate(read_frames(self.video, FPS, start_s=self.start_s)):
            if number in wanted:
                box = self.shot_crops.get(int(self.motion.shot[number]), self.crop)
                frame = upright(frame, self.quarter_turns)
                if reaches_beyond(frame, box):
                    from export3d.photo.extension import extended_crop

                    out.append(extended_crop(frame, box, size))
                else:  # the same, without loading PyTorch
                    out.append(crop(frame, box, size))
            if number >= max(wanted, default=-1):
                break
        return out


def driving(
    path: str | Path,
    tracker: Tracker | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    face: str | int = "largest",
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
        face: which face of a video moves the portrait, see `Tracker.track_frames`.

    Raises:
        BadVideo, NoFaceFound, BadMotionFile
        ConfigError: `start_s` and `seconds` select no frame, or `face` is none of these.
    """
    path = motion_path(path)
    if path.suffix.lower() in MOTION_SUFFIXES:
        return read_motion(path, start_s, seconds)
    from export3d.face.tracker import Tracker

    track = (tracker or Tracker()).track_video(path, FPS, progress, face, start_s=start_s, seconds=seconds)
    first = frame_range(start_s, seconds, FPS)[0]
    return Driving(track.motion, path, track.crop, first / FPS, track.quarter_turns, track.shot_crops())


@contextmanager
def driving_meanwhile(
    path: str | Path, progress: Callable[[int], None], *, face: str | int, start_s: float, seconds: float | None
) -> Iterator[Callable[[], Driving]]:
    """`driving` in a thread during the block, with a tracker of its own; gives a function that waits for the result.

    That function raises what `driving` raises. A block that fails or is interrupted ends the tracking at the next
    frame. A motion file, or the name of a bundled motion, is read by that function itself.
    """
    if motion_path(path).suffix.lower() in MOTION_SUFFIXES:
        yield partial(driving, path, start_s=start_s, seconds=seconds)
        return
    tracker, stopped = _ready_to_track(), False

    def check(done: int) -> None:
        if stopped:
            raise KeyboardInterrupt
        progress(done)

    def tracked() -> Driving:
        with tracker:  # freed before rendering
            return driving(path, tracker, check, face=face, start_s=start_s, seconds=seconds)

    thread = ThreadPoolExecutor(1, "driving")
    try:
        yield thread.submit(tracked).result
    finally:
        stopped = True
        thread.shutdown()


def _ready_to_track() -> Tracker:
    """A tracker for a thread, after which tracking imports nothing more.

    A signal that interrupts an import of the main thread can leave the import lock taken. A thread that imports would
    then wait for ever.
    """
    import av.subtitles.stream  # noqa: F401 - PyAV imports it where it opens a file
    import numpy.ctypeslib  # NumPy imports it for the first mask of MediaPipe,
    import numpy.ma  # noqa: F401 - and this for its first median
    from PIL import Image

    from export3d.face.shoulders import search
    from export3d.face.tracker import Tracker

    Image.init()
    canonical_mesh()
    search()
    return Tracker()


def read_motion(
    path: str | Path, start_s: float = 0.0, seconds: float | None = None, *, suffix: str | None = None
) -> Driving:
    """Read a motion file, resampled to 25 fps, or a part of it (see `driving`).

    The ending, or `suffix` in its place, says what it is: .csv a Live Link Face recording, .mat and .npz
    Deep3DFaceRecon coefficients, all else a `.motion` file. Raises `BadMotionFile` for anything else.
    """
    path = Path(path)
    readers = {".csv": load_live_link_face, ".mat": load_bfm64, ".npz": load_bfm64}
    reader = readers.get((path.suffix if suffix is None else suffix).lower(), Motion.load)
    return Driving(part(reader(path).resampled(FPS), path, start_s, seconds))


def part(motion: Motion, path: str | Path, start_s: float = 0.0, seconds: float | None = None) -> Motion:
    """A part of a motion, rounded to its frames; `ConfigError`, which names `path`, if it has no frame."""
    first, end = frame_range(start_s, seconds, motion.fps)
    if first >= len(motion):
        path = Path(path)
        title = f"the bundled motion {path.stem}" if path.parent == _ASSETS / "motions" else path
        raise nothing_selected(title, motion.duration_s)
    return motion[first:end]


def driving_motion(
    path: str | Path, *, face: str | int = "largest", start_s: float = 0.0, seconds: float | None = None
) -> Motion:
    """The motion of a driving video, of a motion file or of a bundled motion, at 25 fps.

    Arguments and errors are those of `driving`.
    """
    return driving(path, face=face, start_s=start_s, seconds=seconds).motion


def bundled_motion(name: str) -> Path:
    """The path of a motion inside the package, by name (`BUNDLED`)."""
    if name not in BUNDLED:
        raise BadMotionFile(f"there is no bundled motion {name!r}; the names are {', '.join(BUNDLED)}")
    return _ASSETS / "motions" / f"{name}.motion"


def motion_path(name: str | Path) -> Path:
    """A motion file; a name of `BUNDLED` that is no file here means the one inside the package.

    Raises `BadMotionFile` for another word that is no file.
    """
    path = Path(name)
    if kind_at(path) is not None or path.suffix or path.name != str(name):
        return path
    if str(name) not in BUNDLED:
        raise BadMotionFile(
            f"{name} does not exist; give the path of a video or motion file, or the name of a bundled motion: "
            + ", ".join(BUNDLED)
        )
    return bundled_motion(str(name))


def bundled_portrait() -> Path:
    """The path of the portrait inside the package: NASA's astronaut Eileen Collins, public domain."""
    return _ASSETS / "astronaut.png"


def reference_frame(motion: Motion) -> int:
    """The frame that relative motion counts from: the head most frontal and the face most at rest.

    Each 10 degrees of head rotation (`head_motion.seen_rotation`) cost as much as one ARKit score of 1; without ARKit
    scores the pose alone decides.
    Ties go to the first frame. Frames without the face, and those just before or after, are
    chosen only where there are no others.
    """
    return int(np.argmin(_turned(motion) + _moving(motion)))


def _turned(motion: Motion) -> NDArray[np.floating]:
    """(T,) how far the head is from frontal; large where the face is away, or leaves or comes in."""
    gone = motion.shot == AWAY
    near = np.convolve(gone, np.ones(2 * round(_LEAVING_S * motion.fps) + 1))
    first = (len(near) - len(gone)) // 2
    away = 1e6 * gone + 1e3 * (near[first : first + len(gone)] > 0)
    return np.asarray(np.linalg.norm(angles_deg(seen_rotation(motion.camera)), axis=-1) / 10.0 + away)


def _moving(motion: Motion) -> NDArray[np.floating]:
    """(T,) how far the face is from rest; 0 without ARKit scores."""
    return restlessness(motion.expression) if motion.space == "arkit52" else np.zeros(len(motion))


def restlessness(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far faces are from rest: ARKit scores (T, 52) to sums (T,) of those that are near 0 at rest."""
    return np.asarray(scores[:, [ARKIT52.index(name) for name in _AT_REST]].sum(axis=-1))


@dataclass(frozen=True)
class References:
    """The frames that each frame of a motion is measured from, (T,) each.

    Attributes:
        pose: the reference frame of its shot, for the head's rotation.
        expression: the same; that of the whole motion for a shot whose face is never nearly at rest.
        place: the reference frame of its run, the part of a shot between absences of the face.
    """

    pose: NDArray[np.int64]
    expression: NDArray[np.int64]
    place: NDArray[np.int64]


def references(motion: Motion, reference: int | None = None) -> References:
    """The reference frames of a motion; `reference` is used in its own shot."""
    moving = _moving(motion)
    cost = _turned(motion) + moving
    best = reference_frame(motion)
    pose, expression, place = (np.zeros(len(motion), dtype=np.int64) for _ in range(3))
    for shot in set(motion.shot.tolist()):
        frames = np.flatnonzero(motion.shot == shot)
        own = int(frames[np.argmin(cost[frames])])
        if reference is not None and reference in frames:
            own = reference
        pose[frames] = own
        expression[frames] = own if own == reference or moving[own] < moving[best] + _RESTLESS else best
    for run in runs(motion.shot):
        own = pose[run.start]
        place[run] = own if run.start <= own < run.stop else run.start + np.argmin(cost[run])
    return References(pose, expression, place)


def _resting(motion: Motion, frames: References) -> NDArray[np.floating]:
    """(T, E) the expression of each frame's reference, with a mouth as far closed as it becomes in the motion.

    Its eyes look where they usually look in the shot while the head is turned as in the reference, if that is
    straighter ahead.
    """
    rest: NDArray[np.floating] = motion.expression[frames.expression]
    seen = motion.expression[motion.shot != AWAY]
    if motion.space == "arkit52" and len(seen):
        mouth = [column for name in _OPENED for column in columns_of(name)]
        rest[:, mouth] = np.minimum(rest[:, mouth], np.percentile(seen[:, mouth], _CLOSED, axis=0))
        angles = angles_deg(seen_rotation(motion.camera))
        alike = np.abs(angles - angles[frames.pose]).max(axis=-1) < _ALIKE_DEG
        for shot in set(motion.shot.tolist()) - {AWAY}:
            inside = motion.shot == shot
            rest[inside] = looking_ahead(rest[inside], motion.expression[inside & alike])
    return rest


def rebase(
    motion: Motion,
    source_camera: NDArray[np.floating],
    source_expression: NDArray[np.floating],
    relative: bool = True,
    reference: int | None = None,
    head_motion: HeadMotion = "steady",
) -> Motion:
    """Cameras and expressions to render the source with.

    Relative: with W the world-to-camera rotation as seen along the ray to the neck, frame k of the result has W = W_k
    W_ref^-1 W_source and expression source + driving_k - driving_ref, clipped to 0..1 for ARKit scores: at the
    reference frame the source keeps its own rotation and, unless a mouth moves near it, expression. A driving mouth
    that is open there is taken to be as far closed as it is in a tenth of all frames; eyes that look aside there, but
    straighter ahead in most frames, to look as in those. The source's expression is the one that it has `at_rest`: an
    open mouth closes. Its smile gives way to a jaw that opens wide. While the driving mouth moves, near the reference
    frame too, it is smaller and does not part the lips, whose other scores are the driver's (`rest.changed`). The neck
    moves from its place in the source as `head_motion` says, and so do the shoulders beside it. Each shot of the motion
    has its own reference frame. Where the face is away, the source's own pose and expression are the result. What would
    jump between shots passes over in half a second (see `export3d.animate.head_motion`).

    Args:
        motion: the driving motion, T frames.
        source_camera: (25,) label of the source portrait.
        source_expression: (E,) of the source portrait, in the motion's expression space.
        relative: False returns the motion as it is.
        reference: frame number to count from in its shot, whatever its mouth does; by default each shot's
            `reference_frame`.
        head_motion: "steady", "full" or "rotation".

    Returns:
        T frames, the same fps and space.

    Raises:
        ConfigError: another `head_motion`.
    """
    check_shape(np.asarray(source_camera), str(camera.LABEL_SIZE), "source_camera")
    check_shape(np.asarray(source_expression), str(motion.expression.shape[1]), "source_expression")
    check_head_motion(head_motion)
    if not relative:
        return motion
    frames, away = references(motion, reference), motion.shot == AWAY
    intrinsics = camera.unpack(np.asarray(source_camera, dtype=np.float64))[1]
    own_rotation, own_expression = seen_rotation(source_camera), np.asarray(source_expression)
    if motion.space == "arkit52":
        own_expression = at_rest(own_expression)
    rotation = seen_rotation(motion.camera)
    turned: NDArray[np.floating] = rotation @ np.swapaxes(rotation[frames.pose], -1, -2) @ own_rotation
    turned[away] = own_rotation
    moved: NDArray[np.floating] = displacement(motion, frames.place, head_motion)
    shoulders: NDArray[np.floating] = motion.shoulders_from(frames.place)
    beside = motion.shoulders[:, PLACE_AND_SIZE].astype(np.float64)
    shoulders[:, PLACE_AND_SIZE] = displacement(motion, frames.place, head_motion, beside)
    shoulders[:, 3:4] = limited(shoulders[:, 3:4], SHOULDERS_TURN)
    shoulders[away] = 0.0
    rest = _resting(motion, frames) if reference is None else motion.expression[frames.expression]
    if motion.space == "arkit52":
        moves = np.where(away, 0.0, moving(motion.expression - rest))
        expression = changed(own_expression, motion.expression, rest, around(moves, motion.fps))
    else:
        expression = own_expression + motion.expression - rest
    expression[away] = own_expression
    if len(runs(motion.shot)) > 1:
        angles = np.unwrap(angles_deg(turned), axis=0, period=360.0)
        turned = camera.head_rotation(eased(angles, motion.shot, motion.fps))
        moved = eased(moved, motion.shot, motion.fps)
        expression = eased_expression(expression, motion.shot, motion.fps)
        shoulders = eased(shoulders, motion.shot, motion.fps)
    labels = with_neck(turned, neck_place(source_camera) + moved, intrinsics)
    if motion.space == "arkit52":
        expression = expression.clip(0.0, 1.0)
    return replace(motion, expression=expression, camera=labels, shoulders=shoulders)


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
