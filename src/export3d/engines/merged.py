"""Calls of several users to one engine, merged into batches.

Whatever renders side by side asks a `MergedEngine`, which hands each step of a frame on as a `Call`. Somebody collects
the calls that wait and has `run_calls` do them together: inputs of equal shapes are joined along the batch axis, the
engine runs once, and each caller gets its rows. A call that is alone reaches the engine as it was made, with the same
bits. Merged ones differ as batches of another size do (`animator.BATCH`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from export3d.engines import parts
from export3d.engines.engine import Engine
from export3d.model import Encoded, Planes
from export3d.render.renderer import Rendered
from export3d.warping.detail import Views
from export3d.warping.origin import Origin
from export3d.warping.source_warp import Regions, SourceMotion

MOST = 8
"""Calls that are merged at most."""


@dataclass(frozen=True)
class Call:
    """One step of a frame for an engine.

    Attributes:
        step: the name of the method of `Engine`.
        given: its arguments, in their order.
    """

    step: Literal["encode", "planes", "render", "views", "frame_and_origin", "frame_and_share"]
    given: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """What a call returned, or the exception that it raised."""

    value: Any = None
    problem: Exception | None = None

    def taken(self) -> Any:
        """The value; raises the problem."""
        if self.problem is not None:
            raise self.problem
        return self.value


class MergedEngine(Engine):
    """An engine for several threads, each of which waits for its answer.

    Args:
        engine: that runs the calls.
        ask: hands a call to whoever runs it (`run_calls`), and returns its answer.
    """

    def __init__(self, engine: Engine, ask: Callable[[Call], Answer]) -> None:
        super().__init__(engine.model)
        self.name, self._engine, self._ask = engine.name, engine, ask

    @property
    def description(self) -> str:
        """That of the engine that runs the calls."""
        return self._engine.description

    def encode(
        self, source: Tensor, camera: Tensor, expression: Tensor, landmarks: Tensor, matte: Tensor | None = None
    ) -> Encoded:
        """See `Export3D.encode`."""
        made: Encoded = self._ask(Call("encode", (source, camera, expression, landmarks, matte))).taken()
        return made

    def planes(
        self, source: Encoded, expression: Tensor, shift: Tensor | None = None, regions: Regions | None = None
    ) -> Planes:
        """See `Export3D.planes`."""
        made: Planes = self._ask(Call("planes", (source, expression, shift, regions))).taken()
        return made

    def render(self, planes: Planes, camera: Tensor, rays: int | None = None) -> Rendered:
        """See `Export3D.render`."""
        made: Rendered = self._ask(Call("render", (planes, camera, rays))).taken()
        return made

    def views(self, planes: Planes, camera: Tensor) -> Views:
        """See `Engine.views`."""
        made: Views = self._ask(Call("views", (planes, camera))).taken()
        return made

    def frame_and_origin(
        self, planes: Planes, camera: Tensor, rendered: Rendered | None = None
    ) -> tuple[Tensor, Origin | None]:
        """See `Export3D.frame_and_origin`."""
        made: tuple[Tensor, Origin | None] = self._ask(Call("frame_and_origin", (planes, camera, rendered))).taken()
        return made

    def frame_and_share(self, planes: Planes, camera: Tensor) -> tuple[Tensor, Tensor]:
        """See `Export3D.frame_and_share`."""
        made: tuple[Tensor, Tensor] = self._ask(Call("frame_and_share", (planes, camera))).taken()
        return made


def run_calls(engine: Engine, calls: Sequence[Call]) -> list[Answer]:
    """The answers of calls, in their order; those that fit together are run together.

    Batches have 1, 2, 4 or `MOST` calls: engines that compile a batch size compile few. Where a batch fails, its calls
    are run one by one, and only those that fail alone are answered with their exception.
    """
    answers: dict[int, Answer] = {}
    groups: dict[Any, list[int]] = {}
    for number, call in enumerate(calls):
        groups.setdefault(_kind(call, number), []).append(number)
    for numbers in groups.values():
        while numbers:
            size = min(1 << (len(numbers).bit_length() - 1), MOST)
            batch, numbers = numbers[:size], numbers[size:]
            answers |= zip(batch, _run(engine, [calls[number] for number in batch]))
    return [answers[number] for number in range(len(calls))]


def _kind(call: Call, number: int) -> Any:
    """What calls have in common that can be merged. `encode` is rare and always float32: it is run alone."""
    if call.step not in ("planes", "render", "frame_and_origin"):
        return number
    found = parts.tensors(_fixed(call))
    shapes = [(name, tensor.shape[1:], tensor.dtype, tensor.device) for name, tensor in found.items()]
    return call.step, call.given[2] if call.step == "render" else None, tuple(shapes)


def _fixed(call: Call) -> tuple[Any, ...]:
    """Of the arguments those that every call of a kind has; `shift` and `regions` may be missing."""
    return call.given[:2] if call.step == "planes" else call.given


@torch.inference_mode()
def _run(engine: Engine, calls: Sequence[Call]) -> list[Answer]:
    if len(calls) > 1:
        try:
            return [Answer(value) for value in _merged(engine, calls)]
        except Exception as problem:
            del problem  # whose it is shows below
    return [_alone(engine, call) for call in calls]


def _alone(engine: Engine, call: Call) -> Answer:
    try:
        return Answer(getattr(engine, call.step)(*call.given))
    except Exception as problem:
        return Answer(problem=problem)


def _merged(engine: Engine, calls: Sequence[Call]) -> list[Any]:
    if calls[0].step == "planes":
        return _merged_planes(engine, calls)
    named = [parts.tensors(_expanded(call.given)) for call in calls]
    given = _joined(_expanded(calls[0].given), named)
    made = getattr(engine, calls[0].step)(*given)
    rows = _rows(len(call.given[1]) for call in calls)
    if calls[0].step == "render":
        return [Rendered(made.feature[at], made.depth[at], made.opacity[at]) for at in rows]
    image, origin = made
    return [(image[at], None if origin is None else origin.rows(at)) for at in rows]


def _merged_planes(engine: Engine, calls: Sequence[Call]) -> list[Planes]:
    sources, expressions, shifts, regions = zip(*(call.given for call in calls))
    counts = [len(expression) for expression in expressions]
    expanded = [
        source if len(source.features.tokens) == count else source.expand(count)
        for source, count in zip(sources, counts)
    ]
    joined = _joined(expanded[0], [parts.tensors(source) for source in expanded])
    made = engine.planes(joined, torch.cat(expressions), _shifts(shifts, counts), _regions(regions, expressions))
    return [
        # copies: planes are kept, and a part of a batch would keep all of it
        Planes(made.triplane[at].clone(), source, _moved(made.motion, at))
        for source, at in zip(expanded, _rows(counts))
    ]


def _moved(motion: SourceMotion | None, rows: slice) -> SourceMotion | None:
    return None if motion is None else SourceMotion(None if motion.points is None else motion.points[rows].clone())


def _shifts(shifts: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """Zeros stand for no shift."""
    like = next((shift for shift in shifts if shift is not None), None)
    if like is None:
        return None
    zeros = torch.zeros_like(like[:1])
    return torch.cat([(zeros if one is None else one).expand(n, -1) for one, n in zip(shifts, counts)])


def _regions(regions: Sequence[Regions | None], expressions: Sequence[Tensor]) -> Regions | None:
    """Regions of which none moves on its own stand for no regions."""
    if all(one is None for one in regions):
        return None
    like = next(one for one in regions if one is not None)
    filled = []
    for one, expression in zip(regions, expressions):
        none = expression.new_zeros(len(expression), *like.own.shape[1:])
        filled.append(parts.tensors(one or Regions(none, none, none[:, 0, 0])))
    return Regions(**{name: torch.cat([one[name] for one in filled]) for name in filled[0]})


def _expanded(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Planes, expanded to the cameras, and what follows; without what served to make the planes."""
    planes, camera, *rest = given
    planes = planes if len(planes.triplane) == len(camera) else planes.expand(len(camera))
    motion = planes.motion and SourceMotion(planes.motion.points, shoulders=planes.motion.shoulders)
    return Planes(planes.triplane, planes.source, motion), camera, *rest


def _joined(like: Any, named: Sequence[dict[str, Tensor]]) -> Any:
    """A value as `like` with the tensors of all, joined along the batch axis."""
    return parts.rebuilt(like, {name: torch.cat([one[name] for one in named]) for name in named[0]})


def _rows(counts: Any) -> list[slice]:
    rows, start = [], 0
    for count in counts:
        rows.append(slice(start, start + count))
        start += count
    return rows
