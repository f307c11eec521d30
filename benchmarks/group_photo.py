"""The group photo of the docs: three people, cut out of their portraits, before one background.

    python benchmarks/group_photo.py p0304_01.jpg src/export3d/assets/astronaut.png p1134_01.jpg \\
        -o docs/images/group_photo.webp

The portraits: two official ones of members of the US Congress, and the bundled one by NASA; all in the public domain.
The heads have one height; whoever is in the middle stands in front.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from export3d.animate.export import encode_webp
from export3d.face.crop import FACE_HEIGHTS
from export3d.face.tracker import Tracker
from export3d.files import write_bytes
from export3d.image import read_image
from export3d.photo.fields import Pixels
from export3d.photo.matte import foreground, person_matte

WIDTH, HEIGHT = 1168, 390
FACE = 180
"""Height of each face from forehead to chin, pixels."""
MIDDLES = ((224, 225), (630, 215), (1008, 235))
"""Noses."""
ORDER = (0, 2, 1)
GROUND = ((84, 112, 176), (52, 70, 128))
"""Colours of the background at the top and at the bottom."""


def ground() -> Image.Image:
    """A backdrop that darkens downwards and to the sides."""
    down = np.linspace(0.0, 1.0, HEIGHT)[:, None, None]
    across = np.linspace(-1.0, 1.0, WIDTH)[None, :, None]
    colours = np.array(GROUND[0]) * (1 - down) + np.array(GROUND[1]) * down
    noise = np.random.default_rng(0).normal(0.0, 1.5, (HEIGHT, WIDTH, 1))
    return Image.fromarray((colours * (1 - 0.2 * across**2) + noise).clip(0, 255).astype(np.uint8))


def place(photo: Image.Image, portrait: Pixels, tracker: Tracker, middle: tuple[int, int]) -> None:
    """Paste a person with the nose at `middle`; the portrait's colours fade into the background at the contour."""
    box = tracker.track_image(portrait).crop
    matte = person_matte(portrait, box)
    scale = FACE * FACE_HEIGHTS / box.side
    size = (round(portrait.shape[1] * scale), round(portrait.shape[0] * scale))
    person, mask = (
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels in (foreground(portrait, matte), matte)
    )
    corner = (round(middle[0] - box.centre[0] * scale), round(middle[1] - box.centre[1] * scale))
    photo.paste(person, corner, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, nargs=3, metavar="PORTRAIT")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    photo = ground()
    with Tracker() as tracker:
        for number in ORDER:
            place(photo, read_image(options.portraits[number]), tracker, MIDDLES[number])
    write_bytes(options.output, encode_webp(np.asarray(photo)))


if __name__ == "__main__":
    main()
