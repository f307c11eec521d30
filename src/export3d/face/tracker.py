"""From frames to motion: detect the face in every frame, follow one person, fit cameras, smooth.

The crop is one square for the whole clip. Cameras and landmarks refer to that crop at 256 pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d.errors import BadVideo, ConfigError, NoFaceFound, counted
from export3d.face import pose
from export3d.face.crop import CROP_SIZE, FACE_HEIGHTS, CropBox, crop_box, upright
from export3d.face.landmark_sets import NOSE_TIP
from export3d.face.landmarks import Face, FaceLandmarker, Landmarker, alike, all_faces
from export3d.face.mesh import canonical_mesh
from export3d.face.people import Crowd, Person, joined
from export3d.face.segmenter import PersonSegmenter
from export3d.face.shoulders import in_crop
from export3d.face.smooth import (
    Smoothing,
    from_pose_numbers,
    pose_numbers,
    shots,
    smooth_cameras,
    smooth_expression,
    smooth_shoulders,
)
from export3d.memory import give_back_memory
from export3d.motion.motion import AWAY, Motion

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]

FEWEST_FRAMES = 0.1
"""Share of a video's frames that must show the face."""
SMALLEST_FACE = 32.0
"""Height from forehead to chin, pixels, below which the faces of a photo are not counted."""
SOFT_FACE = 60.0
"""Height from forehead to chin, pixels, below which a warning says that the result will be blurry."""
_SHAPE_FRAMES = 10
_TRIM_FRAMES = 500
_SEVERAL_SHARE = 0.05
_SMALL_SHARE = 1 / 6
_CUT_SHARE = 0.03
_TURNED = {
    1: "lies on its side and is turned by 90 degrees to the left",
    2: "is upside down and is turned by 180 degrees",
    3: "lies on its side and is turned by 90 degrees to the right",
}
_ADVICE = "the face must be well lit, not turned away and at least 60 pixels high"


@dataclass(frozen=True, eq=False)
class Track:
    """One person's face in a clip of T frames (T = 1 for a still image).

    Attributes:
        motion: smoothed scores (T, 52) and cameras (T, 25); frames without a face are interpolated.
        crop: the square of the frames that cameras and landmarks refer to.
        landmarks: (T, 478, 2) float32, pixels of the crop at 256, not smoothed; frames without a face are interpolated.
        found: (T,) bool, whether the face was found in a frame.
        reprojection: (T,) float32, mean Euclidean distance of the 33 pose landmarks from their projections through the
            smoothed camera, pixels of the crop at 256; NaN where the face was lost. Clips of at least ten frames are
            measured with the person's own face shape (`pose.person_shape`). Shorter clips are measured with the
            canonical mesh, which adds about 2 pixels.
        several_faces: whether more than one face was found; the track follows the one asked for.
        others: crops of the other faces of a still image. Beside a large face, `face="largest"` misses those that one
            detection misses; every other choice finds them.
        quarter_turns: turns by 90 degrees counter-clockwise after which the image or the clip is upright (see
            `crop.upright`); everything else refers to the turned frames.
    """

    motion: Motion
    crop: CropBox
    landmarks: NDArray[np.float32]
    found: NDArray[np.bool_]
    reprojection: NDArray[np.float32]
    several_faces: bool
    others: tuple[CropBox, ...] = ()
    quarter_turns: int = 0

    @property
    def median_reprojection(self) -> float:
        """Median of `reprojection` over the frames in which the face was found."""
        return float(np.median(self.reprojection[self.found]))

    def shot_crops(self) -> dict[int, CropBox]:
        """The crop of each shot of a clip with cuts, by its number in `motion.shot`; {} for a clip of one shot."""
        seen = np.where(self.found, self.motion.shot, AWAY)
        numbers = sorted(set(seen.tolist()) - {AWAY})
        boxes = {number: crop_box(self.landmarks[seen == number]) for number in numbers if len(numbers) > 1}
        scale = self.crop.side / CROP_SIZE
        return {
            number: CropBox(tuple(self.crop.from_crop(box.centre).tolist()), box.side * scale)
            for number, box in boxes.items()
        }


class Tracker:
    """Tracks a face; close it, or use it in a `with` statement.

    Args:
        landmarker: the face detector; by default MediaPipe's.
        smoothing: widths of the smoothing.
    """

    def __init__(self, landmarker: Landmarker | None = None, smoothing: Smoothing | None = None) -> None:
        self._landmarker: Landmarker = FaceLandmarker() if landmarker is None else landmarker
        self._smoothing = smoothing or Smoothing()
        self._segmenter: PersonSegmenter | None = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the networks."""
        self._landmarker.close()
        if self._segmenter is not None:
            self._segmenter.close()

    def track_image(self, image: NDArray[np.uint8], name: str = "the image", face: str | int = "largest") -> Track:
        """Track one face of an image (H, W, 3).

        Args:
            image: a photo.
            name: name of the photo in messages.
            face: "largest", "left", "right", or a number from 1, counted from left to right as in `track_faces`.

        Raises:
            NoFaceFound: the image shows no face, or fewer faces than the number.
            ConfigError: `face` is none of these.
        """
        wanted = face_choice(face)
        crowd = self._people_of(image, name)
        image = upright(image, crowd.quarter_turns)
        if wanted == "largest":
            return self._largest(image, name, crowd)
        faces = self._faces(image, name)
        number = _number(wanted, max(len(faces), 1), name)
        return self._still(faces[number], faces, image, name, crowd) if faces else self._alone(image, name, crowd)

    def track_faces(self, image: NDArray[np.uint8], name: str = "the image") -> tuple[Track, ...]:
        """Track every face of an image (H, W, 3), ordered from left to right by the centres of the faces.

        Each face is detected in a square around it, however many there are and however small they are in the image
        (see `export3d.face.landmarks.all_faces`). A single face gives the same numbers as `track_image`. Faces lower
        than `SMALLEST_FACE` are left out, which the log says.

        Raises:
            NoFaceFound: the image shows no face, or several that are all too small.
        """
        crowd = self._people_of(image, name)
        image = upright(image, crowd.quarter_turns)
        faces = self._faces(image, name)
        if not faces:
            return (self._alone(image, name, crowd),)
        return tuple(self._still(face, faces, image, f"{name}, face {n}", crowd) for n, face in enumerate(faces, 1))

    def _people(self, image: NDArray[np.uint8], region: tuple[float, float, float, float]) -> NDArray[np.float32]:
        """`PersonSegmenter.mask` of a network that is opened when it is first needed."""
        if self._segmenter is None:
            self._segmenter = PersonSegmenter()
        return self._segmenter.mask(image, region)

    def _people_of(self, image: NDArray[np.uint8], name: str) -> Crowd:
        """The faces that the first look at an image finds, and how it is turned; `NoFaceFound` if there are none."""
        crowd = Crowd(self._landmarker)
        crowd.step(image)
        if not crowd.faces:
            raise NoFaceFound(_no_face(name, "1 frame", crowd.unconfirmed))
        if crowd.quarter_turns:
            logger.warning("%s %s", name, _TURNED[crowd.quarter_turns])
        return crowd

    def _alone(self, image: NDArray[np.uint8], name: str, crowd: Crowd) -> Track:
        """The track of the largest face; there are no others."""
        face = max(crowd.faces, key=lambda face: face.size)
        return self._still(face, [face], image, name, crowd)

    def _largest(self, image: NDArray[np.uint8], name: str, crowd: Crowd) -> Track:
        face = max(crowd.faces, key=lambda face: face.size)
        faces = [face]
        if len(crowd.faces) > 1 or face.size < _SMALL_SHARE * max(image.shape[:2]):
            found = _large(all_faces(self._landmarker, image))  # one detection may have missed even the largest
            if len(found) > 1:
                faces = [face if alike(face, found[0]) else found[0], *found[1:]]
                logger.warning(
                    "%s shows several faces and the largest is used; where a face can be chosen, left, right or a "
                    "number takes another",
                    name,
                )
        return self._still(faces[0], faces, image, name, crowd)

    def _faces(self, image: NDArray[np.uint8], name: str) -> list[Face]:
        """The faces that are large enough, from left to right; none if there are fewer than two."""
        faces = all_faces(self._landmarker, image)
        large = _large(faces)
        small = len(faces) - len(large)
        if small > 1 and not large:
            raise NoFaceFound(f"all {small} faces in {name} are too small to animate; {_ADVICE}")
        if small and large:
            logger.warning(
                "%s: %d of %d faces are less than %d pixels high and are left out",
                name,
                small,
                len(faces),
                SMALLEST_FACE,
            )
        return sorted(large, key=lambda face: tuple(face.centre)) if len(large) > 1 else []

    def _still(self, face: Face, faces: list[Face], image: NDArray[np.uint8], name: str, crowd: Crowd) -> Track:
        """The track of one of the faces of an upright image; warns if it is small or cut off."""
        person = Person()
        person.append(0, face)
        others = tuple(crop_box(other.landmarks) for other in faces if other is not face)
        track = _track(person, 1, 25.0, self._smoothing)
        track = replace(track, several_faces=bool(others), others=others, quarter_turns=crowd.quarter_turns)
        height = _height(track.crop)
        if height < SOFT_FACE:
            logger.warning(
                "%s: the face is only %d pixels high, and the result will be blurry; use a larger photo of it",
                name,
                height,
            )
        cut = _cut(track, image)
        if cut:
            logger.warning("%s: the border of the image cuts off %s, which will be made up", name, cut)
        return track

    def crowd(self) -> Crowd:
        """Tracking frame by frame, without knowing what comes: see `Crowd.step`."""
        return Crowd(self._landmarker, self._people)

    def track_video(
        self,
        path: str | Path,
        fps: float = 25.0,
        progress: Progress | None = None,
        face: str | int = "largest",
        *,
        start_s: float = 0.0,
        seconds: float | None = None,
    ) -> Track:
        """`track_frames` on a video file at `fps`, or on the part of it that `read_frames` reads.

        Raises:
            BadVideo: the file cannot be read.
            NoFaceFound, ConfigError: see `track_frames`; or `start_s` and `seconds` select no frame.
        """
        from export3d.video import read_frames  # needs PyAV, which images do not
        from export3d.video.ahead import ahead

        face_choice(face, one=True)
        with closing(ahead(read_frames(path, fps, start_s=start_s, seconds=seconds))) as frames:
            track = self.track_frames(frames, fps, str(path), progress, face)
        give_back_memory()
        return track

    def track_frames(
        self,
        frames: Iterable[NDArray[np.uint8]],
        fps: float = 25.0,
        name: str = "the video",
        progress: Progress | None = None,
        face: str | int = "largest",
    ) -> Track:
        """Track one face of a clip.

        Everybody in view is followed. Whoever is seen one after the other, never together, is taken for one person:
        a clip may have cuts (see `people.joined`).

        Args:
            frames: images (H, W, 3); read once and not kept.
            fps: frames per second.
            name: name of the clip in messages.
            progress: called after each frame with the number of frames done.
            face: "largest", the one whose size, summed over the frames that show it, is the largest; "left", "right",
                or a number from 1, counted from left to right among the faces that a tenth of the frames show.

        Raises:
            BadVideo: there are no frames.
            NoFaceFound: no face is found, or a face in fewer than a tenth of the frames, or fewer faces than the
                number.
            ConfigError: `face` is none of these.
        """
        wanted = face_choice(face, one=True)
        crowd = self.crowd()
        total = 0
        for frame in frames:
            crowd.step(frame)
            total += 1
            if total % _TRIM_FRAMES == 0:
                give_back_memory()  # decoded frames, between which landmarks that stay were allocated
            if progress is not None:
                progress(total)
        if not total:
            raise BadVideo(f"{name} has no frames; use another file")
        if not crowd.people:
            raise NoFaceFound(_no_face(name, counted(total, "frame"), crowd.unconfirmed))
        people = joined(crowd.people)
        long = [one for one in people if len(one.frames) >= FEWEST_FRAMES * total] or people[:1]
        if wanted == "largest":
            person = long[0]
        else:
            long.sort(key=lambda one: float(np.median(one.landmarks()[:, NOSE_TIP, 0])))
            person = long[_number(wanted, len(long), name)]
        several = crowd.several if crowd.several >= max(1.0, _SEVERAL_SHARE * total) else 0
        _report(len(person.frames), total, several if wanted == "largest" else 0, name)
        if crowd.quarter_turns:
            logger.warning("%s %s", name, _TURNED[crowd.quarter_turns])
        track = _track(person, total, fps, self._smoothing)
        height = _height(track.crop)
        if height < SOFT_FACE:
            logger.warning("%s: the face is only %d pixels high, and its motion will be coarse", name, height)
        return replace(track, several_faces=several > 0, quarter_turns=crowd.quarter_turns)


def _number(choice: str | int, count: int, name: str) -> int:
    """The place of "left", "right" or a number among so many faces from left to right."""
    number = {"left": 1, "right": count}.get(str(choice)) or int(choice)
    if number > count:
        raise NoFaceFound(
            f"{name} shows only one face, and no face {number}; leave out the choice of a face"
            if count == 1
            else f"{name} shows {count} faces, counted from left to right; face {number} is not one of them"
        )
    return number - 1


def face_choice(face: str | int, one: bool = False) -> str | int:
    """Check the choice of a face: "largest", "left", "right", or a number from 1, which may be given as text.

    The message differs where several faces cannot be taken, as in a driving video.

    Raises:
        ConfigError: anything else.

    >>> face_choice("2")
    2
    """
    number = int(face) if isinstance(face, str) and face.isdecimal() and len(face) < 10 else face
    if number in ("largest", "left", "right") or (isinstance(number, int) and number >= 1):
        return number
    others = "" if one else ", or all (in Python encode_all)"
    raise ConfigError(
        f"there is no face {face!r}; use largest, left, right or a number from 1, counted from left to right{others}"
    )


def _large(faces: list[Face]) -> list[Face]:
    return [face for face in faces if _height(crop_box(face.landmarks)) >= SMALLEST_FACE]


def _height(box: CropBox) -> float:
    """From forehead to chin, pixels."""
    return box.side / FACE_HEIGHTS


def _cut(track: Track, image: NDArray[np.uint8]) -> str:
    """What of a face lies outside the image, in words; empty if next to nothing does."""
    points = track.crop.from_crop(track.landmarks[0])
    low, high = points.min(0), points.max(0)
    beyond = np.concatenate([-low, high - image.shape[1::-1]]) / np.tile(high - low, 2)
    parts = ("its left side", "the forehead", "its right side", "the chin")
    return " and ".join(f"{part} ({share:.0%} of the face)" for part, share in zip(parts, beyond) if share > _CUT_SHARE)


def _no_face(name: str, frames: str, unconfirmed: bool) -> str:
    doubt = "; what looks like one was not confirmed when looked at again" if unconfirmed else ""
    return f"no face found in {name} ({frames} searched{doubt}); {_ADVICE}"


def _report(found: int, total: int, several: int, name: str) -> None:
    """Log warnings about a clip; `NoFaceFound` if the face was found in too few frames."""
    frames = counted(total, "frame")
    if found < FEWEST_FRAMES * total:
        raise NoFaceFound(f"{name} shows a face in only {found} of {frames}; {_ADVICE}")
    if found < total:
        logger.warning("%s: the face was lost in %d of %s", name, total - found, frames)
    if several:
        logger.warning(
            "%s: several faces in %d of %s; following the one that is largest and longest in view; where a driving "
            "face can be chosen, left, right or a number takes another",
            name,
            several,
            frames,
        )


def _track(person: Person, total: int, fps: float, smoothing: Smoothing) -> Track:
    found = np.zeros(total, dtype=np.bool_)
    found[person.frames] = True
    landmarks, seen_scores = person.landmarks(total), person.scores()
    in_frames = landmarks[: len(seen_scores)]
    box = crop_box(in_frames)
    shape, some = None, pose.shape_frames(len(in_frames))
    if len(in_frames) >= _SHAPE_FRAMES:
        shape = pose.person_shape(box.to_crop(in_frames[some]), CROP_SIZE)
    pose_landmarks = box.to_crop(in_frames[:, canonical_mesh().pose_landmarks])
    labels, _ = pose.fit_cameras(pose_landmarks, CROP_SIZE, shape, seen_scores)
    if shape is not None:
        shape = pose.person_shape(box.to_crop(in_frames[some]), CROP_SIZE, labels[some])
    shot = shots(labels, found, fps)
    bridge = _Bridge(found, shot)
    labels = from_pose_numbers(*(bridge(numbers) for numbers in pose_numbers(labels)))
    labels = smooth_cameras(labels, fps, smoothing, shot)
    scores = smooth_expression(bridge(seen_scores), fps, smoothing)
    shoulders = smooth_shoulders(bridge(in_crop(person.shoulders(), box)), labels, fps, smoothing, shot)
    distance = np.full(len(found), np.nan, dtype=np.float32)
    distance[found] = pose.reprojection(pose_landmarks, labels[found], CROP_SIZE, shape)
    for piece in reversed(pose.pieces(len(found))):  # in place: frame t is made of rows 0..t of `in_frames`
        landmarks[piece] = bridge(in_frames, piece, box.to_crop)
    return Track(
        motion=Motion(scores, labels, fps, "arkit52", shot=shot, shoulders=shoulders),
        crop=box,
        landmarks=landmarks,
        found=found,
        reprojection=distance,
        several_faces=False,
    )


def _double(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


class _Bridge:
    """Interpolates values (N, ...) of the N frames with a face to all T frames; constant at the ends and to a cut."""

    def __init__(self, found: NDArray[np.bool_], shot: NDArray[np.int32]) -> None:
        have, frames = np.flatnonzero(found), np.arange(len(found))
        self._after = np.searchsorted(have, frames).clip(0, len(have) - 1)
        self._before = (np.searchsorted(have, frames, side="right") - 1).clip(0)
        gap = np.maximum(have[self._after] - have[self._before], 1)
        self._share = ((frames - have[self._before]) / gap).clip(0.0, 1.0)
        self._share[shot[have][self._before] != shot[have][self._after]] = 0.0

    def __call__(
        self,
        values: ArrayLike,
        frames: slice = slice(None),
        change: Callable[[ArrayLike], NDArray[np.float64]] = _double,
    ) -> NDArray[np.float64]:
        """The values of some of the T frames; `change` is applied in double precision before the interpolation."""
        values = np.asarray(values)
        share = self._share[frames].reshape(-1, *[1] * (values.ndim - 1))
        before, after = change(values[self._before[frames]]), change(values[self._after[frames]])
        return np.asarray(before * (1.0 - share) + after * share)
