"""Motion: an expression and a camera for each frame, and its file format.

A `.motion` file is a safetensors file: tensors `expression` (T, E) and `camera` (T, 25), float32, with a JSON header
that holds format, version, fps, expression space and free-text notes. Nothing in it can execute. Expression spaces:

- `arkit52`: the 52 ARKit blendshape scores, 0..1, in the order of `ARKIT52`; what our own tracker gives.
- `bfm64`: the 64 expression coefficients of the Basel Face Model as Deep3DFaceRecon fits them (the paper's space);
  read from the user's own coefficient files with `load_bfm64`.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d import camera as cameras
from export3d import files
from export3d.errors import BadMotionFile, ConfigError, InputError, MissingExtra, ShapeError

log = logging.getLogger(__name__)

Array = NDArray[np.floating]

ARKIT52: tuple[str, ...] = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
    "tongueOut",
)  # fmt: skip
"""Names of the `arkit52` scores: MediaPipe's order without its `_neutral`, then `tongueOut`, the one ARKit score that
MediaPipe does not give (0 from our tracker). Left and right are the person's own."""

ARKIT52_MIRRORED: tuple[int, ...] = tuple(
    ARKIT52.index(re.sub("Left|Right", lambda side: "Right" if side[0] == "Left" else "Left", name)) for name in ARKIT52
)
"""Where each score of a mirrored face comes from: `mirrored = scores[..., ARKIT52_MIRRORED]` (left and right swap)."""

_COLUMNS: dict[str, list[int]] = {name.lower(): [column] for column, name in enumerate(ARKIT52)}
_COLUMNS |= {  # jawLeft and jawRight (mouth, too) are opposites, not the two sides of one score
    name[:-4].lower(): [ARKIT52.index(name), ARKIT52.index(f"{name[:-4]}Right")]
    for name in ARKIT52
    if name.endswith("Left") and name not in ("jawLeft", "mouthLeft")
}

SPACES: dict[str, int] = {"arkit52": len(ARKIT52), "bfm64": 64}
"""Expression spaces and the number of values in each."""

FORMAT = "export3d.motion"
VERSION = "1"
MAX_FRAMES = 1_000_000
"""Longest motion that a file may hold (eleven hours at 25 fps)."""
MAX_HEADER = 1 << 20
MAX_EXPRESSION = 1e3
MAX_FPS = 1000.0
_RESERVED = ("format", "version", "fps", "space")


@dataclass(frozen=True, eq=False)
class Motion:
    """How a face moves: a value, never changed in place.

    Attributes:
        expression: (T, E) float32, T at least 1; E is fixed by `space`.
        camera: (T, 25) float32 camera labels (`export3d.camera`).
        fps: frames per second; frame k is the state at k / fps seconds.
        space: a key of `SPACES`.
        meta: notes that travel with the file, such as where it came from.

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

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ConfigError(f"unknown expression space {self.space!r}; known are {', '.join(SPACES)}")
        fps = float(self.fps)
        if not (math.isfinite(fps) and 0.0 < fps <= MAX_FPS):
            raise ConfigError(f"fps must be above 0 and at most {MAX_FPS:g}, got {self.fps}")
        object.__setattr__(self, "fps", fps)
        object.__setattr__(self, "meta", {str(key): str(value) for key, value in self.meta.items()})
        for name, width in (("expression", SPACES[self.space]), ("camera", cameras.LABEL_SIZE)):
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
        if len(self.expression) != len(self.camera):
            raise ShapeError(f"{len(self.expression)} expression frames but {len(self.camera)} camera frames")

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
        return replace(self, expression=self.expression[frames], camera=self.camera[frames])

    def __eq__(self, other: object) -> bool:
        """Same frames, rate and space; notes do not count."""
        if not isinstance(other, Motion):
            return NotImplemented
        return (
            (self.fps, self.space) == (other.fps, other.space)
            and np.array_equal(self.expression, other.expression)
            and np.array_equal(self.camera, other.camera)
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

    def scores(self, name: str) -> Array:
        """(T,) one named ARKit score; `eyeBlink` and the like (no such name) are the mean of left and right.

        Raises `BadMotionFile` in other spaces (they have no names) and `ConfigError` for an unknown name.
        """
        self.require_space("arkit52")
        return np.asarray(self.expression[:, _columns(name)].mean(axis=1))

    def require_space(self, space: str) -> None:
        """Raise `BadMotionFile`, naming both spaces, unless this motion is in `space`."""
        if self.space != space:
            raise BadMotionFile(
                f"{self.meta.get('file', 'the motion')} is in expression space {self.space} but {space} is needed; "
                f"track the driving video again or use weights that were trained on {self.space}"
            )

    def resampled(self, fps: float) -> Motion:
        """The same motion at another rate: T fps' / fps frames, rounded, at least one.

        Expressions and head positions are interpolated linearly, rotations along the shortest arc; past the last frame
        its state is held.
        """
        if fps == self.fps:
            return self
        fps = replace(self[0], fps=fps).fps
        count = max(1, round(len(self) * fps / self.fps))
        where = np.minimum(np.arange(count) * (self.fps / fps), len(self) - 1)
        before = np.minimum(np.floor(where).astype(int), max(len(self) - 2, 0))
        after = np.minimum(before + 1, len(self) - 1)
        weight = where - before
        expression = _mix(self.expression[before], self.expression[after], weight)
        camera = _mix_cameras(self.camera[before], self.camera[after], weight)
        return replace(self, expression=expression, camera=camera, fps=fps)

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
        files.write_bytes(path, _safetensors({"expression": self.expression, "camera": self.camera}, header))

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
                f"{path} is a motion of version {header.get('version')!r} but this program reads {VERSION}; "
                "update export3d or make a new one"
            )
        try:
            fps = float(header["fps"])
            meta = {key: value for key, value in header.items() if key not in _RESERVED}
            motion = cls(tensors["expression"], tensors["camera"], fps, header.get("space", "missing"), meta)
            _check_sane(motion)
        except KeyError as problem:
            raise BadMotionFile(f"{path} lacks {problem.args[0]!r}; {remedy}") from problem
        except (InputError, ShapeError, ConfigError, ValueError) as problem:
            raise BadMotionFile(f"{path} is damaged: {problem}; {remedy}") from problem
        return replace(motion, meta={**motion.meta, "file": str(path)})


def with_scores(expression: ArrayLike, scores: Mapping[str, float]) -> Array:
    """An `arkit52` expression with some scores replaced.

    Args:
        expression: (..., 52), what the other scores keep.
        scores: 0..1 by name, in any case; `eyeBlink` and the like set both sides. Of two that set the same score the
            later one counts.

    Returns:
        (..., 52), a new array.

    Raises:
        ConfigError: an unknown name (the message offers the nearest one), or a value outside 0..1.
        ShapeError: `expression` is not of 52 scores.

    >>> face = with_scores(np.zeros(52), {"jawOpen": 0.8, "eyeBlink": 1})
    >>> {name: float(score) for name, score in zip(ARKIT52, face) if score}
    {'eyeBlinkLeft': 1.0, 'eyeBlinkRight': 1.0, 'jawOpen': 0.8}
    """
    changed = np.array(expression)
    if changed.shape[-1:] != (len(ARKIT52),):
        raise ShapeError(
            f"expression must have {len(ARKIT52)} ARKit scores on its last axis, got shape {changed.shape}"
        )
    if changed.dtype.kind != "f":
        changed = changed.astype(np.float64)
    for name, value in scores.items():
        columns = _columns(name)
        if not 0.0 <= value <= 1.0:  # NaN neither
            raise ConfigError(f"the ARKit score {name} must be between 0 and 1, got {value:g}")
        changed[..., columns] = value
    return changed


def _columns(name: str) -> list[int]:
    """Where an ARKit score stands, or the two sides of a name without one; `ConfigError` for an unknown name."""
    if name.lower() not in _COLUMNS:
        known = {known.lower(): known for known in ARKIT52}
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"there is no ARKit score {name!r}; the nearest name is {known[near]}")
    return _COLUMNS[name.lower()]


def compare(a: Motion, b: Motion) -> dict[str, Any]:
    """How alike two motions are, over the frames that both have (`b` is resampled to `a`'s rate).

    Returns:
        `frames`, and two dictionaries with the same keys: `correlation` (Pearson, NaN where a motion does not move at
        all) and `mean_abs_difference` (degrees for yaw, pitch and roll, score units for jawOpen and eyeBlink, the mean
        of left and right). Spaces without named scores give the three angles only.

    Raises:
        BadMotionFile: the two are in different expression spaces.
    """
    b.require_space(a.space)
    b = b.resampled(a.fps)
    frames = min(len(a), len(b))
    a, b = a[:frames], b[:frames]
    pairs = {name: (a.angles_deg[:, i], b.angles_deg[:, i]) for i, name in enumerate(("yaw", "pitch", "roll"))}
    if a.space == "arkit52":
        pairs |= {name: (a.scores(name), b.scores(name)) for name in ("jawOpen", "eyeBlink")}
    return {
        "frames": frames,
        "correlation": {name: pearson(x, y) for name, (x, y) in pairs.items()},
        "mean_abs_difference": {name: float(np.abs(x - y).mean()) for name, (x, y) in pairs.items()},
    }


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two series (T,), float64; NaN when either is constant.

    >>> pearson([1, 2, 3], [2, 4, 6])
    1.0
    """
    u, v = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    u, v = u - u.mean(), v - v.mean()
    scale = math.sqrt(float(u @ u) * float(v @ v))
    return min(1.0, max(-1.0, float(u @ v) / scale)) if scale > 1e-12 else math.nan


# --- Deep3DFaceRecon coefficients -------------------------------------------------------------------------------------

_BFM_LAYOUT = {"exp": slice(80, 144), "angle": slice(224, 227), "trans": slice(254, 257)}
_BFM_WIDTHS = {"exp": 64, "angle": 3, "trans": 3}
_BFM_CM = 10.0
"""Centimetres in a unit of the model."""
_BFM_CAMERA_DISTANCE = 10.0
_MESH_ORIGIN_IN_BFM = np.array([0.0, 0.0, -0.207])
"""The canonical mesh's origin in the model's coordinates: the mean offset between the model's five standard points
(eyes, nose tip, mouth corners) and the same points of the mesh is (0, 0, 2.07) cm."""
_NOSE_TIP = np.array([0.0, -0.4632, 7.5866]) * [1, -1, -1] * cameras.UNITS_PER_CM
_FLIP = np.diag([1.0, -1.0, -1.0])


def load_bfm64(path: str | os.PathLike[str], fps: float = 25.0) -> Motion:
    """Motion in the paper's own expression space, from Deep3DFaceRecon coefficients.

    Args:
        path: a `.mat` or `.npz` file with either one array (T, 257) under any name, laid out as identity 80,
            expression 64, texture 80, angle 3, lighting 27, translation 3, or arrays `exp` (T, 64), `angle` (T, 3) and
            `trans` (T, 3); or a folder of such files, one or more frames each, taken in the order of their names.
        fps: their frame rate, which the files do not hold.

    The head's angles are taken over as they are. Positions are moved to the face crop of this package, which has a
    longer lens than the model's (focal 1015 / 224): the median distance becomes `camera.RADIUS`, relative changes of
    distance and sideways shifts at the head stay, and the median nose tip is centred.

    Raises:
        BadMotionFile: not such a file. Pickled arrays are refused, not loaded.
        MissingExtra: a `.mat` file, and scipy is not installed.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted((p for p in path.iterdir() if p.suffix.lower() in (".mat", ".npz")), key=_natural)
        if not names:
            raise BadMotionFile(f"the folder {path} holds no .mat or .npz file; give Deep3DFaceRecon's output folder")
    else:
        names = [files.check_input(path, BadMotionFile, "a Deep3DFaceRecon .mat or .npz file")]
    parts = [_read_bfm(name) for name in names]
    values = {key: np.concatenate([part[key] for part in parts]) for key in _BFM_WIDTHS}
    if len(values["exp"]) > MAX_FRAMES:
        raise BadMotionFile(f"{path} holds {len(values['exp'])} frames, more than {MAX_FRAMES}; split it")
    try:
        motion = Motion(
            values["exp"], _bfm_cameras(values["angle"], values["trans"]), fps, "bfm64", {"file": str(path)}
        )
        _check_sane(motion)
    except (InputError, ShapeError) as problem:
        raise BadMotionFile(f"{path} cannot be used: {problem}; run Deep3DFaceRecon again") from problem
    return motion


def _read_bfm(path: Path) -> dict[str, Array]:
    """`exp` (T, 64), `angle` (T, 3) and `trans` (T, 3), float64, of one coefficient file."""
    head = files.sniff(files.check_input(path, BadMotionFile, "a Deep3DFaceRecon .mat or .npz file"))
    if head[:2] == b"PK":
        arrays = _read_npz(path)
    elif head[:10] == b"MATLAB 5.0":
        arrays = _read_mat(path)
    elif head[:10] == b"MATLAB 7.3" or head[:4] == b"\x89HDF":
        raise BadMotionFile(f"{path} is a MATLAB 7.3 file; save it again with `-v7`, or as .npz")
    else:
        kind = files.foreign_kind(head) or "something else"
        raise BadMotionFile(f"{path} is not a .mat or .npz file but {kind}; give Deep3DFaceRecon's own output")
    if all(name in arrays for name in _BFM_WIDTHS):
        parts = {name: np.asarray(arrays[name]).reshape(-1, width) if np.size(arrays[name]) % width == 0 else None
                 for name, width in _BFM_WIDTHS.items()}  # fmt: skip
    else:
        whole = [np.atleast_2d(a) for a in arrays.values() if a.ndim in (1, 2) and a.shape[-1] == 257]
        if len(whole) != 1:
            raise BadMotionFile(
                f"{path} holds no coefficients of the 257 layout (found {', '.join(sorted(arrays)) or 'no arrays'}); "
                "save one (T, 257) array, or exp, angle and trans"
            )
        parts = {name: whole[0][:, columns] for name, columns in _BFM_LAYOUT.items()}
    lengths = {len(part) if part is not None else -1 for part in parts.values()}
    if len(lengths) != 1 or lengths & {-1, 0}:
        raise BadMotionFile(f"{path}: save exp, angle and trans as (T, 64), (T, 3) and (T, 3) with one T")
    return {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_FRAMES * 4096:
                raise BadMotionFile(f"{path} would unpack to more than 4 GB; split it")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except BadMotionFile:
        raise
    except Exception as problem:  # zipfile, zlib, struct and NumPy each have their own errors
        raise BadMotionFile(
            f"{path} cannot be read ({files.reason(problem)}); save it again with numpy.savez"
        ) from problem
    return {name: value for name, value in arrays.items() if _is_real(value)}


def _read_mat(path: Path) -> dict[str, NDArray[Any]]:
    try:
        from scipy.io import loadmat
    except ImportError as problem:
        raise MissingExtra("bfm", "scipy") from problem
    try:
        content = loadmat(str(path), struct_as_record=True, chars_as_strings=False)
    except Exception as problem:  # scipy raises whatever the broken bytes lead to
        raise BadMotionFile(f"{path} cannot be read ({files.reason(problem)}); save it again, or as .npz") from problem
    return {name: value for name, value in content.items() if _is_real(value)}


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _bfm_cameras(angle_rad: Array, trans: Array) -> Array:
    """Deep3DFaceRecon's angle (T, 3) in radians and translation (T, 3) to camera labels (T, 25).

    The model puts p at Rz Ry Rx p + t in axes x right, y up, z to the viewer, seen from z = 10.
    """
    x, y, z = np.moveaxis(np.asarray(angle_rad, dtype=np.float64), -1, 0)
    zero = np.zeros_like(x)
    model = np.broadcast_to(np.eye(3), (len(x), 3, 3))
    for yaw, pitch, roll in ((zero, zero, z), (-y, zero, zero), (zero, -x, zero)):  # Rz, Ry, Rx: one axis at a time
        model = model @ cameras.head_rotation(np.degrees(np.stack([yaw, pitch, roll], axis=-1)))
    rotation = _FLIP @ model @ _FLIP
    origin = (model @ _MESH_ORIGIN_IN_BFM + trans) @ _FLIP + [0.0, 0.0, _BFM_CAMERA_DISTANCE]
    position = origin * _BFM_CM * cameras.UNITS_PER_CM
    distance = float(np.median(position[:, 2]))
    if distance <= 0.0:
        raise InputError("its translations put the head behind the camera")
    position[:, 2] *= cameras.RADIUS / distance
    nose = rotation @ _NOSE_TIP + position
    position[:, :2] -= np.median(nose[:, :2] / nose[:, 2:], axis=0) * nose[:, 2:]
    cam2world = np.tile(np.eye(4), (len(rotation), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(rotation, -1, -2)
    cam2world[:, :3, 3] = -(cam2world[:, :3, :3] @ position[..., None])[..., 0]
    return cameras.pack(cam2world, np.tile(cameras.default_intrinsics(), (len(rotation), 1, 1)))


# --- files and numbers ------------------------------------------------------------------------------------------------


def _safetensors(tensors: Mapping[str, Array], header: Mapping[str, str]) -> bytes:
    """The safetensors bytes of float32 tensors; the library's own writer shuffles the header from run to run."""
    layout: dict[str, Any] = {"__metadata__": dict(header)}
    data = b""
    for name, value in tensors.items():
        raw = np.ascontiguousarray(value, dtype="<f4").tobytes()
        layout[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _read_safetensors(path: Path, remedy: str) -> tuple[dict[str, Array], dict[str, str]]:
    """The float32 `expression` and `camera` and the notes of a safetensors file, sizes checked before reading."""
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    length = int.from_bytes(files.sniff(path, 8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise BadMotionFile(f"{path} is not a .motion file, or only its beginning; {remedy}")
    tensors: dict[str, Array] = {}
    try:
        with safe_open(str(path), framework="np") as file:
            header = dict(file.metadata() or {})
            for name in ("expression", "camera"):
                if name not in file.keys():  # noqa: SIM118 - not a dictionary
                    continue
                part = file.get_slice(name)
                shape, kind = part.get_shape(), part.get_dtype()
                if kind not in ("F16", "F32", "F64"):
                    raise BadMotionFile(f"{path} holds {name} of type {kind}, not float32; {remedy}")
                if len(shape) != 2 or shape[0] > MAX_FRAMES or shape[1] > 1024:
                    raise BadMotionFile(f"{path} holds {name} of absurd shape {tuple(shape)}; {remedy}")
                tensors[name] = np.asarray(file.get_tensor(name))
    except (SafetensorError, OSError, ValueError, TypeError) as problem:
        raise BadMotionFile(f"{path} is not a .motion file, or is damaged; {remedy}") from problem
    return tensors, header


def _check_sane(motion: Motion) -> None:
    """Raise `InputError` for numbers that are finite and still cannot be a face and a camera."""
    if np.abs(motion.expression).max() > MAX_EXPRESSION:
        raise InputError(f"expression values above {MAX_EXPRESSION:g}")
    cam2world, intrinsics = cameras.unpack(motion.camera.astype(np.float64))  # type: ignore[no-untyped-call]
    rotation = cam2world[:, :3, :3]
    skewed = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(1, 2)) > 1e-3
    skewed |= np.linalg.det(rotation) < 0.0
    skewed |= np.abs(cam2world[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-3
    skewed |= np.abs(cam2world[:, :3, 3]).max(axis=1) > 1e4
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
    pose_a, lens_a = cameras.unpack(a)  # type: ignore[no-untyped-call]
    pose_b, lens_b = cameras.unpack(b)  # type: ignore[no-untyped-call]
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


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which frame 10 follows frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
