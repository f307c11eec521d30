"""A network of a hundred parameters and its task, for tests of the loop; also a script that tests start and kill.

python tiny.py RUN_DIR '{"max_images": 32, ...}' [PROCESSES]
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export3d.training.loop import train
from export3d.training.loop_config import LoopConfig
from export3d.training.task import OpponentConfig


class TinyModule(nn.Module):
    """Has dropout, which depends on the random generators, and two buffers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.third = nn.Linear(8, 2)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = nn.functional.dropout(x, self.dropout, self.training)
        return self.third(torch.tanh(self.second(x) + self.mean))


class TinyTask:
    """Regression on random numbers seeded by the counter.

    Args:
        random: dropout, noise from the global generators and running buffers; False: the shares of several processes
            add up exactly to the batch of one.
        hook: called with images_seen inside `losses`; returns None, "loss" or "gradient": what becomes NaN.
        slow_s: how long a step takes.
    """

    steps_ended = 0

    def __init__(self, random: bool = True, hook: Any = None, slow_s: float = 0.0) -> None:
        torch.manual_seed(7)
        self.random, self.hook, self.slow_s = random, hook, slow_s
        self.module: nn.Module = TinyModule(0.2 if random else 0.0)
        self.config: Mapping[str, Any] = {"width": 8}
        self.validated = 0
        self.first_losses: list[float] = []

    def prepare(self, device: torch.device) -> None:
        self.device = device

    def compile(self) -> None:
        self.module.compile()

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> dict[str, Any]:
        images = range(images_seen + rank, images_seen + batch_size, world)
        table = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(image)) for image in images])
        return {"x": table[:, :6], "y": table[:, 6:], "images_seen": images_seen}

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> dict[str, Tensor]:
        time.sleep(self.slow_s)
        poison = self.hook(images_seen) if self.hook else None
        out = self.module(batch["x"])
        total = error = (out - batch["y"]).square().mean()
        if self.random:
            self.module.seen += len(batch["x"])
            self.module.mean.lerp_(batch["x"].mean().expand(8), 0.01)
            total = error + (torch.rand(()) + np.random.rand()) * 0.1 * out.mean()  # noqa: NPY002
        if poison == "loss":
            total = total * torch.nan
        elif poison == "gradient":
            total = total + (out * 0.0).sqrt().sum()
        self.first_losses.append(float(error.detach()))
        return {"total": total, "error": error}

    def end_step(self) -> None:
        self.steps_ended += 1

    def validate(self, ema: nn.Module) -> dict[str, float]:
        assert not ema.training
        assert not torch.is_grad_enabled()
        self.validated += 1
        return {"error": float(ema(torch.ones(1, 6)).square().mean()), "noise": float(torch.rand(5).sum())}

    def sheet(self, ema: nn.Module) -> np.ndarray:
        torch.rand(3)
        np.random.rand()  # noqa: NPY002
        return np.full((8, 12, 3), 200, np.uint8)


class TinyOpponent:
    """Tells outputs from targets; every third step has an extra term, as in lazy regularisation.

    Args:
        hook: called with the step inside `losses`; returns None, "loss" or "gradient": what becomes NaN.
    """

    def __init__(self, hook: Any = None) -> None:
        torch.manual_seed(8)
        self.module: nn.Module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
        self.settings = OpponentConfig(lr=2e-2, betas=(0.0, 0.99))
        self.hook = hook
        self.shown: Tensor | None = None
        self.steps: list[int] = []

    def losses(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert self.shown is not None
        self.steps.append(step)
        real, fake = self.module(batch["y"]), self.module(self.shown)
        terms = {"real": nn.functional.softplus(-real).mean(), "fake": nn.functional.softplus(fake).mean()}
        total = terms["real"] + terms["fake"]
        if step % 3 == 0:
            terms["lazy"] = real.square().mean()
            total = total + 3 * terms["lazy"]
        poison = self.hook(step) if self.hook else None
        if poison == "loss":
            total = total * torch.nan
        elif poison == "gradient":
            total = total + (real * 0.0).sqrt().sum()
        return {**terms, "total": total}


class TinyDuel(TinyTask):
    """`TinyTask` against `TinyOpponent`."""

    def __init__(self, random: bool = True, hook: Any = None, slow_s: float = 0.0, against: Any = None) -> None:
        super().__init__(random, hook, slow_s)
        self.opponent = TinyOpponent(against)

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> dict[str, Tensor]:
        terms = super().losses(batch, images_seen)
        out = self.module(batch["x"])
        self.opponent.shown = out.detach()
        terms["adversarial"] = 0.1 * nn.functional.softplus(-self.opponent.module(out)).mean()
        return {**terms, "total": terms["total"] + terms["adversarial"]}


def tiny_config(**changes: Any) -> LoopConfig:
    """Four images per step, a state every two steps, nothing else written."""
    base = {
        "batch_size": 4, "max_images": 32, "log_every": 4, "sheet_every": 0, "validate_every": 0, "save_every": 8,
        "lr": 1e-2, "warmup_images": 8, "ema_halflife_images": 16, "ema_rampup": 0.5, "precision": "fp32", "cpu": True,
        "tensorboard": False, "progress": False,
    }  # fmt: skip
    return LoopConfig(**{**base, **changes})


def pairs() -> Any:
    """The task of phase one, in the form of preset `base` and as small as `tiny`, on made-up clips."""
    folder = Path(__file__).parents[2] / "golden"
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("losses").phase_one(as_base=True)[0]
    finally:
        sys.path.remove(str(folder))


def run(run_dir: str, changes: dict[str, Any]) -> None:
    """One process of a run; prints why and where it stopped."""
    if changes.pop("pairs", False):
        task = pairs()
    else:
        kind = TinyDuel if changes.pop("duel", False) else TinyTask
        task = kind(random=changes.pop("random", True), slow_s=changes.pop("slow_s", 0.0))
    result = train(task, Path(run_dir), tiny_config(**changes), opponent=getattr(task, "opponent", None))
    os.write(1, f"{result.reason} {result.images_seen} {os.environ.get('RANK', '0')}\n".encode())


def run_forked(world: int, run_dir: str, changes: dict[str, Any]) -> None:
    """Starts processes as a launcher does, without importing torch in each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        if (child := os.fork()) == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                run(run_dir, changes)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        run_forked(int(sys.argv[3]), sys.argv[1], json.loads(sys.argv[2]))
    run(sys.argv[1], json.loads(sys.argv[2]))
