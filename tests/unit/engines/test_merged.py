"""Merged calls against the same calls one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from export3d.engines import parts
from export3d.engines.engine import Engine
from export3d.engines.merged import Answer, Call, MergedEngine, run_calls
from export3d.engines.torch_engine import TorchEngine
from export3d.model import Export3D
from export3d.warping.source_warp import Regions
from tests.tiny_models import PARTS, awake, warped

NAMES = ("source", "source_camera", "source_expression", "source_landmarks", "source_matte")


def made_by(engine: Engine, user: int, rays: int | None = None) -> tuple[Any, ...]:
    """The steps of one user's frame: planes, raw image, final image and origin. Only odd users shift and blink."""
    given = parts.examples(engine.model, 1, seed=user)
    source = engine.encode(*(given[name] for name in NAMES))
    regions = Regions(given["regions.asked"], given["regions.own"], given["regions.share"])
    shift = given["shift"] if user % 2 else None
    planes = engine.planes(source, given["expression"], shift, regions if user % 2 else None)
    planes = planes.with_shoulders(given["shoulders"])
    camera = given["camera"]
    rendered = None if rays is None else engine.render(planes, camera, rays)
    if rendered is not None:
        rendered = rendered.enlarged(engine.model.config.render.resolution)
    image, origin = engine.frame_and_origin(planes, camera, rendered)
    return planes.triplane, image, None if origin is None else (origin.offset, origin.trust, origin.taken)


class Together:
    """Takes the calls of so many threads at a time, and notes how many ran in one batch."""

    def __init__(self, engine: Engine, users: int) -> None:
        self._engine, self._calls = engine, dict[int, Call]()
        self._answers: list[Answer] = []
        self._barrier = threading.Barrier(users, self._run)
        self._lock = threading.Lock()

    def _run(self) -> None:
        self._answers = run_calls(self._engine, [self._calls[user] for user in sorted(self._calls)])

    def asks(self, user: int) -> Callable[[Call], Answer]:
        """What one user asks."""

        def ask(call: Call) -> Answer:
            with self._lock:
                self._calls[user] = call
            self._barrier.wait(60)
            return self._answers[user]

        return ask


class Counting(Engine):
    """Notes the batch sizes of its calls."""

    def __init__(self, model: Export3D) -> None:
        super().__init__(model)
        self.sizes: list[tuple[str, int]] = []

    def planes(self, source: Any, expression: Any, shift: Any = None, regions: Any = None) -> Any:
        self.sizes.append(("planes", len(expression)))
        return super().planes(source, expression, shift, regions)

    def frame_and_origin(self, planes: Any, camera: Any, rendered: Any = None) -> Any:
        self.sizes.append(("frame", len(camera)))
        return super().frame_and_origin(planes, camera, rendered)


@pytest.mark.parametrize("config", [(), PARTS], ids=["paper", "warp"])
@pytest.mark.parametrize("rays", [None, 8])
def test_frames_of_several_users_equal_frames_made_alone(config: tuple[str, ...], rays: int | None) -> None:
    engine = Counting(awake(warped(*config)))
    alone = [made_by(engine, user, rays) for user in range(3)]
    engine.sizes.clear()
    together = Together(engine, 3)
    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(made_by, MergedEngine(engine, together.asks(user)), user, rays) for user in range(3)]
        merged = [user.result() for user in users]
    torch.testing.assert_close(merged, alone, rtol=1e-4, atol=1e-4)  # batches of another size differ by rounding
    assert engine.sizes == [("planes", 2), ("planes", 1), ("frame", 2), ("frame", 1)]


def test_a_lone_call_keeps_its_bits_and_is_not_copied() -> None:
    engine = TorchEngine(awake(warped(*PARTS)))
    mine = MergedEngine(engine, lambda call: run_calls(engine, [call])[0])
    torch.testing.assert_close(made_by(mine, 1), made_by(engine, 1), rtol=0.0, atol=0.0)
    assert mine.description == engine.description


def test_calls_of_other_shapes_run_in_batches_of_their_own() -> None:
    engine = Counting(awake(warped(*PARTS)))
    given = parts.examples(engine.model, 4)
    source = engine.encode(*(given[name] for name in NAMES))
    few = engine.planes(source, given["expression"])
    one = parts.examples(engine.model, 1)
    other = engine.encode(*(one[name] for name in NAMES))
    still = engine.planes(other, one["expression"])
    engine.sizes.clear()
    calls = [
        Call("render", (few, given["camera"], None)),
        Call("render", (still.expand(2), given["camera"][:2], None)),
        Call("render", (still, one["camera"], 8)),
    ]
    made = [answer.taken() for answer in run_calls(engine, calls)]
    assert [one.feature.shape[0] for one in made] == [4, 2, 1]
    for call, merged in zip(calls, made):
        torch.testing.assert_close(merged.feature, engine.render(*call.given).feature, rtol=1e-4, atol=1e-4)


def test_a_call_that_fails_is_answered_alone() -> None:
    class Refusing(Engine):
        def render(self, planes: Any, camera: Any, rays: int | None = None) -> Any:
            if bool((camera == 0.0).all(dim=1).any()):
                raise ValueError("a camera of zeros")
            return super().render(planes, camera, rays)

    engine = Refusing(awake(warped(*PARTS)))
    given = parts.examples(engine.model, 1)
    source = engine.encode(*(given[name] for name in NAMES))
    planes, camera = engine.planes(source, given["expression"]), given["camera"]
    answers = run_calls(engine, [Call("render", (planes, one, None)) for one in (camera, 0.0 * camera)])
    assert answers[0].taken().feature.shape[0] == 1
    with pytest.raises(ValueError, match="zeros"):
        answers[1].taken()
