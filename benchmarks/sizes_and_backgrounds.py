"""The images of docs/sizes.md and of the README's first lines.

    python benchmarks/sizes_and_backgrounds.py PHOTO docs/images/group_photo.webp -o docs/images

PHOTO: a portrait of more than 1,000 pixels. The group photo is made by `group_photo.py`. Writes

- demo.webp: the bundled portrait, and the whole photo moved by the bundled motion `speech`,
- sizes.webp: a part of PHOTO's face: the photo, a frame of 256 pixels enlarged, and one of native size,
- backgrounds.webp: PHOTO at rest and turned, before every kind of background,
- group.webp: GROUP, its second face moved, and all faces moved.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from novel_views import write_loop
from PIL import Image

from export3d.animate.animator import Animator, Picture
from export3d.animate.drive import bundled_motion, bundled_portrait, read_motion
from export3d.animate.export import encode_webp
from export3d.files import write_bytes
from export3d.image import contact_sheet, fitted, write_png

FRAME_MS, EVERY, FRAMES = 80, 2, 70
SMILE = {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7, "jawOpen": 0.2}
COLOUR = "#20c040"


def write_demo(path: Path, animator: Animator) -> None:
    """The bundled portrait beside itself, moved by `speech`."""
    source, motion = animator.encode(bundled_portrait()), read_motion(bundled_motion("speech")).motion
    motion = motion[: FRAMES * EVERY : EVERY]
    frames = [
        Image.fromarray(np.hstack([fitted(source.photo, 384), fitted(frame, 384)]))
        for frame in animator.animate(source, motion, size="native", frame="photo")
    ]
    write_loop(path, frames, FRAME_MS)


def sizes(animator: Animator, photo: Path) -> Picture:
    """The middle of the face at the photo's own pixels: photo, 256 enlarged, native."""
    source = animator.encode(photo)
    wanted = {"yaw_deg": 12.0, "scores": SMILE}
    native = animator.edit(source, **wanted, size="native")
    side = len(native)
    large, still = (
        np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        for image in (animator.edit(source, **wanted), animator.edit(source, size="native"))
    )
    part = slice(side * 3 // 10, side * 3 // 10 + min(side * 45 // 100, 480))
    rows = [[image[part, part] for image in (still, large, native)]]
    return contact_sheet(rows, [["portrait, native", "turned and smiling, 256 enlarged", "the same, native"]])


def backgrounds(animator: Animator, photo: Path, picture: Path) -> Picture:
    """Two rows: at rest and turned; a column for each background."""
    source = animator.encode(photo)
    rows = []
    for turn in ({}, {"yaw_deg": 18.0, "scores": SMILE}):
        rows.append(
            [
                fitted(animator.edit(source, **turn, size=512, frame="photo", background=kind), 320)
                for kind in ("keep", "blur", COLOUR, str(picture))
            ]
        )
    return contact_sheet(rows, [["keep", "blur", COLOUR, "an image"], ""])


def group(animator: Animator, photo: Path) -> Picture:
    """The photo, its second face moved, all faces moved."""
    wanted = {"yaw_deg": 15.0, "scores": {"jawOpen": 0.4}, "size": "native", "frame": "photo"}
    second, everybody = animator.encode(photo, 2), animator.encode_all(photo)
    images = [second.photo, animator.edit(second, **wanted), animator.edit(everybody, **wanted)]
    return contact_sheet([[fitted(image, 300)] for image in images], ["photo", "--face 2", "--face all"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("group", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    animator = Animator.from_pretrained()
    write_demo(options.output / "demo.webp", animator)
    with TemporaryDirectory() as folder:
        behind = Path(folder) / "gradient.png"
        across = np.linspace(0.0, 1.0, 640)[None, :, None]
        down = np.linspace(0.0, 1.0, 480)[:, None, None]
        colours = np.array([250, 190, 120]) * (1 - down) + np.array([60, 40, 110]) * down + 25 * across
        write_png(behind, colours.clip(0, 255).astype(np.uint8))
        made = {
            "sizes": sizes(animator, options.photo),
            "backgrounds": backgrounds(animator, options.photo, behind),
            "group": group(animator, options.group),
        }
    for name, image in made.items():
        write_bytes(options.output / f"{name}.webp", encode_webp(image))


if __name__ == "__main__":
    main()
