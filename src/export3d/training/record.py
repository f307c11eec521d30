"""Writes the records of a run: its commands, resolved configuration, metrics and image sheets.

run/
├── command.txt       command line of every start, one per line
├── config.json       resolved configuration
├── log.jsonl         one JSON object per line, each with `images_seen` and `minutes`
├── sheets/           00001234.png: results of the averaged network after that many images
├── tensorboard/      the same metrics, if tensorboard is installed
└── checkpoints/      see `training.state`
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.animate.export import write_still
from export3d.errors import OutputError
from export3d.files import kind_at, reading, write_bytes
from export3d.provenance.writing import painted

log = logging.getLogger(__name__)


class Recorder:
    """Writes the log, the sheets and, if installed, TensorBoard events of one run.

    Args:
        run_dir: the run's folder, created if needed.
        config: resolved configuration, written as `config.json`.
        command: command line; by default that of this process.
        images_seen: images seen when the run starts or resumes; log lines beyond it are dropped.
        tensorboard: also write TensorBoard events; skipped with a log message if tensorboard is not installed.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        *,
        command: Sequence[str] | None = None,
        images_seen: int = 0,
        tensorboard: bool = True,
    ) -> None:
        self.run_dir = run_dir
        try:
            (run_dir / "sheets").mkdir(parents=True, exist_ok=True)
            (run_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            with (run_dir / "command.txt").open("a", encoding="utf-8") as file:
                file.write(shlex.join(sys.argv if command is None else command) + "\n")
            drop_lines_after(run_dir / "log.jsonl", images_seen)
            self._log = (run_dir / "log.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write the run to {run_dir}: {error.strerror or error}; choose another folder"
            ) from error
        self._board = _summary_writer(run_dir / "tensorboard", images_seen) if tensorboard else None

    def line(self, kind: str, images_seen: int, minutes: float, **figures: Any) -> None:
        """Append a line to the log.

        Args:
            kind: "train", "validation" or "spike".
            images_seen: images seen so far.
            minutes: training time so far.
            figures: numbers, or dictionaries of numbers.
        """
        content = {"kind": kind, "images_seen": images_seen, "minutes": round(minutes, 4), **figures}
        self._log.write(json.dumps(content) + "\n")
        self._log.flush()
        if self._board is not None:
            for name, value in _flat(figures):
                self._board.add_scalar(f"{kind}/{name}", value, images_seen)

    def sheet(self, images_seen: int, image: NDArray[np.uint8]) -> Path:
        """Write an image (H, W, 3) uint8 as `sheets/<images_seen>.png`; returns its path."""
        path = self.run_dir / "sheets" / f"{images_seen:08d}.png"
        write_still(path, image)
        if self._board is not None:
            self._board.add_image("sheet", painted(image), images_seen, dataformats="HWC")
        return path

    def close(self) -> None:
        """Flush and close all files."""
        self._log.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`; incomplete lines of a killed process are skipped."""
    lines = []
    if kind_at(path) == "file":
        with reading(path):
            texts = path.read_text(encoding="utf-8").splitlines()
        for text in texts:
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines


def drop_lines_after(path: Path, images_seen: int) -> None:
    """Remove the lines beyond `images_seen` from a log: a resumed run writes them again."""
    if kind_at(path) != "file":
        return
    kept = [line for line in read_log(path) if line.get("images_seen", 0) <= images_seen]
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _summary_writer(folder: Path, images_seen: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info(
            "tensorboard is not installed: metrics go to log.jsonl only; run: pip install -c constraints.txt '.[train]'"
        )
        return None
    return SummaryWriter(folder, purge_step=images_seen + 1 if images_seen else None)


def _flat(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            pairs += [(f"{name}/{inner}", number) for inner, number in _flat(value)]
        elif isinstance(value, (int, float)):
            pairs.append((name, float(value)))
    return pairs


@dataclass(frozen=True)
class StepFigures:
    """Figures of one network in one step: losses (mean over processes and parts), gradient norm, learning rate."""

    losses: dict[str, float]
    grad_norm: float
    lr: float


class Averages:
    """Mean losses and gradient norms of each network since the last log line, and images per second."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.images, self.since = 0, time.monotonic()
        self.steps: list[list[StepFigures]] = []

    def add(self, done: list[StepFigures], images: int) -> None:
        self.steps.append(done)
        self.images += images

    def take(self) -> dict[str, Any]:
        seconds = max(time.monotonic() - self.since, 1e-9)
        own, *other = (_mean(network) for network in zip(*self.steps))
        line = {**own, "images_per_second": round(self.images / seconds, 3)}
        if other:
            line["opponent"] = {**other[0], "lr": self.steps[-1][1].lr}
        self._reset()
        return line


def _mean(steps: Sequence[StepFigures]) -> dict[str, Any]:
    """Mean losses and gradient norm of one network; each loss is averaged over the steps that have it."""
    found: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.losses.items():
            found.setdefault(name, []).append(value)
    losses = {name: sum(values) / len(values) for name, values in found.items()}
    return {"losses": losses, "grad_norm": sum(step.grad_norm for step in steps) / len(steps)}
