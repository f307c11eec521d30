"""The rules of same-identity reenactment: which frame of a clip is the source, which frames are driven, and by what.

- *Source*: of the frames in which the face was found, the one with the smallest |yaw| + |pitch| + |roll|; the first if
  several are equal.
- *Driven*: all other frames in which the face was found (or every N-th of them), with their own tracked expressions and
  cameras (absolute motion). Frames equal to the source pixel for pixel are left out, because a copy is infinitely good
  there; slow recordings converted to 25 frames per second have them.
- *Images*: face crops at the model's size. At another size the model gets the same crops as always, and the source's
  pixels for `photo.compositor` and the true frames come from the file (`originals`). Predictions are rounded to 8 bits
  before they are compared, so that saved and scored images agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.camera import head_angles
from export3d.data.decoding import decode
from export3d.data.shards import Record
from export3d.engines.engine import Engine
from export3d.errors import NoFaceFound
from export3d.evaluation.measures.rendered import on_grid
from export3d.evaluation.protocols.originals import Original, resized
from export3d.evaluation.protocols.scoring import CHUNK, Chunk
from export3d.evaluation.reports.clips import ENLARGED
from export3d.face.crop import CropBox, crop, patch
from export3d.image import to_tensor, to_uint8
from export3d.model import Export3D, Planes
from export3d.motion.motion import Motion
from export3d.photo.matte import crop_mattes
from export3d.photo.scene import scene

Rows = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]


class Prediction(NamedTuple):
    """Predicted frames.

    Attributes:
        image: (B, 3, R, R) in [-1, 1].
        share: (B, 1, R, R) share of each pixel that is rendered (`Export3D.frame_and_share`); None where undefined.
        small: (B, 3, h, h), the model's own frames if the predicted ones are larger.
    """

    image: Tensor
    share: Tensor | None = None
    small: Tensor | None = None


Predict = Callable[[Rows], Prediction]
"""Frame numbers (B,) to predicted frames."""

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
        original: pixels of the images that are scored, unless they are `frames`.
        photo: (H, W, 3) uint8, the original's source frame.
    """

    record: Record
    frames: Tensor
    motion: Motion
    source: int
    driven: Rows
    identical: int
    original: Original | None = None
    photo: Picture | None = None

    def images(self, rows: Rows | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Frames (B, 3, R, R) float32 in [-1, 1]."""
        return self.frames[torch.as_tensor(rows)].to(device).float().div_(127.5).sub_(1.0)

    @property
    def size(self) -> int:
        """R of the images that are scored."""
        return int(self.frames.shape[-1]) if self.original is None else self.original.size

    @property
    def source_picture(self) -> Picture:
        """(R, R, 3) uint8, the source at the size that is scored."""
        if self.original is None or self.photo is None:
            picture: Picture = self._prepared(np.array([self.source]))[0]
            return picture
        return crop(self.photo, self.original.box, self.size)

    def targets(self, rows: Rows) -> Picture:
        """(N, R, R, 3) uint8, true frames at the size that is scored."""
        return self._prepared(rows) if self.original is None else self.original.crops(rows)

    def small_targets(self, rows: Rows) -> Picture | None:
        """(N, h, h, 3) uint8, true frames at the model's size; None if that is what is scored."""
        return None if self.original is None else self._prepared(rows)

    def _prepared(self, rows: Rows) -> Picture:
        return np.ascontiguousarray(self.frames[torch.from_numpy(rows)].permute(0, 2, 3, 1).numpy())

    @property
    def farthest(self) -> int:
        """The driven frame that differs most from the source in pose and expression (`distance_from`)."""
        away = distance_from(self.motion, self.motion.camera[self.source], self.motion.expression[self.source])
        return int(self.driven[np.argmax(away[self.driven])])


class Method(Protocol):
    """A way to predict driven frames from the source; called once per clip, then once per batch."""

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict: ...


class Reenactment:
    """The model: the source is encoded once, then each driving expression and camera gives planes and a frame.

    Args:
        model: as it is, or run by an engine.
    """

    def __init__(self, model: Export3D | Engine) -> None:
        self.model = model

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        expression = torch.from_numpy(np.array(clip.motion.expression)).to(device)
        camera = torch.from_numpy(np.array(clip.motion.camera)).to(device)
        image, row = clip.images([clip.source], device), [clip.source]
        landmarks = torch.from_numpy(np.array(clip.record.landmarks[row], dtype=np.float32)).to(device)
        shoulders = torch.from_numpy(clip.motion.shoulders_from(clip.source)).to(device)
        model = self.model.model if isinstance(self.model, Engine) else self.model
        features = self.model.encode(image, camera[row], expression[row], landmarks, crop_mattes(model, image))

        def planes(at: Tensor) -> Planes:
            return self.model.planes(features, expression[at]).with_shoulders(shoulders[at])

        if clip.original is None or clip.photo is None:

            def predict(rows: Rows) -> Prediction:
                at = torch.from_numpy(rows).to(device)
                return Prediction(*self.model.frame_and_share(planes(at), camera[at]))

            return predict
        large = at_size(self.model, clip.photo, clip.original.box, image, clip.size)

        def predict_large(rows: Rows) -> Prediction:
            at = torch.from_numpy(rows).to(device)
            frames, small = large(planes(at), camera[at])
            return Prediction(to_tensor(frames), small=small)

        return predict_large


def at_size(
    model: Export3D | Engine, photo: Picture, box: CropBox, source: Tensor, size: int
) -> Callable[[Planes, Tensor], tuple[Picture, Tensor]]:
    """A function that renders the face crop of a photo at a size.

    Args:
        model: as it is or run by an engine, with a warp that adds the source's pixels (`originals.check_size`).
        photo: uint8 (H, W, 3).
        box: its face crop.
        source: (1, 3, h, h), the crop as the model saw it.
        size: R.

    Returns:
        Planes and cameras (B, 25) to frames uint8 (B, R, R, 3), and the model's own (B, 3, h, h).
    """
    photo, (x, y) = patch(photo, CropBox(box.centre, 2.0 * box.side))  # repeats edges, as in prepared frames
    box = CropBox((box.centre[0] - x, box.centre[1] - y), box.side)
    made = scene(photo, [(box, source)], size=size, frame="crop", background="keep", long_side=None)

    def render(planes: Planes, camera: Tensor) -> tuple[Picture, Tensor]:
        small, origin = model.frame_and_origin(planes, camera)
        assert origin is not None
        return np.stack([made.frame([(small[k : k + 1], origin.at(k))]) for k in range(len(small))]), small

    return render


@torch.inference_mode()
def driven_chunks(clip: DrivenClip, methods: Mapping[str, Method], device: torch.device, batch: int) -> Iterator[Chunk]:
    """The driven frames of a clip, at most `CHUNK` at a time, with every method's predictions rounded to 8 bits.

    At another size than the model's, its own frames are enlarged as one more method, `ENLARGED`.
    """
    predict = {name: method(clip, device) for name, method in methods.items()}
    step = max(1, CHUNK * clip.frames.shape[-1] ** 2 // clip.size**2)
    for start in range(0, len(clip.driven), step):
        rows = clip.driven[start : start + step]
        parts = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        pictures, shares, small = dict[str, Picture](), dict[str, NDArray[np.float32]](), dict[str, Picture]()
        for name, one in predict.items():
            found = [(to_uint8(made.image.cpu()), made.share, made.small) for made in map(one, parts)]
            pictures[name] = np.concatenate([picture for picture, _, _ in found])
            known = [on_grid(share) for _, share, _ in found if share is not None]
            if known:
                shares[name] = np.concatenate(known)
            own = [to_uint8(image.cpu()) for _, _, image in found if image is not None]
            if own:
                small[ENLARGED] = np.concatenate(own)
                pictures[ENLARGED] = resized(small[ENLARGED], clip.size)
        yield Chunk(rows, clip.targets(rows), pictures, shares, clip.small_targets(rows), small)


def driven_clip(
    record: Record,
    space: str,
    size: int,
    every: int = 1,
    scored: int | None = None,
    folders: Sequence[Path] = (Path(),),
) -> DrivenClip:
    """Decode a record and choose its source and driven frames by the rules above.

    Args:
        size: of the model's images.
        scored: size of the images that are scored, if it is another one.
        folders: where the file that the record was made from is then looked for.

    Raises:
        NoFaceFound: fewer than two different frames show the face.
        InputError: the file that the record was made from cannot give images of that size.
    """
    motion = record.motion(space)
    frames = torch.from_numpy(decode(record, size))
    if not record.found.any():
        raise NoFaceFound(f"the face was not found in any frame of {record.key}; prepare it again")
    source = most_frontal(motion.camera, record.found)
    equal = (frames == frames[source]).flatten(1).all(dim=1).numpy()
    driven = np.flatnonzero(record.found & ~equal)[::every]
    if len(driven) == 0:
        raise NoFaceFound(f"{record.key} has no second frame that shows the face and differs; use a longer clip")
    identical = int((record.found & equal).sum()) - 1
    if scored is None:
        return DrivenClip(record, frames, motion, source, driven, identical)
    original = Original(record, scored, folders)
    photo = original.check(source, frames[source].permute(1, 2, 0).numpy())
    return DrivenClip(record, frames, motion, source, driven, identical, original, photo)


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
