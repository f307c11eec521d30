"""Animator: a portrait becomes planes, and planes become frames.

animator = Animator.from_pretrained()
source = animator.encode("portrait.jpg")            # tracked, cropped and encoded once
frame = animator.render(source, source.expression, Camera.orbit(yaw_deg=15).label)
for frame in animator.animate(source, driving_motion("driving.mp4")):
    ...
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from export3d.animate.drive import FPS, hold, motion_path, rebase, references
from export3d.animate.eyelids import closing_eyes
from export3d.animate.head_motion import HeadMotion, report
from export3d.animate.orbit import CameraPath, orbit_motion
from export3d.camera import LABEL_SIZE, checked_turn, turned
from export3d.consent.check import require_consent
from export3d.engines.at_once import AT_ONCE, at_once
from export3d.engines.choice import pick_engine
from export3d.engines.names import EngineName
from export3d.errors import ConfigError, check_shape
from export3d.expression import sliders
from export3d.image import from_pillow, read_image, to_tensor, to_uint8
from export3d.memory import give_back_memory
from export3d.model import Encoded, Export3D, Planes
from export3d.motion.arkit import warn_of_unlearned, with_scores
from export3d.motion.motion import SPACES, Motion
from export3d.photo.canvas import LONG_SIDE, MARGIN
from export3d.photo.compositor import Compositor
from export3d.photo.extension import extended_crop, share_outside
from export3d.photo.matte import crop_mattes
from export3d.photo.options import NATIVE, SMALLEST, Frame, Size, check_batch, parse_size
from export3d.photo.palette import Palette, palette
from export3d.photo.scene import scene
from export3d.pretrained import load_pretrained
from export3d.provenance.statement import Statement, digest_of_file, digest_of_pixels
from export3d.warping.origin import Origin

if TYPE_CHECKING:
    from PIL import Image

    from export3d.face.crop import CropBox
    from export3d.face.tracker import Track, Tracker

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

BATCH = 6
"""Frames rendered together by default.

Another number changes the last bit of some pixels; in bfloat16 it changes pixels at edges by up to 16 of 255.
"""
FARTHEST_DEG = 45.0
"""Beyond this angle from the photo's view `edit` and `orbit` warn."""
_KEPT_VIEWS = 3
"""Views that an animator keeps, as of a head that is turned while the same photo is animated."""
_MUCH_OUTSIDE = 0.15
"""Share of a face crop outside the photo above which the user is told."""


@dataclass(frozen=True)
class Source:
    """An encoded portrait.

    Attributes:
        photo: uint8 (H, W, 3), the whole portrait; upright, if it lay on its side or stood on its head.
        image: uint8 (H, W, 3), the face crop that was encoded.
        expression: float32 (E,), as tracked; zeros, a neutral face, if the model takes another space.
        camera: float32 (25,), as tracked.
        landmarks: float32 (478, 2), as tracked, 0..1 across the crop.
        features: what the network computed from the crop, once; batch 1, on the animator's device.
        crop: where the crop lies in the portrait.
        others: where the crops of the portrait's other faces lie.
        palette: the colours of the face; None for weights that do not move the source's pixels.
        digest: SHA-256 of the portrait's file; None where it came without a file.
    """

    photo: Picture
    image: Picture
    expression: NDArray[np.float32]
    camera: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    features: Encoded
    crop: CropBox
    others: tuple[CropBox, ...] = ()
    palette: Palette | None = None
    digest: str | None = None


class Animator:
    """Animates portraits with one set of weights.

    Args:
        model: the network; moved to the device and put into evaluation mode.
        device: "auto" (a CUDA device if there is one), or what `torch.device` takes.
        engine: how the network is run, see `export3d.engines.choice.pick_engine`.

    Attributes:
        size: width and height of the source crop and of every frame, pixels (256 for the weights that ship).
        space: the expression space that the model was trained on.
        engine: the engine that was chosen.
    """

    def __init__(self, model: Export3D, device: str | torch.device = "auto", engine: EngineName = "auto") -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.engine = pick_engine(self.model, engine)
        self.size = model.config.image_size
        self.space = model.config.space
        self._tracker: Tracker | None = None
        self._kept_views: dict[tuple[Any, ...], _View] = {}
        self._viewing = threading.Lock()
        self._ready = False  # whether a batch was made, and with it loaded and compiled what batches need

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        device: str | torch.device = "auto",
        pure: bool = False,
        engine: EngineName = "auto",
    ) -> Animator:
        """Weights by file, folder or name, by default those inside the package; `pure`: the core alone.

        See `export3d.load_pretrained`. Weights of a Hugging Face repository:
        `Animator(Export3D.from_pretrained("owner/name"))`.

        Raises:
            CheckpointError: they are missing, damaged or of another architecture.
        """
        return cls(load_pretrained(path, pure), device, engine)

    @property
    def tracker(self) -> Tracker:
        """The face tracker, loaded when it is first needed (raises `MissingExtra` without the extra `face`)."""
        if self._tracker is None:
            from export3d.face.tracker import Tracker

            self._tracker = Tracker()
        return self._tracker

    def close_tracker(self) -> None:
        """Free the face tracker's 30 MB; it is loaded again when it is next needed."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def encode(self, portrait: str | Path | Picture | Image.Image, face: str | int = "largest") -> Source:
        """Track, crop and encode one face of a portrait.

        Args:
            portrait: an image file, a Pillow image, or uint8 (H, W, 3) RGB.
            face: "largest", "left", "right", or a number from 1, counted from left to right.

        Raises:
            BadImage, NoFaceFound: naming the file.
            ConfigError: `face` is none of these.
            ConsentRefused: the policy asks for consent, and the register has none for this face.
        """
        image, name, digest = _portrait(portrait)
        track = self.tracker.track_image(image, name, face)
        require_consent(image, [track], name)
        return self._encode(image, track, name, digest)

    def encode_all(self, portrait: str | Path | Picture | Image.Image) -> list[Source]:
        """Track, crop and encode every face of a photo, from left to right.

        Raises:
            BadImage, NoFaceFound: naming the file.
            ConsentRefused: the policy asks for consent, and the register has none for one of the faces.
        """
        image, name, digest = _portrait(portrait)
        tracks = self.tracker.track_faces(image, name)
        require_consent(image, tracks, name)
        names = [name] if len(tracks) == 1 else [f"{name}, face {n}" for n in range(1, len(tracks) + 1)]
        return [self._encode(image, track, one, digest) for track, one in zip(tracks, names)]

    @torch.inference_mode()
    def _encode(self, image: Picture, track: Track, name: str, digest: str | None) -> Source:
        from export3d.face.crop import CROP_SIZE, upright

        image = upright(image, track.quarter_turns)
        outside = share_outside(image, track.crop)
        if outside > _MUCH_OUTSIDE:
            logger.warning(
                "%s: the head is close to the edge of the image; %d%% of what the model sees around it is missing and "
                "made up; a photo with more space around the head looks better",
                name,
                round(100 * outside),
            )
        known = self.space == track.motion.space
        expression = track.motion.expression[0] if known else np.zeros(SPACES[self.space], np.float32)
        picture = extended_crop(image, track.crop, self.size, MARGIN)
        tensor = to_tensor(picture)[None].to(self.device)
        places = self._tensor(track.landmarks[:1] / CROP_SIZE)
        return Source(
            photo=image,
            image=picture,
            expression=expression,
            camera=track.motion.camera[0],
            landmarks=(track.landmarks[0] / CROP_SIZE).astype(np.float32),
            features=self.engine.encode(
                tensor,
                self._tensor(track.motion.camera[:1]),
                self._tensor(expression[None]),
                places,
                crop_mattes(self.model, tensor),
            ),
            crop=track.crop,
            others=track.others,
            palette=palette(tensor, places) if self.model.moves_pixels else None,
            digest=digest,
        )

    def statement(self, source: Source | Sequence[Source], motion: str | Path | None = None) -> Statement:
        """What an output that is made from these says about its origin: hashes of portrait, motion and weights.

        Args:
            source: from `encode`, or several of one photo from `encode_all`.
            motion: the file of the driving video or motion, or the name of a bundled motion.

        Raises:
            InputError: `motion` cannot be read.
        """
        first = source if isinstance(source, Source) else source[0]
        return Statement(
            portrait=first.digest or digest_of_pixels(first.photo),
            motion=None if motion is None else digest_of_file(motion_path(motion)),
            weights=self.model.digest,
        )

    def render(
        self,
        source: Source,
        expression: ArrayLike,
        camera: ArrayLike,
        shift: ArrayLike | None = None,
        *,
        size: Size | None = None,
    ) -> Picture:
        """One frame of the crop, uint8 (H, W, 3), with an expression (E,) seen by a camera label (25,).

        `shift` (n,) is added to the expression's lambda: sliders along the basis, see `export3d.expression.sliders`.
        `size`: see `animate`.
        """
        expressions = np.asarray(expression, dtype=np.float32)
        labels = np.asarray(camera, dtype=np.float32)
        check_shape(expressions, str(SPACES[self.space]), "expression")
        check_shape(labels, str(LABEL_SIZE), "camera")
        moved = None
        if shift is not None:
            moved = np.asarray(shift, dtype=np.float32)[None]
            check_shape(moved[0], str(self.model.config.expression.n), "shift")
        view = self._view(source, size, "crop", "keep")
        return next(self._drawn(view, [(self._planes(source, expressions[None], moved), labels[None])]))

    def edit(
        self,
        source: Source | Sequence[Source],
        scores: Mapping[str, float] | None = None,
        basis: Mapping[int, float] | None = None,
        yaw_deg: float = 0.0,
        pitch_deg: float = 0.0,
        roll_deg: float = 0.0,
        *,
        size: Size | None = None,
        frame: Frame = "crop",
        background: str = "keep",
    ) -> Picture:
        """The portrait itself with a changed face: what is not named stays as the portrait has it.

        Args:
            source: from `encode`, or several of one photo from `encode_all`, which are all changed.
            scores: ARKit scores 0..1 by name, in place of the tracked ones, such as {"jawOpen": 0.8}.
            basis: amounts by direction number, from 1, added to the portrait's lambda (Eq. 3), such as {4: 6.0}.
            yaw_deg, pitch_deg, roll_deg: added to the head's angles; signs as in `camera.head_angles`. The head stays
                where it is in the image. Yaw and pitch are between -90 and 90; beyond `FARTHEST_DEG` the log warns.
            size, frame, background: see `animate`; a photo of native size is not scaled down.

        Returns:
            uint8 (H, W, 3).

        Raises:
            ConfigError: an unknown score or direction, a number that cannot be, weights without a basis or, for scores,
                of an expression space without names; or as in `animate`.
            BadImage: as in `animate`.
        """
        turn = checked_turn(yaw_deg, pitch_deg, roll_deg)
        _warn_of_far_turns(float(np.hypot(*turn[:2])))
        self._check_scores(scores)
        warn_of_unlearned(scores)
        view = self._view(source, size, frame, background, long_side=None)
        parts = []
        for one in view.sources:
            camera = turned(one.camera, turn).astype(np.float32) if turn.any() else one.camera
            parts.append((self.edited_planes(one, scores, basis), camera[None]))
        return next(self._drawn(view, parts))

    def edited_planes(
        self, source: Source, scores: Mapping[str, float] | None = None, basis: Mapping[int, float] | None = None
    ) -> Planes:
        """The planes of a changed face, which `render_planes` shows from any camera; args and errors as `edit`."""
        self._check_scores(scores)
        expression = with_scores(source.expression, scores) if scores else source.expression
        shift = sliders.shift(self.model.expression, expression, basis)[None] if basis else None
        return self._planes(source, expression[None], shift, edited=True)

    def _check_scores(self, scores: Mapping[str, float] | None) -> None:
        if scores and self.space != "arkit52":
            raise ConfigError(f"these weights take expressions in {self.space}, which has no ARKit scores to set")

    def animate(
        self,
        source: Source | Sequence[Source],
        motion: Motion,
        relative: bool = True,
        batch: int = BATCH,
        *,
        head_motion: HeadMotion = "steady",
        scores: Mapping[str, float] | None = None,
        size: Size | None = None,
        frame: Frame = "crop",
        background: str = "keep",
    ) -> Iterator[Picture]:
        """Frames of the source moving by `motion`, one uint8 (H, W, 3) for each of its frames, as they are made.

        Args:
            source: from `encode`, or several of one photo from `encode_all`, which all move.
            motion: from `driving_motion` or `Motion.load`, in the model's expression space.
            relative: see `export3d.animate.drive`.
            batch: frames rendered together.
            head_motion: "steady", "full" or "rotation", how far a relative motion moves the head through the frame, see
                `export3d.animate.head_motion`. The log says where it differs from what was filmed.
            scores: ARKit scores held at a value in every frame, see `drive.hold`.
            size: pixels across the face crop, 256 to 1024, or "native", the photo's own (a video's frames have at most
                1,920 pixels a side). None: the model's size for the crop, native for the photo.
            frame: "crop", the square around the face, or "photo", the whole photo, in which the head moves.
            background: "keep", "blur", a colour such as "#00ff00", or an image file; see `export3d.photo.background`.

        Raises:
            BadMotionFile: the motion is of another expression space.
            ConfigError: batch below 1; a size, frame or background that is not possible; weights that do not move the
                source's pixels, which have one size only.
            BadImage: the background cannot be read, or no person to cut out is found.
        """
        check_batch(batch)
        motion.require_space(self.space)
        warn_of_unlearned(scores)
        view = self._view(source, size, frame, background)
        motions = [
            rebase(motion, one.camera, one.expression, relative, head_motion=head_motion) for one in view.sources
        ]
        done = report(motion, references(motion).place, head_motion) if relative else ""
        if done:
            logger.warning("%s: %s", motion.meta.get("file", "the driving motion"), done)
        return self._stream(view, [hold(one, scores) if scores else one for one in motions], batch)

    def orbit(
        self,
        source: Source | Sequence[Source],
        motion: Motion | None = None,
        *,
        path: CameraPath = "circle",
        yaw_deg: float = 30.0,
        pitch_deg: float = 15.0,
        seconds: float = 4.0,
        scores: Mapping[str, float] | None = None,
        batch: int = BATCH,
        size: Size | None = None,
        frame: Frame = "crop",
        background: str = "keep",
    ) -> Iterator[Picture]:
        """Frames of the source seen by a camera that travels around its head, one uint8 (H, W, 3) at a time.

        The expression stays the portrait's own, and is computed once, or follows a motion whose head motion is set
        aside. The camera's path closes: the first frame follows on the last.

        Args:
            source: from `encode`, or several of one photo from `encode_all`; each head is seen from its own camera.
            motion, path, yaw_deg, pitch_deg, seconds, scores: see `export3d.animate.orbit.orbit_motion`.
            batch: frames rendered together.
            size, frame, background: see `animate`. The background does not turn.

        Raises:
            BadMotionFile, ConfigError, BadImage: as there.
        """
        check_batch(batch)
        view = self._view(source, size, frame, background)
        views = [
            orbit_motion(
                one.camera,
                one.expression,
                self.space,
                motion,
                path=path,
                yaw_deg=yaw_deg,
                pitch_deg=pitch_deg,
                seconds=seconds,
                scores=scores,
            )
            for one in view.sources
        ]
        _warn_of_far_turns(max(abs(yaw_deg), abs(pitch_deg)))  # no path has both at once
        warn_of_unlearned(scores)
        if motion is not None:
            return self._stream(view, views, batch)
        parts = [(self._planes(one, seen.expression[:1]), seen.camera) for one, seen in zip(view.sources, views)]
        return self._drawn(view, parts, batch)

    def planes(self, source: Source, expression: ArrayLike) -> Planes:
        """The planes of an expression (E,), which `render_planes` shows from any camera."""
        expression = np.asarray(expression, dtype=np.float32)
        check_shape(expression, str(SPACES[self.space]), "expression")
        return self._planes(source, expression[None])

    def render_planes(
        self,
        source: Source,
        planes: Planes,
        camera: ArrayLike,
        *,
        size: Size | None = None,
        frame: Frame = "crop",
        background: str = "keep",
        rays: int | None = None,
    ) -> Picture:
        """One frame, uint8 (H, W, 3), of the source's `planes` seen by a camera (25,).

        Another thread may compute the next planes meanwhile. `size`, `frame`, `background`: see `animate`. `rays`:
        along each side, for a rendered image that is made faster and interpolated; None: the model's number.
        """
        label = np.asarray(camera, dtype=np.float32)
        check_shape(label, str(LABEL_SIZE), "camera")
        return next(self._drawn(self._view(source, size, frame, background), [(planes, label[None])], rays=rays))

    def views(
        self, source: Source, expression: ArrayLike, cameras: ArrayLike, *, size: Size | None = None
    ) -> Iterator[tuple[Picture, NDArray[np.float32]]]:
        """One expression (E,) seen by cameras (T, 25): an image of the crop, uint8 (H, W, 3), and its depth for each.

        The depth (R, R) is the volume renderer's, from which the image was made: the distance from the camera along
        each ray, scene units. The expression is computed once. `size`: see `animate`.
        """
        expressions, labels = np.asarray(expression, dtype=np.float32), np.asarray(cameras, dtype=np.float32)
        check_shape(expressions, str(SPACES[self.space]), "expression")
        check_shape(labels, f"T {LABEL_SIZE}", "cameras")
        return self._views(self._view(source, size, "crop", "keep"), self._planes(source, expressions[None]), labels)

    def _views(self, view: _View, planes: Planes, cameras: NDArray) -> Iterator[tuple[Picture, NDArray[np.float32]]]:
        for label in cameras:
            with torch.inference_mode():
                camera = self._tensor(label)[None]
                rendered = self.engine.render(planes, camera)
                frame = self._finished(view, [self.engine.frame_and_origin(planes, camera, rendered)])[0]
            yield frame, rendered.depth[0, 0].cpu().numpy()

    def _view(
        self,
        source: Source | Sequence[Source],
        size: Size | None,
        frame: Frame,
        background: str,
        long_side: int | None = LONG_SIDE,
    ) -> _View:
        """What frames of these sources show; the last few are kept: a photo's matte and background take time."""
        sources = (source,) if isinstance(source, Source) else tuple(source)
        if not sources or any(one.photo is not sources[0].photo for one in sources):
            raise ConfigError("faces that move together must come from one call of encode_all")
        if len(set(map(id, sources))) < len(sources):
            raise ConfigError("a face cannot move twice; name each source once")
        if size in (None, self.size) and frame == "crop" and background == "keep" and len(sources) == 1:
            return _View(sources)
        if not self.model.moves_pixels:
            raise ConfigError(
                f"these weights (or --pure) render {self.size} x {self.size} pixels and take none from the photo; "
                "leave out size, frame and background" + (", and choose one face" if len(sources) > 1 else "")
            )
        if frame == "crop" and len(sources) > 1:
            raise ConfigError("a crop shows one face; for several faces choose the frame photo")
        if size is None:
            size = NATIVE if frame == "photo" else max(self.size, SMALLEST)
        wanted = (*map(id, sources), size, frame, str(background), long_side)
        with self._viewing:
            view = self._kept_views.pop(wanted, None)
            if view is None:
                for oldest in list(self._kept_views)[: 1 - _KEPT_VIEWS]:
                    del self._kept_views[oldest]
                made = scene(
                    sources[0].photo,
                    [(one.crop, to_tensor(one.image)[None].to(self.device)) for one in sources],
                    [box for box in sources[0].others if all(box != one.crop for one in sources)],
                    size=size,
                    frame=frame,
                    background=str(background),
                    long_side=long_side,
                )
                view = _View(sources, made)
            self._kept_views[wanted] = view
        return view

    def forget(self, source: Source, above: int = 0) -> None:
        """Let go of what is kept of a source for its next frames, if they have more than `above` pixels."""
        with self._viewing:
            for wanted, view in list(self._kept_views.items()):
                if view.compositor and view.compositor.pixels > above and any(one is source for one in view.sources):
                    del self._kept_views[wanted]

    def framing(
        self,
        frame: Frame | None = None,
        size: Size | str | None = None,
        background: str = "keep",
        relative: bool = True,
    ) -> dict[str, Any]:
        """Keyword arguments of `animate`, `edit` and `orbit`, with the default of the commands for what is None.

        That is the whole photo at its own size. With weights that do not move the source's pixels, and for absolute
        motion, it is the crop.

        Raises:
            ConfigError: the size is not possible.
        """
        moves = self.model.moves_pixels
        frame = frame or ("photo" if moves and relative else "crop")
        if size is not None:
            size = parse_size(size)
        return {"frame": frame, "size": NATIVE if size is None and moves else size, "background": background}

    def warm_up(
        self,
        source: Source | Sequence[Source],
        batch: int = BATCH,
        *,
        size: Size | None = None,
        frame: Frame = "crop",
        background: str = "keep",
    ) -> None:
        """Render one batch at rest, so that everything is compiled before the motion is known.

        The tracker is closed until the next portrait: it holds 40 MB. Args and raises: as `animate`, which then starts
        without delay.
        """
        check_batch(batch)
        view = self._view(source, size, frame, background)
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None
        give_back_memory()  # of loading
        count = 2 * self._together(batch)
        rest = [
            Motion(np.repeat(one.expression[None], count, 0), np.repeat(one.camera[None], count, 0), FPS, self.space)
            for one in view.sources
        ]
        for _ in self._stream(view, rest, batch):
            pass
        give_back_memory()  # of compiling

    def _together(self, batch: int) -> int:
        """Frames that go through the network together: on a processor, `batch` is that of two threads."""
        return -(-batch // AT_ONCE) if self.device.type == "cpu" else batch

    def _stream(self, view: _View, motions: Sequence[Motion], batch: int) -> Iterator[Picture]:
        together, count = self._together(batch), len(motions[0])

        def frames(start: int) -> list[Picture]:
            at = _numbers(start, together, count)
            parts = [
                (self._moving(one, motion.rows(at)), motion.camera[at]) for one, motion in zip(view.sources, motions)
            ]
            return self._frames(view, parts)[: count - start]

        return self._several(frames, range(0, count, together))

    def _several(self, frames: Callable[[int], list[Picture]], starts: Sequence[int]) -> Iterator[Picture]:
        """The frames of several batches; on a processor, two batches are made at a time."""
        if self.device.type != "cpu":
            for start in starts:
                yield from frames(start)
            return
        with closing(at_once(frames, starts, ready=self._ready)) as batches:
            for made in batches:
                self._ready = True
                yield from made

    @torch.inference_mode()
    def _planes(
        self, source: Source, expression: NDArray, shift: NDArray | None = None, edited: bool = False
    ) -> Planes:
        """(B, E) and (B, n) to the source's planes; `edited` as in `closing_eyes`."""
        moved = None if shift is None else self._tensor(shift)
        own, wanted = self._tensor(source.expression), self._tensor(expression)
        asked, regions = closing_eyes(self.model, source.features, own, wanted, moved, edited)
        return self.engine.planes(source.features, asked, moved, regions)

    def _moving(self, source: Source, motion: Motion) -> Planes:
        """The planes of each frame of a motion, which also know of the driving shoulders."""
        planes = self._planes(source, motion.expression)
        return planes.with_shoulders(self._tensor(motion.shoulders)) if motion.shoulders.any() else planes

    def _drawn(
        self, view: _View, parts: Sequence[tuple[Planes, NDArray]], batch: int = 1, rays: int | None = None
    ) -> Iterator[Picture]:
        """Each source's planes, one or as many as its cameras (T, 25), to T frames."""
        together, count = self._together(batch), len(parts[0][1])

        def frames(start: int) -> list[Picture]:
            at = _numbers(start, together, count)
            return self._frames(view, [(planes, cameras[at]) for planes, cameras in parts], rays)[: count - start]

        return self._several(frames, range(0, count, together))

    @torch.inference_mode()
    def _frames(self, view: _View, parts: Sequence[tuple[Planes, NDArray]], rays: int | None = None) -> list[Picture]:
        """Each source's planes, one or as many as its cameras (B, 25), to B frames."""
        made = []
        for planes, cameras in parts:
            labels = self._tensor(cameras)
            several = planes if len(planes.triplane) > 1 else planes.expand(len(labels))
            rendered = None
            if rays is not None:
                full = self.model.config.render.resolution
                rendered = self.engine.render(several, labels, rays).enlarged(full)
            made.append(self.engine.frame_and_origin(several, labels, rendered))
        return self._finished(view, made)

    @staticmethod
    def _finished(view: _View, made: Sequence[tuple[Tensor, Origin | None]]) -> list[Picture]:
        """Each source's images (B, 3, h, h) and their origin to B frames."""
        images = [
            image if one.palette is None or origin is None else one.palette.kept(image, origin)
            for one, (image, origin) in zip(view.sources, made)
        ]
        if view.compositor is None:
            return list(to_uint8(images[0]))
        origins = [origin for _, origin in made if origin is not None]
        return [
            view.compositor.frame([(image[k : k + 1], origin.at(k)) for image, origin in zip(images, origins)])
            for k in range(len(images[0]))
        ]

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.float32, device=self.device)


@dataclass(frozen=True)
class _View:
    """Sources, and what makes their frames; None: the model's own frames."""

    sources: tuple[Source, ...]
    compositor: Compositor | None = None


def _warn_of_far_turns(angle_deg: float) -> None:
    if angle_deg > FARTHEST_DEG:
        logger.warning(
            "at %.3g degrees from the photo's view the face is stretched and has gaps; up to %g degrees it stays whole",
            angle_deg,
            FARTHEST_DEG,
        )


def _numbers(start: int, together: int, count: int) -> NDArray[np.int64]:
    """The frames of a batch; a last one has its size too, with the last frame again.

    OpenVINO would be compiled once more for another size.
    """
    at = np.arange(start, min(start + together, count))
    missing = together - len(at)
    return np.pad(at, (0, missing), mode="edge") if start and missing < BATCH else at


def _portrait(portrait: str | Path | Picture | Image.Image) -> tuple[Picture, str, str | None]:
    """The pixels of a portrait, its name in messages, and the SHA-256 of its file."""
    from PIL import Image

    if isinstance(portrait, Image.Image):
        return from_pillow(portrait, "the portrait"), "the portrait", None
    if isinstance(portrait, np.ndarray):
        check_shape(portrait, "H W 3", "portrait")
        return portrait.copy(), "the portrait", None  # frames are made of it later, whatever becomes of the array
    return read_image(portrait), str(portrait), digest_of_file(portrait)


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
