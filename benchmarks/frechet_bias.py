"""How much too large the Fréchet distance of few pictures is: a table, in Markdown.

    python benchmarks/frechet_bias.py SPLIT [--backbone-file alexnet_features.pth]

A Gaussian is fitted to the features of a split's frames (at most 32 of a clip). Twice n vectors drawn from it differ by
chance alone: their distance should be 0. For scale: the same frames, each blurred (Gaussian, pixels at 256), against
themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from export3d.data.decoding import decode
from export3d.data.shards import read_shards
from export3d.evaluation.measures.frechet import Moments, frechet_distance, load_features, sample_rows
from export3d.face.identity import DlibIdentity
from export3d.image import to_uint8

SIZE = 256
COUNTS = (64, 128, 256, 512, 1024, 2048, 8192)
DRAWS = 5
SIGMAS_PX = (1.0, 2.0, 4.0)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("split", type=Path)
    arguments.add_argument("--backbone-file", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    who, alex = DlibIdentity(), load_features("alex", options.backbone_file)
    levels = (0.0, *SIGMAS_PX)
    found: dict[tuple[str, float], Moments] = {}
    for record in (record for record in read_shards(options.split) if record.kind == "video"):
        rows = np.flatnonzero(record.found)
        rows = rows[sample_rows(len(rows))]
        images = torch.from_numpy(decode(record, SIZE)[rows]).float() / 127.5 - 1.0
        landmarks = record.landmarks[rows].astype(np.float64) * SIZE
        for sigma in levels:
            shown = blurred(images, sigma) if sigma else images
            for name, features in (("dlib", who.many(list(to_uint8(shown)), landmarks)), ("alex", alex(shown).numpy())):
                found.setdefault((name, sigma), Moments(features.shape[1])).add(features)
    print(f"{found['dlib', 0.0].count} frames\n\n| | dlib | alex |\n| --- | --- | --- |")
    names = ("dlib", "alex")
    print_row("total variance", [float(np.trace(found[name, 0.0].covariance)) for name in names])
    for sigma in SIGMAS_PX:
        values = [frechet_distance(found[name, sigma], found[name, 0.0]) for name in names]
        print_row(f"blurred, sigma {sigma:g} px", values)
    for count in COUNTS:
        print_row(f"same distribution, {count} against {count}", [by_chance(found[n, 0.0], count) for n in names])


def by_chance(truth: Moments, count: int) -> float:
    """Mean distance of two samples of one Gaussian."""
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(truth.covariance)
    root = vectors * np.sqrt(values.clip(0.0))
    distances = []
    for _ in range(DRAWS):
        pair = Moments(len(root)), Moments(len(root))
        for side in pair:
            side.add(rng.normal(size=(count, len(root))) @ root.T)
        distances.append(frechet_distance(*pair))
    return float(np.mean(distances))


def blurred(images: Tensor, sigma: float) -> Tensor:
    """(B, 3, H, W) under a Gaussian window, edges mirrored."""
    reach = int(np.ceil(3 * sigma))
    window = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    window = (window / window.sum()).view(1, 1, 1, -1)
    flat = pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    return conv2d(conv2d(flat, window), window.mT).view(images.shape)


def print_row(name: str, values: list[float]) -> None:
    print(f"| {name} | {values[0]:.4f} | {values[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
