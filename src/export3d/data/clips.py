"""From one source file to records: track the face, split where it is lost, check the quality, crop.

A clip is read twice: once to track the face, once to crop the square that covers the whole clip. Memory therefore does
not grow with the length of the clip. A clip that contains a cut, or loses the face for long, is split and each stretch
is tracked again, since crop and camera are only valid for one uninterrupted view of one person.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.data.shards import FPS, Record
from export3d.errors import BadMotionFile, ConfigError, InputError, NoFaceFound
from export3d.face.crop import CROP_SIZE, FACE_HEIGHTS, crop
from export3d.face.landmark_sets import NOSE_TIP
from export3d.face.tracker import Track, Tracker
from export3d.files import sniff, still_kind
from export3d.image import read_image
from export3d.motion.bfm64 import load_expression
from export3d.motion.motion import Motion
from export3d.video import VideoWriter, read_frames
from export3d.video.kinds import is_video

Coefficients = NDArray[np.float32]
"""(T, 64)."""

_CUT_JUMP = 0.5
"""A nose tip that moves by more than this many face heights between two frames marks a cut."""
_OUTSIDE_SHARE = 0.2
_IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Requirements that a clip must meet to become a record."""

    min_frames: int = 15
    """Frames at 25 frames per second."""
    min_found: float = 0.9
    """Share of the frames in which the face is found."""
    max_gap_s: float = 1.0
    """The clip is split where the face is lost for longer than this."""
    max_reprojection_px: float = 4.0
    """Clips: median distance of the pose landmarks from their projections, pixels of the 256-pixel crop."""
    max_still_reprojection_px: float = 7.0
    """The same for still images. They are measured against the average face: a real face that is wider or longer lies
    2 to 5.5 px away, so a limit near that would reject people for the shape of their face."""
    min_face_px: float = 64.0
    """Distance from forehead to chin in pixels of the source."""
    crf: int = 12
    """H.264 constant rate factor of the crops; 12 gives a PSNR of about 43 dB."""

    def __post_init__(self) -> None:
        if self.min_frames < 2 or not 0.0 < self.min_found <= 1.0 or not 0 <= self.crf <= 51:
            raise ConfigError("limits need min_frames of at least 2, min_found in 0..1 and crf in 0..51")
        if min(self.max_gap_s, self.max_reprojection_px, self.max_still_reprojection_px) <= 0.0 or self.min_face_px < 0:
            raise ConfigError("max_gap_s and reprojection limits must be positive, min_face_px not negative")


class Refusal(Exception):
    """A file, or a stretch of one, cannot become a record: a short reason for the statistics, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def media_kind(path: Path) -> str | None:
    """The kind of a file by its first bytes: "video", "image" or None. An image of several frames is a video.

    Raises:
        OSError: the file cannot be opened.
    """
    head = sniff(path, 32)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        try:
            with Image.open(path, formats=("GIF",)) as image:
                return "video" if getattr(image, "n_frames", 1) > 1 else "image"
        except (OSError, ValueError, EOFError, Image.DecompressionBombError):
            return "image"
    if is_video(path):
        return "video"
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return "image" if webp or still_kind(head) is not None or head.startswith(_IMAGE_HEADS) else None


def records_of(
    path: Path, key: str, info: dict[str, Any], tracker: Tracker, limits: Limits, coefficients: Path | None = None
) -> tuple[list[Record], list[Refusal]]:
    """The records of one source file, and the refusals of its stretches.

    Args:
        path: a video or a still image.
        key: key of the record; if the file gives several, `-01`, `-02` ... are appended.
        info: provenance to store in every record.
        tracker: tracks the face.
        limits: requirements on each record.
        coefficients: what `bfm64.load_expression` reads, one frame per frame of the file at 25 per second. They are
            the expression instead of the tracker's scores; cameras, crop and landmarks stay the tracker's.

    Raises:
        Refusal: no part of the file can be used.
    """
    try:
        kind = media_kind(path)
        if kind is None:
            raise Refusal("unreadable", f"{path.name} is neither a video nor an image")
        given = None if coefficients is None else _given_expression(coefficients, path, kind)
        make = _still if kind == "image" else _video
        return make(path, key, info, tracker, limits, given)
    except NoFaceFound as error:
        raise Refusal("no face", str(error)) from error
    except (InputError, OSError) as error:
        raise Refusal("unreadable", str(error)) from error


def _given_expression(coefficients: Path, path: Path, kind: str) -> Coefficients:
    """The coefficients of a file, checked before the face is tracked, which takes far longer."""
    try:
        values = load_expression(coefficients)
    except BadMotionFile as error:
        raise Refusal("coefficients", str(error)) from error
    frames = 1 if kind == "image" else sum(1 for _ in read_frames(path, FPS))
    if len(values) != frames:
        raise Refusal(
            "coefficients",
            f"{coefficients} holds {len(values)} frames, but {path.name} has {frames}"
            + (
                "" if kind == "image" else f" at {FPS:g} per second; convert it to {FPS:g} fps and fit its frames again"
            ),
        )
    return values


def _expressed(track: Track, given: Coefficients | None, start: int = 0) -> Track:
    """A track of the frames from `start` on with the given expression, if there is one."""
    if given is None:
        return track
    motion, rows = track.motion, given[start : start + len(track.found)]
    return replace(track, motion=Motion(rows, motion.camera, motion.fps, "bfm64", shoulders=motion.shoulders))


def _still(
    path: Path, key: str, info: dict[str, Any], tracker: Tracker, limits: Limits, given: Coefficients | None
) -> tuple[list[Record], list[Refusal]]:
    image = read_image(path)
    track = tracker.track_image(image, path.name)
    _judge(track, limits, path.name, still=True)
    stream = io.BytesIO()
    Image.fromarray(crop(image, track.crop)).save(stream, format="PNG")
    return [_record(key, stream.getvalue(), "png", _expressed(track, given), info, 0, image.shape)], []


def _video(
    path: Path, key: str, info: dict[str, Any], tracker: Tracker, limits: Limits, given: Coefficients | None
) -> tuple[list[Record], list[Refusal]]:
    whole = tracker.track_video(path, FPS)
    stretches = _stretches(whole, limits)
    if len(stretches) == 1:
        tracks: list[Track | Refusal] = [_shortened(whole, *stretches[0])]
    else:
        tracks = []
        for part in _parts(path, stretches):
            try:
                tracks.append(tracker.track_frames(part, FPS, path.name))
            except NoFaceFound as error:
                tracks.append(Refusal("no face", str(error)))
    good: list[tuple[str, int, int, Track]] = []
    refusals: list[Refusal] = []
    for number, (track, (start, stop)) in enumerate(zip(tracks, stretches), 1):
        name = key if len(stretches) == 1 else f"{key}-{number:02d}"
        where = path.name if len(stretches) == 1 else f"{path.name}, {start / FPS:.1f} to {stop / FPS:.1f} s"
        try:
            if isinstance(track, Refusal):
                raise track
            _judge(track, limits, where)
            good.append((name, start, stop, _expressed(track, given, start)))
        except Refusal as refusal:
            refusals.append(refusal)
    if not good:
        first = refusals[0]
        more = f" (and {len(refusals) - 1} more stretches)" if len(refusals) > 1 else ""
        raise Refusal(first.reason, first.detail + more)
    records = []
    pieces = _parts(path, [(start, stop) for _, start, stop, _ in good])
    for (name, start, stop, track), frames in zip(good, pieces):
        opening = next(frames)
        crops = (crop(frame, track.crop) for frame in chain([opening], frames))
        media = encode_clip(crops, stop - start, limits.crf, path.name)
        records.append(_record(name, media, "mp4", track, info, start, opening.shape))
    return records, refusals


def _stretches(track: Track, limits: Limits) -> list[tuple[int, int]]:
    """Runs of frames (start, stop) that show one face without a long gap or a cut.

    Usually there is one. Frames at the ends where the face is lost are left out.
    """
    seen = np.flatnonzero(track.found)
    nose = track.landmarks[seen, NOSE_TIP]
    gap = np.diff(seen)
    jump = np.linalg.norm(np.diff(nose, axis=0), axis=-1) * (FACE_HEIGHTS / CROP_SIZE)
    breaks = np.flatnonzero((gap - 1 > limits.max_gap_s * FPS) | ((gap == 1) & (jump > _CUT_JUMP)))
    starts = [seen[0], *seen[breaks + 1]]
    stops = [*(seen[breaks] + 1), seen[-1] + 1]
    return [(int(start), int(stop)) for start, stop in zip(starts, stops)]


def _parts(path: Path, stretches: Iterable[tuple[int, int]]) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """The frames of each stretch, in one pass over the file; consume each stretch before requesting the next."""
    frames = iter(read_frames(path, FPS))
    at = 0
    for start, stop in stretches:
        for _ in islice(frames, start - at):
            pass
        yield islice(frames, stop - start)
        at = stop


def _shortened(track: Track, start: int, stop: int) -> Track:
    """The frames `start` to `stop` of a track; frames without a face do not affect its crop and shape."""
    rows = slice(start, stop)
    return replace(
        track,
        motion=track.motion[rows],
        landmarks=track.landmarks[rows],
        found=track.found[rows],
        reprojection=track.reprojection[rows],
    )


def _judge(track: Track, limits: Limits, where: str, still: bool = False) -> None:
    """Raise `Refusal` unless the track meets the limits."""
    frames, found = len(track.found), float(track.found.mean())
    face_px, distance = track.crop.side / FACE_HEIGHTS, track.median_reprojection
    farthest = limits.max_still_reprojection_px if still else limits.max_reprojection_px
    if track.quarter_turns:
        raise Refusal("not upright", f"{where} lies on its side or stands on its head; turn it upright")
    if not still and frames < limits.min_frames:
        raise Refusal("too short", f"{where} has {frames} frames at 25 fps, {limits.min_frames} are needed")
    if found < limits.min_found:
        raise Refusal(
            "face lost", f"{where} shows the face in {found:.0%} of its frames, {limits.min_found:.0%} are needed"
        )
    if face_px < limits.min_face_px:
        raise Refusal("face too small", f"{where} has a face of {face_px:.0f} px, {limits.min_face_px:.0f} are needed")
    if not distance <= farthest:
        raise Refusal("poor fit", f"{where}: the head fits to {distance:.1f} px, the limit is {farthest:.1f} px")


def encode_clip(
    frames: Iterable[NDArray[np.uint8]], expected: int, crf: int, name: str, size: int = CROP_SIZE
) -> bytes:
    """Encode crops (size, size, 3) as the bytes of an MP4; `InputError` unless there are `expected` of them."""
    with tempfile.TemporaryDirectory(prefix="export3d-") as folder:
        path = Path(folder) / "crop.mp4"
        count = 0
        with VideoWriter(path, FPS, size, crf=crf) as writer:
            for frame in frames:
                writer.write(frame)
                count += 1
        if count != expected:
            raise InputError(f"{name} gave {expected} frames on the first reading and {count} on the second")
        return path.read_bytes()


def _record(
    key: str, media: bytes, suffix: str, track: Track, info: dict[str, Any], start: int, shape: tuple[int, ...]
) -> Record:
    landmarks = track.landmarks[..., :2] / CROP_SIZE
    outside = ((landmarks < 0.0) | (landmarks > 1.0)).any(-1).mean(-1)
    found = track.found & (outside <= _OUTSIDE_SHARE)
    frames = len(found)
    details = {
        "kind": "image" if suffix == "png" else "video",
        "frames": frames,
        "fps": FPS if suffix == "mp4" else 0.0,
        "size": CROP_SIZE,
        "space": track.motion.space,
        "start_s": round(start / FPS, 3),
        "crop": {"centre": [round(x, 3) for x in track.crop.centre], "side": round(track.crop.side, 3)},
        "inside": _inside(track, shape),
        "face_px": round(track.crop.side / FACE_HEIGHTS, 1),
        "found": round(float(found.mean()), 4),
        "reprojection_px": round(track.median_reprojection, 3),
        "several_faces": bool(track.several_faces),
    }
    return Record(
        key,
        media,
        suffix,
        track.motion.expression,
        track.motion.camera.astype(np.float32),
        landmarks.clip(-4.0, 4.0).astype(np.float16),
        found,
        {**info, **details},
        track.motion.shoulders,
    )


def _inside(track: Track, shape: tuple[int, ...]) -> list[float]:
    """Left, top, right, bottom (0..1 of the crop) of the part inside a frame (H, W, ...); the rest repeats its edge."""
    corner, side = track.crop.corner, track.crop.side
    low, high = (0.0 - corner) / side, (np.array([shape[1], shape[0]]) - corner) / side
    return [round(float(x), 5) for x in (*low.clip(0.0, 1.0), *high.clip(0.0, 1.0))]
