"""Animator: a portrait becomes planes, and planes become frames.

animator = Animator.from_pretrained()
source = animator.encode("portrait.jpg")            # tracked, cropped and encoded once
frame = animator.render(source, source.expression, Camera.orbit(yaw_deg=15).label)
for frame in animator.animate(source, driving_motion("driving.mp4")):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from export3d.animate.drive import rebase
from export3d.animate.orbit import CameraPath, orbit_motion
from export3d.camera import LABEL_SIZE, turned
from export3d.errors import ConfigError, check_shape
from export3d.expression import sliders
from export3d.image import read_image, to_tensor, to_uint8
from export3d.model import Encoded, Export3D
from export3d.motion.arkit import with_scores
from export3d.motion.motion import SPACES, Motion
from export3d.pretrained import load_pretrained

if TYPE_CHECKING:
    from export3d.face.crop import CropBox
    from export3d.face.tracker import Tracker

Picture = NDArray[np.uint8]

BATCH = 4
"""Frames rendered together by default; another number may change the last bit of a pixel."""


@dataclass(frozen=True)
class Source:
    """An encoded portrait.

    Attributes:
        image: uint8 (H, W, 3), the face crop that was encoded.
        expression: float32 (E,), as tracked; zeros, a neutral face, if the model takes another space.
        camera: float32 (25,), as tracked.
        features: what the network computed from the crop, once; batch 1, on the animator's device.
        crop: where the crop lies in the portrait.
        several_faces: whether the portrait shows more than one face (the largest is used).
    """

    image: Picture
    expression: NDArray[np.float32]
    camera: NDArray[np.float32]
    features: Encoded
    crop: CropBox
    several_faces: bool


class Animator:
    """Animates portraits with one set of weights.

    Args:
        model: the network; moved to the device and put into evaluation mode.
        device: "auto" (a CUDA device if there is one), or what `torch.device` takes.

    Attributes:
        size: width and height of the source crop and of every frame, pixels (256 for the weights that ship).
        space: the expression space that the model was trained on.
    """

    def __init__(self, model: Export3D, device: str | torch.device = "auto") -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.size = model.config.image_size
        self.space = model.config.space
        self._tracker: Tracker | None = None

    @classmethod
    def from_pretrained(
        cls, path: str | Path | None = None, device: str | torch.device = "auto", pure: bool = False
    ) -> Animator:
        """Weights by file, folder or name, by default those inside the package; `pure`: the core alone.

        See `export3d.load_pretrained`. Weights of a Hugging Face repository:
        `Animator(Export3D.from_pretrained("owner/name"))`.

        Raises:
            CheckpointError: they are missing, damaged or of another architecture.
        """
        return cls(load_pretrained(path, pure), device)

    @property
    def tracker(self) -> Tracker:
        """The face tracker, loaded when it is first needed (raises `MissingExtra` without the extra `face`)."""
        if self._tracker is None:
            from export3d.face.tracker import Tracker

            self._tracker = Tracker()
        return self._tracker

    @torch.inference_mode()
    def encode(self, portrait: str | Path | Picture) -> Source:
        """Track, crop and encode a portrait.

        Args:
            portrait: an image file, or uint8 (H, W, 3) RGB.

        Raises:
            BadImage, NoFaceFound: naming the file.
        """
        from export3d.face.crop import CROP_SIZE, crop

        name = "the portrait" if isinstance(portrait, np.ndarray) else str(portrait)
        image = portrait if isinstance(portrait, np.ndarray) else read_image(portrait)
        check_shape(image, "H W 3", "portrait")
        track = self.tracker.track_image(image, name)
        known = self.space == track.motion.space
        expression = track.motion.expression[0] if known else np.zeros(SPACES[self.space], np.float32)
        picture = crop(image, track.crop, self.size)
        tensor = to_tensor(picture)[None].to(self.device)
        return Source(
            image=picture,
            expression=expression,
            camera=track.motion.camera[0],
            features=self.model.encode(
                tensor,
                self._tensor(track.motion.camera[:1]),
                self._tensor(expression[None]),
                self._tensor(track.landmarks[:1] / CROP_SIZE),
            ),
            crop=track.crop,
            several_faces=track.several_faces,
        )

    def render(
        self, source: Source, expression: ArrayLike, camera: ArrayLike, shift: ArrayLike | None = None
    ) -> Picture:
        """One frame, uint8 (H, W, 3), of the source with an expression (E,) seen by a camera label (25,).

        `shift` (n,) is added to the expression's lambda: sliders along the basis, see `export3d.expression.sliders`.
        """
        expressions = np.asarray(expression, dtype=np.float32)
        labels = np.asarray(camera, dtype=np.float32)
        check_shape(expressions, str(SPACES[self.space]), "expression")
        check_shape(labels, str(LABEL_SIZE), "camera")
        moved = None
        if shift is not None:
            moved = np.asarray(shift, dtype=np.float32)[None]
            check_shape(moved[0], str(self.model.config.expression.n), "shift")
        frame: Picture = self._frames(source, expressions[None], labels[None], moved)[0]
        return frame

    def edit(
        self,
        source: Source,
        scores: Mapping[str, float] | None = None,
        basis: Mapping[int, float] | None = None,
        yaw_deg: float = 0.0,
        pitch_deg: float = 0.0,
        roll_deg: float = 0.0,
    ) -> Picture:
        """The portrait itself with a changed face: what is not named stays as the portrait has it.

        Args:
            source: from `encode`.
            scores: ARKit scores 0..1 by name, in place of the tracked ones, such as {"jawOpen": 0.8}.
            basis: amounts by direction number, from 1, added to the portrait's lambda (Eq. 3), such as {4: 6.0}.
            yaw_deg, pitch_deg, roll_deg: added to the head's angles; signs as in `camera.head_angles`. The head stays
                where it is in the image.

        Returns:
            uint8 (H, W, 3).

        Raises:
            ConfigError: an unknown score or direction, a number that cannot be, weights without a basis or, for scores,
                of an expression space without names.
        """
        turn = np.array([yaw_deg, pitch_deg, roll_deg], dtype=np.float64)
        if not np.isfinite(turn).all():
            raise ConfigError(f"the head cannot turn by {turn.tolist()} degrees; give finite numbers")
        if scores and self.space != "arkit52":
            raise ConfigError(f"these weights take expressions in {self.space}, which has no ARKit scores to set")
        expression = with_scores(source.expression, scores) if scores else source.expression
        shift = sliders.shift(self.model.expression, expression, basis) if basis else None
        camera = source.camera
        if turn.any():
            camera = turned(camera, turn).astype(np.float32)
        return self.render(source, expression, camera, shift)

    def animate(self, source: Source, motion: Motion, relative: bool = True, batch: int = BATCH) -> Iterator[Picture]:
        """Frames of the source moving by `motion`, one uint8 (H, W, 3) for each of its frames, as they are made.

        Args:
            source: from `encode`.
            motion: from `driving_motion` or `Motion.load`, in the model's expression space.
            relative: see `export3d.animate.drive`.
            batch: frames rendered together.

        Raises:
            BadMotionFile: the motion is of another expression space.
            ConfigError: batch below 1.
        """
        if batch < 1:
            raise ConfigError(f"the batch must be at least 1 frame, got {batch}")
        motion.require_space(self.space)
        rebased = rebase(motion, source.camera, source.expression, relative)
        return self._stream(source, rebased, batch)

    def orbit(
        self,
        source: Source,
        motion: Motion | None = None,
        *,
        path: CameraPath = "circle",
        yaw_deg: float = 30.0,
        pitch_deg: float = 15.0,
        seconds: float = 4.0,
        scores: Mapping[str, float] | None = None,
        batch: int = BATCH,
    ) -> Iterator[Picture]:
        """Frames of the source seen by a camera that travels around its head, one uint8 (H, W, 3) at a time.

        The expression stays the portrait's own, and is computed once, or follows a motion whose head motion is set
        aside. The camera's path closes: the first frame follows on the last.

        Args:
            source: from `encode`.
            motion, path, yaw_deg, pitch_deg, seconds, scores: see `export3d.animate.orbit.orbit_motion`.
            batch: frames rendered together, with a motion.

        Raises:
            BadMotionFile, ConfigError: as there.
        """
        if batch < 1:
            raise ConfigError(f"the batch must be at least 1 frame, got {batch}")
        views = orbit_motion(
            source.camera,
            source.expression,
            self.space,
            motion,
            path=path,
            yaw_deg=yaw_deg,
            pitch_deg=pitch_deg,
            seconds=seconds,
            scores=scores,
        )
        if motion is not None:
            return self._stream(source, views, batch)
        return (image for image, _ in self.views(source, views.expression[0], views.camera))

    def views(
        self, source: Source, expression: ArrayLike, cameras: ArrayLike
    ) -> Iterator[tuple[Picture, NDArray[np.float32]]]:
        """One expression (E,) seen by cameras (T, 25): an image, uint8 (H, W, 3), and its depth for each.

        The depth (R, R) is the volume renderer's, from which the image was made: the distance from the camera along
        each ray, scene units. The expression is computed once.
        """
        expressions, labels = np.asarray(expression, dtype=np.float32), np.asarray(cameras, dtype=np.float32)
        check_shape(expressions, str(SPACES[self.space]), "expression")
        check_shape(labels, f"T {LABEL_SIZE}", "cameras")
        return self._views(source, expressions, labels)

    def _views(
        self, source: Source, expression: NDArray, cameras: NDArray
    ) -> Iterator[tuple[Picture, NDArray[np.float32]]]:
        with torch.inference_mode():
            planes = self.model.planes(source.features, self._tensor(expression)[None])
        for label in cameras:
            with torch.inference_mode():
                camera = self._tensor(label)[None]
                rendered = self.model.render(planes, camera)
                image = to_uint8(self.model.finish(planes, camera, rendered))[0]
            yield image, rendered.depth[0, 0].cpu().numpy()

    def _stream(self, source: Source, motion: Motion, batch: int) -> Iterator[Picture]:
        for start in range(0, len(motion), batch):
            part = slice(start, start + batch)
            yield from self._frames(source, motion.expression[part], motion.camera[part])

    @torch.inference_mode()
    def _frames(self, source: Source, expression: NDArray, camera: NDArray, shift: NDArray | None = None) -> Picture:
        """(B, E), (B, 25) and (B, n) to uint8 (B, H, W, 3)."""
        moved = None if shift is None else self._tensor(shift)
        planes = self.model.planes(source.features, self._tensor(expression), moved)
        return to_uint8(self.model.frame(planes, self._tensor(camera)))

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.float32, device=self.device)


def pick_device(name: str | torch.device) -> torch.device:
    """For "auto" a CUDA device if there is one, else the CPU; raises `ConfigError` for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {str(name)!r} cannot be used here; use --device cpu") from error
    return device
