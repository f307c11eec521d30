"""Mouths that open, drawn by `base` and without its `warp.inside`, beside the true ones.

    python benchmarks/hidden_mouths.py data/val --backbone-file alexnet_features_fp16.pth --heads-file alex.pth \
        --sheet mouths.png

The source is the frame of a clip whose lips are closed farthest; the driving frames are six of those with the widest
open mouths. With `--ajar` it is the widest open one up to a limit, as of a smile, and the driving frames are open
farther. Clips without such frames are left out. Printed: the contrast between the lips (standard deviation of the
brightness, relative to that of the cheeks), and LPIPS and absolute error (of 255) of the mouth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from export3d.data.frames import FrameStore
from export3d.image import to_uint8
from export3d.perceptual import load_perceptual
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained
from export3d.warping.flows import mouth_mask
from export3d.warping.inner_mouth import Square
from export3d.weights.hub import locate

CLOSED, OPEN, FRAMES = 0.03, 0.1, 6
"""Gap between the lips, in distances of the outer eye corners: at most of a source, at least of a driving frame."""
AJAR, WIDER = (0.07, 0.15), 0.06
"""With `--ajar`: the gap of a source, and by how much that of driving frames is wider at least."""
CHEEKS = (50, 280)


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split")
    parser.add_argument("--backbone-file", type=Path)
    parser.add_argument("--heads-file", type=Path)
    parser.add_argument("--weights", default="base", help="a name or a file")
    parser.add_argument("--ajar", action="store_true", help="sources that show teeth, not those with closed lips")
    parser.add_argument("--sheet", type=Path, help="rows of true mouths, drawn ones, and those without warp.inside")
    options = parser.parse_args()
    model = load_pretrained(locate(options.weights)[0])
    assert model.warp is not None
    inner, distance = model.warp.inner, load_perceptual("alex", options.backbone_file, options.heads_file)
    store = FrameStore.load(options.split, model.config.image_size)
    random, rows, columns = np.random.default_rng(0), [], []
    for clip in store.clips:
        places = store.landmarks[clip.rows].float()
        gap = (places[:, 13] - places[:, 14]).norm(dim=-1) / (places[:, 33] - places[:, 263]).norm(dim=-1)
        gap = torch.where(store.found[clip.rows], gap, torch.nan).numpy()
        if options.ajar:
            own = np.where((gap > AJAR[0]) & (gap < AJAR[1]), gap, -np.inf)
            first, least = int(own.argmax()), max(OPEN, own.max() + WIDER)
        else:
            first = int(np.nanargmin(gap))
            own, least = np.where(gap <= CLOSED, gap, -np.inf), max(OPEN, 0.6 * np.nanmax(gap))
        wide = np.flatnonzero(gap > least)
        if own[first] < 0.0 or not len(wide):
            continue
        driving = clip.start + random.choice(wide, min(FRAMES, len(wide)), replace=False)
        source = [clip.start + first]
        image = store.frames[source].float() / 127.5 - 1.0
        own = (store.camera[source], store.expression[source], store.landmarks[source].float())
        features = model.encode(image, *own, crop_mattes(model, image))
        planes, camera = model.planes(features, store.expression[driving]), store.camera[driving]
        made = [store.frames[driving].float() / 127.5 - 1.0]
        for model.warp.inner in (inner, None):
            made.append(model.frame(planes, camera))
        places = store.landmarks[driving].float()
        cheeks = F.grid_sample(image, 2.0 * own[2][:, None, list(CHEEKS)] - 1.0, align_corners=False).mean() + 1.0
        square, within = Square(places), mouth_mask(places, image.shape[-1])[:, 0] > 0.0
        shown = [square.seen(one) for one in made]
        for n, where in enumerate(within):
            true = made[0][n][:, where]
            contrast = [float(one[n][:, where].mean(dim=0).std(correction=0) / cheeks) for one in made]
            lpips = [float(distance(one[n : n + 1], shown[0][n : n + 1])) for one in shown[1:]]
            error = [127.5 * float((one[n][:, where] - true).abs().mean()) for one in made[1:]]
            rows.append([*contrast, *lpips, *error])
        columns.append([to_uint8(one[:2]) for one in shown])
    print(f"{len(rows)} frames of {len(columns)} clips")
    names = ("contrast, true", "drawn", "without", "LPIPS, drawn", "without", "error, drawn", "without")
    for name, value in zip(names, np.mean(rows, axis=0), strict=True):
        print(f"{name:>16} {value:.4f}")
    if options.sheet is not None:
        Image.fromarray(np.concatenate([_row([column[k] for column in columns]) for k in range(3)])).save(options.sheet)


def _row(pictures: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([picture for group in pictures for picture in group], axis=1)


if __name__ == "__main__":
    main()
