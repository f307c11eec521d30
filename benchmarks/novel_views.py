"""The images and the table of docs/views.md: novel views by `base` and by the core, side by side.

    python benchmarks/novel_views.py PORTRAIT... -o docs/images

Writes orbit_NAME.webp (the portrait, an orbit by `base`, the same by the core) and views_NAME.webp (`export3d sheet
views` by `base` on the left, by the core on the right) for every portrait. Prints how far the heads are turned when the
views of the sheet's first row are tracked again, and their CSIM with the portrait (dlib), means over the portraits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.animate.animator import Animator, Picture
from export3d.animate.export import encode_webp
from export3d.animate.views_sheet import TURNS, expressions, views_sheet
from export3d.camera import head_angles
from export3d.errors import NoFaceFound
from export3d.evaluation.measures.identity import Identity, csim, load_identity
from export3d.files import write_bytes
from export3d.image import contact_sheet

FRAMES, FRAME_MS = 32, 125
ORBIT_PX, TILE_PX = 208, 104


def resized(picture: Picture, size: int) -> Picture:
    return np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))


def write_loop(path: Path, frames: list[Image.Image], frame_ms: int) -> None:
    """An animated WebP that loops."""
    options = {"duration": frame_ms, "loop": 0, "quality": 60, "method": 6, "minimize_size": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def write_orbit(path: Path, animators: list[Animator], portrait: Path) -> None:
    """The portrait, and its orbit by each animator."""
    sources = [animator.encode(portrait) for animator in animators]
    orbits = [a.orbit(source, seconds=FRAMES / 25.0) for a, source in zip(animators, sources)]
    labels = [["portrait", "base", "core"]]
    frames = [
        Image.fromarray(contact_sheet([[resized(image, ORBIT_PX) for image in (sources[0].image, *moment)]], labels))
        for moment in zip(*orbits)
    ]
    write_loop(path, frames, FRAME_MS)


def write_sheets(path: Path, animators: list[Animator], portrait: Path) -> NDArray:
    """Both sheets in one image.

    Returns:
        (2, 7, 4): for each model and view of the first row, tracked again, the head's angles and the CSIM.
    """
    rows: list[list[Picture]] = []
    labels: list[list[str]] = []
    measured, identity = [], load_identity()
    for name, animator in zip(("base", "core"), animators):
        source = animator.encode(portrait)
        pictures, headings = views_sheet(animator, source, expressions(source, animator.space))
        own = tracked(animator, identity, source.image)[1]
        views = [tracked(animator, identity, picture) for picture in pictures[1]]
        measured.append([[*angles, float(csim(descriptor, own))] for angles, descriptor in views])
        blank = np.full_like(source.image, 255)
        pictures[0] += [blank] * (len(TURNS) - 1)
        small = [[resized(picture, TILE_PX) for picture in row] for row in pictures]
        texts = [[text] + [""] * (len(TURNS) - 1) if isinstance(text, str) else text for text in headings]
        texts[0][0] = f"portrait, views by {name}"
        rows = [old + new for old, new in zip(rows, small)] if rows else small
        labels = [old + new for old, new in zip(labels, texts)] if labels else texts
    write_bytes(path, encode_webp(contact_sheet(rows, labels), quality=72))
    return np.array(measured)


def tracked(animator: Animator, identity: Identity, picture: Picture) -> tuple[NDArray, NDArray]:
    """Head angles (3,) and the descriptor of identity; NaN where no face is found."""
    try:
        track = animator.tracker.track_image(picture)
    except NoFaceFound:
        return np.full(3, np.nan), np.full(1, np.nan)
    return head_angles(track.motion.camera[0]), identity(picture, track.crop.from_crop(track.landmarks[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("portraits", nargs="+", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    options = parser.parse_args()
    animators = [Animator.from_pretrained(device="cpu", pure=pure) for pure in (False, True)]
    found = []
    for portrait in options.portraits:
        write_orbit(options.output / f"orbit_{portrait.stem}.webp", animators, portrait)
        found.append(write_sheets(options.output / f"views_{portrait.stem}.webp", animators, portrait))
    values = np.array(found)  # (portraits, models, views, 4)
    turns, similarity = (values - values[:, :, :1]).mean(axis=0), values[..., 3].mean(axis=0)
    print("| camera | turned, base | turned, core | CSIM, base | CSIM, core |\n| --- | ---: | ---: | ---: | ---: |")
    for view, (name, asked) in enumerate(TURNS.items()):
        axis = int(np.argmax(np.abs(asked)))
        turned = [f"{turn:+.1f}" if any(asked) else "" for turn in turns[:, view, axis]]
        print(f"| {name} | {' | '.join(turned)} | {similarity[0, view]:.2f} | {similarity[1, view]:.2f} |")


if __name__ == "__main__":
    main()
