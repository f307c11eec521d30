"""How well do landmarks follow: by beta' or by the scores themselves, and learned from how many people?

    python benchmarks/landmark_motion.py DATA --cache CACHE --steps 1500
    python benchmarks/landmark_motion.py DATA --cache CACHE --steps 1500 --people 0.1 0.3 1.0 --by scores

DATA is a folder that `export3d prepare` made, with the splits train, val and strong. Each row fits the motion of
landmarks of `base` anew, as `export3d train` does before its first image (`fit_motion`). Then the first frame of every
held-out video is moved to all others: errors in pixels at 256 px, and the measures of `facial_motion`, means of clips.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from export3d.camera import projected
from export3d.data.frames import FrameStore
from export3d.evaluation.measures.facial_motion import CURVES, curves, follows
from export3d.face.landmark_sets import EYELIDS, IRISES, LIPS
from export3d.training.reconstruction import ReconstructionConfig, ReconstructionTask
from export3d.warping.landmark_motion import LandmarkMotion

_PARTS = {"lips": list(LIPS), "lids": list(EYELIDS), "irises": [n for iris in IRISES for n in iris]}


def stores(data: Path, cache: Path | None, splits: list[str]) -> list[FrameStore]:
    """Tracks of some splits; images are not used."""
    found = []
    for split in splits:
        kept = None if cache is None else cache / f"{split}-256.safetensors"
        whole = FrameStore.load(data / split, 32 if kept is None else 256, cache=kept)
        found.append(replace(whole, frames=whole.frames[:, :, :2, :2].clone()))
    return found


def some(store: FrameStore, share: float) -> FrameStore:
    """The store with the faces of all but a share of its people marked as lost."""
    people = sorted(set(store.people))
    kept = set(np.random.default_rng(0).permutation(people)[: max(1, round(share * len(people)))])
    seen = torch.tensor([person in kept for person in store.people])
    return replace(store, found=store.found & seen[store.clip])


def fitted(train: FrameStore, by: str, steps: int) -> tuple[ReconstructionTask, LandmarkMotion]:
    """A motion of landmarks, fitted to a store."""
    variants = ("clebs", "scores" if by == "scores" else "no_scores")
    config = ReconstructionConfig(variants=variants, motion_steps=steps, hard_fraction=0.6, backbone="none")
    task = ReconstructionTask(config, train)
    task.fit_motion()
    assert task.landmark_motion is not None
    return task, task.landmark_motion


@torch.no_grad()
def scored(task: ReconstructionTask, motion: LandmarkMotion, store: FrameStore) -> dict[str, float]:
    """Errors and measures, means over the videos of a store."""
    found = []
    for clip in store.clips:
        rows = torch.arange(clip.start, clip.start + clip.frames)
        rows = rows[store.found[rows]]
        if clip.kind != "video" or len(rows) < 3:
            continue
        expression, camera, wanted = store.expression[rows], store.camera[rows], store.landmarks[rows].float()
        asked = motion.input(task.model.expression(expression), expression)
        face = motion.face(asked[:1], wanted[:1], camera[:1], task.model_config.render.half_extent)
        moved = projected(motion(asked, face.expand(len(rows))), camera)[0]
        away = 256 * (moved - wanted).abs().sum(-1)
        read = (curves(256 * points.numpy(), expression.numpy()) for points in (moved, wanted))
        agreement = {name: value for name, value in follows(*read).items() if not name.startswith("mouth")}
        found.append({name: float(away[:, part].mean()) for name, part in _PARTS.items()} | agreement)
    return {name: float(np.nanmean([one[name] for one in found])) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, help="folder with decoded frames of an earlier training run")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--by", nargs="+", default=["beta'", "scores"], choices=["beta'", "scores"])
    parser.add_argument("--people", nargs="+", type=float, default=[1.0], help="shares of the people of train")
    given = parser.parse_args()
    train, *held = stores(given.data, given.cache, ["train", "val", "strong"])
    names = [*_PARTS, *(name for name in CURVES if not name.startswith("mouth"))]
    print(f"| landmarks by | people | split | {' | '.join(names)} |")
    print(f"| --- | --- | --- |{' --- |' * len(names)}")
    for by in given.by:
        for share in given.people:
            task, motion = fitted(some(train, share), by, given.steps)
            for split, store in zip(("val", "strong"), held, strict=True):
                figures = scored(task, motion, store)
                print(
                    f"| {by} | {share:.0%} | {split} | {' | '.join(f'{figures[n]:.2f}' for n in names)} |", flush=True
                )


if __name__ == "__main__":
    main()
