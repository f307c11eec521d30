"""The contents of a frame store: its clips, and shape and type of its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from export3d.data.shards import WHOLE, Box, Entry, parse_box
from export3d.motion.motion import SHOULDERS

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Clip:
    """One record's frames in a store: rows `start` to `start + frames`, in temporal order.

    `kind` is "video", "image" or "pseudo".
    """

    name: str
    kind: str
    person: str
    terms: str
    start: int
    frames: int
    inside: Box = WHOLE
    """Left, top, right, bottom (0..1) of the part of the images that shows the source, without repeated edges."""
    sitting: str = ""
    """Of a portrait, see `shards.Entry`."""

    @classmethod
    def of(cls, entry: Entry, start: int, kind: str | None = None) -> Clip:
        """The clip of an entry of an index, its rows from `start`; `kind` if it is another than the entry's."""
        kept = (entry.person, entry.terms, start, entry.frames, entry.inside, entry.sitting)
        return cls(entry.key, kind or entry.kind, *kept)

    @property
    def rows(self) -> slice:
        """The clip's rows of every tensor of the store."""
        return slice(self.start, self.start + self.frames)


def layout(frames: int, resolution: int, expression_size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array of a store, widest items first: safetensors packs arrays without padding."""
    return {
        "clip": ((frames,), "<i8"),
        "expression": ((frames, expression_size), "<f4"),
        "camera": ((frames, 25), "<f4"),
        "shoulders": ((frames, SHOULDERS), "<f4"),
        "landmarks": ((frames, 478, 2), "<f2"),
        "found": ((frames,), "|b1"),
        "frames": ((frames, 3, resolution, resolution), "|u1"),
    }


def clips_from_json(lines: list[dict[str, Any]]) -> tuple[Clip, ...]:
    """Clips from JSON (which has no tuples); raises `ValueError` for what no clip can be."""
    clips = tuple(Clip(**{**line, "inside": parse_box(line.get("inside", WHOLE))}) for line in lines)
    for number, clip in enumerate(clips):
        left, top, right, bottom = clip.inside
        texts, numbers = (clip.name, clip.kind, clip.person, clip.terms, clip.sitting), (clip.start, clip.frames)
        if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
            raise ValueError(f"clip {number} has a value of another type")
        if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):  # also refuses NaN
            raise ValueError(f"clip {number} lies inside no part of its images")
    return clips
