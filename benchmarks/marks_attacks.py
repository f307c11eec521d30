"""What people and platforms do to a marked video, for `marks.py`: recoding, cutting, filming off a screen, removal.

An attack takes a `Clip` and gives the frames that somebody would then check. Videos start from the file as the package
writes it (H.264, CRF 17); an attack on one image starts from the frame before encoding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Picture = NDArray[np.uint8]
Frames = list[Picture]
Each = Callable[[Picture], Picture]

FPS = 25
COPIES = 8
"""Files with different payloads that are averaged at most."""
DENOISED = 10
"""Frames that the slow attack by non-local means denoises."""


@dataclass(frozen=True)
class Clip:
    """A marked video: uint8 (H, W, 3) frames.

    Attributes:
        marked: before encoding.
        written: read from the file that the package wrote.
        remark: marks a frame again with another payload, by its number from 1.
        mark: marks a frame with this clip's payload.
        clean: without a mark.
        others: marked frames of other people and payloads, of the same size.
    """

    marked: Frames
    written: Frames
    remark: Callable[[Picture, int], Picture]
    mark: Each
    clean: Frames
    others: Sequence[Frames] = field(default_factory=list)


@dataclass(frozen=True)
class Attack:
    """`family` groups strengths of one attack, from weak to strong."""

    family: str
    strength: str
    run: Callable[[Clip], Frames]


def each(change: Each, frames: Sequence[Picture]) -> Frames:
    return [change(frame) for frame in frames]


def on_video(family: str, strengths: dict[str, Each]) -> list[Attack]:
    """The same change of every frame of the written video."""
    return [
        Attack(family, name, lambda clip, change=change: each(change, clip.written))
        for name, change in strengths.items()
    ]


def on_image(family: str, strengths: dict[str, Each]) -> list[Attack]:
    """A change of one frame alone, before encoding."""
    return [
        Attack(family, name, lambda clip, change=change: [change(clip.marked[0])]) for name, change in strengths.items()
    ]


def rounded(values: NDArray) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# Codecs


def recoded(frames: Sequence[Picture], codec: str = "libx264", crf: int = 28, **options: str) -> Frames:
    """Frames after a video codec, 4:2:0; an odd last row or column is cut off."""
    import av

    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, FPS, options={"crf": str(crf), **options})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        return [
            frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for frame in container.decode(video=0)
        ]


def image_file(frame: Picture, kind: str, **options: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def palette(frame: Picture, colours: int) -> Picture:
    """A frame of a GIF: few colours, dithered."""
    return np.asarray(Image.fromarray(frame).quantize(colours, Image.Quantize.FASTOCTREE).convert("RGB"))


def codecs() -> list[Attack]:
    h264 = [
        Attack("H.264 again", f"CRF {crf}", lambda c, crf=crf: recoded(c.written, crf=crf))
        for crf in (18, 23, 28, 33, 38)
    ]
    h265 = [
        Attack(
            "H.265",
            f"CRF {crf}",
            lambda c, crf=crf: recoded(c.written, "libx265", crf, preset="fast", **{"x265-params": "log-level=none"}),
        )
        for crf in (28, 34)
    ]
    vp9 = [
        Attack(
            "VP9",
            f"CRF {crf}",
            lambda c, crf=crf: recoded(
                c.written, "libvpx-vp9", crf, b="0", **{"cpu-used": "5", "deadline": "realtime"}
            ),
        )
        for crf in (32, 42)
    ]
    jpeg = {f"quality {q}": partial(image_file, kind="JPEG", quality=q) for q in (95, 75, 50, 30)}
    webp = {f"quality {q}": partial(image_file, kind="WEBP", quality=q) for q in (80, 50)}
    gif = [
        Attack("GIF at 12.5 fps", f"{n} colours", lambda c, n=n: each(partial(palette, colours=n), c.written[::2]))
        for n in (256, 64)
    ]
    return [*h264, *h265, *vp9, *on_image("one frame as JPEG", jpeg), *on_image("one frame as WebP", webp), *gif]


# Geometry


def scaled(frame: Picture, factor: float, wide: float = 1.0) -> Picture:
    height, width = frame.shape[:2]
    size = (max(round(width * factor * wide), 16), max(round(height * factor), 16))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def scaled_back(frame: Picture, factor: float) -> Picture:
    return cv2.resize(scaled(frame, factor), frame.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def cropped(frame: Picture, share: float, x: float = 0.5, y: float = 0.5) -> Picture:
    """`share` of each side; (x, y) from 0 to 1 says which part."""
    height, width = frame.shape[:2]
    high, wide = round(height * share), round(width * share)
    top, left = round((height - high) * y), round((width - wide) * x)
    return frame[top : top + high, left : left + wide]


def rotated(frame: Picture, degrees: float) -> Picture:
    """Around the middle, same size; what comes into view repeats the border."""
    height, width = frame.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1.0)
    return cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def perspective(frame: Picture, share: float) -> Picture:
    """Corners move inwards by up to `share` of the sides, each differently, as in a copy filmed off a screen."""
    height, width = frame.shape[:2]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    moved = corners + share * np.array([[0.9, 0.4], [-1.0, 0.1], [-0.3, -0.8], [0.2, -1.0]], np.float32)
    side = np.array([width - 1, height - 1], np.float32)
    matrix = cv2.getPerspectiveTransform(corners * side, moved * side)
    return cv2.warpPerspective(frame, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def bent(frame: Picture, share: float) -> Picture:
    """A smooth random displacement of up to `share` of the shorter side, the same in every frame."""
    height, width = frame.shape[:2]
    coarse = np.random.default_rng(1).uniform(-1, 1, (2, 5, 5)).astype(np.float32) * share * min(height, width)
    dx, dy = (cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(frame, x + dx, y + dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def geometry() -> list[Attack]:
    shares = (0.95, 0.9, 0.8, 0.75, 0.7)
    return [
        *on_video("scaled down and back", {f"{f:.0%}": partial(scaled_back, factor=f) for f in (0.75, 0.5, 0.33)}),
        *on_video("scaled", {f"{f:g} times": partial(scaled, factor=f) for f in (1.5, 2.0, 0.5)}),
        *on_video("cropped in the middle, part of each side", {f"{s:.0%}": partial(cropped, share=s) for s in shares}),
        *on_video(
            "cropped to a corner, part of each side",
            {f"{s:.0%}": partial(cropped, share=s, x=0.0, y=1.0) for s in shares},
        ),
        *on_video("mirrored", {"": lambda frame: frame[:, ::-1]}),
        *on_video("rotated", {f"{d}°": partial(rotated, degrees=d) for d in (0.5, 1, 2)}),
        *on_video("turned", {"90°": lambda frame: np.rot90(frame), "180°": lambda frame: frame[::-1, ::-1]}),
        *on_video("wider", {f"{w - 1:.0%}": partial(scaled, factor=1.0, wide=w) for w in (1.01, 1.02, 1.05)}),
        *on_video(
            "perspective, corners moved", {f"{s:.0%}": partial(perspective, share=s) for s in (0.01, 0.03, 0.05)}
        ),
        *on_video(
            "bent locally, of the shorter side", {f"{s:.1%}": partial(bent, share=s) for s in (0.002, 0.005, 0.01)}
        ),
    ]


# Colours, noise, filters, overlays


def gamma(frame: Picture, power: float) -> Picture:
    return rounded(255.0 * (frame / 255.0) ** power)


def saturated(frame: Picture, factor: float) -> Picture:
    grey = frame @ np.array([0.299, 0.587, 0.114])
    return rounded(grey[..., None] + factor * (frame - grey[..., None]))


def noisy(frame: Picture, sigma: float) -> Picture:
    seed = int(frame[:: max(len(frame) // 8, 1)].sum())  # another noise in every frame
    return rounded(frame + np.random.default_rng(seed).normal(0.0, sigma, frame.shape))


def blurred(frame: Picture, sigma: float) -> Picture:
    return cv2.GaussianBlur(frame, (0, 0), sigma)


def sharpened(frame: Picture, amount: float) -> Picture:
    return rounded(frame + amount * (frame.astype(np.float32) - blurred(frame, 1.5)))


def captioned(frame: Picture, share: float) -> Picture:
    """A caption band below, `share` of the height, and a logo in a corner."""
    height, width = frame.shape[:2]
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, round(height * (1 - share)), width, height), fill=(20, 20, 20))
    draw.text((width // 10, round(height * (1 - share / 2))), "What they do not tell you", fill=(255, 255, 255))
    draw.ellipse((width * 0.78, height * 0.03, width * 0.97, height * 0.03 + width * 0.19), fill=(230, 60, 50))
    return np.asarray(image)


def letterboxed(frame: Picture, share: float) -> Picture:
    bar = round(len(frame) * share)
    return np.pad(frame, ((bar, bar), (0, 0), (0, 0)))


def inset(frame: Picture, share: float) -> Picture:
    """The video small in a corner of another image of its size."""
    height, width = frame.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    around = rounded(
        128
        + 60 * np.sin(rows / height * 9)[..., None]
        + 50 * np.cos(columns / width * [5, 7, 11][0])[..., None]
        + np.zeros(3)
    )
    small = cv2.resize(frame, (round(width * share), round(height * share)), interpolation=cv2.INTER_AREA)
    top, left = height - len(small) - height // 20, width - small.shape[1] - width // 20
    around[top : top + len(small), left : left + small.shape[1]] = small
    return around


def denoised(frame: Picture, strength: float) -> Picture:
    return cv2.fastNlMeansDenoisingColored(frame, None, strength, strength, 5, 15)


def pixels() -> list[Attack]:
    signs = {f"{s:+.0%}": lambda frame, s=s: rounded(frame * (1.0 + s)) for s in (0.2, -0.2, 0.4, -0.4)}
    filtered = {
        f"strength {s}": lambda clip, s=s: each(partial(denoised, strength=s), clip.written[:DENOISED])
        for s in (5, 10, 20)
    }
    return [
        *on_video("brightness", signs),
        *on_video(
            "contrast", {f"{c:.0%}": lambda frame, c=c: rounded(128 + c * (frame - 128.0)) for c in (1.5, 0.5, 0.25)}
        ),
        *on_video("gamma", {f"{p:g}": partial(gamma, power=p) for p in (0.7, 1.5, 2.2)}),
        *on_video("saturation", {f"{s:.0%}": partial(saturated, factor=s) for s in (2.0, 0.0)}),
        *on_video("negative", {"": lambda frame: 255 - frame}),
        *on_video("noise, standard deviation", {f"{s} of 255": partial(noisy, sigma=s) for s in (5, 10, 20, 40)}),
        *on_video("blur, standard deviation", {f"{s:g} px": partial(blurred, sigma=s) for s in (1, 2, 3)}),
        *on_video("median filter", {f"{s} px": lambda frame, s=s: cv2.medianBlur(frame, s) for s in (3, 5, 7)}),
        *on_video("sharpened", {f"{a:.0%}": partial(sharpened, amount=a) for a in (1.0, 2.0)}),
        *[Attack(f"non-local means, {DENOISED} frames", name, run) for name, run in filtered.items()],
        *on_video("caption and logo, of the height", {f"{s:.0%}": partial(captioned, share=s) for s in (0.15, 0.3)}),
        *on_video("letterboxed, bars of the height", {f"{s:.0%}": partial(letterboxed, share=s) for s in (0.1, 0.39)}),
        *on_video("picture in picture, of each side", {f"{s:.0%}": partial(inset, share=s) for s in (0.8, 0.5)}),
    ]


# Time, chains, removal


def filmed(frames: Sequence[Picture]) -> Frames:
    """A copy filmed off a screen: perspective of 3%, blur, noise, 10% brighter, H.264 at CRF 23."""
    seen = (blurred(perspective(frame, 0.03), 0.7) for frame in frames)
    return recoded([noisy(rounded(1.1 * frame.astype(np.float32)), 4.0) for frame in seen], crf=23)


def screenshot(frame: Picture) -> Picture:
    """A window at 125%, with a border, as JPEG."""
    return image_file(np.pad(scaled(frame, 1.25), ((37, 12), (9, 9), (0, 0)), constant_values=235), "JPEG", quality=80)


def time_and_chains() -> list[Attack]:
    step = {15: 5 / 3, 10: 2.5, 5: 5.0}
    slower = [
        Attack("frame rate", f"{r}", lambda c, s=s: [c.written[int(i * s)] for i in range(int(len(c.written) / s))])
        for r, s in step.items()
    ]
    blended = Attack(
        "frames blended in pairs",
        "",
        lambda c: [rounded((a.astype(float) + b) / 2) for a, b in zip(c.written, c.written[1:])],
    )
    few = [
        Attack("frames of the video", f"{n}", lambda c, n=n: c.written[:: len(c.written) // n][:n]) for n in (10, 3, 1)
    ]
    fast = [Attack("speed", f"{n} times", lambda c, n=n: recoded(c.written[::n], crf=23)) for n in (2, 4)]
    chains = {
        "crop 90%, scale 75%, CRF 28": lambda c: recoded(each(lambda f: scaled(cropped(f, 0.9), 0.75), c.written)),
        "scale 75% and back, CRF 28": lambda c: recoded(each(lambda f: scaled_back(f, 0.75), c.written)),
        "mirror, crop 90%, brightness +20%, CRF 28": lambda c: recoded(
            each(lambda f: rounded(1.2 * cropped(f, 0.9)[:, ::-1]), c.written)
        ),
        "CRF 28 three times": lambda c: recoded(recoded(recoded(c.written))),
        "screenshot, one frame": lambda c: [screenshot(c.written[0])],
        "filmed off a screen, perspective 3%": lambda c: filmed(c.written),
    }
    return [*slower, *few, blended, *fast, *[Attack("chain", name, run) for name, run in chains.items()]]


def averaged(clip: Clip, files: int) -> Frames:
    """Collusion: the mean of the same video under several payloads."""
    total = [frame.astype(np.float32) for frame in clip.marked]
    for number in range(1, files):
        total = [a + clip.remark(b, number) for a, b in zip(total, clip.clean)]
    return [rounded(frame / files) for frame in total]


def residual(frames: Sequence[Picture]) -> NDArray[np.float32]:
    """(H, W) mean over frames of what a small blur takes away from the luma."""
    luma = [frame @ np.array([0.299, 0.587, 0.114], np.float32) for frame in frames]
    return np.mean([image - cv2.GaussianBlur(image, (0, 0), 1.5) for image in luma], axis=0)


def subtracted(frames: Sequence[Picture], pattern: NDArray, amount: float) -> Frames:
    return [rounded(frame - amount * pattern[..., None]) for frame in frames]


def without(clip: Clip, amount: float) -> Frames:
    """Removal by the code: what marking adds is taken away again."""
    return [rounded(frame - amount * (clip.mark(frame).astype(np.float32) - frame)) for frame in clip.marked]


def other_pattern(clip: Clip) -> NDArray[np.float32]:
    """What files of other people have in common, clipped: faces and edges are not of interest."""
    found = [np.clip(residual(frames), -4, 4) for frames in clip.others if frames[0].shape == clip.marked[0].shape]
    return np.mean(found, axis=0) if found else np.zeros(clip.marked[0].shape[:2], np.float32)


def removal() -> list[Attack]:
    collusion = [
        Attack("mean of files with different payloads", f"{n}", lambda c, n=n: averaged(c, n)) for n in (2, 4, COPIES)
    ]
    own = [
        Attack(
            "own frames averaged and subtracted",
            f"{a} times",
            lambda c, a=a: subtracted(c.written, residual(c.written), a),
        )
        for a in (1, 2)
    ]
    other = [
        Attack(
            "pattern averaged over other people's files",
            f"{a} times",
            lambda c, a=a: subtracted(c.written, other_pattern(c), a),
        )
        for a in (1, 2)
    ]
    by_code = [Attack("subtracted by the package's own code", f"{a} times", lambda c, a=a: without(c, a)) for a in (1,)]
    again = Attack("marked again with another payload", "", lambda c: [c.remark(frame, 1) for frame in c.written])
    return [*collusion, *own, *other, again, *by_code]


def attacks() -> list[Attack]:
    none = [
        Attack("none", "frames before encoding", lambda clip: clip.marked),
        Attack("none", "the video as written", lambda clip: clip.written),
    ]
    one = [Attack("none", "one frame as PNG", lambda clip: clip.marked[:1])]
    return [*none, *one, *codecs(), *geometry(), *pixels(), *time_and_chains(), *removal()]


QUICK = {
    ("none", "one frame as PNG"),
    ("H.264 again", "CRF 28"),
    ("mirrored", ""),
    ("cropped in the middle, part of each side", "90%"),
}
"""Family and strength of the attacks of `--quick`."""
BARS = QUICK | {
    ("none", "the video as written"),
    ("H.264 again", "CRF 33"),
    ("one frame as JPEG", "quality 75"),
    ("scaled down and back", "75%"),
    ("scaled", "0.5 times"),
    ("cropped to a corner, part of each side", "90%"),
    ("rotated", "1°"),
    ("perspective, corners moved", "3%"),
    ("brightness", "+20%"),
    ("brightness", "-20%"),
    ("saturation", "0%"),
    ("frame rate", "15"),
    ("chain", "crop 90%, scale 75%, CRF 28"),
    ("chain", "scale 75% and back, CRF 28"),
    ("chain", "filmed off a screen, perspective 3%"),
}
"""Family and strength of the attacks of `--bars`: what the mark is made to survive."""
