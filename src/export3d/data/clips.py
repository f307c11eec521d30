"""From one source file to records: track, cut where the face is gone, judge, crop.

A clip is read twice: once to follow the face, once to cut out the square that the whole clip needs, so that memory does
not grow with its length. A clip with a cut in it, or whose face is away for long, is tracked again stretch by stretch,
since crop and camera belong to one uninterrupted view of one person.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.face.crop import CROP_SIZE, FACE_HEIGHTS, crop
from export3d.face.landmark_sets import NOSE_TIP
from export3d.face.tracker import Track, Tracker
from export3d.files import sniff
from export3d.image import read_image
from export3d.video import VideoWriter, read_frames

FPS = 25.0
_CUT_JUMP = 0.5
"""A nose that moves by this many face heights between two frames has been cut, not moved."""
_OUTSIDE_SHARE = 0.2
_IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")
_VIDEO_HEADS = (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV\x01")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a clip must be to become a record."""

    min_frames: int = 15
    """At 25 a second."""
    min_found: float = 0.9
    """Share of the frames that show the face."""
    max_gap_s: float = 1.0
    """The clip is split where the face is away for longer."""
    max_reprojection_px: float = 4.0
    """Of clips: median distance of the pose landmarks from their projections, at 256."""
    max_still_reprojection_px: float = 7.0
    """Of still images, which are measured against the average face: a real face that is wider or longer than it is
    2 to 5.5 px away, so a limit near that would refuse people for the shape of their faces."""
    min_face_px: float = 64.0
    """Forehead to chin in the source's own pixels."""
    crf: int = 12
    """H.264 constant rate factor of the crops; 12 costs about 43 dB."""

    def __post_init__(self) -> None:
        if self.min_frames < 2 or not 0.0 < self.min_found <= 1.0 or not 0 <= self.crf <= 51:
            raise ConfigError("limits need min_frames of at least 2, min_found in 0..1 and crf in 0..51")
        if min(self.max_gap_s, self.max_reprojection_px, self.max_still_reprojection_px) <= 0.0 or self.min_face_px < 0:
            raise ConfigError("max_gap_s and reprojection limits must be positive, min_face_px not negative")


class Refusal(Exception):
    """Why a file, or a stretch of it, does not become a record: a short reason to count by and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def media_kind(path: Path) -> str | None:
    """ "video", "image" or None, by the file's first bytes (a GIF of several images is a video).

    Raises:
        OSError: it cannot be opened.
    """
    head = sniff(path, 32)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        try:
            with Image.open(path, formats=("GIF",)) as image:
                return "video" if getattr(image, "n_frames", 1) > 1 else "image"
        except (OSError, ValueError, EOFError, Image.DecompressionBombError):
            return "image"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        return "video" if head[8:12] == b"AVI " else "image"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "image" if head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1") else "video"
    if head.startswith(_IMAGE_HEADS):
        return "image"
    return "video" if head.startswith(_VIDEO_HEADS) else None


def records_of(
    path: Path, key: str, info: dict[str, Any], tracker: Tracker, limits: Limits
) -> tuple[list[Record], list[Refusal]]:
    """The records of one source file and the refusals of its parts.

    Args:
        path: a video or a still image.
        key: of the record; several from one file get `-01`, `-02` ... appended.
        info: provenance that every record carries.
        tracker: follows the face.
        limits: what is good enough.

    Raises:
        Refusal: nothing of the file can be used.
    """
    try:
        kind = media_kind(path)
        if kind is None:
            raise Refusal("unreadable", f"{path.name} is neither a video nor a picture")
        return _still(path, key, info, tracker, limits) if kind == "image" else _video(path, key, info, tracker, limits)
    except NoFaceFound as error:
        raise Refusal("no face", str(error)) from error
    except (InputError, OSError) as error:
        raise Refusal("unreadable", str(error)) from error


def _still(
    path: Path, key: str, info: dict[str, Any], tracker: Tracker, limits: Limits
) -> tuple[list[Record], list[Refusal]]:
    image = read_image(path)
    track = tracker.track_image(image, path.name)
    _judge(track, limits, path.name, still=True)
    stream = io.BytesIO()
    Image.fromarray(crop(image, track.crop)).save(stream, format="PNG")
    return [_record(key, stream.getvalue(), "png", track, info, 0, image.shape)], []


def _video(
    path: Path, key: str, info: dict[str, Any], tracker: Tracker, limits: Limits
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
            good.append((name, start, stop, track))
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
    """Runs of frames (start, stop) that show one face without a long gap or a cut; usually one, without lost ends."""
    seen = np.flatnonzero(track.found)
    nose = track.landmarks[seen, NOSE_TIP]
    gap = np.diff(seen)
    jump = np.linalg.norm(np.diff(nose, axis=0), axis=-1) * (FACE_HEIGHTS / CROP_SIZE)
    breaks = np.flatnonzero((gap - 1 > limits.max_gap_s * FPS) | ((gap == 1) & (jump > _CUT_JUMP)))
    starts = [seen[0], *seen[breaks + 1]]
    stops = [*(seen[breaks] + 1), seen[-1] + 1]
    return [(int(start), int(stop)) for start, stop in zip(starts, stops)]


def _parts(path: Path, stretches: Iterable[tuple[int, int]]) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """The frames of each stretch, in one reading of the file; each must be used up before the next is asked for."""
    frames = iter(read_frames(path, FPS))
    at = 0
    for start, stop in stretches:
        for _ in islice(frames, start - at):
            pass
        yield islice(frames, stop - start)
        at = stop


def _shortened(track: Track, start: int, stop: int) -> Track:
    """The same track without frames in which nothing was found: its crop and shape do not depend on them."""
    rows = slice(start, stop)
    return Track(
        track.motion[rows],
        track.crop,
        track.landmarks[rows],
        track.found[rows],
        track.reprojection[rows],
        track.several_faces,
    )


def _judge(track: Track, limits: Limits, where: str, still: bool = False) -> None:
    """Raise `Refusal` unless the track is good enough."""
    frames, found = len(track.found), float(track.found.mean())
    face_px, distance = track.crop.side / FACE_HEIGHTS, track.median_reprojection
    farthest = limits.max_still_reprojection_px if still else limits.max_reprojection_px
    if not still and frames < limits.min_frames:
        raise Refusal("too short", f"{where} has {frames} frames at 25 a second, {limits.min_frames} are needed")
    if found < limits.min_found:
        raise Refusal(
            "face lost", f"{where} shows the face in {found:.0%} of its frames, {limits.min_found:.0%} needed"
        )
    if face_px < limits.min_face_px:
        raise Refusal("face too small", f"{where} has a face of {face_px:.0f} px, {limits.min_face_px:.0f} are needed")
    if not distance <= farthest:
        raise Refusal("poor fit", f"{where} fits a head to {distance:.1f} px, {farthest:.1f} px is the limit")


def encode_clip(frames: Iterable[NDArray[np.uint8]], expected: int, crf: int, name: str) -> bytes:
    """Crops (256, 256, 3) to the bytes of an MP4; `InputError` naming the clip unless there are `expected` of them."""
    with tempfile.TemporaryDirectory(prefix="export3d-") as folder:
        path = Path(folder) / "crop.mp4"
        count = 0
        with VideoWriter(path, FPS, (CROP_SIZE, CROP_SIZE), crf=crf) as writer:
            for frame in frames:
                writer.write(frame)
                count += 1
        if count != expected:
            raise InputError(f"{name} gave {expected} frames at first and {count} when read again")
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
    )


def _inside(track: Track, shape: tuple[int, ...]) -> list[float]:
    """Left, top, right, bottom (0..1 of the crop) of what a frame (H, W, ...) fills; the rest repeats its edge."""
    corner, side = track.crop.corner, track.crop.side
    low, high = (0.0 - corner) / side, (np.array([shape[1], shape[0]]) - corner) / side
    return [round(float(x), 5) for x in (*low.clip(0.0, 1.0), *high.clip(0.0, 1.0))]
