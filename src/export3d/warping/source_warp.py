"""The warp: moves the source's own features and pixels into the driving frame (not in the paper).

`Export3D` calls it in four places and works without it:

    encode ── frontal ──► the generator's input         planes ── move ──► added to the generator's features
           └─ view ─────► what is kept of the source    finish ── guide ─► blended into the super-resolution

Letters: B batch, E expression coefficients, d size of beta', m size of what landmarks move by, H pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.camera import projected
from export3d.errors import ConfigError, check_shape
from export3d.image import resize
from export3d.render.compiled import compiled_pass
from export3d.warping.average_head import frontal_view, head_nearness, seen_places, turned_flow
from export3d.warping.dense_motion import GRID, DenseMotion
from export3d.warping.dental_arch import dental_arches
from export3d.warping.detail import SEEN, SEEN_OF_MATTE, SEEN_OF_MOUTH, Detail, Views
from export3d.warping.detail import DetailGuide as DetailGuide  # of `SourceWarp.guide`, for its caller
from export3d.warping.elastic_mesh import Painter, show
from export3d.warping.flow_field import look_up, pixel_grid, stretch
from export3d.warping.flows import driving_flow, mirrored_flow, mouth_mask, openings, plane_flow
from export3d.warping.glasses import Glasses
from export3d.warping.inner_mouth import InnerMouth, Square, opening
from export3d.warping.irises import rolled
from export3d.warping.landmark_motion import Face, LandmarkMotion
from export3d.warping.landmark_motion import Regions as Regions
from export3d.warping.lids import shut, unfolded
from export3d.warping.origin import Origin as Origin
from export3d.warping.shoulders import following
from export3d.warping.skip_path import SkipPath, SkipWalk
from export3d.warping.teeth import (
    around,
    closed,
    hidden,
    off_teeth,
    opened,
    shown,
    smoothed,
    stirred,
    taken_along,
    unstretched,
    upper_row,
    upper_teeth,
)
from export3d.warping.turns import counts, far, fill, on_mesh, one_sided

_NEEDED = {"flow": "skip", "redraw": "flow", "teeth": "mouth", "shoulders": "matte", "inside": "teeth"} | dict.fromkeys(
    ("dense", "mouth", "irises", "lids", "glasses", "turns", "matte"), "detail"
)


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """Which parts the warp has. `base` has all of them; the variants `no_…` remove one each.

    Attributes:
        align: the source is first resampled onto the xy plane by its camera (`average_head.frontal_view`).
        skip: the stem's features bypass the tokens and are added at H/8, H/4 and H/2 through gates that see the
            expression (`skip_path`).
        flow: the skips are warped by a field that carries the source's landmarks to their new places
            (`flows.plane_flow`) and that the expression-aware features refine. Needs `skip`.
        redraw: the skips' gates also see where the flow stretches the source, and can close there: an opening mouth
            must be rendered, not stretched from closed lips. Needs `flow`.
        detail: each pixel of the final image chooses between the rendered image, the source moved or turned to the
            driving view, and the source unmoved (`detail.Detail`).
        dense: moved pixels follow a learned mixture of motions (`dense_motion`), not the elastic mesh alone. Needs
            `detail`.
        mouth: the choice also sees where the mouth is open in the driving view and in the source. Needs `detail`.
        irises: irises roll between the eyelids as discs, not as the middle of the mesh's triangles (`irises.rolled`).
            Needs `detail`.
        lids: almost closed lids meet, open ones stop at their folds (`lids`), and lashes move with their edges
            (`elastic_mesh`). Needs `detail`.
        glasses: where a source wears glasses, landmarks around them keep their places in the head (`glasses`). Needs
            `detail`.
        teeth: where a mouth opens, teeth that the source shows keep their size; lips that almost close meet (`teeth`).
            Needs `mouth`.
        inside: what a mouth that opens shows and its source does not is drawn by a network of its own
            (`inner_mouth`). Needs `teeth`.
        turns: where a head is turned far from its source, the learned parts give way to the mesh (`turns`). Needs
            `detail`.
        shoulders: the person below the chin goes where the driving shoulders went, if that is known (`shoulders`).
            Needs `matte`.
        matte: the choice and the mixture of motions see the person's opacity, and so tell hair from background. Needs
            `detail`.
        scores: landmarks move with the expression coefficients themselves, not with beta' (`landmark_motion`). Needs
            `flow` or `detail`.
    """

    align: bool = True
    skip: bool = True
    flow: bool = True
    redraw: bool = True
    detail: bool = True
    dense: bool = True
    mouth: bool = True
    irises: bool = False
    lids: bool = False
    glasses: bool = False
    teeth: bool = False
    inside: bool = False
    turns: bool = False
    shoulders: bool = False
    matte: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        for part, needed in _NEEDED.items():
            if getattr(self, part) and not getattr(self, needed):
                raise ConfigError(f"warp.{part} needs warp.{needed}; switch both on or both off")
        if self.scores and not (self.flow or self.detail):
            raise ConfigError("warp.scores needs warp.flow or warp.detail, which move landmarks; switch it off")
        if not any(getattr(self, field.name) for field in fields(self)):
            raise ConfigError("every part of the warp is off; leave the warp out (null) instead")


@dataclass(frozen=True)
class SourceView:
    """What the warp keeps of a source; independent of the driving expression.

    Attributes:
        face: where the source's landmarks are and move from; None without `flow` and `detail`.
        image: (B, 3, H, H) the source; None without `detail`.
        camera: (B, 25) the source's camera; None without `detail`.
        half: (B, 3, H/2, H/2) the source at half its size; None without `detail`.
        small: (B, 3, 64, 64) the source for `DenseMotion`, with `matte` (B, 4, 64, 64); None without `dense`.
        head: (B, 1, H, H) `average_head.head_nearness` of its camera; None without `detail`.
        mouth: (B, 1, H/2, H/2), 0 to 1, where its mouth is open; None without `mouth`.
        teeth: (B, 1, H/2, H/2) its upper teeth (`teeth.upper_row`); None without `inside`.
        matte: (B, 1, H, H) opacity of its person; None without `matte`.
        glasses: (B, 1, 1) how sure it is that its person wears glasses, 0 to 1; None without `glasses`.
    """

    face: Face | None = None
    image: Tensor | None = None
    camera: Tensor | None = None
    half: Tensor | None = None
    small: Tensor | None = None
    head: Tensor | None = None
    mouth: Tensor | None = None
    teeth: Tensor | None = None
    matte: Tensor | None = None
    glasses: Tensor | None = None

    def expand(self, batch: int) -> SourceView:
        """One source repeated for a batch of expressions; copies nothing."""
        kept = (getattr(self, field.name) for field in fields(self))
        repeated = (None if x is None or isinstance(x, Face) else x.expand(batch, *x.shape[1:]) for x in kept)
        return replace(SourceView(*repeated), face=None if self.face is None else self.face.expand(batch))


@dataclass(frozen=True)
class SourceMotion:
    """How a source moves with one driving expression.

    Attributes:
        points: (B, 478, 3) moved landmarks in the head's own axes, scene units; None without `flow` and `detail`.
        walk: adds the skips to the generator's features, grid by grid; None without `skip`.
        shoulders: (B, 5) how far, relative to the neck, the driving shoulders are to the right and below their place
            when the driving person was as the source is, crop widths; how sure that is, 0 to 1; how far they are turned
            since then, radians, clockwise; and the log of how much larger they are beside the head. None: nowhere sure.
    """

    points: Tensor | None = None
    walk: SkipWalk | None = None
    shoulders: Tensor | None = None

    @property
    def flow(self) -> Tensor | None:
        """(B, 2, H/2, W/2) the skips' refined flow once the generator has run; None without `flow`.

        It says where on the aligned source, as an offset in [-1, 1] grid units, x first, a place of the xy plane looks
        up its features.
        """
        return None if self.walk is None else self.walk.flow

    def expand(self, batch: int) -> SourceMotion:
        """One expression repeated for a batch of cameras; copies nothing."""
        points = None if self.points is None else self.points.expand(batch, -1, -1)
        shoulders = None if self.shoulders is None else self.shoulders.expand(batch, -1)
        return SourceMotion(points, self.walk, shoulders)


@cache
def fused_passes() -> Any:
    """The module `fused`; None where Numba does not run."""
    return compiled_pass("export3d.warping.fused")


class SourceWarp(nn.Module):
    """Moves the source's features and pixels with the driving landmarks and camera.

    Args:
        config: which parts there are.
        embedding: d.
        scores: E and the number of directions n.
        half_extent: the planes cover [-half_extent, half_extent], scene units.
        skip_widths: for each grid the channels of the generator's features and of the stem's
            (`GeneratorConfig.side_widths`).
        superres_widths: channels of the rendered features and of the super-resolution at H/2 and at H.

    Attributes:
        fused: whether compiled passes paint the meshes and look at the pixels: `fused`, which needs Numba (extra
            `fast`). Without Numba, or with gradients, PyTorch does.
    """

    def __init__(
        self,
        config: WarpConfig,
        embedding: int,
        scores: tuple[int, int],
        half_extent: float,
        skip_widths: Sequence[tuple[int, int]],
        superres_widths: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.config = config
        self.half_extent = half_extent
        self.fused = False
        by = scores if config.scores else None
        self.motion = LandmarkMotion(embedding, by) if config.flow or config.detail else None
        self.dense = DenseMotion(config.matte) if config.dense else None
        self.skip = SkipPath(skip_widths, config.flow, config.redraw) if config.skip else None
        self.detail = Detail(*superres_widths, config.mouth, config.matte) if config.detail else None
        self.inner = InnerMouth() if config.inside else None
        self.glasses = Glasses() if config.glasses else None

    def frontal(self, image: Tensor, camera: Tensor | None) -> Tensor:
        """The generator's input (B, 3, h, h): the source, resampled onto the xy plane where `align` is on.

        Raises `ConfigError` where the source's camera (B, 25) is needed and missing.
        """
        if not self.config.align:
            return image
        if camera is None:
            raise ConfigError("this model aligns its source: give encode() the source's camera label too")
        return frontal_view(image, camera, self.half_extent)

    def view(
        self,
        image: Tensor,
        camera: Tensor | None,
        own: Tensor | None,
        landmarks: Tensor | None,
        matte: Tensor | None = None,
    ) -> SourceView:
        """What is kept of sources.

        Args:
            image: (B, 3, H, H).
            camera: (B, 25).
            own: (B, m) what the sources' own expressions give, see `LandmarkMotion.input`.
            landmarks: (B, 478, 2), 0..1 across the sources.
            matte: (B, 1, H, H) opacity of the people, 0 to 1.

        Raises:
            ConfigError: an argument that this warp needs is missing.
        """
        if self.motion is None:
            return SourceView()
        if camera is None or own is None or landmarks is None:
            raise ConfigError(
                "this model moves its source's pixels: give encode() the source's camera, expression and landmarks"
            )
        face = self.motion.face(own, landmarks, camera, self.half_extent)
        if not self.config.detail:
            return SourceView(face)
        pixels = image.float()
        with torch.no_grad():
            head = head_nearness(seen_places(camera, image.shape[-1]))
            mouth = F.avg_pool2d(mouth_mask(face.places, image.shape[-1]), 2) if self.config.mouth else None
            glasses = None if self.glasses is None else self.glasses(pixels, landmarks)
            teeth = None
            if self.config.inside:
                square = Square(face.places)
                row = upper_row(square.seen(pixels), opening(square, face.places))
                teeth = (shown(face.points) > 0.5) * square.spread(row, image.shape[-1] // 2)
        if not self.config.matte:
            matte = None
        elif matte is None:
            raise ConfigError(
                "this model tells its source's person from the background: give encode() the person's opacity, as "
                "export3d.photo.matte.crop_mattes finds it"
            )
        else:
            check_shape(matte, f"{image.shape[0]} 1 {image.shape[-1]} {image.shape[-1]}", "source matte")
        small = None
        if self.config.dense:
            small = resize(pixels if matte is None else torch.cat([pixels, matte], dim=1), GRID)
        return SourceView(face, image, camera, F.avg_pool2d(pixels, 2), small, head, mouth, teeth, matte, glasses)

    def move(
        self, asked: Tensor, view: SourceView, stem: Sequence[Tensor], regions: Regions | None = None
    ) -> SourceMotion:
        """What driving expressions give (B, m), the source and its stem features (H/8, H/4, H/2) to its motion.

        `regions` follow their own, see `LandmarkMotion`.
        """
        points = field = walk = None
        if self.motion is not None and view.face is not None:
            points = self.motion(asked, view.face, regions)
            if self.glasses is not None and view.glasses is not None:
                points = self.glasses.hold(points, view.face.points, view.glasses)
            if self.config.flow:
                field = plane_flow(points, view.face, self.half_extent, stem[-1].shape[-1], self._painter(points))
        if self.skip is not None:
            walk = self.skip.walk(stem, field)
        return SourceMotion(points, walk)

    def guide(self, view: SourceView, motion: SourceMotion, camera: Tensor, feature: Tensor) -> DetailGuide | None:
        """What leads the super-resolution to the source's pixels; None without `detail`.

        Args:
            camera: (B, 25) of the driving frames.
            feature: (B, F, H/4, H/4) rendered features.
        """
        if self.detail is None:
            return None
        return DetailGuide(self.detail, self.views(view, motion, camera), feature, self.inner)

    def views(self, view: SourceView, motion: SourceMotion, camera: Tensor) -> Views:
        """The source as it may appear in driving frames of cameras (B, 25)."""
        image, own, face, points = view.image, view.camera, view.face, motion.points
        if image is None or own is None or face is None or points is None or view.head is None:
            raise ConfigError("this model takes detail from its source: make its features by Export3D.encode()")
        size, image = image.shape[-1], image.float()
        turn = far(own, camera) if self.config.turns else None
        if self.config.teeth:
            points = closed(points, face.points)
        places, distance = projected(points, camera)
        if self.config.lids:
            places = unfolded(shut(places, face.places), face.places)
        passes = self._passes(points)
        flow, as_face, on_face = driving_flow(
            places,
            distance,
            face,
            size,
            self._painter(points),
            None if passes is None else passes.mended,
            resting=self.config.irises,
            lashes=self.config.lids,
        )
        with torch.no_grad():
            on_head = seen_places(camera, size)
            head = torch.cat([head_nearness(on_head), view.head], dim=1)
            as_head = turned_flow(own, on_head)
            turned = look_up(image, as_head)
        stretching = stretch if passes is None else passes.stretch
        elastic, stretched = flow, stretching(flow)
        if self.dense is not None and view.small is not None:
            hints = torch.cat([stretched, head], dim=1)
            flow = self.dense(view.small, (flow, as_head, as_face), hints, None if passes is None else passes.mixed)
            if turn is not None and counts(turn):
                flow = on_mesh(flow, elastic, on_face, stretched, turn)
        shoulders, matte = motion.shoulders if self.config.shoulders else None, view.matte
        body = torch.zeros_like(F.avg_pool2d(matte, 4)) if self.config.shoulders and matte is not None else None
        if shoulders is not None and matte is not None and counts(shoulders[:, 2]):
            before = projected(face.points, own)[0]
            flow, body = following(flow, shoulders, own, camera, places, before, on_face, matte)
        if self.config.irises:
            flow = rolled(flow, elastic, places, face.places)
        as_teeth = as_head - 2.0 * taken_along(points, face.points, camera, size) if self.config.teeth else as_head
        mouth = None if view.mouth is None else openings(points, view.mouth, camera, as_teeth)
        if self.config.teeth and view.mouth is not None and mouth is not None:
            share = stirred(points, face.points)
            if counts(share):
                flow = off_teeth(flow, share, places, face.places, view.mouth, mouth[:, :1])
        if flow is not elastic:
            stretched = stretching(flow)
        lookup = (pixel_grid(size, flow.device) + flow + 1.0) / 2.0
        showing = show if passes is None else passes.show
        moved = showing(image, lookup.permute(0, 2, 3, 1), view.half)
        if turn is not None and counts(half := one_sided(own, camera)):
            other = mirrored_flow(places, distance, face, size, self._painter(points))
            mirrored = stretching(other)
            part = fill(stretched, mirrored, on_face, half)
            moved = torch.lerp(moved, look_up(image.flip(-1), other), part)
            stretched = torch.lerp(stretched, mirrored, part)
            # x of the same places in the source as it is, not flipped
            back = -2.0 * pixel_grid(size, flow.device) - other
            flow = torch.where(part > 0.5, torch.cat([back[:, :1], other[:, 1:]], dim=1), flow)
        teeth = None
        row = None if view.teeth is None else look_up(view.teeth, resize(as_teeth, size // 2))
        if self.config.teeth and mouth is not None:
            share = opened(points, face.points)
            teeth = torch.zeros_like(mouth)
            if counts(share[:, :1]):
                teeth = upper_teeth(share[:, :1], mouth, row)
                as_head = torch.where(around(teeth[:, :1]), as_teeth, as_head)
                turned = look_up(image, as_head)
                moved, stretched = unstretched(teeth, moved, stretched, turned)
                flow = torch.where(teeth[:, :1] > 0.5, as_head, flow)
            if counts(share[:, 1:]):
                moved = smoothed(share[:, 1:], mouth[:, :1], moved)
        person = None
        if matte is not None:
            person = torch.cat([look_up(matte, flow), matte, look_up(matte, as_head)], dim=1)
        seen = Views(moved, stretched, flow, image, turned, as_head, head, mouth, teeth, turn, person=person, body=body)
        if turn is not None:
            seen = replace(seen, face=F.avg_pool2d(on_face[:, None].float(), 4))
        if row is None:
            return seen
        drawn = hidden(points, face.points)
        if turn is not None:  # below teeth that are seen from the side it is drawn badly
            drawn = drawn * (1.0 - turn * shown(face.points))
        arches = dental_arches(points, face.points, 1.0 - shown(face.points), camera)
        return replace(seen, lips=places, hidden=drawn, kept=row, arches=arches)

    def _painter(self, points: Tensor) -> Painter | None:
        """The compiled painter where it may paint these points, see `fused`."""
        passes = self._passes(points)
        return None if passes is None else passes.paint

    def _passes(self, points: Tensor) -> Any:
        """The compiled passes where they may look at these points, see `fused`; else None."""
        inference = points.device.type == "cpu" and not (torch.is_grad_enabled() and points.requires_grad)
        return fused_passes() if self.fused and inference else None


def inherited(own: dict[str, Tensor], former: dict[str, Tensor], exchanged: bool) -> dict[str, Tensor]:
    """What a warp takes over from another one with other parts.

    Parts that the former does not have keep their own values. A new redraw changes nothing at first. New gates and a
    new detail do, since they start almost open and with a share of the source. So does a new flow where the former has
    a learned landmark motion (of its `detail`). New inputs of `detail` and `dense` (the mouth's and the matte's) start
    at zero. The landmark motion keeps its own values too with another expression encoder, and where
    only one of both warps has `scores`.

    Args:
        own: the warp's `state_dict`.
        former: the other one's.
        exchanged: whether the expression encoder is another one.

    Returns:
        Tensors with exactly the names of `own`.
    """
    out = dict(own)
    first = "motion.first.weight"
    exchanged |= first in own and first in former and own[first].shape != former[first].shape
    for name, value in former.items():
        if name not in own or (exchanged and name.startswith("motion.")):
            continue
        if name in ("detail.mid.weight", "detail.first.weight"):
            before = SEEN + value.shape[1] - former["detail.mid.weight"].shape[1]
            value = _refitted(value, own[name].shape[1], before)
        elif name in ("detail.overview.0.weight", "dense.fold.weight", "dense.last.weight"):
            value = F.pad(value, (0, 0, 0, 0, 0, own[name].shape[1] - value.shape[1]))
        out[name] = value
    return out


def _refitted(value: Tensor, width: int, first: int) -> Tensor:
    """Weights (K, C, h, w) for another width: after the `first` inputs come those of the mouth, then of the matte."""
    out = value.new_zeros(len(value), width, *value.shape[2:])
    out[:, :first] = value[:, :first]
    mouths = [first + (SEEN_OF_MOUTH if (size - first) % SEEN_OF_MATTE else 0) for size in (value.shape[1], width)]
    if mouths[0] == mouths[1]:
        out[:, first : mouths[0]] = value[:, first : mouths[0]]
    if value.shape[1] > mouths[0] and width > mouths[1]:
        out[:, mouths[1] :] = value[:, mouths[0] :]
    return out
