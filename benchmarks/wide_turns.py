"""Wide turns: who a portrait still is from the side, and what it looks like.

    python benchmarks/wide_turns.py PORTRAIT... --identity mobilefacenet_ms1m.onnx -o docs/images/turns.webp

Prints the CSIM of views with the portrait, means: by `base` without `warp.turns`, by `base`, and by the portrait on a
rigid face mesh (the reference `mesh` of docs/evaluation.md). The last column is the smallest difference between base
and mesh of a portrait. Writes a sheet with a row per portrait.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from export3d.animate.animator import Animator, Picture, Source
from export3d.animate.export import encode_webp
from export3d.camera import Camera
from export3d.config import variant
from export3d.errors import NoFaceFound
from export3d.evaluation.measures.identity import Identity, csim, load_identity
from export3d.evaluation.protocols.references import lifted, seen
from export3d.files import write_bytes
from export3d.image import contact_sheet, to_tensor, to_uint8
from export3d.model import Export3D
from export3d.pretrained import load_pretrained
from export3d.warping.elastic_mesh import FACE, ElasticMesh, show

YAWS = (-45.0, -30.0, 30.0, 45.0)
TILE_PX = 144


def on_a_mesh(source: Source, label: NDArray[np.floating]) -> Picture:
    """The portrait on a rigid face mesh, as a camera sees it."""
    face = source.landmarks[list(FACE)].astype(np.float64)
    places, distance = seen(lifted(face, np.asarray(source.camera, np.float64)), np.asarray(label, np.float64))
    here, there, depth = (torch.from_numpy(x[None]).float() for x in (face, places, distance))
    lookup, _ = ElasticMesh(here).lookup(there, depth, len(source.image))
    return to_uint8(show(to_tensor(source.image)[None], lookup))[0]


def described(animator: Animator, identity: Identity, picture: Picture) -> NDArray[np.floating]:
    """The descriptor of identity; NaN where no face is found."""
    try:
        track = animator.tracker.track_image(picture)
    except NoFaceFound:
        return np.full(1, np.nan)
    return identity(picture, track.crop.from_crop(track.landmarks[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("portraits", nargs="+", type=Path)
    parser.add_argument("--identity", default="dlib", help="descriptor, as of `export3d evaluate`")
    parser.add_argument("-o", "--output", required=True, type=Path)
    options = parser.parse_args()
    model, identity = load_pretrained(), load_identity(options.identity)
    without = Export3D(variant(model.config, "no_turns"))
    without.load_state_dict(model.state_dict())
    learned, base = (Animator(one, device="cpu") for one in (without, model))
    found, rows = [], []
    for portrait in options.portraits:
        source = base.encode(portrait)
        views: dict[str, list[Picture]] = {"learned alone": [], "base": [], "mesh": []}
        for yaw in YAWS:
            label = Camera.orbit(yaw, 0.0).label
            for name, animator in (("learned alone", learned), ("base", base)):
                planes = animator.planes(source, source.expression)
                views[name].append(animator.render_planes(source, planes, label, frame="crop"))
            views["mesh"].append(on_a_mesh(source, label))
        own = described(base, identity, source.image)
        found.append([[float(csim(described(base, identity, one), own)) for one in made] for made in views.values()])
        order = [views["learned alone"][0], *views["base"], views["learned alone"][-1]]
        tiles = [Image.fromarray(picture).resize((TILE_PX, TILE_PX)) for picture in (source.image, *order)]
        rows.append([np.array(tile) for tile in tiles])
    degrees = [f"{yaw:+.0f}" for yaw in YAWS]
    labels = [["portrait", f"{degrees[0]}, learned", *degrees, f"{degrees[-1]}, learned"]]
    write_bytes(options.output, encode_webp(contact_sheet(rows, labels), quality=80))
    scores = np.array(found)  # (portraits, ways, views)
    print("| yaw | learned alone | base | mesh | least of base - mesh |\n| --- | ---: | ---: | ---: | ---: |")
    for view, name in enumerate(degrees):
        means = " | ".join(f"{value:.3f}" for value in scores[:, :, view].mean(axis=0))
        print(f"| {name} | {means} | {(scores[:, 1, view] - scores[:, 2, view]).min():+.3f} |")


if __name__ == "__main__":
    main()
