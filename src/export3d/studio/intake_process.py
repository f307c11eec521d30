"""The child that decodes one file of a user: `python -m export3d.studio.intake_process JOB`, see `intake`.

JOB is a JSON object. The child limits and confines itself before it imports a decoder, reads the one file, writes
files of fixed names to its folder, and prints JSON objects, one per line: `{"progress": n}` any number of times, then
`{"result": {...}}`, `{"error": sentence}` or, where our own code failed, `{"bug": traceback}`; each with `confined`,
what `sandbox.confine` returned. Messages name the file by its path, for which the parent puts the user's name.

Faces are not detected here: the engine tracks a portrait when it encodes it (`Engine.encode`).
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export3d.errors import BadImage, BadMotionFile, BadVideo, Export3DError
from export3d.studio.sandbox import Limits, confine, limit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export3d.video.reading import VideoInfo

    Pixels = NDArray[np.uint8]

MOST_PIXELS = 50_000_000
"""Of an image that is taken."""
KEPT_PIXELS = 8_000_000
"""Larger images are scaled down to this many, which keeps the studio's memory below 2 GB while a still is made."""
MOST_RATIO = 20
"""Of an image's sides."""
MOST_VIDEO_PIXELS = 3840 * 2160
"""Of a frame."""
MOST_SECONDS = 600.0
"""Of a video or a motion."""
MOST_TRACKED_S = 60.0
"""Of a video, in one job."""
THUMBNAILS, THUMBNAIL_SIZE = 10, (160, 72)
"""Their number, and their largest width and height."""

_MB = 1 << 20
_SHORT = Limits(memory=500 * _MB, seconds=8, wall_s=8, file=64 * _MB)
LIMITS = {
    "photo": _SHORT,
    "background": _SHORT,
    "video": _SHORT,
    "motion": _SHORT,
    "verify": replace(_SHORT, seconds=60, wall_s=60),
    "track": replace(_SHORT, memory=600 * _MB, seconds=900, wall_s=900),
}
"""What to do with a file, and its limits. Checking and tracking decode hundreds of frames; both answer as jobs do."""
QUIET_S = 60.0
"""Tracking that has not finished another frame for so long is ended."""

LONGEST_SENTENCE = 500

Say = Callable[[dict[str, Any]], None]


def photo(path: Path, folder: Path, say: Say) -> dict[str, Any]:
    """An image, upright and in sRGB without metadata, as `photo.png`; and the warnings of reading it."""
    from export3d.image import read_image, write_png
    from export3d.workers.messages import caught_warnings

    with caught_warnings() as warnings:
        image = read_image(path, most_pixels=MOST_PIXELS, reduced_to=KEPT_PIXELS)
    height, width = image.shape[:2]
    if max(height, width) > MOST_RATIO * min(height, width):
        raise BadImage(f"{path} is {MOST_RATIO} times as long as wide or more; cut it to the part that is needed")
    write_png(folder / "photo.png", image, level=1)
    return {"width": width, "height": height, "warnings": [_one_line(warning) for warning in warnings]}


def video(path: Path, folder: Path, say: Say) -> dict[str, Any]:
    """A video's facts, and `filmstrip.webp`: thumbnails side by side, evenly spaced in time."""
    from export3d.video.reading import probe

    info = probe(path)
    if info.width * info.height > MOST_VIDEO_PIXELS:
        raise BadVideo(f"{path} is {info.width} x {info.height}; make it at most 3840 x 2160")
    if info.duration_s > MOST_SECONDS:
        raise BadVideo(f"{path} is {info.duration_s:.0f} s long; cut it to at most {MOST_SECONDS:.0f} s")
    _write_filmstrip(folder / "filmstrip.webp", _thumbnails(path, info))
    facts = {"width": info.width, "height": info.height, "seconds": info.duration_s, "fps": info.fps}
    return facts | {"sound": info.has_audio}


def motion(path: Path, folder: Path, say: Say, suffix: str) -> dict[str, Any]:
    """A motion file of any kind as `motion.motion` at its 25 frames per second, without notes."""
    from export3d.animate.drive import read_motion

    read = replace(read_motion(path, suffix=suffix).motion, meta={})
    if read.duration_s > MOST_SECONDS:
        raise BadMotionFile(f"{path} is {read.duration_s:.0f} s long; cut it to at most {MOST_SECONDS:.0f} s")
    read.save(folder / "motion.motion")
    return {"frames": len(read), "seconds": read.duration_s, "fps": read.fps, "space": read.space}


def track(path: Path, folder: Path, say: Say, start: float, seconds: float | None, face: str | int) -> dict[str, Any]:
    """The motion of a driving video, its sound, and images of the driving face for the contact sheet.

    Writes `motion.motion`; `sound.mp4`, whose time 0 is the motion's; and `driving-0.png` and on, the faces at the
    frames of `sheet_frames`.
    """
    import av

    from export3d.animate.drive import driving
    from export3d.animate.export import sheet_frames
    from export3d.image import write_png
    from export3d.video.sound import write_sound
    from export3d.workers.messages import caught_warnings

    seconds = MOST_TRACKED_S if seconds is None else min(seconds, MOST_TRACKED_S)
    with caught_warnings() as warnings:
        driven = driving(path, progress=lambda done: say({"progress": done}), face=face, start_s=start, seconds=seconds)
    made = replace(driven.motion, meta={})
    made.save(folder / "motion.motion")
    pictures = driven.pictures(sheet_frames(len(made)))
    for number, picture in enumerate(pictures):
        write_png(folder / f"driving-{number}.png", picture, level=1)
    sound = folder / "sound.mp4"
    try:
        write_sound(sound, path, driven.start_s, made.duration_s)
        audible = sound.stat().st_size > 0
    except (av.FFmpegError, Export3DError):  # a motion without sound is of more use than none
        audible = False
    if not audible:
        sound.unlink(missing_ok=True)
    facts = {"frames": len(made), "seconds": made.duration_s, "sound": audible, "pictures": len(pictures)}
    return facts | {"warnings": [_one_line(warning) for warning in warnings]}


def verify(path: Path, folder: Path, say: Say) -> dict[str, Any]:
    """The marks in an image or a video."""
    from export3d.provenance.verify import verify as report

    return report(path).as_dict()


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "photo": photo, "background": photo, "video": video, "motion": motion, "track": track, "verify": verify,
}  # fmt: skip


def main(text: str) -> None:
    """Do the job that a JSON object describes: `verb`, `path`, `folder`, `readable`, `parent` and the verb's own."""
    job = json.loads(text)
    verb, path, folder = job.pop("verb"), Path(job.pop("path")), Path(job.pop("folder"))
    readable = [Path(name) for name in job.pop("readable")]
    confined = confine([path, *readable], folder)
    limit(LIMITS[verb], job.pop("parent"))
    lines = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what native libraries print

    def say(message: dict[str, Any]) -> None:
        lines.write(json.dumps({**message, "confined": confined}) + "\n")
        lines.flush()

    try:
        say({"result": VERBS[verb](path, folder, say, **job)})
    except (Exception, MemoryError) as problem:
        if _out_of_memory(problem):
            say({"error": f"{path} needs more memory than the studio gives to one file; make it smaller"})
        elif isinstance(problem, Export3DError):
            say({"error": _one_line(str(problem)), "errno": getattr(problem.__cause__, "errno", None)})
        else:
            import traceback

            say({"bug": traceback.format_exc()[-4000:]})


def _one_line(sentence: str) -> str:
    """A sentence that may quote the file, without line breaks and of at most `LONGEST_SENTENCE` characters."""
    line = " ".join("".join(each if each.isprintable() else " " for each in sentence).split())
    return line if len(line) <= LONGEST_SENTENCE else f"{line[:LONGEST_SENTENCE]}…"


def _out_of_memory(problem: BaseException | None) -> bool:
    """Whether memory was the cause of a failure, or of its cause."""
    while problem is not None:
        if isinstance(problem, MemoryError) or getattr(problem, "errno", None) == errno.ENOMEM:
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _thumbnails(path: Path, info: VideoInfo) -> list[Pixels]:
    """Up to `THUMBNAILS` frames at evenly spaced times: by seeking, or by reading all where that is not possible."""
    from itertools import islice

    from export3d.video.animated_image import is_animated
    from export3d.video.reading import opened_frames, read_frames

    seen: list[Pixels] = []
    if not is_animated(path):
        seen = _by_seeking(path, info.duration_s)
    if len(seen) < THUMBNAILS:
        with opened_frames(path) as film:
            first = next(film.timed).duration
        rate = THUMBNAILS / max(info.duration_s, float(first))
        seen = [_thumbnail(frame) for frame in islice(read_frames(path, rate), THUMBNAILS)]
    return seen


def _by_seeking(path: Path, duration_s: float) -> list[Pixels]:
    """Thumbnails at evenly spaced times; fewer where the file cannot be positioned."""
    import time
    from contextlib import suppress
    from fractions import Fraction

    import av

    from export3d.video.reading import opened
    from export3d.video.view import View

    seen: list[Pixels] = []
    view: View | None = None
    with opened(path) as (container, stream, _), suppress(av.FFmpegError, OSError):
        tick = Fraction(stream.time_base or 0)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        if not tick or stream.start_time is None:
            return []
        for number in range(THUMBNAILS):
            wanted = stream.start_time + round(number / THUMBNAILS * duration_s / tick)
            container.seek(wanted, stream=stream)
            shown, end = None, time.monotonic() + 0.25
            for frame in container.decode(stream):
                shown = frame
                if frame.pts is None or frame.pts >= wanted or time.monotonic() > end:
                    break
            if shown is None:
                return []
            view = view or View(shown, aspect, 2 * max(THUMBNAIL_SIZE))
            seen.append(_thumbnail(view.picture(shown)))
    return seen


def _thumbnail(frame: Pixels) -> Pixels:
    import numpy as np
    from PIL import Image

    small = Image.fromarray(frame)
    small.thumbnail(THUMBNAIL_SIZE)
    return np.asarray(small)


def _write_filmstrip(path: Path, thumbnails: list[Pixels]) -> None:
    import io

    import numpy as np
    from PIL import Image

    from export3d import files

    data = io.BytesIO()
    Image.fromarray(np.concatenate(thumbnails, axis=1)).save(data, "WEBP", quality=75, method=2)
    files.write_bytes(path, data.getvalue())


if __name__ == "__main__":
    main(sys.argv[1])
