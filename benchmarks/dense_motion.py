"""Are people or hours missing? Dense motion learned anew from 10, 30 and 100% of the people.

    python benchmarks/dense_motion.py DATA --cache CACHE --networks FOLDER --pairs 12000

DATA is a folder that `export3d prepare` made, CACHE decoded frames of it at 256 px (made where they are missing);
FOLDER has squeezenet1_1_features_fp32.pth, squeeze.pth, alexnet_features_fp16.pth and alex.pth (LPIPS).

`DenseMotion` of `base` begins untrained and learns to move the source's pixels at 128 px (`losses.moved_error` on
SqueezeNet, AdamW, a constant rate, averaged weights); landmarks move as in `base`. There are no planes and no rays. It
learns hair, neck, shoulders and background, which have most of the remaining error. At each third of the pairs the
moved source is measured on fixed pairs of val, and on as many of the people that it has learned from: PSNR and LPIPS
(AlexNet).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from landmark_motion import some
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from export3d.data.frames import FrameStore
from export3d.data.pairs import PairSampler
from export3d.image import resize
from export3d.model import Export3D
from export3d.perceptual import Perceptual, load_perceptual
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained
from export3d.warping.dense_motion import DenseMotion
from export3d.warping.losses import moved_error
from export3d.warping.source_warp import SourceMotion, SourceWarp

SIZE, BATCH, MEASURED = 128, 16, 128
RATE, AVERAGED = 1.2e-3, 0.99


def moved(model: Export3D, pair: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The sources moved into the driving frames, and these, (B, 3, SIZE, SIZE)."""
    warp = model.warp
    assert isinstance(warp, SourceWarp)
    assert warp.motion is not None
    source, driving = (resize(pair[name], SIZE) for name in ("source", "driving"))
    with torch.no_grad():
        own, asked = (
            warp.motion.input(model.expression(pair[name]), pair[name]) for name in ("source_expression", "expression")
        )
        view = warp.view(source, pair["source_camera"], own, pair["source_landmarks"], crop_mattes(model, source))
        assert view.face is not None
        motion = SourceMotion(warp.motion(asked, view.face))
    return warp.views(view, motion, pair["camera"]).moved, driving


@torch.no_grad()
def measured(model: Export3D, store: FrameStore, lpips: Perceptual) -> tuple[float, float]:
    """Mean PSNR (dB) and LPIPS of fixed pairs of a store."""
    sampler = PairSampler(store, seed=1, mirror=False, augment=False, still_fraction=0.0)
    found = []
    for start in range(0, MEASURED, BATCH):
        image, target = moved(model, sampler.batch(start, BATCH))
        image = image.clamp(-1.0, 1.0)
        psnr = -10 * ((image - target) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
        found.append(torch.stack([psnr, lpips(image, target).flatten()]))
    psnr_and_lpips = torch.cat(found, dim=1).mean(dim=1)
    return float(psnr_and_lpips[0]), float(psnr_and_lpips[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=12000)
    parser.add_argument(
        "--people", nargs="+", type=float, default=[0.1, 0.3, 1.0], help="shares of the people of train"
    )
    given = parser.parse_args()
    train, val = (
        FrameStore.load(given.data / n, 256, cache=given.cache / f"{n}-256.safetensors") for n in ("train", "val")
    )
    names = ("squeezenet1_1_features_fp32.pth", "squeeze.pth", "alexnet_features_fp16.pth", "alex.pth")
    features, heads, measuring, measuring_heads = (given.networks / name for name in names)
    squeeze, alex = load_perceptual("squeeze", features, heads), load_perceptual("alex", measuring, measuring_heads)
    print("| people | pairs | minutes | val PSNR | val LPIPS | own PSNR | own LPIPS |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for share in given.people:
        torch.manual_seed(0)
        base = load_pretrained()
        model = Export3D(base.config.sized(SIZE))
        model.load_state_dict(base.state_dict())
        model.requires_grad_(False).eval()
        assert model.warp is not None
        dense = model.warp.dense = DenseMotion()
        average = AveragedModel(dense, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
        store = some(train, share)
        sampler = PairSampler(store, still_fraction=0.1, pseudo_fraction=0.0, hard_fraction=0.6)
        optimizer = torch.optim.AdamW(dense.parameters(), lr=RATE)
        steps, began, away = given.pairs // BATCH, time.monotonic(), 0.0
        for step in range(steps + 1):
            if step % max(1, steps // 3) == 0:
                paused = time.monotonic()
                model.warp.dense = average.module
                figures = *measured(model, val, alex), *measured(model, store, alex)
                model.warp.dense = dense
                away += time.monotonic() - paused
                numbers = " | ".join(f"{value:.{4 if place % 2 else 2}f}" for place, value in enumerate(figures))
                minutes = (time.monotonic() - began - away) / 60
                print(f"| {share:.0%} | {step * BATCH:,} | {minutes:.1f} | {numbers} |", flush=True)
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / 50)
            image, target = moved(model, sampler.batch(step * BATCH, BATCH))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(moved_error(image, target, squeeze))
            optimizer.step()
            average.update_parameters(dense)


if __name__ == "__main__":
    main()
