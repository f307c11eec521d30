"""The rules of same-identity reenactment: which frame of a clip is the source, which frames are driven, and by what.

- *Source*: of the frames in which the face was found, the one with the smallest |yaw| + |pitch| + |roll|; the first if
  several are equal.
- *Driven*: all other frames in which the face was found (or every N-th of them), with their own tracked expressions and
  cameras (absolute motion). Frames equal to the source pixel for pixel are left out, because a copy is infinitely good
  there; slow recordings converted to 25 frames per second have them.
- *Images*: face crops at the model's size. Predictions are rounded to 8 bits before they are compared, so that saved
  and scored images agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.camera import head_angles
from export3d.data.decoding import decode
from export3d.data.shards import Record
from export3d.errors import NoFaceFound
from export3d.evaluation.measures.rendered import on_grid
from export3d.evaluation.protocols.scoring import CHUNK, Chunk
from export3d.image import to_uint8
from export3d.model import Export3D
from export3d.motion.motion import Motion

Rows = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


class Prediction(NamedTuple):
    """Predicted frames.

    Attributes:
        image: (B, 3, R, R) in [-1, 1].
        share: (B, 1, R, R) share of each pixel that is rendered (`Export3D.frame_and_share`); None where undefined.
    """

    image: Tensor
    share: Tensor | None = None


Predict = Callable[[Rows], Prediction]
"""Frame numbers (B,) to predicted frames."""

FPS = 25.0
_ANGLE_SCALE_DEG = 15.0


@dataclass(frozen=True)
class DrivenClip:
    """One clip, ready to be scored.

    Attributes:
        record: provenance and track.
        frames: (T, 3, R, R) uint8.
        motion: T frames at 25 per second.
        source: number of the source frame.
        driven: numbers of the frames to predict.
        identical: number of other frames that equal the source and were left out.
    """

    record: Record
    frames: Tensor
    motion: Motion
    source: int
    driven: Rows
    identical: int

    def images(self, rows: Rows | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Frames (B, 3, R, R) float32 in [-1, 1]."""
        return self.frames[torch.as_tensor(rows)].to(device).float().div_(127.5).sub_(1.0)

    @property
    def farthest(self) -> int:
        """The driven frame that differs most from the source in pose and expression (`distance_from`)."""
        away = distance_from(self.motion, self.motion.camera[self.source], self.motion.expression[self.source])
        return int(self.driven[np.argmax(away[self.driven])])


class Method(Protocol):
    """A way to predict driven frames from the source; called once per clip, then once per batch."""

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict: ...


class Reenactment:
    """The model: the source is encoded once, then each driving expression and camera gives planes and a frame."""

    def __init__(self, model: Export3D) -> None:
        self.model = model

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        expression = torch.from_numpy(np.array(clip.motion.expression)).to(device)
        camera = torch.from_numpy(np.array(clip.motion.camera)).to(device)
        image, row = clip.images([clip.source], device), [clip.source]
        landmarks = torch.from_numpy(np.array(clip.record.landmarks[row], dtype=np.float32)).to(device)
        features = self.model.encode(image, camera[row], expression[row], landmarks)

        def predict(rows: Rows) -> Prediction:
            at = torch.from_numpy(rows).to(device)
            return Prediction(*self.model.frame_and_share(self.model.planes(features, expression[at]), camera[at]))

        return predict


@torch.inference_mode()
def driven_chunks(clip: DrivenClip, methods: Mapping[str, Method], device: torch.device, batch: int) -> Iterator[Chunk]:
    """The driven frames of a clip, `CHUNK` at a time, with every method's predictions rounded to 8 bits."""
    predict = {name: method(clip, device) for name, method in methods.items()}
    for start in range(0, len(clip.driven), CHUNK):
        rows = clip.driven[start : start + CHUNK]
        parts = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        pictures, shares = {}, {}
        for name, one in predict.items():
            found = [(to_uint8(made.image.cpu()), made.share) for made in map(one, parts)]
            pictures[name] = np.concatenate([picture for picture, _ in found])
            known = [on_grid(share) for _, share in found if share is not None]
            if known:
                shares[name] = np.concatenate(known)
        targets = np.ascontiguousarray(clip.frames[torch.from_numpy(rows)].permute(0, 2, 3, 1).numpy())
        yield Chunk(rows, targets, pictures, shares)


def driven_clip(record: Record, space: str, size: int, every: int = 1) -> DrivenClip:
    """Decode a record and choose its source and driven frames by the rules above.

    Raises:
        NoFaceFound: fewer than two different frames show the face.
    """
    motion = Motion(record.expression, record.camera, FPS, space)
    frames = torch.from_numpy(decode(record, size))
    if not record.found.any():
        raise NoFaceFound(f"the face was not found in any frame of {record.key}; prepare it again")
    source = most_frontal(motion.camera, record.found)
    equal = (frames == frames[source]).flatten(1).all(dim=1).numpy()
    driven = np.flatnonzero(record.found & ~equal)[::every]
    if len(driven) == 0:
        raise NoFaceFound(f"{record.key} has no second frame that shows the face and differs; use a longer clip")
    return DrivenClip(record, frames, motion, source, driven, int((record.found & equal).sum()) - 1)


def most_frontal(camera: Floats, found: NDArray[np.bool_]) -> int:
    """Number of the found frame with the smallest |yaw| + |pitch| + |roll|; labels (T, 25) and (T,) not all False."""
    turned = np.abs(head_angles(camera)).sum(axis=-1)
    return int(np.argmin(np.where(found, turned, np.inf)))


def distance_from(motion: Motion, camera: Floats, expression: Floats) -> NDArray[np.float64]:
    """Distance of each frame of a motion from one camera and expression, in pose and expression.

    Args:
        motion: T frames.
        camera, expression: (25,) and (E,) of the frame to compare with.

    Returns:
        (T,) summed head angles in units of 15 degrees plus summed expression changes.
    """
    angles = np.abs(motion.angles_deg - head_angles(camera)).sum(axis=-1) / _ANGLE_SCALE_DEG
    return np.asarray(angles + np.abs(motion.expression - expression).sum(axis=-1), dtype=np.float64)
