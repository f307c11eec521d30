"""The model in parts whose inputs and outputs are tensors with names: what other runtimes convert.

    SourceEncoder ── features, view ──► ExpressionMotion ── beta, points, field ──► PlaneGenerator ── triplane ──►
    Renderer ── feature ──► Finish ◄── views ── CameraViews ◄── view, points, camera

Every input and output has the batch as its first dimension, the same for all. Parts share the model's weights. Which
tensors there are depends on the warp: `Part.inputs` and `Part.outputs` name them, `tensors` and `rebuilt` turn the
model's dataclasses into named tensors and back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from export3d.camera import Camera, projected
from export3d.expression.encoder import ExpressionEncoder
from export3d.image import resize
from export3d.model import Encoded, Export3D
from export3d.motion.motion import SHOULDERS
from export3d.warping.detail import Detail, DetailGuide, Views
from export3d.warping.flows import plane_flow
from export3d.warping.landmark_motion import Regions, average_landmarks
from export3d.warping.source_warp import SourceMotion

_SMOOTH = 8
"""Pixels between the random colours of an example."""

T = TypeVar("T")


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of nested dataclasses and tuples by their path, such as `view.face.points`; None is left out."""
    if isinstance(value, Tensor):
        return {name: value}
    if is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, tuple):
        parts = [(str(number), part) for number, part in enumerate(value)]
    else:
        parts = []
    found: dict[str, Tensor] = {}
    for part, inner in parts:
        found |= tensors(inner, f"{name}.{part}" if name else part)
    return found


def rebuilt(like: T, named: Mapping[str, Tensor], name: str = "") -> T:
    """A value built as `like` with other tensors: the inverse of `tensors`. Tensors that are not named become None."""
    if isinstance(like, Tensor):
        return named.get(name)  # type: ignore[return-value]
    prefix = f"{name}." if name else ""
    if is_dataclass(like) and not isinstance(like, type):
        inner = {field.name: rebuilt(getattr(like, field.name), named, prefix + field.name) for field in fields(like)}
        return replace(like, **inner)
    if isinstance(like, tuple):
        return tuple(rebuilt(part, named, f"{prefix}{k}") for k, part in enumerate(like))  # type: ignore[return-value]
    return like


class Part(nn.Module):
    """One part of a model.

    Attributes:
        inputs, outputs: names of the tensors that `forward` takes and returns, in their order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def named(self, given: Sequence[Tensor]) -> dict[str, Tensor]:
        """The arguments of `forward` by name."""
        return dict(zip(self.inputs, given, strict=True))


class Chain(Part):
    """Parts in a row: each gets what it needs from those before it, or as an input of the chain.

    Args:
        outputs: names of the tensors that it returns.
    """

    def __init__(self, parts: Sequence[Part], outputs: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        made: set[str] = set()
        needed: list[str] = []
        for part in parts:
            needed += [name for name in part.inputs if name not in made and name not in needed]
            made |= set(part.outputs)
        self.inputs, self.outputs = tuple(needed), tuple(outputs)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        known = self.named(given)
        for part in self.parts:
            assert isinstance(part, Part)
            known |= dict(zip(part.outputs, part(*(known[name] for name in part.inputs)), strict=True))
        return tuple(known[name] for name in self.outputs)


class SourceEncoder(Part):
    """`Export3D.encode`.

    Inputs: source (B, 3, H, H); with a warp also source_camera (B, 25), source_expression (B, E) and source_landmarks
    (B, 478, 2) and source_matte (B, 1, H, H), as far as it needs them. Outputs: the tensors of `Encoded`.
    """

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        self.model = shallow(model)
        self.model.expression = _with_fixed_basis(model.expression)
        self.inputs = source_inputs(model)
        self.outputs = tuple(tensors(_encoded(model)))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        made = tensors(self.model.encode(**self.named(given))).values()
        return tuple(value.clone() if any(value is one for one in given) else value for value in made)


class ExpressionMotion(Part):
    """Expressions to beta' (Eq. 3) and, with a warp, to what moves the source.

    Inputs: expression (B, E); shift (B, n), zeros for none; with landmark motion the tensors of `Encoded.view.face`,
    view.glasses (B, 1, 1) if glasses hold landmarks, and regions.asked (B, 4, m), regions.own (B, 4, m) and
    regions.share (B,), zeros for none.
    Outputs: beta (B, d); with landmark motion points (B, 478, 3); with a flow field (B, 2, h, h).
    """

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        self.expression = _with_fixed_basis(model.expression)
        self.motion, self.glasses = (None, None) if model.warp is None else (model.warp.motion, model.warp.glasses)
        self.half_extent = model.config.render.half_extent
        self.size = model.config.generator.image_size // 2
        self.flow = model.warp is not None and model.warp.config.flow
        self.like = _encoded(model)
        face: tuple[str, ...] = ()
        if self.motion is not None:
            face = tuple(name for name in tensors(self.like) if name.startswith(("view.face.", "view.glasses")))
            face += ("regions.asked", "regions.own", "regions.share")
        self.inputs = ("expression", "shift", *face)
        self.outputs = ("beta", *(["points"] if self.motion else []), *(["field"] if self.flow else []))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = self.named(given)
        beta = self.expression.embed(self.expression.coefficients(named["expression"]) + named["shift"])
        if self.motion is None:
            return (beta,)
        view = rebuilt(self.like, named).view
        assert view is not None
        assert view.face is not None
        asked = self.motion.input(beta, named["expression"], named["shift"])
        regions = Regions(*(named[f"regions.{name}"] for name in ("asked", "own", "share")))
        points = self.motion(asked, view.face, regions)
        if self.glasses is not None:
            assert view.glasses is not None
            points = self.glasses.hold(points, view.face.points, view.glasses)
        if not self.flow:
            return beta, points
        return beta, points, plane_flow(points, view.face, self.half_extent, self.size)


class PlaneGenerator(Part):
    """`TriplaneGenerator` with the skip path.

    Inputs: the tensors of `Encoded.features` (of `stem` only with a skip path), beta (B, d), with a flow field
    (B, 2, h, h). Outputs: triplane (B, 3, C, h, h).
    """

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        self.generator = model.generator
        self.skip = None if model.warp is None else model.warp.skip
        self.like = _encoded(model)
        names = [name for name in tensors(self.like) if name.startswith("features.")]
        if self.skip is None:
            names = ["features.tokens"]
        flow = model.warp is not None and model.warp.config.flow
        self.inputs = (*names, "beta", *(["field"] if flow else []))
        self.outputs = ("triplane",)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = self.named(given)
        features = rebuilt(self.like, named).features
        walk = None if self.skip is None else self.skip.walk(features.stem, named.get("field"))
        return (self.generator(features, named["beta"], walk),)


class Renderer(Part):
    """`VolumeRenderer`.

    Inputs: triplane (B, 3, C, h, h), camera (B, 25). Outputs: feature (B, F, R, R), depth and opacity (B, 1, R, R).
    """

    inputs = ("triplane", "camera")
    outputs = ("feature", "depth", "opacity")

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        self.renderer = model.renderer

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        rendered = self.renderer(*given)
        return rendered.feature, rendered.depth, rendered.opacity


class CameraViews(Part):
    """`SourceWarp.views`: the source as cameras see it. Only for models that move pixels.

    Inputs: the tensors of `Encoded.view` that it needs, points (B, 478, 3), camera (B, 25), and, if shoulders follow,
    shoulders (B, 5), zeros for none. Outputs: the tensors of
    `Views`, as `views.…`, without the unmoved source.
    """

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        assert model.moves_pixels
        self.warp = model.warp
        self.like = _encoded(model)
        kept = [name for name in tensors(self.like) if name.startswith("view.")]
        assert self.warp is not None
        self.inputs = (*kept, "points", "camera", *(["shoulders"] if self.warp.config.shoulders else []))
        self.outputs = tuple(name for name in tensors(_views(model), "views") if name != "views.still")

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = self.named(given)
        view = rebuilt(self.like, named).view
        assert view is not None
        assert self.warp is not None
        motion = SourceMotion(named["points"], shoulders=named.get("shoulders"))
        made = tensors(self.warp.views(view, motion, named["camera"]), "views")
        return tuple(made[name] for name in self.outputs)


class Finish(Part):
    """Super-resolution, with the detail of the views if the model moves pixels.

    Inputs: feature (B, F, R, R); if it moves pixels view.image (B, 3, H, H) and the tensors of `Views`.
    Outputs: image (B, 3, H, H), clamped to [-1, 1]; if it moves pixels share, see `Detail.blend`; if it draws mouths
    teeth, see `DetailGuide`.
    """

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        self.superres = model.superres
        self.detail, self.inner = (None, None) if model.warp is None else (model.warp.detail, model.warp.inner)
        self.inputs, self.outputs = ("feature",), ("image",)
        if self.detail is not None:
            self.like = _views(model)
            names = [name for name in tensors(self.like, "views") if name != "views.still"]
            self.inputs += ("view.image", *names)
            self.outputs += ("share",) if self.inner is None else ("share", "teeth")

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = self.named(given)
        if self.detail is None:
            return (self.superres(named["feature"]).clamp(-1.0, 1.0),)
        views = rebuilt(self.like, named | {"views.still": named["view.image"]}, "views")
        guide = DetailGuide(self.detail, views, named["feature"], self.inner)
        image = self.superres(named["feature"], guide).clamp(-1.0, 1.0)
        assert guide.share is not None
        return (image, guide.share) if guide.teeth is None else (image, guide.share, guide.teeth)


class Choice(Part):
    """The convolutions of `Finish`, for models that move pixels. What it lacks looks at each pixel alone.

    Inputs: feature (B, F, R, R), stacked (B, C, H, H) as of `Views.stacked`, half (B, C, H/2, H/2) its means, offset
    (B, 2, R, R) as of `Views.mean_offset`. Outputs: choice as of `Detail.choose`, rendered (B, 3, H, H), lean as of
    `Detail.overlook`.
    """

    inputs = ("feature", "stacked", "half", "offset")
    outputs = ("choice", "rendered", "lean")

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        assert model.warp is not None
        assert model.warp.detail is not None
        self.superres, self.detail = model.superres, model.warp.detail

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        feature, stacked, half, offset = given
        guide = _Chooser(self.detail, stacked, half)
        lean = self.detail.overlook(feature, guide.half, offset)
        rendered = self.superres(feature, guide)
        assert guide.choice is not None
        return guide.choice, rendered, lean


class Mouths(Part):
    """What draws mouths, `warp.inner`. Inputs: seen and hole as of `InnerMouth`. Outputs: drawn."""

    inputs = ("seen", "hole")
    outputs = ("drawn",)

    def __init__(self, model: Export3D) -> None:
        super().__init__()
        assert model.warp is not None
        self.inner = model.warp.inner

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        assert self.inner is not None
        return (self.inner(*given),)


class _Chooser:
    """A `superres.Guide` that only chooses."""

    def __init__(self, detail: Detail, stacked: Tensor, half: Tensor) -> None:
        self.half = half
        self.choice: Tensor | None = None
        self._detail, self._stacked = detail, stacked

    def at_half(self, x: Tensor) -> Tensor:
        added: Tensor = self._detail.mid(self.half)
        return x + added

    def at_full(self, x: Tensor, image: Tensor) -> Tensor:
        self.choice = self._detail.choose(x, image, self._stacked)
        return image


def planes_part(model: Export3D) -> Chain:
    """`Export3D.planes`: an expression of an encoded source to the tri-plane, and to its moved landmarks."""
    motion = ExpressionMotion(model)
    moved = [name for name in motion.outputs if name == "points"]
    return Chain([motion, PlaneGenerator(model)], ["triplane", *moved])


def frame_part(model: Export3D) -> Chain:
    """`Export3D.frame`: tri-planes, moved landmarks and cameras to images."""
    views = [CameraViews(model)] if model.moves_pixels else []
    return Chain([Renderer(model), *views, Finish(model)], ["image"])


def source_inputs(model: Export3D) -> tuple[str, ...]:
    """The arguments that `Export3D.encode` needs."""
    if model.warp is None:
        return ("source",)
    if model.warp.motion is not None:
        matte = ["source_matte"] if model.warp.config.matte else []
        return ("source", "source_camera", "source_expression", "source_landmarks", *matte)
    return ("source", "source_camera") if model.warp.config.align else ("source",)


def examples(model: Export3D, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of all parts that come from outside: average heads of random colours that move and turn at random.

    Colours change over several pixels, as those of photos do: in noise of single pixels rounding of places shows.
    """
    size, device = model.config.image_size, next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    labels = [Camera.orbit(30.0 * float(a), 15.0 * float(b)).label for a, b in _uniform(random, 2 * batch, 2)]
    camera = torch.tensor(np.stack(labels), dtype=torch.float32)
    heads = average_landmarks().expand(batch, -1, -1)
    sizes, moved = model.config.expression, None if model.warp is None else model.warp.motion
    width = sizes.d if moved is None else moved.width
    own = camera[:batch]
    made = {
        "source": resize(_uniform(random, batch, 3, size // _SMOOTH, size // _SMOOTH), size),
        "source_camera": own,
        "source_expression": _uniform(random, batch, sizes.inputs).abs(),
        "source_landmarks": projected(heads, own)[0],
        "source_matte": _uniform(random, batch, 1, size, size).abs(),
        "expression": _uniform(random, batch, sizes.inputs).abs(),
        "shift": _uniform(random, batch, sizes.latent),
        "regions.asked": 0.1 * _uniform(random, batch, 4, width),
        "regions.own": 0.1 * _uniform(random, batch, 4, width),
        "regions.share": _uniform(random, batch).abs(),
        "camera": camera[batch:],
        "shoulders": 0.1 * _uniform(random, batch, SHOULDERS).abs(),
    }
    return {name: value.to(device) for name, value in made.items()}


def _uniform(random: torch.Generator, *shape: int) -> Tensor:
    return 2.0 * torch.rand(shape, generator=random) - 1.0


@torch.no_grad()
def _encoded(model: Export3D) -> Encoded:
    """An encoded source, to know which tensors there are."""
    given = examples(model, 1)
    return model.encode(**{name: given[name] for name in source_inputs(model)})


@torch.no_grad()
def _views(model: Export3D) -> Views:
    """Views of a source, to know which tensors there are."""
    view = _encoded(model).view
    assert view is not None
    assert view.face is not None
    assert model.warp is not None
    return model.warp.views(view, SourceMotion(view.face.points), examples(model, 1)["camera"])


M = TypeVar("M", bound=nn.Module)


def shallow(module: M) -> M:
    """A module with the same parameters, whose parts can be exchanged without a change of the original."""
    out = copy.copy(module)
    out._modules = dict(module._modules)
    return out


def _with_fixed_basis(encoder: ExpressionEncoder) -> ExpressionEncoder:
    """The encoder with its basis as numbers: other runtimes have no QR decomposition."""
    out = shallow(encoder)
    if encoder.basis is not None:
        out._modules["basis"] = _FixedBasis(encoder.basis().detach())
    return out


class _FixedBasis(nn.Module):
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self) -> Tensor:
        return self.value
