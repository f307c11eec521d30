"""The training loop: load, step, validate, save, resume. It counts images and knows no network.

One step: seed every generator from (seed, rank, images seen) → `task.batch` → `task.losses` → backward → gradients
averaged over all processes → clip → AdamW → weights EMA. The next step's batch is drawn before this step's figures are
read, so that a GPU has work meanwhile. Since every step is seeded by its position, a run that stops and resumes equals
one that never stopped, bit for bit on a CPU, and no state of samplers or generators is stored. For the same reason
validation and sheets cannot affect training.

A second network may be trained against the first (`Opponent`): in every step, after the task's backward pass, it gets
the same batch and has its own backward pass, clipping and optimiser; then both networks are updated.

Runs on Hugging Face Accelerate, from one CPU to many GPUs (`accelerate launch`, `torchrun`). Gradients are averaged by
one flat all-reduce after the backward pass, so a task may call any method of its module any number of times.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from export3d.errors import CheckpointError, ConfigError, TrainingError
from export3d.training.loop_config import LoopConfig
from export3d.training.processes import autocast_dtype, make_accelerator, seed_everything, stop_signals
from export3d.training.record import Averages, Recorder, StepFigures
from export3d.training.schedule import ema_decay, is_due, learning_rate
from export3d.training.side import Side, load_optimizer
from export3d.training.spikes import FACTOR, PATIENCE, SpikeWatch
from export3d.training.state import latest_state, load_state, save_state
from export3d.training.task import Opponent, Task
from export3d.weights.file import load_into, save_weights

log = logging.getLogger(__name__)

_EPS = 1e-8
"""Of Adam."""
_OPPONENT = "opponent "
"""Before the names of the second network's losses."""

StopReason = Literal["max_images", "max_minutes", "interrupted"]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        images_seen, step: counters of the whole run, earlier starts included.
        minutes: training time of the whole run.
        reason: why it stopped.
        checkpoint: the last saved state.
        validation: the last validation's figures (empty if there was none).
    """

    images_seen: int
    step: int
    minutes: float
    reason: StopReason
    checkpoint: Path
    validation: dict[str, float]

    @property
    def exit_code(self) -> int:
        """130 if the run was interrupted, so that a script does not go on with half-trained weights; else 0."""
        return 130 if self.reason == "interrupted" else 0


def train(
    task: Task,
    run_dir: Path | str,
    config: LoopConfig,
    *,
    opponent: Opponent | None = None,
    resume: bool = True,
    command: Sequence[str] | None = None,
) -> Result:
    """Train `task.module` until `max_images`, `max_minutes` or a signal to end; always ends with a saved state.

    Args:
        task: what to train; `task.module` holds the trained weights afterwards.
        run_dir: the run's folder (see `export3d.training.record`); a folder with states is resumed.
        config: settings; on resuming they may differ from those of the first start.
        opponent: a second network to train in the same steps.
        resume: False: a folder that already contains states is refused.
        command: the command line for `command.txt`; default: this process's arguments.

    Raises:
        TrainingError: a loss or gradient is not finite, or the loss stays far above its usual value
            (`training.spikes`); the last saved state is untouched.
        CheckpointError: the state cannot be loaded or belongs to another architecture.
        ConfigError, OutputError, MissingExtra("train").
    """
    return _Run(task, opponent, Path(run_dir), config, resume, command).go()


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        task: Task,
        opponent: Opponent | None,
        run_dir: Path,
        config: LoopConfig,
        resume: bool,
        command: Sequence[str] | None,
    ) -> None:
        self.started = time.monotonic()
        self.task, self.opponent, self.config, self.run_dir, self.command = task, opponent, config, run_dir, command
        self.accelerator = make_accelerator(config.cpu)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        if (config.batch_size // config.accumulate) % self.world:
            raise ConfigError(
                f"{config.batch_size // config.accumulate} images cannot be shared equally by {self.world} processes; "
                f"choose a batch_size that is a multiple of {self.world * config.accumulate}"
            )
        self.images_seen, self.step, self.minutes_before = 0, 0, 0.0
        self.saved: Path | None = None
        self.validation: dict[str, float] = {}
        self.stop_signal = False
        self.ahead: tuple[int, int, dict[str, Any]] | None = None
        self.watch = SpikeWatch()

        found = latest_state(run_dir / "checkpoints")
        if found and not resume:
            raise ConfigError(f"{run_dir} already contains a run ({found.name}); resume it or choose another folder")

        module = self._place(task.module)
        self.module = module
        self.ema = copy.deepcopy(module).eval().requires_grad_(False)
        self.own = Side(module, config.lr, config.betas, _EPS, config.weight_decay)
        self.other: Side | None = None
        if opponent is not None:
            s = opponent.settings
            rival = self._place(opponent.module).requires_grad_(True)
            self.other = Side(rival, s.lr, s.betas, s.eps, 0.0)
            self.other.require_gradients(False)
        self.sides = [side for side in (self.own, self.other) if side is not None]
        if found is not None:
            self._restore(found)
        task.prepare(self.device)
        self.autocast_dtype = autocast_dtype(config.precision, self.device)
        if config.compile:
            task.compile()
        self.resolved = {
            "loop": dataclasses.asdict(config),
            "task": dict(task.config),
            "device": str(self.device),
            "processes": self.world,
            "precision": "bf16" if self.autocast_dtype else "fp32",
            "parameters": sum(p.numel() for p in self.own.parameters),
        }
        if opponent is not None and self.other is not None:
            count = sum(p.numel() for p in self.other.parameters)
            self.resolved["opponent"] = {**dataclasses.asdict(opponent.settings), "parameters": count}

    # ---- the order of a run ------------------------------------------------------------------------------------------

    def go(self) -> Result:
        config = self.config
        with stop_signals(self._on_signal), contextlib.ExitStack() as stack:
            record: Recorder | None = None
            if self.is_main:
                record = stack.enter_context(
                    Recorder(
                        self.run_dir,
                        self.resolved,
                        command=self.command,
                        images_seen=self.images_seen,
                        tensorboard=config.tensorboard,
                    )
                )
            bar = stack.enter_context(
                tqdm(
                    initial=self.images_seen,
                    total=config.max_images,
                    unit="img",
                    dynamic_ncols=True,
                    disable=not (config.progress and self.is_main),
                )
            )
            figures = Averages()
            reason = self._reason_to_stop(self.stop_signal, self._out_of_time())
            while reason is None:
                before = self.images_seen
                self._seed(before)
                done, interrupted, out_of_time = self._step()
                self.images_seen += config.batch_size
                self.step += 1
                figures.add(done, config.batch_size)
                bar.update(config.batch_size)
                self._watch_for_spikes(record, done[0])
                reason = self._reason_to_stop(interrupted, out_of_time)
                if record and (self._is_due(config.log_every, before) or self.step == 1 or reason):
                    line = figures.take()
                    bar.set_postfix(total=f"{line['losses']['total']:.4g}", lr=f"{done[0].lr:.2g}", refresh=False)
                    line |= {"step": self.step, "lr": done[0].lr, **self._memory()}
                    record.line("train", self.images_seen, self.minutes, **line)
                if reason or self._is_due(config.save_every, before):
                    self._save()
                if reason != "interrupted":
                    self._evaluate(record, before, at_end=reason is not None)
            if self.saved is None:
                self._save()
        assert self.saved is not None
        return Result(self.images_seen, self.step, self.minutes, reason, self.saved, self.validation)

    def _step(self) -> tuple[list[StepFigures], bool, bool]:
        """One optimiser step of each network: the figures of each, and two stop flags (interrupted, out of time)."""
        config, opponent, other = self.config, self.opponent, self.other
        for side in self.sides:
            side.begin(self._learning_rate(side.lr))
        share = config.batch_size // config.accumulate
        sums: dict[str, Tensor] = {}
        for part in range(config.accumulate):
            start = self.images_seen + part * share
            batch = self._batch(start, share)
            with self._autocast():
                losses = self.task.losses(batch, self.images_seen)
            self._backward(losses, sums)
            if opponent is not None and other is not None:
                other.require_gradients(True)
                with self._autocast():
                    losses = opponent.losses(batch, self.step)
                self._backward(losses, sums, _OPPONENT)
                other.require_gradients(False)
        flags = (self.stop_signal, self._out_of_time())
        if self.world > 1:
            sums, flags = self._average_over_processes(sums, flags)
        norm_tensors = [side.clip(config.grad_clip).float() for side in self.sides]
        self._draw_ahead(share)
        names = sorted(sums)
        values = torch.stack([*(sums[name].reshape(()) for name in names), *norm_tensors]).tolist()
        figures, norms = dict(zip(names, values)), values[len(names) :]
        self._refuse_non_finite(figures, norms)
        for side in self.sides:
            side.optimizer.step()
        self.task.end_step()
        self._average_weights()
        theirs = {n.removeprefix(_OPPONENT): value for n, value in figures.items() if n.startswith(_OPPONENT)}
        own = {n: value for n, value in figures.items() if not n.startswith(_OPPONENT)}
        done = [StepFigures(losses, norm, side.rate) for losses, norm, side in zip((own, theirs), norms, self.sides)]
        return done, *flags

    def _batch(self, start: int, share: int) -> dict[str, Any]:
        """The batch that starts at `start`: drawn ahead, or drawn now."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead[:2] == (start, share):
            return ahead[2]
        return self._to_device(self.task.batch(start, share, self.rank, self.world))

    def _draw_ahead(self, share: int) -> None:
        """Draw the next step's batch while a GPU still computes this step, before the host waits for its figures."""
        start, end = self.images_seen + self.config.batch_size, self.config.max_images
        if end is None or start < end:
            self.ahead = start, share, self._batch(start, share)

    def _backward(self, losses: Mapping[str, Tensor], sums: dict[str, Tensor], prefix: str = "") -> None:
        """Backward pass from `total`; all scalars are added to `sums`."""
        if "total" not in losses:
            raise TrainingError(f"the task returned the losses {sorted(losses)} without 'total'; add their sum")
        parts = self.config.accumulate
        (losses["total"] / parts).backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            sums[prefix + name] = sums.get(prefix + name, 0.0) + value.detach().float() / parts

    def _evaluate(self, record: Recorder | None, before: int, *, at_end: bool) -> None:
        """Validate and write a sheet when due; other processes wait."""
        config = self.config
        validates = config.validate_every > 0 and (at_end or self._is_due(config.validate_every, before))
        shows = config.sheet_every > 0 and (at_end or self.step == 1 or self._is_due(config.sheet_every, before))
        if not (validates or shows):
            return
        if record is not None:
            self.ema.eval()
            with torch.no_grad(), self._uncompiled():
                if validates:
                    seed_everything(self.config.seed, 0, 0)
                    self.validation = {name: float(value) for name, value in self.task.validate(self.ema).items()}
                    if self.validation:
                        record.line("validation", self.images_seen, self.minutes, figures=self.validation)
                if shows:
                    seed_everything(self.config.seed, 0, 0)
                    record.sheet(self.images_seen, self.task.sheet(self.ema))
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        """Write a training state on the main process; other processes wait."""
        folder = self.run_dir / "checkpoints"
        if self.is_main:
            self.saved = save_state(
                folder,
                model=self.module.state_dict(),
                ema=self.ema.state_dict(),
                optimizer=self.own.optimizer.state_dict(),
                counters={"images_seen": self.images_seen, "step": self.step, "minutes": self.minutes},
                config=self.resolved,
                opponent=(self.other.module.state_dict(), self.other.optimizer.state_dict()) if self.other else None,
                keep=self.config.keep,
            )
            if self.config.weights_part_mb is not None:
                save_weights(
                    self.run_dir / "weights.safetensors",
                    self.ema.state_dict(),
                    self.task.config,
                    {"images_seen": self.images_seen},
                    dtype=torch.float16,
                    part_size_mb=self.config.weights_part_mb,
                )
        self.accelerator.wait_for_everyone()
        self.saved = self.saved if self.is_main else latest_state(folder)

    def _restore(self, path: Path) -> None:
        state = load_state(path)
        load_into(self.module, state.model, what=f"the weights in {path}")
        load_into(self.ema, state.ema, what=f"the averaged weights in {path}")
        load_optimizer(self.own.optimizer, state.optimizer, path)
        if (state.opponent is None) != (self.other is None):
            there, here = ("without", "with") if state.opponent is None else ("with", "without")
            raise CheckpointError(
                f"{path} belongs to a run {there} a second network and cannot resume {here} one; choose another folder"
            )
        if state.opponent is not None and self.other is not None:
            load_into(self.other.module, state.opponent[0], what=f"the second network in {path}")
            load_optimizer(self.other.optimizer, state.opponent[1], path)
        self.images_seen = int(state.counters["images_seen"])
        self.step = int(state.counters["step"])
        self.minutes_before = float(state.counters["minutes"])
        self.saved = path
        log.info("resumed %s: %d images seen", path, self.images_seen)

    # ---- small parts -------------------------------------------------------------------------------------------------

    @property
    def minutes(self) -> float:
        """Minutes of training in all starts of this run."""
        return self.minutes_before + (time.monotonic() - self.started) / 60.0

    def _is_due(self, every: int, before: int) -> bool:
        return is_due(every, before, self.images_seen)

    def _out_of_time(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and (time.monotonic() - self.started) / 60.0 >= limit

    def _reason_to_stop(self, interrupted: bool, out_of_time: bool) -> StopReason | None:
        if self.config.max_images is not None and self.images_seen >= self.config.max_images:
            return "max_images"
        if interrupted:
            return "interrupted"
        return "max_minutes" if out_of_time else None

    def _learning_rate(self, peak: float) -> float:
        config, progress = self.config, 0.0
        if config.decay == "images" and config.max_images is not None:
            progress = self.images_seen / config.max_images
        elif config.decay == "clock" and config.max_minutes is not None:
            progress = min((time.monotonic() - self.started) / 60.0 / config.max_minutes, 1.0)
        return learning_rate(
            self.images_seen,
            lr=peak,
            warmup_images=config.warmup_images,
            progress=progress,
            decay_from=config.decay_from,
            final_ratio=config.final_lr_ratio,
        )

    def _seed(self, images_seen: int) -> None:
        seed_everything(self.config.seed, self.rank, images_seen)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def _uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Compiled functions run as written: validation has other sizes, and compiling for them takes minutes."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else contextlib.nullcontext()

    def _to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        moved: dict[str, Any] = {}
        for name, value in batch.items():
            if isinstance(value, Tensor):
                value = value.to(self.device, non_blocking=True)
                if self.config.channels_last and value.ndim == 4 and value.is_floating_point():
                    value = value.contiguous(memory_format=torch.channels_last)
            moved[name] = value
        return moved

    @torch.no_grad()
    def _average_weights(self) -> None:
        """Update the weights EMA; buffers are copied, since a module averages its own."""
        config = self.config
        decay = ema_decay(
            self.images_seen, config.batch_size, halflife_images=config.ema_halflife_images, rampup=config.ema_rampup
        )
        averages: list[Tensor] = list(self.ema.parameters())
        values: list[Tensor] = list(self.module.parameters())
        if decay:
            torch._foreach_lerp_(averages, values, 1.0 - decay)
        else:
            torch._foreach_copy_(averages, values)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(list(self.ema.buffers()), buffers)

    def _refuse_non_finite(self, figures: Mapping[str, float], norms: Sequence[float]) -> None:
        bad = [f"{name} {value}" for name, value in figures.items() if not math.isfinite(value)]
        for whose, norm in zip(("", _OPPONENT), norms):
            if not math.isfinite(norm):
                bad.append(f"{whose}gradient norm {norm}")
        if bad:
            self._give_up(self.images_seen, ", ".join(bad))

    def _give_up(self, images_seen: int, what: str) -> NoReturn:
        last = f"the last good state is {self.saved}" if self.saved else "no state had been saved yet"
        raise TrainingError(
            f"training diverged after {images_seen} images: {what}; {last}; "
            "try a lower learning rate, stronger gradient clipping or fp32"
        )

    def _watch_for_spikes(self, record: Recorder | None, done: StepFigures) -> None:
        """Log a loss far above its usual value; stop if it stays there."""
        watch, total = self.watch, done.losses["total"]
        if not watch.see(total):
            return
        if record is not None:
            record.line("spike", self.images_seen, self.minutes, losses=done.losses, usual=watch.usual)
            if watch.streak == 1:
                log.warning(
                    "loss spike after %d images: total %.4g, usually %.4g", self.images_seen, total, watch.usual
                )
        if watch.diverged:
            self._give_up(
                self.images_seen,
                f"total {total:.4g}, more than {FACTOR:g} times its usual value {watch.usual:.4g} for {PATIENCE} steps",
            )

    def _average_over_processes(
        self, sums: dict[str, Tensor], flags: tuple[bool, bool]
    ) -> tuple[dict[str, Tensor], tuple[bool, bool]]:
        """Average gradients (zero if there is none), losses and stop flags by one flat all-reduce."""
        names = sorted(sums)
        parameters = [p for side in self.sides for p in side.parameters]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        votes = sums["total"].new_tensor([float(flag) for flag in flags])
        extra = torch.cat([torch.stack([sums[name].reshape(()) for name in names]), votes])
        flat = torch.cat([g.reshape(-1).float() for g in grads] + [extra])
        flat = self.accelerator.reduce(flat, reduction="mean")
        *pieces, extra = flat.split([g.numel() for g in grads] + [extra.numel()])
        for parameter, piece in zip(parameters, pieces):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(
                piece.view(parameter.shape)
            )  # in its own memory format, which a fused optimiser expects
        averaged = dict(zip(names, extra))
        interrupted, out_of_time = extra[len(names) :].tolist()
        return averaged, (interrupted > 0, out_of_time > 0)

    def _place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and memory format; all processes get the same weights."""
        module = module.to(self.device)
        if self.config.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.world > 1:
            self._agree_on_weights(module)
        return module

    def _agree_on_weights(self, module: nn.Module) -> None:
        """Broadcast the weights and buffers of the first process to all."""
        from accelerate.utils import broadcast

        with torch.no_grad():
            for value in module.state_dict().values():
                value.copy_(broadcast(value, from_process=0))

    def _memory(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {"gpu_memory_gib": round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)}

    def _on_signal(self, number: int, frame: object) -> None:
        log.warning("%s: finishing this step, then saving", signal.Signals(number).name)
        self.stop_signal = True
