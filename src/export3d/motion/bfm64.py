"""Reads Deep3DFaceRecon coefficient files (64 BFM expression coefficients) as motion."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d import camera as cameras
from export3d import files
from export3d.errors import BadMotionFile, InputError, ShapeError
from export3d.motion.matlab import read_numbers
from export3d.motion.motion import MAX_EXPRESSION, MAX_FRAMES, Motion, check_sane

Array = NDArray[np.floating]

SUFFIXES = (".mat", ".npz")
"""Endings of coefficient files."""

_MAX_BYTES = 512 << 20
"""Largest size of a file, packed and unpacked; holds nearly three hours of coefficients at 25 fps."""
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
    """
    path = Path(path)
    values = _load(path, ("exp", "angle", "trans"))
    try:
        motion = Motion(
            values["exp"], _bfm_cameras(values["angle"], values["trans"]), fps, "bfm64", {"file": str(path)}
        )
        check_sane(motion)
    except (InputError, ShapeError) as problem:
        raise BadMotionFile(f"{path} cannot be used: {problem}; run Deep3DFaceRecon again") from problem
    return motion


def load_expression(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The expression coefficients (T, 64) alone.

    Args:
        path: as for `load_bfm64`, except that `angle` and `trans` may be missing.

    Raises:
        BadMotionFile: not such a file, or numbers that are not finite or above `motion.MAX_EXPRESSION`.
    """
    values = _load(Path(path), ("exp",))["exp"]
    bad = np.flatnonzero(~(np.abs(values) <= MAX_EXPRESSION).all(axis=1))
    if len(bad):
        raise BadMotionFile(
            f"{path} holds NaN, infinity or values above {MAX_EXPRESSION:g} in frame {bad[0]} ({len(bad)} of "
            f"{len(values)} frames); run Deep3DFaceRecon again"
        )
    return values.astype(np.float32)


def _load(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Arrays (T, ...), float64, by name, of a file or of all files in a folder."""
    if files.kind_at(path, BadMotionFile) == "folder":
        files_in = sorted(
            (p for p in files.paths_in(path, BadMotionFile) if p.suffix.lower() in SUFFIXES), key=_natural
        )
        if not files_in:
            raise BadMotionFile(f"the folder {path} holds no .mat or .npz file; give Deep3DFaceRecon's output folder")
    else:
        files_in = [path]
    parts = [_read_bfm(name, names) for name in files_in]
    values = {key: np.concatenate([part[key] for part in parts]) for key in names}
    if len(values[names[0]]) > MAX_FRAMES:
        raise BadMotionFile(f"{path} holds {len(values[names[0]])} frames, more than {MAX_FRAMES}; split it")
    return values


def _read_bfm(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """The arrays `names` of one coefficient file, float64, with one T: `exp` (T, 64), `angle` and `trans` (T, 3)."""
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
    if all(name in arrays for name in names):
        parts = {name: _rows(arrays[name], _BFM_WIDTHS[name]) for name in names}
    else:
        whole = [np.atleast_2d(a) for a in arrays.values() if a.ndim in (1, 2) and a.shape[-1] == 257]
        if len(whole) != 1:
            found = ", ".join(name[:20] for name in sorted(arrays)[:5]) or "no arrays"
            more = f" and {len(arrays) - 5} more" if len(arrays) > 5 else ""
            raise BadMotionFile(
                f"{path} holds no coefficients of the 257 layout (found {found}{more}); "
                f"save one (T, 257) array, or {', '.join(names)}"
            )
        parts = {name: whole[0][:, _BFM_LAYOUT[name]] for name in names}
    if len({len(part) for part in parts.values()}) != 1 or not len(parts[names[0]]):
        wanted = ", ".join(f"{name} (T, {_BFM_WIDTHS[name]})" for name in names)
        raise BadMotionFile(f"{path} must hold {wanted} with one T of at least 1")
    return {name: np.asarray(part, dtype=np.float64) for name, part in parts.items()}


def _rows(array: NDArray[Any], width: int) -> NDArray[Any]:
    """(T, width); no rows if the array has another width."""
    return array.reshape(-1, width) if array.shape[-1:] == (width,) else np.zeros((0, width))


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise BadMotionFile(f"{path} would unpack to more than {_MAX_BYTES >> 20} MB; split it")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except BadMotionFile:
        raise
    except Exception as problem:  # zipfile, zlib, struct and NumPy each have their own errors
        raise BadMotionFile(
            f"{path} cannot be read ({files.reason(problem)}); save it again with numpy.savez"
        ) from problem
    return {
        name: value for name, value in arrays.items() if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    }


def _read_mat(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return read_numbers(path, _MAX_BYTES)
    except (OSError, ValueError) as problem:
        raise BadMotionFile(f"{path} cannot be read ({files.reason(problem)}); save it again, or as .npz") from problem


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


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which frame 10 follows frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
