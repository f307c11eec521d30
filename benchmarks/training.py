"""How fast phase one trains, what of the machine that uses, and where the time of a step goes.

    python benchmarks/training.py --preset base --image-size 128 --batch-size 8 --channels-last \
        --backbone-file squeezenet1_1_features_fp32.pth --heads-file squeeze.pth --json training.json

It runs on a GPU where there is one, else on the processor. The clips are made up; network, sampler, losses and loop are
those of `export3d train`, and time is taken inside its steps:

- samples a second, the median of plain steps: nothing is waited for but what the loop itself waits for;
- FLOP of one step, forward and backward, of each part of the network and of the perceptual networks: matrix products,
  convolutions and attention (torch.utils.flop_counter), two a multiply-add. What looks up or adds is not counted;
- the ceiling: a large matrix product in the same precision, best of several; the utilisation is FLOP a second over it;
- shares of a step, from steps that wait for the device at every border;
- the operators that take most of the time, from torch.profiler;
- peak memory: of the device, or of the process on a processor.

On a processor seconds are those of the process's own time, divided by its threads, which other programs disturb less;
`samples_per_wall_second` is by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from export3d.camera import Camera, project
from export3d.data.frames import Clip, FrameStore
from export3d.face.mesh import canonical_mesh
from export3d.model import Export3D, Output
from export3d.motion.motion import SHOULDERS, SPACES
from export3d.training.loop import train
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig, ReconstructionTask

WARM_STEPS = 3
PROFILED_STEPS = 2
TOP_OPERATORS = 15


class Stopwatch:
    """Seconds between marks, each under the name of what has just ended."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        self.running = False
        self.spent: dict[str, float] = {}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def now(self) -> float:
        """Seconds; on a processor of the process's own time."""
        return time.perf_counter() if self.device.type == "cuda" else time.process_time() / self.threads

    def start(self) -> None:
        self.wait()
        self.running, self.last = True, self.now()

    def mark(self, name: str) -> None:
        """What went on since the last mark was `name`."""
        if not self.running:
            return
        self.wait()
        now = self.now()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.last
        self.last = now


def parts(model: Export3D) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are watched, each with the name under which its cost is told.

    The warp is never called as a whole: its modules are, some of them inside generator and super-resolution.
    """
    for name, part in model.named_children():
        if name != "warp":
            yield name, part
    if model.warp is not None:
        yield from (("warp", part) for part in model.warp.modules())


class TimedTask(ReconstructionTask):
    """Phase one, plain for some steps, then with marks, then under the profiler; the loop knows nothing of it."""

    def time(self, watch: Stopwatch, steps: int, compiled: bool) -> None:
        self.watch, self.steps, self.step = watch, steps, 0
        self.plain: list[tuple[float, float]] = []
        self.inside: list[str] = []
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if watch.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=kinds)
        if not compiled:  # marks would cut a compiled network into pieces
            for name, part in parts(self.model):
                self.between(part, name, before="generator")
        if self.perceptual is not None:
            self.between(self.perceptual, "perceptual", before="losses")

    def between(self, part: nn.Module, name: str, before: str) -> None:
        """Mark both ends of a part's forward pass; until it begins, the part around it or `before` went on."""

        def begin(*_: Any) -> None:
            self.watch.mark(self.inside[-1] if self.inside else before)
            self.inside.append(name)

        def end(*_: Any) -> None:
            self.watch.mark(self.inside.pop())

        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end)

    def batch(self, images_seen: int, batch_size: int, rank: int, world: int) -> Mapping[str, Any]:
        self.watch.mark("optimiser")  # the loop draws the next batch between clipping and the optimiser's step
        first_marked = WARM_STEPS + self.steps
        first_profiled = first_marked + self.steps
        if WARM_STEPS <= self.step <= first_marked:
            self.plain.append((self.watch.now(), time.perf_counter()))
        if self.step == first_marked:
            self.watch.start()
        if self.step == first_profiled:
            self.watch.running = False
            self.profiler.start()
        if self.step == first_profiled + PROFILED_STEPS:
            self.profiler.stop()
        self.step += 1
        pairs = super().batch(images_seen, batch_size, rank, world)
        self.watch.mark("loader")
        return pairs

    def draw(self, batch: Mapping[str, Any], superres: bool = True) -> Output:
        self.watch.mark("averages, log")
        output = super().draw(batch, superres)
        self.watch.mark("superres")
        return output

    def losses(self, batch: Mapping[str, Any], images_seen: int) -> Mapping[str, Tensor]:
        terms = super().losses(batch, images_seen)
        self.watch.mark("losses")
        return terms


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--preset", default="base")
    arguments.add_argument("--variants", nargs="*", default=[])
    arguments.add_argument("--image-size", type=int)
    arguments.add_argument("--coarse", type=int)
    arguments.add_argument("--fine", type=int)
    arguments.add_argument("--batch-size", type=int, default=8)
    arguments.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto")
    arguments.add_argument("--channels-last", action="store_true")
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    arguments.add_argument("--backbone", default="squeeze", help="perceptual network; none leaves it out")
    arguments.add_argument("--backbone-file", type=Path)
    arguments.add_argument("--heads-file", type=Path)
    arguments.add_argument("--steps", type=int, default=8, help="plain ones, and as many with marks")
    arguments.add_argument("--matmul", type=int, help="side of the ceiling's matrices; 8192 on a GPU, else 2048")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    result = measure(options)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON-able figures."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    threads = torch.get_num_threads()
    config = ReconstructionConfig(
        preset=options.preset,
        variants=tuple(options.variants),
        image_size=options.image_size,
        coarse=options.coarse,
        fine=options.fine,
        backbone=options.backbone,
        backbone_file=options.backbone_file,
        heads_file=options.heads_file,
    )
    load = os.getloadavg()[0]
    model = config.model_config()
    clips = made_up_clips(model.image_size, model.space)
    total = WARM_STEPS + 2 * options.steps + PROFILED_STEPS + 1  # the last begins, so that the one before it ends
    loop = LoopConfig(
        batch_size=options.batch_size, max_images=total * options.batch_size, log_every=0, sheet_every=0,
        validate_every=0, save_every=0, precision=options.precision, channels_last=options.channels_last,
        compile=options.compile, cpu=device.type == "cpu", tensorboard=False, progress=False,
    )  # fmt: skip
    bf16 = loop.precision == "bf16" or (loop.precision == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if bf16 else torch.float32
    flop = flop_of_a_step(ReconstructionTask(config, clips), options.batch_size, device)
    watch = Stopwatch(device, threads)
    ceiling = matmul_rate(watch, dtype, options.matmul or (8192 if device.type == "cuda" else 2048))
    task = TimedTask(config, clips)
    task.time(watch, options.steps, options.compile)
    run_through(task, loop, watch)
    own, wall = (statistics.median(np.diff(times)) for times in zip(*task.plain))
    network = sum(count for name, count in flop.items() if name != "perceptual")
    spent = sum(watch.spent.values())
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": threads,
        "load_before": round(load, 2),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "image_size": model.image_size,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "samples_per_second": round(options.batch_size / own, 3),
        "samples_per_wall_second": round(options.batch_size / wall, 3),
        "step_seconds": round(own, 4),
        "gflop_per_sample": {name: round(count / options.batch_size / 1e9, 2) for name, count in flop.items()},
        "ceiling_tflops": round(ceiling / 1e12, 4),
        "utilisation_network": round(network / own / ceiling, 4),
        "utilisation_with_perceptual": round(sum(flop.values()) / own / ceiling, 4),
        "shares": {name: round(seconds / spent, 4) for name, seconds in watch.spent.items()},
        "peak_memory_gib": round(peak_memory(device) / 2**30, 2),
        "operators": operators(task.profiler, device),
    }


def run_through(task: TimedTask, loop: LoopConfig, watch: Stopwatch) -> None:
    """`train`, with marks where the backward pass and the optimiser end."""
    clip = nn.utils.clip_grad_norm_

    def marked(*given: Any, **named: Any) -> Tensor:
        watch.mark("backward")
        norm: Tensor = clip(*given, **named)
        watch.mark("optimiser")
        return norm

    handle = register_optimizer_step_post_hook(lambda *_: watch.mark("optimiser"))
    try:
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(nn.utils, "clip_grad_norm_", marked):
            train(task, Path(folder) / "run", loop, command=["benchmark"])
    finally:
        handle.remove()


def gradients_flop(
    out: Sequence[int],
    given: Sequence[int],
    kernel: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """FLOP of a convolution's backward pass: as many for each gradient, input's and kernel's, as for the forward pass.

    PyTorch's own formula counts a kernel's gradient as if every channel met every other, whatever the groups.
    """
    forward = 2 * out[0] * math.prod((given if transposed else out)[2:]) * math.prod(kernel)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter with the formula above."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: gradients_flop})


class FlopOfParts:
    """Counts FLOP under the name of the part that they belong to.

    In a forward pass that is the part that runs; between parts it is the generator, whose methods are called one by
    one. In a backward pass it is the part that saved the tensors which are unpacked for it.
    """

    def __init__(self) -> None:
        self.counter = flop_counter()
        self.found: dict[str, int] = {}
        self.part, self.before = "generator", 0
        self.around: list[str] = []

    def enter(self, part: str) -> None:
        """What is counted from now on belongs to `part`."""
        total = self.counter.get_total_flops()
        self.found[self.part] = self.found.get(self.part, 0) + total - self.before
        self.part, self.before = part, total

    def watch(self, module: nn.Module, part: str) -> None:
        """A module's forward passes belong to `part`; what follows, to the part that went on before."""

        def begin(*_: Any) -> None:
            self.around.append(self.part)
            self.enter(part)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(lambda *_: self.enter(self.around.pop()))

    def pack(self, tensor: Tensor) -> tuple[str, Tensor]:
        return self.part, tensor

    def unpack(self, packed: tuple[str, Tensor]) -> Tensor:
        self.enter(packed[0])
        return packed[1]


def flop_of_a_step(task: ReconstructionTask, batch_size: int, device: torch.device) -> dict[str, int]:
    """FLOP of a forward and backward pass: of each part of the network, and of the perceptual networks."""
    task.model.to(device)
    task.prepare(device)
    batch, flop = task.batch(0, batch_size, 0, 1), FlopOfParts()
    for name, part in parts(task.model):
        flop.watch(part, name)
    if task.perceptual is not None:
        flop.watch(task.perceptual, "perceptual")
    with flop.counter, torch.autograd.graph.saved_tensors_hooks(flop.pack, flop.unpack):
        task.losses(batch, 0)["total"].backward()  # type: ignore[no-untyped-call]
        flop.enter("generator")
    return {name: count for name, count in flop.found.items() if count}


def matmul_rate(watch: Stopwatch, dtype: torch.dtype, side: int) -> float:
    """FLOP a second of a square matrix product, the best of several."""
    a, b = (torch.randn(side, side, device=watch.device, dtype=dtype) for _ in range(2))
    torch.matmul(a, b)
    best = float("inf")
    for _ in range(5):
        watch.wait()
        start = watch.now()
        torch.matmul(a, b)
        watch.wait()
        best = min(best, watch.now() - start)
    return 2 * side**3 / best


def operators(profiler: torch.profiler.profile, device: torch.device) -> list[dict[str, Any]]:
    """The operators with most time of their own: share of all, calls a step."""
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -float(getattr(event, kind)))
    total = sum(float(getattr(event, kind)) for event in events)
    return [
        {
            "name": event.key,
            "share": round(float(getattr(event, kind)) / total, 4),
            "calls_per_step": round(event.count / PROFILED_STEPS),
        }
        for event in events[:TOP_OPERATORS]
    ]


def made_up_clips(size: int, space: str, clips: int = 8, frames: int = 12) -> FrameStore:
    """Noise that has the labels of turning heads."""
    rng, total = np.random.default_rng(0), clips * frames
    cameras = np.stack([Camera.orbit(yaw).label for yaw in rng.uniform(-25.0, 25.0, total)])
    mesh = canonical_mesh().vertices
    landmarks = project(np.tile(np.concatenate([mesh, mesh[:10]]), (total, 1, 1)), cameras)
    return FrameStore(
        frames=torch.from_numpy(rng.integers(0, 256, (total, 3, size, size), dtype=np.uint8)),
        expression=torch.from_numpy(rng.uniform(0.0, 1.0, (total, SPACES[space]))).float(),
        camera=torch.from_numpy(cameras).float(),
        shoulders=torch.zeros(total, SHOULDERS),
        landmarks=torch.from_numpy(landmarks).half(),
        found=torch.ones(total, dtype=torch.bool),
        clip=torch.arange(total) // frames,
        clips=tuple(Clip(f"clip{i}", "video", f"person{i}", "open", i * frames, frames) for i in range(clips)),
        space=space,
    )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {len(os.sched_getaffinity(0))} cores allowed"


def peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    flop = result["gflop_per_sample"]
    lines = [
        f"{result['device']}; PyTorch {result['torch']}, {result['threads']} threads; load before: "
        f"{result['load_before']}",
        "",
        "| figure | value |",
        "| --- | --- |",
        f"| network | {result['settings']['preset']} at {result['image_size']} px, "
        f"{result['parameters'] / 1e6:.1f} million parameters, {result['dtype']} |",
        f"| samples a second | {result['samples_per_second']} |",
        f"| samples a second by the clock on the wall | {result['samples_per_wall_second']} |",
        f"| GFLOP a sample, forward and backward | {sum(flop.values()):.1f}: "
        + ", ".join(f"{name} {value}" for name, value in flop.items())
        + " |",
        f"| matrix product, TFLOP/s | {result['ceiling_tflops']} |",
        f"| utilisation, network alone | {result['utilisation_network']:.1%} |",
        f"| utilisation, with the perceptual networks | {result['utilisation_with_perceptual']:.1%} |",
        f"| peak memory, GiB | {result['peak_memory_gib']} |",
        "",
        "| part of a step | share |",
        "| --- | --- |",
        *(f"| {name} | {share:.1%} |" for name, share in result["shares"].items()),
        "",
        "| operator | share | calls a step |",
        "| --- | --- | --- |",
        *(f"| {o['name']} | {o['share']:.1%} | {o['calls_per_step']} |" for o in result["operators"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
