"""How many frames a second the evaluation scores when the predictions are given, at 256 px; JSON to standard output.

    python benchmarks/metrics.py [--frames 64] [--processes 2] [--methods 1] \
        [--backbone-file alexnet_features.pth --heads-file alex.pth]

Every default figure of `export3d evaluate` is computed, with LPIPS where its weights are given or torchvision is
installed. The clip is the bundled portrait, tilting its head; the predictions are the same, tilted a little otherwise,
soft and noisy. Each process scores a clip of its own on one thread; all start together once networks are loaded and
warm. `frames_per_second` counts the frames of all processes until the last one is done; `frames_per_cpu_second` is what
one process scores in a second of its own processor time, which other programs disturb less. `cores` are those that the
benchmark may use, `load_before` is what ran on the machine already. `pieces` are measured one after another in one
process, true picture and prediction together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from export3d.animate.drive import bundled_portrait
from export3d.evaluation.measures.face import FaceScorer, Movement
from export3d.evaluation.measures.frechet import sample_rows
from export3d.evaluation.measures.temporal import Flicker
from export3d.evaluation.protocols.scoring import CHUNK, Chunk, ClipScorer, frechet_features, image_metrics
from export3d.evaluation.protocols.settings import Scoring
from export3d.image import read_image, to_tensor

SIZE = 256
BATCH = 8
WARM = 8
REPEATS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--frames", type=int, default=64)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--methods", type=int, default=1, help="predictions that share the true frames")
    arguments.add_argument("--backbone-file", type=Path)
    arguments.add_argument("--heads-file", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    scoring = Scoring(backbone_file=options.backbone_file, heads_file=options.heads_file)
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(options.processes), context.SimpleQueue()
    args = (scoring, options.frames, options.methods, gate, answers)
    workers = [context.Process(target=work, args=(number, *args), daemon=True) for number in range(options.processes)]
    load = os.getloadavg()[0]
    for worker in workers:
        worker.start()
    found: list[dict[str, Any]] = []
    while len(found) < len(workers):
        if not answers.empty():
            found.append(answers.get())
        elif any(worker.exitcode for worker in workers):
            raise SystemExit("a process died; what it said stands above")
        else:
            time.sleep(0.05)
    wall = max(one["end"] for one in found) - min(one["begin"] for one in found)
    scored = options.frames * options.methods * options.processes
    cpu = sum(one["cpu_s"] for one in found)
    pieces = measure_pieces(scoring, options.frames)
    together = sum(pieces.values())
    result = {
        "frames": options.frames,
        "methods": options.methods,
        "processes": options.processes,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "torch": torch.__version__,
        "measures": found[0]["measures"],
        "frames_per_second": round(scored / wall, 2),
        "frames_per_cpu_second": round(scored / cpu, 2),
        "wall_s": round(wall, 2),
        "start_s": round(max(one["start_s"] for one in found), 2),
        "peak_memory_mb": [round(one["peak_mb"]) for one in found],
        "pieces": {
            name: {"cpu_ms_a_frame": round(1000 * spent, 3), "share": round(spent / together, 3)}
            for name, spent in sorted(pieces.items(), key=lambda item: -item[1])
        },
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))


def work(number: int, scoring: Scoring, frames: int, methods: int, gate: Any, answers: Any) -> None:
    """Score one clip as `export3d evaluate` does."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    truth = tilting(frames, 12.0, number)
    made = {f"method {k}": disturbed(tilting(frames, 11.0 - k, number), k) for k in range(methods)}
    with ClipScorer(scoring) as scorer:
        for count in (min(WARM, frames), frames):
            chunks = [
                Chunk(np.arange(s, min(s + CHUNK, count)), truth[s:count][:CHUNK], part(made, s, count))
                for s in range(0, count, CHUNK)
            ]
            ready = time.perf_counter() - began
            gate.wait()
            begin, cpu = time.perf_counter(), time.process_time()
            scorer.score("the clip", truth[0], chunks, count)
        spent, end = time.process_time() - cpu, time.perf_counter()
        names = [m.name for m in (*scorer.measures, *scorer.overall_measures)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put({"begin": begin, "end": end, "cpu_s": spent, "start_s": ready, "peak_mb": peak, "measures": names})


def part(made: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: pictures[start:stop][:CHUNK] for name, pictures in made.items()}


def measure_pieces(scoring: Scoring, frames: int) -> dict[str, float]:
    """Seconds of processor time a frame, the least of several runs."""
    truth = tilting(frames, 12.0, 0)
    made = disturbed(tilting(frames, 11.0, 0), 0)
    x, y = to_tensor(made), to_tensor(truth)
    out: dict[str, float] = {}

    def spent(run: Callable[[], object]) -> float:
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return min(times) / frames

    with torch.inference_mode(), FaceScorer(scoring.landmarks, scoring.identity, scoring.expression) as faces:
        for metric in image_metrics(scoring):
            pairs = list(zip(torch.split(x, BATCH), torch.split(y, BATCH)))
            out[metric.name] = spent(lambda metric=metric, pairs=pairs: [metric.score(a, b) for a, b in pairs])
        plain = spent(lambda: [faces.read(p, "p", identity=False) for p in (truth, made)])
        both = spent(lambda: [faces.read(p, "p") for p in (truth, made)])
        out["face, landmarks, expression, pose"], out["identity"] = plain, both - plain
        ours, theirs = faces.read(made, "the predictions"), faces.read(truth, "the truth")
        out["akd, aed, apd, csim of readings"] = spent(lambda: compare(faces, ours, theirs))
        out["flicker"] = spent(lambda: Flicker().add(np.arange(frames), truth, made, theirs.landmarks))
        rows = sample_rows(frames)
        for features in frechet_features(scoring):
            if features.name not in ours.identity:
                out[features.measure.name] = spent(lambda f=features: (f(x[rows]), f(y[rows])))
    return out


def compare(faces: FaceScorer, ours: Any, theirs: Any) -> None:
    faces.frame_scores(ours, theirs, theirs.at(np.zeros(1, dtype=np.int64)))
    movement = Movement()
    movement.add(ours, theirs)
    movement.result()


def tilting(frames: int, degrees: float, phase: int) -> np.ndarray:
    """(T, 256, 256, 3) uint8: the bundled portrait tilts its head to and fro, with grain: no two pictures are equal."""
    upper = Image.fromarray(read_image(bundled_portrait())).crop((90, 0, 346, 256))
    angles = degrees * np.sin(np.linspace(0.0, 4.0 * np.pi, frames, endpoint=False) + 0.3 * phase)
    turned = [np.asarray(upper.rotate(float(a), Image.Resampling.BICUBIC, center=(128, 150))) for a in angles]
    return grainy(np.stack(turned), 1.0, phase)


def disturbed(pictures: np.ndarray, seed: int) -> np.ndarray:
    """The same, soft and noisy."""
    soft = [np.asarray(Image.fromarray(p).resize((SIZE // 2,) * 2).resize((SIZE,) * 2)) for p in pictures]
    return grainy(np.stack(soft), 4.0, seed)


def grainy(pictures: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(pictures + rng.normal(0.0, deviation, pictures.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
