"""What the engine's child process does: it encodes portraits, shows heads, and runs jobs.

All of it is `Animator` and `animate.export`. Portraits, planes and views are kept, so that a head that is dragged costs
rendering alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import Animator, Source
from export3d.animate.drive import BUNDLED, FPS, Driving, bundled_motion, bundled_portrait, motion_path, read_motion
from export3d.animate.export import write_animation, write_still, write_video
from export3d.animate.orbit import round_frames
from export3d.camera import turned
from export3d.consent.register import Register, today
from export3d.errors import ConfigError, ConsentRefused
from export3d.expression.sliders import natural_range
from export3d.files import kind_at
from export3d.image import fitted, read_image
from export3d.memory import give_back_memory
from export3d.model import Planes
from export3d.motion.arkit import columns_of
from export3d.motion.motion import Motion
from export3d.photo.options import NATIVE, SMALLEST, Frame, Size
from export3d.policy import current_policy
from export3d.provenance.statement import digest_of_file
from export3d.provenance.writing import Marks, encoded_jpeg
from export3d.studio.requests import LONGEST_S
from export3d.workers.messages import caught_warnings

Picture = NDArray[np.uint8]
Message = Mapping[str, Any]
Between = Callable[[], None]
"""Called between two frames of a job; raises what ends it."""
Tell = Callable[..., None]
"""Called with stage, frames done, frames in all, and a preview as JPEG or None."""

VIDEO, POSTER, SHEET, MOTION, STILL = "video.mp4", "poster.png", "sheet.png", "motion.motion", "still.png"
"""Names of the files that jobs write."""

HEAD = (
    {"name": "yaw", "min": -30, "max": 30, "unit": "deg"},
    {"name": "pitch", "min": -20, "max": 20, "unit": "deg"},
    {"name": "roll", "min": -20, "max": 20, "unit": "deg"},
)
GROUPS: dict[str, tuple[str, ...]] = {
    "jaw": ("jawOpen", "jawLeft", "jawRight", "jawForward"),
    "lips": (
        "mouthSmile", "mouthFrown", "mouthPucker", "mouthFunnel", "mouthPress", "mouthUpperUp", "mouthLowerDown",
        "mouthStretch", "mouthRollUpper", "mouthRollLower", "mouthLeft", "mouthRight",
    ),
    "brows": ("browInnerUp", "browOuterUp", "browDown"),
    "lids": ("eyeBlinkLeft", "eyeBlinkRight", "eyeSquint", "eyeWide"),
    "gaze": ("eyeLookUp", "eyeLookDown", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookInRight", "eyeLookOutRight"),
    "cheeks": ("cheekPuff", "cheekSquint", "noseSneer"),
}  # fmt: skip
"""ARKit scores that the page shows as sliders; a name without its side sets both sides."""
TITLES = (
    "Eyelids and gaze down", "Smile", "Brows up", "Mouth open", "Lips apart",
    "Gaze aside", "Brows, slight", "Upper lip", "Inner brows, slight", "Lips, barely",
)  # fmt: skip
"""What the directions of the packaged weights move (docs/sliders.md)."""
MOTION_TITLES = {"speech": "Speech", "expressions": "Expressions", "turns": "Head turns"}

FAST_RAYS = 32
"""Rays along each side while a head is dragged, of 64."""
_SHARP = 512
"""Pixels across the face crop of a head at rest, where the photo has as many."""
_QUALITY = 90
_PREVIEW_HEIGHT, _PREVIEW_S = 360, 0.5
_SMALL_VIEW = 1 << 20
"""Pixels of a frame up to which what makes it is kept after a job: that of a head is, that of a whole photo is not."""
_SOURCES, _SOURCE_BYTES = 8, 100_000_000
"""Portraits that are kept, and bytes of their photos; the last one is always kept."""
_PLANES = 8
_ONE = 1
"""Frames of a job that are rendered together: a head waits for one frame, not for several."""

K = TypeVar("K")
V = TypeVar("V")


class _Kept(Generic[K, V]):
    """The values that were used last, for several threads; two may make the same value at a time."""

    def __init__(self, most: int, most_bytes: float = float("inf"), size: Callable[[V], int] = lambda value: 0) -> None:
        self._values: OrderedDict[K, V] = OrderedDict()
        self._most, self._most_bytes, self._size = most, most_bytes, size
        self._lock = threading.Lock()

    def find(self, key: K) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def get(self, key: K, make: Callable[[], V]) -> V:
        found = self.find(key)
        if found is None:
            found = make()
            with self._lock:
                self._values[key] = found
                self._values.move_to_end(key)
        return found

    def surplus(self) -> list[V]:
        """Removes the oldest values beyond the limits, and returns them."""
        out = []
        with self._lock:
            while len(self._values) > 1 and (
                len(self._values) > self._most or sum(map(self._size, self._values.values())) > self._most_bytes
            ):
                out.append(self._values.popitem(last=False)[1])
        return out

    def remove(self, matches: Callable[[K], bool]) -> list[V]:
        with self._lock:
            return [self._values.pop(key) for key in [key for key in self._values if matches(key)]]


@dataclass(frozen=True)
class _Portrait:
    """An encoded photo: a source for each face that was asked for, and what was warned of."""

    sources: list[Source]
    warnings: tuple[str, ...]


class Work:
    """Portraits, and what is made of them; several threads may ask at a time.

    Args:
        settings: see `engine_process.main`.
        threads: of PyTorch; None: half the cores.

    Attributes:
        info: what the server tells the page about the engine: `size`, pixels of a head; `engine`; `moves_pixels`;
            `controls`, the sliders; `motions`, those in the package.

    Raises:
        Export3DError: weights, device or engine cannot be used.
    """

    def __init__(self, settings: Message, threads: int | None = None) -> None:
        torch.set_num_threads(_threads() if threads is None else threads)
        self.animator = Animator.from_pretrained(
            settings["weights"], settings["device"], settings["pure"], settings["engine"]
        )
        self._sources: _Kept[tuple[Any, ...], _Portrait] = _Kept(
            _SOURCES, _SOURCE_BYTES, lambda portrait: portrait.sources[0].photo.nbytes
        )
        self._encoding = threading.Lock()
        self._planes: _Kept[tuple[Any, ...], tuple[Source, Planes]] = _Kept(_PLANES)
        """With the source, whose number would otherwise become that of another one."""
        self._consent: tuple[Any, ...] | None = None
        self.info = _info(self.animator, packaged=settings["weights"] is None)
        self._warm_up()

    def _warm_up(self) -> None:
        """Compile what heads need, with the portrait that the page shows first."""
        bundled = {"id": "bundled", "path": bundled_portrait(), "digest": None, "name": "the bundled portrait"}
        with suppress(ConsentRefused):  # then the first portrait that is allowed compiles
            for quality in ("fast", "full"):
                self.head({"portrait": bundled, "quality": quality})
        give_back_memory()

    def encode(self, message: Message) -> dict[str, Any]:
        """Encode a portrait's face.

        Args:
            message: `portrait`: its `id`, the `path` of an image, the `digest` of the file that the user sent, and the
                `name` that the user knows; `face`, see `Animator.encode`.

        Returns:
            `width` and `height` of the photo; `faces`, `{"number", "box": [x, y, w, h]}` from left to right, `box` the
            square that is animated; `values`, the tracked scores by the names of the sliders; `warnings`, the sentences
            that commands print about this photo, with the user's name of it.
        """
        encoded = self._portrait(message)
        source = encoded.sources[0]
        boxes = sorted((source.crop, *source.others), key=lambda box: box.centre[0])
        faces = [
            {"number": number, "box": [round(float(v), 1) for v in (*box.corner, box.side, box.side)]}
            for number, box in enumerate(boxes, 1)
        ]
        height, width = source.photo.shape[:2]
        path, name = str(message["portrait"]["path"]), str(message["portrait"]["name"])
        return {
            "width": width,
            "height": height,
            "faces": faces,
            "values": self._values(source),
            "warnings": [warning.replace(path, name) for warning in encoded.warnings],
        }

    def head(self, message: Message) -> dict[str, Any]:
        """One marked image of a head.

        Args:
            message: `portrait` and `face`, see `encode`; `yaw`, `pitch`, `roll`, degrees; `scores` and `basis`, see
                `Animator.edit`; `quality`, "fast" (fewer rays, the model's size) or "full"; `frame`, `background`, see
                `Animator.animate`; `label`, False for none. All but the portrait may be left out.

        Returns:
            `image`, the bytes of a JPEG; `width`, `height`; `ms`, the time it took; `values`, see `encode`.
        """
        begun = time.perf_counter()
        face = message.get("face", "largest")
        source = self._encoded({**message, "face": "largest" if face == "all" else face})[0]
        scores = dict(message.get("scores") or {})
        basis = {int(number): float(amount) for number, amount in (message.get("basis") or {}).items()}
        turn = np.array([message.get(name, 0.0) for name in ("yaw", "pitch", "roll")], dtype=np.float64)
        if not np.isfinite(turn).all():
            raise ConfigError("yaw, pitch and roll must be finite numbers of degrees")
        key = (id(source), tuple(sorted(scores.items())), tuple(sorted(basis.items())))
        _, planes = self._planes.get(key, lambda: (source, self.animator.edited_planes(source, scores, basis)))
        self._planes.surplus()
        fast = message.get("quality") == "fast"
        frame: Frame = message.get("frame") or "crop"
        background = message.get("background") or "keep"
        picture = self.animator.render_planes(
            source,
            planes,
            turned(source.camera, turn),
            size=self._head_size(source, fast, frame, background),
            frame=frame,
            background=background,
            rays=FAST_RAYS if fast else None,
        )
        image = encoded_jpeg(picture, _QUALITY, self._marks(message, source))
        height, width = picture.shape[:2]
        took = round(1000.0 * (time.perf_counter() - begun), 1)
        return {"image": image, "width": width, "height": height, "ms": took, "values": self._values(source)}

    def job(self, message: Message, between: Between, tell: Tell) -> dict[str, Any]:
        """Run a verb and write its files, all or none.

        Args:
            message: `verb`, "animate", "orbit" or "edit"; `portrait`, `face` ("all" too); the fields of the verb, named
                as the arguments of `Animator`; `frame`, `size` and `background`, None as in `Animator.framing`;
                `label`, False for none; `out`, the folder. For `animate` and `orbit` also `motion`, a motion file or
                the name of a bundled one, and `motion_digest`, the SHA-256 of what the user sent. For `animate` also
                `start` and `seconds` of that motion, `sound`, a file, `faces`, PNG files (see `Driving`), and `sheet`,
                whether there is one.
            between: called between two frames.
            tell: see `Tell`.

        Returns:
            `files`, the names of those in the folder; `warnings`, the sentences that the command prints.
        """
        verbs = {"animate": self._animate, "orbit": self._orbit, "edit": self._edit}
        out = Path(message["out"])
        tell("preparing", 0, 0)
        portrait = self._portrait(message)
        sources = portrait.sources
        between()
        try:
            with caught_warnings() as warnings:

                def apart() -> None:
                    """`between`, whose requests' warnings are not those of the job."""
                    own = len(warnings)
                    try:
                        between()
                    finally:
                        del warnings[own:]

                verbs[message["verb"]](message, sources, out, apart, tell)
            names = [name for name in (VIDEO, POSTER, SHEET, MOTION, STILL) if kind_at(out / name)]
        except BaseException:
            for name in (VIDEO, POSTER, SHEET, MOTION, STILL):
                (out / name).unlink(missing_ok=True)
            raise
        finally:
            for source in sources:
                self.animator.forget(source, above=_SMALL_VIEW)
            give_back_memory()
        return {"files": names, "warnings": list(dict.fromkeys([*portrait.warnings, *warnings]))}

    def forget(self, portrait: str) -> None:
        """Let go of a portrait that the user has removed."""
        self._let_go(self._sources.remove(lambda key: key[0] == portrait))

    def _encoded(self, message: Message) -> list[Source]:
        """The sources of a portrait, one unless all faces are asked for; kept."""
        return self._portrait(message).sources

    def _portrait(self, message: Message) -> _Portrait:
        portrait, face = message["portrait"], message.get("face", "largest")
        consent = _consent()
        if consent != self._consent:  # of portraits that are kept it may have ended
            self._let_go(self._sources.remove(lambda key: True))
            self._consent = consent

        def encoded() -> _Portrait:
            with caught_warnings() as warnings:
                made = (
                    self.animator.encode_all(portrait["path"])
                    if face == "all"
                    else [self.animator.encode(portrait["path"], face)]
                )
            give_back_memory()  # of decoding and tracking
            sent = portrait.get("digest")
            sources = made if sent is None else [replace(one, digest=sent) for one in made]
            return _Portrait(sources, tuple(warnings))

        key = portrait["id"], face, consent  # another thread may just encode as it was allowed before
        found = self._sources.find(key)
        if found is None:
            with self._encoding:  # there is one tracker
                found = self._sources.get(key, encoded)
            for old in self._sources.surplus():
                self._let_go([old])
        return found

    def _let_go(self, portraits: Iterable[_Portrait]) -> None:
        gone = [source for portrait in portraits for source in portrait.sources]
        numbers = set(map(id, gone))
        self._planes.remove(lambda key: key[0] in numbers)
        for source in gone:
            self.animator.forget(source)

    def _head_size(self, source: Source, fast: bool, frame: Frame, background: str) -> Size | None:
        """Pixels across the crop; None: the model's own image, which takes the least time.

        A number shows exactly the crop, as the model's own image does; "native" would move it to whole pixels.
        """
        size = min(int(source.crop.side) // 2 * 2, self.animator.size if fast else _SHARP)
        if (
            frame == "crop" and background == "keep" and size <= self.animator.size
        ) or not self.animator.model.moves_pixels:
            return None
        return size if size >= SMALLEST else NATIVE

    def _values(self, source: Source) -> dict[str, float]:
        if self.animator.space != "arkit52":
            return {}
        names = [name for group in GROUPS.values() for name in group]
        return {name: round(float(source.expression[columns_of(name)].mean()), 3) for name in names}

    def _marks(self, message: Message, source: Source | list[Source], motion: str | Path | None = None) -> Marks:
        statement = self.animator.statement(source)
        if motion is not None:
            statement = replace(statement, motion=message.get("motion_digest") or digest_of_file(motion_path(motion)))
        return Marks(statement, label=message.get("label") is not False)

    def _framing(self, message: Message) -> dict[str, Any]:
        return self.animator.framing(
            message.get("frame"),
            message.get("size"),
            message.get("background") or "keep",
            message.get("relative", True),
        )

    def _animate(self, message: Message, sources: list[Source], out: Path, between: Between, tell: Tell) -> None:
        seconds = min(message.get("seconds") or LONGEST_S, LONGEST_S)
        driving = read_motion(motion_path(message["motion"]), message.get("start") or 0.0, seconds)
        faces = [read_image(path) for path in message.get("faces") or ()]
        driving = Driving(driving.motion, sound=message.get("sound"), faces=faces)
        if message.get("scores"):
            driving.motion.require_space("arkit52")
        marks = self._marks(message, sources, message["motion"])
        watch = _Watch(len(driving.motion), marks, between, tell)
        write_animation(
            self.animator,
            _one_or_all(sources),
            driving,
            out / VIDEO,
            out / SHEET if message.get("sheet", True) else None,
            relative=message.get("relative", True),
            batch=_ONE,
            head_motion=message.get("head_motion", "steady"),
            scores=message.get("scores") or None,
            marks=marks,
            watch=watch,
            **self._framing(message),
        )
        between()
        watch.write_poster(out / POSTER)
        driving.motion.save(out / MOTION)

    def _orbit(self, message: Message, sources: list[Source], out: Path, between: Between, tell: Tell) -> None:
        chosen, seconds = message.get("motion"), message.get("seconds", 4.0)
        motion = None if chosen is None else read_motion(motion_path(chosen), seconds=LONGEST_S).motion
        marks = self._marks(message, sources, chosen)
        watch = _Watch(round_frames(seconds) if motion is None else len(motion), marks, between, tell)
        views = self.animator.orbit(
            _one_or_all(sources),
            motion,
            path=message.get("path", "circle"),
            yaw_deg=message.get("yaw", 30.0),
            pitch_deg=message.get("pitch", 15.0),
            seconds=seconds,
            scores=message.get("scores") or None,
            batch=_ONE,
            **self._framing(message),
        )
        write_video(out / VIDEO, watch(views), FPS, marks=marks)
        between()
        watch.write_poster(out / POSTER)

    def _edit(self, message: Message, sources: list[Source], out: Path, between: Between, tell: Tell) -> None:
        tell("rendering", 0, 1)
        made = self.animator.edit(
            _one_or_all(sources),
            message.get("scores") or None,
            {int(number): amount for number, amount in (message.get("basis") or {}).items()} or None,
            yaw_deg=message.get("yaw", 0.0),
            pitch_deg=message.get("pitch", 0.0),
            roll_deg=message.get("roll", 0.0),
            **self._framing(message),
        )
        between()
        marks = self._marks(message, sources)
        tell("writing", 1, 1, _preview(made, marks))
        write_still(out / STILL, made, marks)


class _Watch:
    """Wraps a job's frames: tells progress, lets other requests in between, and keeps the first frame."""

    def __init__(self, total: int, marks: Marks, between: Between, tell: Tell) -> None:
        self._total, self._marks, self._between, self._tell = total, marks, between, tell
        self._first: Picture | None = None

    def __call__(self, frames: Iterable[Picture]) -> Iterator[Picture]:
        told = time.monotonic() - _PREVIEW_S
        self._tell("rendering", 0, self._total)
        for number, frame in enumerate(frames, 1):
            if self._first is None:
                self._first = frame
            yield frame
            if time.monotonic() - told >= _PREVIEW_S:
                told = time.monotonic()
                self._tell("rendering", number, self._total, _preview(frame, self._marks))
            self._between()
        self._tell("writing", self._total, self._total)

    def write_poster(self, path: Path) -> None:
        """The first frame: a player shows it until the video begins."""
        assert self._first is not None
        write_still(path, self._first, self._marks)


def _preview(frame: Picture, marks: Marks) -> bytes:
    return encoded_jpeg(fitted(frame, _PREVIEW_HEIGHT), _QUALITY, marks)


def _threads() -> int:
    """Half the cores: the browser, the server and the video encoder use the others.

    On two busy cores a head took 116 ms with one thread and 1,316 ms with two: threads wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // 2, 1)


def _consent() -> tuple[Any, ...]:
    """What changes whenever another portrait may be animated, or one no longer."""
    return ("register", Register().state, today()) if current_policy().consent == "register" else ("open",)


def _one_or_all(sources: list[Source]) -> Source | list[Source]:
    return sources[0] if len(sources) == 1 else sources


def _info(animator: Animator, packaged: bool) -> dict[str, Any]:
    groups = GROUPS if animator.space == "arkit52" else {}
    basis = []
    if animator.model.expression.basis is not None:
        for number, (low, high) in enumerate(natural_range(animator.model.expression).tolist(), 1):
            reach = round(0.75 * (high - low), 2)  # from the middle of the range as far beyond it as half of it
            title = TITLES[number - 1] if packaged else f"Direction {number}"
            basis.append({"number": number, "low": -reach, "high": reach, "title": title})
    motions = [
        {"name": name, "seconds": round(Motion.load(bundled_motion(name)).duration_s, 2), "title": MOTION_TITLES[name]}
        for name in BUNDLED
    ]
    return {
        "size": animator.size,
        "engine": animator.engine.description,
        "moves_pixels": animator.model.moves_pixels,
        "controls": {
            "head": [dict(one) for one in HEAD],
            "groups": [{"name": name, "scores": list(scores)} for name, scores in groups.items()],
            "basis": basis,
        },
        "motions": motions,
    }
