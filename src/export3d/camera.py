"""The camera: where it stands, how it looks, and the 25 numbers that networks and files see.

The world is the head's own frame in scene units: origin at the canonical face mesh's origin (inside the head), x to
the image's right, y down, z away from a frontal camera (OpenCV axes). One scene unit is 54 cm (1 cm = 0.63 / 34), which
puts a portrait camera at a distance of about 2.7, as in EG3D. A label is `cam2world` (4x4, row-major: 16 numbers)
followed by the intrinsics (3x3, row-major: 9 numbers) divided by the image size. This file alone packs and unpacks
labels.

All functions take and return NumPy arrays or torch tensors of shape (..., 25); arithmetic is float64 for NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export3d.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.floating]
Float = TypeVar("Float", bound=np.floating)

LABEL_SIZE = 25
UNITS_PER_CM = 0.63 / 34.0
"""Scene units in a centimetre of the canonical face mesh."""
FOCAL = 4.2647
"""Focal length of the face crop, in crop widths (EG3D's FFHQ constant; a field of view of 13.4 degrees)."""
RADIUS = 2.7
"""Distance of the default camera from the origin, scene units."""
NECK = (0.0, 0.1, 0.1)
"""The neck, about which the head turns, in the world, scene units: 5.5 cm below the head's origin and behind it. Fitted
to 210 clips of talking heads: relative to it, quick movements (under 1.5 s) of the origin are 20 % smaller."""
COLLAR = (0.0, 0.256, -0.078)
"""Below the chin of the canonical face by a quarter of its height: the place about which shoulders turn and grow."""


@dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
        cam2world: (4, 4) float64; columns are the camera's right, down and forward axes and its centre, world units.
        intrinsics: (3, 3) float64, divided by the image size (0..1 across the image, origin at its top left corner).

    >>> Camera.look_at().label.shape
    (25,)
    """

    cam2world: Array
    intrinsics: Array

    def __post_init__(self) -> None:
        for name, shape in (("cam2world", (4, 4)), ("intrinsics", (3, 3))):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != shape:
                raise ShapeError(f"{name} must have shape {shape}, got {value.shape}")
            object.__setattr__(self, name, value)

    @property
    def label(self) -> Array:
        """The 25-vector, float64."""
        return pack(self.cam2world, self.intrinsics)

    @classmethod
    def from_label(cls, label: ArrayLike) -> Camera:
        """Inverse of `label`; raises `ShapeError` unless there are exactly 25 numbers."""
        cam2world, intrinsics = unpack(np.asarray(label, dtype=np.float64))
        return cls(cam2world, intrinsics)

    @classmethod
    def look_at(
        cls,
        centre: ArrayLike = (0.0, 0.0, -RADIUS),
        target: ArrayLike = (0.0, 0.0, 0.0),
        roll_rad: float = 0.0,
        focal: float = FOCAL,
    ) -> Camera:
        """A camera at `centre` whose optical axis goes through `target`; `roll_rad` turns it about that axis."""
        eye = np.asarray(centre, dtype=np.float64)
        forward = np.asarray(target, dtype=np.float64) - eye
        length = float(np.linalg.norm(forward))
        if length == 0.0:
            raise ShapeError("a camera cannot look at its own centre; give another target")
        forward = forward / length
        down = np.array([0.0, 1.0, 0.0])
        if abs(forward[1]) > 1.0 - 1e-9:
            down = np.array([0.0, 0.0, 1.0])
        right = np.cross(down, forward)
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        c, s = math.cos(roll_rad), math.sin(roll_rad)
        cam2world = np.eye(4)
        cam2world[:3, 0] = c * right + s * down
        cam2world[:3, 1] = c * down - s * right
        cam2world[:3, 2] = forward
        cam2world[:3, 3] = eye
        return cls(cam2world, default_intrinsics(focal))

    @classmethod
    def orbit(
        cls,
        yaw_deg: float = 0.0,
        pitch_deg: float = 0.0,
        radius: float = RADIUS,
        target: ArrayLike = (0.0, 0.0, 0.0),
        focal: float = FOCAL,
    ) -> Camera:
        """A camera on a sphere about `target` from which the head appears turned by (yaw, pitch) degrees.

        The signs are those of `head_angles`: at yaw 20 the face turns toward the image's right edge.
        """
        yaw, pitch = math.radians(yaw_deg), math.radians(pitch_deg)
        centre = np.array([-math.sin(yaw) * math.cos(pitch), math.sin(pitch), -math.cos(yaw) * math.cos(pitch)])
        return cls.look_at(np.asarray(target, dtype=np.float64) + radius * centre, target, focal=focal)

    def mirrored(self) -> Camera:
        """The camera that sees the mirrored world as the mirrored image (x negated on both sides)."""
        return Camera.from_label(mirror(self.label))


def default_intrinsics(focal: float = FOCAL) -> Array:
    """(3, 3) intrinsics of the face crop: square pixels, principal point in the middle, divided by the image size."""
    return np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])


def pack(cam2world: Array, intrinsics: Array) -> Array:
    """(..., 4, 4) and (..., 3, 3) to labels (..., 25)."""
    cam2world, intrinsics = np.asarray(cam2world), np.asarray(intrinsics)
    lead = cam2world.shape[:-2]
    if cam2world.shape[-2:] != (4, 4) or intrinsics.shape != (*lead, 3, 3):
        raise ShapeError(
            f"cam2world (..., 4, 4) and intrinsics (..., 3, 3) are needed, got {cam2world.shape} and {intrinsics.shape}"
        )
    return np.concatenate([cam2world.reshape(*lead, 16), intrinsics.reshape(*lead, 9)], axis=-1)


@overload
def unpack(label: NDArray[Float]) -> tuple[NDArray[Float], NDArray[Float]]: ...


@overload
def unpack(label: Tensor) -> tuple[Tensor, Tensor]: ...


def unpack(label: Any) -> tuple[Any, Any]:
    """Labels (..., 25), NumPy or torch, to cam2world (..., 4, 4) and intrinsics (..., 3, 3) of the same kind."""
    if label.shape[-1:] != (LABEL_SIZE,):
        raise ShapeError(
            f"a camera label must have {LABEL_SIZE} numbers on its last axis, got shape {tuple(label.shape)}"
        )
    lead = tuple(label.shape[:-1])
    return label[..., :16].reshape(*lead, 4, 4), label[..., 16:].reshape(*lead, 3, 3)


def mirror(label: Array) -> Array:
    """Labels (..., 25) of the same views in a mirror (x -> -x in world and image); its own inverse.

    Rotation and centre change sign where exactly one axis is x; the principal point moves to 1 - cx, skew changes sign.
    """
    cam2world, intrinsics = unpack(np.asarray(label))
    flip = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(cam2world.dtype)
    intrinsics = intrinsics.copy()
    intrinsics[..., 0, 1] *= -1
    intrinsics[..., 0, 2] = 1.0 - intrinsics[..., 0, 2]
    return pack(flip @ cam2world @ flip, intrinsics)


def head_angles(label: Array) -> Array:
    """Yaw, pitch and roll of the head as the camera sees it: (..., 25) to (..., 3) in degrees.

    Yaw is positive when the face turns to the image's right, pitch when it looks up, roll when the head tilts clockwise
    in the image. With W the world-to-camera rotation, W = Rz(roll) Rx(-pitch) Ry(-yaw) in OpenCV axes: an upright
    camera on a sphere (`Camera.orbit`) has roll 0.
    """
    cam2world, _ = unpack(np.asarray(label, dtype=np.float64))
    rotation = np.swapaxes(cam2world[..., :3, :3], -1, -2)
    yaw = np.arctan2(rotation[..., 2, 0], rotation[..., 2, 2])
    pitch = -np.arcsin(np.clip(rotation[..., 2, 1], -1.0, 1.0))
    roll = np.arctan2(-rotation[..., 0, 1], rotation[..., 1, 1])
    angles: Array = np.degrees(np.stack([yaw, pitch, roll], axis=-1))
    return angles


def head_rotation(angles_deg: Array) -> Array:
    """Inverse of `head_angles`: (..., 3) degrees to world-to-camera rotations (..., 3, 3)."""
    yaw, pitch, roll = np.moveaxis(np.radians(np.asarray(angles_deg, dtype=np.float64)), -1, 0)
    return _axis_rotation(roll, 2) @ _axis_rotation(-pitch, 0) @ _axis_rotation(-yaw, 1)


def from_pose(angles_deg: Array, translation: Array, focal: float = FOCAL) -> Array:
    """Labels (..., 25) from head angles (..., 3) in degrees and the head's origin in camera axes (..., 3), scene units.

    The inverse is (`head_angles`, `head_position`).
    """
    rotation = head_rotation(angles_deg)
    translation = np.asarray(translation, dtype=np.float64)
    cam2world = np.zeros((*rotation.shape[:-2], 4, 4))
    inverse = np.swapaxes(rotation, -1, -2)
    cam2world[..., :3, :3] = inverse
    cam2world[..., :3, 3] = -(inverse @ translation[..., None])[..., 0]
    cam2world[..., 3, 3] = 1.0
    return pack(cam2world, np.broadcast_to(default_intrinsics(focal), (*rotation.shape[:-2], 3, 3)))


def turned(label: Array, turn_deg: Array) -> Array:
    """Labels (..., 25) of the same head at the same place, its angles changed by `turn_deg` (..., 3), degrees.

    Equivalently, the camera moves around the head at the same distance. Yaw, pitch and roll as in `head_angles`.
    """
    return from_pose(head_angles(label) + turn_deg, np.broadcast_to(head_position(label), np.shape(turn_deg)))


def checked_turn(yaw_deg: float, pitch_deg: float, roll_deg: float) -> Array:
    """Angles (3,) by which a head may turn, float64.

    Raises:
        ConfigError: one is no finite number, or yaw or pitch reaches 90 degrees.
    """
    turn = np.array([yaw_deg, pitch_deg, roll_deg], dtype=np.float64)
    wanted = f"yaw {yaw_deg:g}, pitch {pitch_deg:g} and roll {roll_deg:g} degrees"
    if not np.isfinite(turn).all():
        raise ConfigError(f"the head cannot turn by {wanted}; give finite numbers")
    if (np.abs(turn[:2]) >= 90.0).any():
        raise ConfigError(f"the head cannot turn by {wanted}; stay between -90 and 90 with yaw and pitch")
    return turn


def head_position(label: Array) -> Array:
    """Where the head's origin lies in camera axes: labels (..., 25) to (..., 3), scene units (z is the distance)."""
    cam2world, _ = unpack(np.asarray(label, dtype=np.float64))
    rotation = np.swapaxes(cam2world[..., :3, :3], -1, -2)
    position: Array = -(rotation @ cam2world[..., :3, 3:])[..., 0]
    return position


def project(points: Array, label: Array) -> Array:
    """World points (..., N, 3) through labels (..., 25) to image coordinates (..., N, 2), 0..1 across the image."""
    cam2world, intrinsics = unpack(np.asarray(label, dtype=np.float64))
    rotation = cam2world[..., :3, :3]
    local = (np.asarray(points, dtype=np.float64) - cam2world[..., None, :3, 3]) @ rotation
    image = local @ np.swapaxes(intrinsics, -1, -2)
    pixels: Array = image[..., :2] / image[..., 2:3]
    return pixels


def neck(label: Array) -> Array:
    """Where `NECK` is seen by labels (..., 25): its place, 0..1 across the image, and its log distance, (..., 3)."""
    label = np.asarray(label, dtype=np.float64)
    place: Array = project(np.broadcast_to(NECK, (*label.shape[:-1], 1, 3)), label)[..., 0, :]
    rotation = unpack(label)[0][..., :3, :3]
    distance = head_position(label)[..., 2:] + np.asarray(NECK) @ rotation[..., 2:]
    return np.concatenate([place, np.log(np.maximum(distance, 1e-6))], axis=-1)


def projected(points: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """`project` for the network: differentiable, in float32.

    Args:
        points: (B, N, 3), scene units.
        label: (B, 25).

    Returns:
        image coordinates (B, N, 2), 0..1 across the image, x first, and distances along the optical axis (B, N) in
        scene units. A point nearer than 0.001 units is projected as if it lay there.
    """
    import torch  # face/ needs cameras and no torch

    with torch.autocast(points.device.type, enabled=False):
        cam2world, intrinsics = unpack(label.float())
        local = (points.float() - cam2world[:, None, :3, 3]) @ cam2world[:, :3, :3]
        image = local @ intrinsics.mT
        return image[..., :2] / image[..., 2:].clamp_min(1e-3), local[..., 2]


def _axis_rotation(angle: Array, axis: int) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    out = np.zeros((*np.shape(angle), 3, 3))
    out[..., axis, axis] = 1.0
    out[..., i, i], out[..., j, j] = c, c
    out[..., i, j], out[..., j, i] = -s, s
    return out
