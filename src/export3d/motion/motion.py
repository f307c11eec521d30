"""Motion: an expression and a camera for each frame, and its file format.

A `.motion` file is a safetensors file: tensors `expression` (T, E) and `camera` (T, 25), float32, with a JSON header
that holds format, version, fps, expression space and free-text notes. A motion of several shots, or without a face in
some frames, also has `shot` (T,), int32; one whose video shows shoulders has `shoulders` (T, 5), float32 (T, 3 in
older files). Nothing in it can execute. Expression spaces:

- `arkit52`: the 52 ARKit blendshape scores, 0..1, in the order of `arkit.ARKIT52`; what our own tracker gives.
- `bfm64`: the 64 expression coefficients of the Basel Face Model as Deep3DFaceRecon fits them (the paper's space);
  read from the user's own coefficient files with `bfm64.load_bfm64`.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d import camera as cameras
from export3d import files
from export3d.errors import BadMotionFile, ConfigError, InputError, ShapeError
from export3d.motion.arkit import ARKIT52, columns_of

log = logging.getLogger(__name__)

Array = NDArray[np.floating]

SPACES: dict[str, int] = {"arkit52": len(ARKIT52), "bfm64": 64}
"""Expression spaces and the number of values in each."""

FORMAT = "export3d.motion"
VERSION = "1"
MAX_FRAMES = 1_000_000
"""Longest motion that a file may hold (eleven hours at 25 fps)."""
MAX_HEADER = 1 << 20
MAX_EXPRESSION = 1e3
MAX_FPS = 1000.0
MAX_SHOULDERS = 4.0
MAX_TURN = 1.5
"""Radians, and log size, of shoulders."""
SHOULDERS = 5
"""Numbers that say where shoulders are, see `Motion`."""
AWAY = -1
"""In `Motion.shot`: the face is not in the frame."""
_RESERVED = ("format", "version", "fps", "space")
_FLOATS = ("F32", "F16", "F64")
_STORED = {
    "expression": (_FLOATS, 2),
    "camera": (_FLOATS, 2),
    "shot": (("I32",), 1),
    "shoulders": (_FLOATS, 2),
}
"""Types that are read of each tensor, the one that is written first, and the number of its axes."""
_ONE_SHOT: NDArray[np.int32] = np.zeros(0, np.int32)
_UNKNOWN: NDArray[np.float32] = np.zeros((0, SHOULDERS), np.float32)


@dataclass(frozen=True, eq=False)
class Motion:
    """How a face moves: a value, never changed in place.

    Attributes:
        expression: (T, E) float32, T at least 1; E is fixed by `space`.
        camera: (T, 25) float32 camera labels (`export3d.camera`).
        fps: frames per second; frame k is the state at k / fps seconds.
        space: a key of `SPACES`.
        meta: notes that travel with the file, such as where it came from.
        shot: (T,) int32, the number of the shot that a frame belongs to, from 0; -1 where the face is away, and
            expression and camera are made up. By default all frames are of one shot.
        shoulders: (T, 5) float32: how far, relative to the neck, they are to the right and below their usual place in
            the shot, crop widths; how sure that is, 0 to 1; how far they are turned from there in the picture,
            radians, clockwise; and the logarithm of how much larger they are beside the head. By default nothing is
            known about them, which is 0. Of (T, 3) the last two are taken to be 0.

    Raises:
        ShapeError, ConfigError or InputError when the parts do not fit together or hold NaN or infinity.

    >>> still = Motion(np.zeros((50, 52)), np.tile(cameras.Camera.look_at().label, (50, 1)), 25.0, "arkit52")
    >>> len(still), still.duration_s, len(still[10:20])
    (50, 2.0, 10)
    """

    expression: Array
    camera: Array
    fps: float
    space: str = "arkit52"
    meta: Mapping[str, str] = field(default_factory=dict)
    shot: NDArray[np.int32] = field(default_factory=lambda: _ONE_SHOT)
    shoulders: Array = field(default_factory=lambda: _UNKNOWN)

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ConfigError(f"unknown expression space {self.space[:20]!r}; known are {', '.join(SPACES)}")
        fps = float(self.fps)
        if not (math.isfinite(fps) and 0.0 < fps <= MAX_FPS):
            raise ConfigError(f"fps must be above 0 and at most {MAX_FPS:g}, got {self.fps}")
        object.__setattr__(self, "fps", fps)
        object.__setattr__(self, "meta", {str(key): str(value) for key, value in self.meta.items()})
        object.__setattr__(self, "shoulders", five_numbers(self.shoulders, len(self.camera)))
        widths = {"expression": SPACES[self.space], "camera": cameras.LABEL_SIZE, "shoulders": SHOULDERS}
        for name, width in widths.items():
            with np.errstate(over="ignore"):  # what does not fit becomes infinity, refused below
                value = np.array(getattr(self, name), dtype=np.float32)
            if value.ndim != 2 or value.shape[1] != width or len(value) == 0:
                raise ShapeError(
                    f"{name} of {self.space} motion must have shape (T, {width}), T > 0, got {value.shape}"
                )
            bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
            if len(bad):
                raise InputError(f"{name} holds NaN or infinity in frame {bad[0]} ({len(bad)} of {len(value)} frames)")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        for name in ("expression", "shoulders"):
            if len(getattr(self, name)) != len(self.camera):
                raise ShapeError(f"{len(getattr(self, name))} {name} frames but {len(self.camera)} camera frames")
        shot = np.array(self.shot)
        if shot.ndim == 1 and shot.dtype.kind in "iu" and not shot.any():  # one shot, of however many frames
            shot = np.zeros(len(self.camera), np.int32)
        if shot.shape != (len(self.camera),) or shot.dtype.kind not in "iu":
            raise ShapeError(f"shot must be {len(self.camera)} whole numbers, got {shot.dtype} of shape {shot.shape}")
        if shot.min() < AWAY or shot.max() > MAX_FRAMES:
            raise InputError(
                f"shots are numbered from 0, {AWAY} where the face is away, got {shot.min()}..{shot.max()}"
            )
        shot = shot.astype(np.int32)
        shot.flags.writeable = False
        object.__setattr__(self, "shot", shot)

    def __len__(self) -> int:
        return len(self.expression)

    def __getitem__(self, frames: slice | int) -> Motion:
        """The motion of some frames, `motion[a:b]` or `motion[k]`; raises `IndexError` where nothing would be left."""
        if not isinstance(frames, slice):
            k = range(len(self))[frames]
            frames = slice(k, k + 1)
        start, stop, step = frames.indices(len(self))
        if not range(start, stop, step):
            raise IndexError(f"frames {start}:{stop} are outside a motion of {len(self)} frames")
        return self.rows(frames)

    def rows(self, frames: slice | NDArray[np.int64]) -> Motion:
        """The motion of some frames, at least one, by a slice or by their numbers."""
        return replace(self, **{name: getattr(self, name)[frames] for name in _STORED})

    def __eq__(self, other: object) -> bool:
        """Same frames, rate and space; notes do not count."""
        if not isinstance(other, Motion):
            return NotImplemented
        return (
            (self.fps, self.space) == (other.fps, other.space)
            and np.array_equal(self.expression, other.expression)
            and np.array_equal(self.camera, other.camera)
            and np.array_equal(self.shot, other.shot)
            and np.array_equal(self.shoulders, other.shoulders)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self) / self.fps

    @property
    def angles_deg(self) -> Array:
        """(T, 3) yaw, pitch and roll of the head in degrees (`camera.head_angles`)."""
        return cameras.head_angles(self.camera)

    def shoulders_from(self, reference: int | NDArray[np.int64]) -> NDArray[np.float32]:
        """(T, 5) `shoulders` measured from their place in one frame, or in a frame (T,) for each; as sure as both are.

        >>> shoulders = [[0.1, 0.0, 1.0, 0.0, 0.1], [0.3, 0.1, 0.5, 0.2, 0.1]]
        >>> still = Motion(np.zeros((2, 52)), np.zeros((2, 25)), 25.0, shoulders=shoulders)
        >>> still.shoulders_from(0).astype(float).round(2).tolist()
        [[0.0, 0.0, 1.0, 0.0, 0.0], [0.2, 0.1, 0.5, 0.2, 0.0]]
        """
        own = self.shoulders[reference]
        out: NDArray[np.float32] = self.shoulders - own
        out[:, 2] = np.minimum(self.shoulders[:, 2], own[..., 2])
        return out

    def scores(self, name: str) -> Array:
        """(T,) one named ARKit score; `eyeBlink` and the like (no such name) are the mean of left and right.

        Raises `BadMotionFile` in other spaces (they have no names) and `ConfigError` for an unknown name.
        """
        self.require_space("arkit52")
        return np.asarray(self.expression[:, columns_of(name)].mean(axis=1))

    def require_space(self, space: str) -> None:
        """Raise `BadMotionFile`, naming both spaces, unless this motion is in `space`."""
        if self.space != space:
            remedy = "give Deep3DFaceRecon's coefficients" if space == "bfm64" else "track the driving video again"
            raise BadMotionFile(
                f"{self.meta.get('file', 'the motion')} is in expression space {self.space} but {space} is needed; "
                f"{remedy} or use weights that were trained on {self.space}"
            )

    def resampled(self, fps: float) -> Motion:
        """The same motion at another rate: T fps' / fps frames, rounded, at least one.

        Expressions and head positions are interpolated linearly, rotations along the shortest arc; past the last frame
        its state is held. Nothing is interpolated across a cut.

        Raises:
            ConfigError: `fps` is not a frame rate.
            BadMotionFile: more than `MAX_FRAMES` frames.
        """
        if fps == self.fps:
            return self
        fps = replace(self[0], fps=fps).fps
        frames = len(self) * fps / self.fps
        if frames > MAX_FRAMES:
            raise BadMotionFile(
                f"{self.meta.get('file', 'the motion')} would have {frames:.3g} frames at {fps:g} fps, more than "
                f"{MAX_FRAMES}, since its {len(self)} frames last {self.duration_s:.3g} s; check its frame rate "
                f"({self.fps:g}) or split it"
            )
        count = max(1, round(frames))
        where = np.minimum(np.arange(count) * (self.fps / fps), len(self) - 1)
        before = np.minimum(np.floor(where).astype(int), max(len(self) - 2, 0))
        after = np.minimum(before + 1, len(self) - 1)
        weight = where - before
        apart = self.shot[before] != self.shot[after]
        weight[apart] = np.round(weight[apart])
        shot = self.shot[np.where(weight < 0.5, before, after)]
        expression, shoulders = (_mix(x[before], x[after], weight) for x in (self.expression, self.shoulders))
        camera = _mix_cameras(self.camera[before], self.camera[after], weight)
        return replace(self, expression=expression, camera=camera, fps=fps, shot=shot, shoulders=shoulders)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.motion` file: whole or not at all, the same bytes for the same motion.

        Raises `OutputError` where it cannot be written and `ConfigError` when a note uses a reserved name.
        """
        clash = sorted(set(self.meta) & set(_RESERVED))
        if clash:
            raise ConfigError(f"motion notes may not be called {', '.join(clash)}; rename them")
        header = {
            **{key: value for key, value in sorted(self.meta.items()) if key != "file"},
            "format": FORMAT,
            "version": VERSION,
            "fps": repr(self.fps),
            "space": self.space,
        }
        tensors: dict[str, NDArray[Any]] = {"expression": self.expression, "camera": self.camera}
        tensors |= {name: getattr(self, name) for name in ("shot", "shoulders") if getattr(self, name).any()}
        files.write_bytes(path, _safetensors(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Motion:
        """Read a `.motion` file.

        The file's name is kept in `meta["file"]` for messages; it is not saved again.

        Raises `BadMotionFile`, with the cause, for anything that is not a complete motion of sane numbers.
        """
        path = files.check_input(path, BadMotionFile, "a .motion file")
        remedy = "make a new one from the driving video"
        foreign = files.foreign_kind(files.sniff(path))
        if foreign:
            raise BadMotionFile(f"{path} is not a .motion file but {foreign}; {remedy}")
        tensors, header = _read_safetensors(path, remedy)
        if header.get("format") != FORMAT:
            raise BadMotionFile(f"{path} is a safetensors file but not a motion (no {FORMAT!r} inside); {remedy}")
        if header.get("version") != VERSION:
            raise BadMotionFile(
                f"{path} is a motion of version {str(header.get('version'))[:20]!r} but this program reads {VERSION}; "
                "update export3d or make a new one"
            )
        try:
            fps = float(header["fps"])
            meta = {key: value for key, value in header.items() if key not in _RESERVED}
            space, shot = header.get("space", "missing"), tensors.get("shot", _ONE_SHOT)
            shoulders = tensors.get("shoulders", _UNKNOWN)
            motion = cls(tensors["expression"], tensors["camera"], fps, space, meta, shot, shoulders)
            check_sane(motion)
        except KeyError as problem:
            raise BadMotionFile(f"{path} lacks {problem.args[0]!r}; {remedy}") from problem
        except (InputError, ShapeError, ConfigError, ValueError) as problem:
            raise BadMotionFile(f"{path} is damaged: {problem}; {remedy}") from problem
        return replace(motion, meta={**motion.meta, "file": str(path)})


# --- files and numbers ------------------------------------------------------------------------------------------------


def five_numbers(shoulders: ArrayLike, frames: int) -> Array:
    """Shoulders (T, 5) as `Motion` has them, from (T, 3), which knows no turn and size, or from zeros of any shape.

    >>> five_numbers([[0.1, 0.0, 1.0]], 1).tolist()
    [[0.1, 0.0, 1.0, 0.0, 0.0]]
    """
    values = np.asarray(shoulders)
    if not values.any():
        return np.zeros((frames, SHOULDERS), np.float32)
    return np.pad(values, ((0, 0), (0, SHOULDERS - 3))) if values.ndim == 2 and values.shape[1] == 3 else values


def _safetensors(tensors: Mapping[str, NDArray[Any]], header: Mapping[str, str]) -> bytes:
    """The safetensors bytes of float32 and int32 tensors; the library's own writer shuffles the header between runs."""
    layout: dict[str, Any] = {"__metadata__": dict(header)}
    data = b""
    for name, value in tensors.items():
        kind, stored = ("I32", "<i4") if value.dtype.kind == "i" else ("F32", "<f4")
        raw = np.ascontiguousarray(value, dtype=stored).tobytes()
        layout[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _read_safetensors(path: Path, remedy: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of `_STORED` and the notes of a safetensors file, types and sizes checked before reading."""
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    length = int.from_bytes(files.sniff(path, 8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise BadMotionFile(f"{path} is not a .motion file, or only its beginning; {remedy}")
    tensors: dict[str, NDArray[Any]] = {}
    try:
        with safe_open(str(path), framework="np") as file:
            header = dict(file.metadata() or {})
            for name, (kinds, axes) in _STORED.items():
                if name not in file.keys():  # noqa: SIM118 - not a dictionary
                    continue
                part = file.get_slice(name)
                shape, kind = part.get_shape(), part.get_dtype()
                if kind not in kinds:
                    raise BadMotionFile(f"{path} holds {name} of type {kind}, not {kinds[0]}; {remedy}")
                if len(shape) != axes or shape[0] > MAX_FRAMES or max(shape[1:], default=0) > 1024:
                    raise BadMotionFile(f"{path} holds {name} of absurd shape {tuple(shape)}; {remedy}")
                tensors[name] = np.asarray(file.get_tensor(name))
    except (SafetensorError, OSError, ValueError, TypeError) as problem:
        raise BadMotionFile(f"{path} is not a .motion file, or is damaged; {remedy}") from problem
    return tensors, header


def check_sane(motion: Motion) -> None:
    """Raise `InputError` for numbers that are finite and still cannot be a face and a camera."""
    if np.abs(motion.expression).max() > MAX_EXPRESSION:
        raise InputError(f"expression values above {MAX_EXPRESSION:g}")
    across, down, sure, turn, size = np.abs(motion.shoulders).max(axis=0)
    if max(across, down) > MAX_SHOULDERS or max(turn, size) > MAX_TURN:
        raise InputError(
            f"shoulders farther than {MAX_SHOULDERS:g} crop widths away, or turned or grown by more than {MAX_TURN:g}"
        )
    if sure > 1.0 or motion.shoulders[:, 2].min() < 0.0:
        raise InputError("shoulders whose certainty lies outside 0 to 1")
    cam2world, intrinsics = cameras.unpack(motion.camera.astype(np.float64))
    rotation = cam2world[:, :3, :3]
    skewed = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(1, 2)) > 1e-3
    skewed |= np.linalg.det(rotation) < 0.0
    skewed |= np.abs(cam2world[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-3
    skewed |= np.abs(cam2world[:, :3, 3]).max(axis=1) > 1e4
    skewed |= np.abs(intrinsics[:, 2] - [0, 0, 1]).max(axis=1) > 1e-3
    skewed |= np.abs(intrinsics).max(axis=(1, 2)) > 1e4
    skewed |= (intrinsics[:, 0, 0] <= 0.0) | (intrinsics[:, 1, 1] <= 0.0)
    if skewed.any():
        raise InputError(f"frame {int(np.flatnonzero(skewed)[0])} holds numbers that are not a camera")


def _mix(a: Array, b: Array, weight: Array) -> Array:
    """(T, N) and (T, N) blended by weights (T,), float64; exact where the weight is 0 or both are equal."""
    a = np.asarray(a, dtype=np.float64)
    return a + (b - a) * weight[:, None]


def _mix_cameras(a: Array, b: Array, weight: Array) -> Array:
    """Labels (T, 25) between `a` and `b`: rotation on the shortest arc, the head's place in the view on a line."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    pose_a, lens_a = cameras.unpack(a)
    pose_b, lens_b = cameras.unpack(b)
    rotation = pose_a[:, :3, :3] @ _turn(np.swapaxes(pose_a[:, :3, :3], -1, -2) @ pose_b[:, :3, :3], weight)
    position = _mix(cameras.head_position(a), cameras.head_position(b), weight)
    pose = pose_a.copy()
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -(rotation @ position[..., None])[..., 0]
    lens = _mix(lens_a.reshape(-1, 9), lens_b.reshape(-1, 9), weight).reshape(-1, 3, 3)
    return cameras.pack(pose, lens)


def _turn(rotation: Array, weight: Array) -> Array:
    """Rotations (T, 3, 3) taken `weight` (T,) of the way about their own axes (Rodrigues)."""
    vector = np.stack([rotation[:, i, j] - rotation[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=-1) / 2
    sine = np.linalg.norm(vector, axis=-1)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=1, axis2=2) - 1) / 2)
    axis = vector / np.maximum(sine, 1e-12)[:, None]
    cross = np.zeros_like(rotation)
    for i, j, k in ((2, 1, 0), (0, 2, 1), (1, 0, 2)):
        cross[:, i, j], cross[:, j, i] = axis[:, k], -axis[:, k]
    part = (angle * weight)[:, None, None]
    turned: Array = np.eye(3) + np.sin(part) * cross + (1 - np.cos(part)) * (cross @ cross)
    return turned
