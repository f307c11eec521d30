"""How many times as fast this tree is as another commit: both run in turn, on the same machine, in one run.

    python benchmarks/against_commit.py OTHER [--what driven orbit clip] [--threads 2] [--rounds 20] [--engine auto]
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python benchmarks/against_commit.py OTHER

OTHER is a checkout of the other commit (`git worktree add OTHER COMMIT`), run with this Python; or, with its own
dependencies, the Python of an environment in which it is installed (OTHER/bin/python).

- `driven`: frames of 256 px driven by the packaged motion `speech`, source encoded;
- `orbit`: frames of one expression seen from a moving camera, source encoded (`Animator.orbit`; a commit that has none
  is given a motion whose expression stays and whose camera moves);
- `clip`: the command `export3d animate` on a driving clip of 1280 x 720, from start to end: imports, weights, tracking,
  rendering the face crop at 256 px, encoding. The clip moves the packaged portrait; --clip uses a video of yours.

Each tree runs in a process of its own, which waits while the other measures; they take turns at being first. Ratios are
those of paired rounds, OTHER's time over this tree's: median (smallest to largest), by the wall clock and in processor
time, which other programs disturb less. Each tree has the weights that it ships, unless --weights names others.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 24
WARM_UP = 1


class Tree:
    """One commit, and a process that renders with it.

    Args:
        name: in messages.
        place: a checkout, or the Python of an environment.
        threads: of the processor.
        engine: for commits that have engines.
        weights: a file; None: those that the commit ships.
    """

    def __init__(self, name: str, place: Path, threads: int, engine: str, weights: Path | None) -> None:
        self.name, self.engine, self.weights = name, engine, weights
        checkout = place if place.is_dir() else None
        if checkout is not None and not (checkout / "src" / "export3d").is_dir():
            raise SystemExit(f"{place} is not a checkout of export3d: it has no src/export3d")
        if checkout is None and not place.is_file():
            raise SystemExit(f"{place} does not exist; give a checkout or the Python of an environment")
        self.python = sys.executable if checkout is not None else str(place)
        self.env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        self.env["PYTHONPATH"] = "" if checkout is None else str(checkout / "src")
        self.worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

    def ask(self, what: str) -> Any:
        """The worker's answer to one line."""
        if self.worker is None:
            command = [self.python, __file__, "--worker", "--engine", self.engine, *self._weights()]
            self.worker = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tempfile.gettempdir(),
            )
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        print(what, file=self.worker.stdin, flush=True)
        answer = self.worker.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name}: the process that renders ended; its error is above")
        return json.loads(answer)

    def _weights(self) -> list[str]:
        return [] if self.weights is None else ["--weights", str(self.weights)]

    def frames(self, what: str) -> tuple[float, float]:
        """Wall and processor seconds per frame."""
        wall, own = self.ask(what)
        return wall, own

    def animate(self, clip: Path, output: Path) -> tuple[float, float]:
        """Wall and processor seconds of the whole command."""
        portrait = self.ask("portrait")
        command = [self.python, "-m", "export3d", "animate", portrait, "--driving", str(clip), "-o", str(output)]
        about = self.ask("about")
        command += ["--engine", self.engine] if about["engines"] else []
        command += ["--frame", "crop", "--size", "256"] if about["frames"] else []  # what older commits show
        before, start = _children(), time.perf_counter()
        command += ["--device", "cpu", *self._weights()]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, cwd=clip.parent, check=False)
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return time.perf_counter() - start, _children() - before


def _children() -> float:
    """Processor seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def worker(engine: str, weights: Path | None) -> None:
    """Render what the lines of standard input ask for, and answer in JSON; uses only what old commits have too."""
    import export3d
    from export3d import Animator, Camera, Motion
    from export3d.animate.drive import bundled_motion, bundled_portrait

    engines = "engine" in inspect.signature(Animator.from_pretrained).parameters
    animator = Animator.from_pretrained(weights, device="cpu", **({"engine": engine} if engines else {}))
    source, speech = animator.encode(bundled_portrait()), Motion.load(bundled_motion("speech"))
    motion = Motion(speech.expression[:FRAMES], speech.camera[:FRAMES], 25.0, animator.space)

    angles = np.linspace(0.0, 2.0 * np.pi, FRAMES, endpoint=False)
    cameras = np.stack([Camera.orbit(30.0 * np.sin(a), 15.0 * np.cos(a)).label for a in angles])
    still = Motion(np.repeat(source.expression[None], len(cameras), axis=0), cameras, 25.0, animator.space)

    def frames(what: str) -> Iterator[Any]:
        """A whole animation: one that is left half-way may go on in its threads while the other commit is measured."""
        if what == "driven":
            return animator.animate(source, motion)
        if hasattr(animator, "orbit"):
            return animator.orbit(source, seconds=FRAMES / 25.0)
        return animator.animate(source, still, relative=False)

    for line in sys.stdin:
        what = line.strip()
        if what == "portrait":
            answer: Any = str(bundled_portrait())
        elif what == "about":
            answer = {
                "package": export3d.__file__,
                "engines": engines,
                "frames": "frame" in inspect.signature(Animator.animate).parameters,
            }
        else:
            wall, own = time.perf_counter(), time.process_time()
            count = len(list(frames(what)))
            answer = [(time.perf_counter() - wall) / count, (time.process_time() - own) / count]
        print(json.dumps(answer), flush=True)


def compare(what: str, trees: tuple[Tree, Tree], rounds: int, clip: Path | None) -> str:
    """Run both trees in turn; a line of the table."""
    seconds: dict[str, list[tuple[float, float]]] = {tree.name: [] for tree in trees}
    warm_up = 0 if what == "clip" else WARM_UP
    for number in range(warm_up + rounds):
        for tree in trees if number % 2 else trees[::-1]:
            if clip is None:
                spent = tree.frames(what)
            else:
                spent = tree.animate(clip, clip.parent / f"{tree.name}.mp4")
            if number >= warm_up:
                seconds[tree.name].append(spent)
    this, other = (np.array(seconds[tree.name]) for tree in trees)
    cells = [what, str(rounds)]
    for column in range(2):
        ratio = other[:, column] / this[:, column]
        cells += [
            f"{np.median(other[:, column]):.4g} s",
            f"{np.median(this[:, column]):.4g} s",
            f"**{np.median(ratio):.2f}** ({ratio.min():.2f} to {ratio.max():.2f})",
        ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, nargs="?", help="a checkout, or the Python of an environment")
    parser.add_argument("--what", nargs="+", choices=("driven", "orbit", "clip"), default=("driven", "orbit", "clip"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=20, help="of driven and orbit, 24 frames each")
    parser.add_argument("--clip-rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip")
    parser.add_argument("--clip", type=Path, help="a driving video, instead of the made one")
    parser.add_argument("--engine", default="auto", help="of trees that have engines")
    parser.add_argument("--weights", type=Path, help="for both trees, instead of those that each ships")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.engine, given.weights)
        return
    weights = None if given.weights is None else given.weights.absolute()
    if given.other is None:
        parser.error("name a checkout of the other commit, or the Python of an environment that has it")
    with (
        tempfile.TemporaryDirectory() as folder,
        Tree("this", ROOT, given.threads, given.engine, weights) as this,
        Tree("other", given.other.absolute(), given.threads, given.engine, weights) as other,
    ):
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
        print(f"this: {this.ask('about')['package']}\nother: {other.ask('about')['package']}")
        print(f"{given.threads} threads, engine {given.engine}" + (f", ONEDNN_MAX_CPU_ISA={limit}" if limit else ""))
        print("\n| what | rounds | other, wall | this, wall | ratio | other, processor | this, processor | ratio |")
        print("|" + " --- |" * 8, flush=True)
        for what in given.what:
            clip = None
            if what == "clip":
                clip = Path(folder) / "driving.mp4" if given.clip is None else given.clip.absolute()
                if given.clip is None:
                    made = "import sys; from pathlib import Path; from export3d.bench.clip import write_clip;"
                    made += "write_clip(Path(sys.argv[1]), float(sys.argv[2]))"
                    subprocess.run([this.python, "-c", made, str(clip), str(given.seconds)], env=this.env, check=True)
            rounds = given.clip_rounds if what == "clip" else given.rounds
            print(compare(what, (this, other), rounds, clip), flush=True)


if __name__ == "__main__":
    main()
