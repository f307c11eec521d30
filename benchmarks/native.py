"""What frames of native size show and cost: sharpness of the face, time at 768 against 256, memory of a large photo.

    python benchmarks/native.py sharpness PHOTOS [--motion speech] [--frames 5]
    python benchmarks/native.py time PHOTO [--sizes 256 768] [--rounds 5] [--frame crop]
    python benchmarks/native.py memory PHOTO [--megapixels 30] [--frame photo]

`sharpness`: each photo of a folder is driven by a bundled motion; mean over evenly spaced frames of the sharpness of
the face against the photo's own (`export3d.evaluation.measures.sharpness`), for native frames of the crop and for the
model's frames enlarged to the same size. `time`: processor time of one thread, sizes in turn, on 8 frames that differ
each round, against the model's own frames at 256; what is made once per photo is not counted. `memory`: peak memory of
a process that animates, then edits an enlarged copy of the photo.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from export3d import Animator
from export3d.animate.animator import Source
from export3d.animate.drive import bundled_motion, read_motion
from export3d.evaluation.measures.sharpness import sharpness
from export3d.face.landmarks import FaceLandmarker
from export3d.image import read_image
from export3d.motion.motion import Motion
from export3d.photo.options import Frame

Picture = NDArray[np.uint8]

_BATCH = 4
_TIMED = 8
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def motion_of(name: str) -> Motion:
    """A bundled motion by name, or one from a file."""
    return read_motion(name if Path(name).exists() else bundled_motion(name)).motion


def spread(motion: Motion, frames: int) -> Motion:
    """Evenly spaced frames of a motion; the first stays, because relative motion starts from it."""
    rows = np.linspace(0, len(motion) - 1, frames + 1).round().astype(int)
    return Motion(motion.expression[rows], motion.camera[rows], motion.fps, motion.space)


def resized(picture: Picture, size: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def landmarks(landmarker: FaceLandmarker, pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """(T, 478, 2) of each image's largest face; NaN without one."""
    found = np.full((len(pictures), 478, 2), np.nan)
    for t, picture in enumerate(pictures):
        for face in landmarker.detect(picture)[:1]:
            found[t] = face.landmarks[:, :2]
    return found


def measure_sharpness(folder: Path, motion: Motion, frames: int) -> None:
    """Print one line per photo, and the means."""
    animator, landmarker = Animator.from_pretrained(device="cpu"), FaceLandmarker()
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    rows = []
    print(f"{'':24}{'px':>6}{'native':>9}{'256 enlarged':>14}")
    for path in paths:
        source = animator.encode(path)
        few = spread(motion, frames)
        still = animator.edit(source, size="native", frame="crop")  # the photo's own pixels: nothing moves
        native = list(animator.animate(source, few, size="native", frame="crop"))[1:]
        enlarged = [resized(frame, len(still)) for frame in list(animator.animate(source, few))[1:]]
        own = landmarks(landmarker, [still])[0]
        scores = [
            float(np.nanmean(sharpness(np.stack(made), landmarks(landmarker, made), still, own)))
            for made in (native, enlarged)
        ]
        rows.append(scores)
        print(f"{path.name:24}{len(still):6}{scores[0]:9.3f}{scores[1]:14.3f}", flush=True)
    mean, low = np.mean(rows, axis=0), np.min(rows, axis=0)
    print(f"{'mean':30}{mean[0]:9.3f}{mean[1]:14.3f}\n{'smallest':30}{low[0]:9.3f}{low[1]:14.3f}")


def measure_time(photo: Path, motion: Motion, sizes: Sequence[int], rounds: int, frame: Frame) -> None:
    """Print processor time per frame at each size, medians over the rounds, and the ratio to the first size."""
    animator = Animator.from_pretrained(device="cpu")
    sources = {size: animator.encode(photo) for size in sizes}
    animators = {size: Animator(animator.model, "cpu") for size in sizes}  # each keeps what it made once per photo
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    shown: dict[int, tuple[int, ...]] = {}

    def frames(size: int, first: int) -> Iterator[Picture]:
        part = slice(first, first + _TIMED)
        some = Motion(motion.expression[part], motion.camera[part], motion.fps, motion.space)
        model = size == animators[size].size
        return animators[size].animate(
            sources[size], some, batch=_BATCH, size=None if model else size, frame="crop" if model else frame
        )

    for number in range(rounds + 1):
        for size in sizes if number % 2 else tuple(reversed(sizes)):
            start = time.process_time()
            for made in frames(size, number * _TIMED % (len(motion) - _TIMED)):
                shown[size] = made.shape
            if number:  # the first round makes the matte and the background
                seconds[size].append((time.process_time() - start) / _TIMED)
            elif shown[size][0] < size:
                raise SystemExit(f"{photo} gives frames of {shown[size][0]} pixels, not {size}; name a larger photo")
    first = np.median(seconds[sizes[0]])
    for size in sizes:
        median = np.median(seconds[size])
        print(
            f"{size:5} px, frames of {shown[size][1]} x {shown[size][0]}: {1e3 * median:7.1f} ms per frame (smallest "
            f"{1e3 * min(seconds[size]):.1f}, largest {1e3 * max(seconds[size]):.1f}), {median / first:.2f} times the "
            f"time of {sizes[0]} px"
        )
    paired = np.median(np.array(seconds[sizes[-1]]) / np.array(seconds[sizes[0]]))
    print(f"median of the ratios of paired rounds, {sizes[-1]} to {sizes[0]} px: {paired:.2f}")


def measure_memory(photo: Path, motion: Motion, megapixels: float, frame: Frame) -> None:
    """Print the peak memory of this process, before and after animating an enlarged photo."""
    image = read_image(photo)
    factor = (1e6 * megapixels / (image.shape[0] * image.shape[1])) ** 0.5
    large = np.asarray(
        Image.fromarray(image).resize([round(side * factor) for side in image.shape[1::-1]], Image.Resampling.BICUBIC)
    )
    del image
    animator = Animator.from_pretrained(device="cpu")
    before = peak()
    source: Source = animator.encode(large)
    encoded = peak()
    start = time.perf_counter()
    for made in animator.animate(source, spread(motion, 3), size="native", frame=frame):
        shown = made.shape
    print(
        f"{large.shape[1]} x {large.shape[0]} photo, frames of {shown[1]} x {shown[0]}: peak {peak():.2f} GB "
        f"({encoded:.2f} when encoded, {before:.2f} before), {time.perf_counter() - start:.1f} s for 4 frames"
    )
    shown = animator.edit(source, {"jawOpen": 0.5}, size="native", frame=frame).shape
    print(f"edited image of {shown[1]} x {shown[0]}: peak {peak():.2f} GB")


def peak() -> float:
    """Largest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("sharpness", "time", "memory"))
    parser.add_argument("photos", type=Path, help="a folder for sharpness, else a photo")
    parser.add_argument("--motion", default="speech")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=(256, 768))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megapixels", type=float, default=30.0)
    parser.add_argument("--frame", choices=("photo", "crop"), default="photo")
    given = parser.parse_args()
    torch.set_num_threads(1)
    motion = motion_of(given.motion)
    if given.what == "sharpness":
        measure_sharpness(given.photos, motion, given.frames)
    elif given.what == "time":
        measure_time(given.photos, motion, given.sizes, given.rounds, given.frame)
    else:
        measure_memory(given.photos, motion, given.megapixels, given.frame)


if __name__ == "__main__":
    main()
