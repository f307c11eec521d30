"""Shards: the format that preparation writes and training reads.

A split is a folder of tar files in the WebDataset layout and one `index.json` that names them. A record is a clip or a
still portrait, stored as three adjacent members of one tar:

    KEY.json                provenance: source file, person, split, terms, fps, crop, reprojection, tool version
    KEY.track.safetensors   expression (T, E) f32, camera (T, 25) f32, landmarks (T, 478, 2) f16, found (T,) bool, and,
                            where they are seen, shoulders (T, 5) f32
    KEY.mp4 | KEY.png       256x256 face crop, 25 fps video or one image

Only the tars named in the index belong to the split. New tars are written first (temporary name, then rename), then the
new index replaces the old one atomically, then tars that are no longer named are deleted. A process killed at any
moment therefore leaves either the old split or the new one. Reading never executes code: the files are JSON and
safetensors, and tar members are only read into memory. A split lies in a folder or at a URL (`locations`).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from export3d.camera import LABEL_SIZE
from export3d.errors import InputError, ShapeError, check_shape
from export3d.files import kind_at
from export3d.locations import Place, as_place, fetch, inside
from export3d.motion.motion import SHOULDERS, Motion, five_numbers

FORMAT = "export3d.shards"
VERSION = 1
FPS = 25.0
"""Frames per second of clips."""
INDEX_NAME = "index.json"
MAX_SHARD_BYTES = 64 * 2**20
"""Maximum size of a tar; a single larger record gets a tar of its own."""
MEDIA_SUFFIXES = ("mp4", "png")
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

_MAX_MEMBER_BYTES = 2 * 2**30
_NUMBERS = {"expression": np.float32, "camera": np.float32, "landmarks": np.float16, "shoulders": np.float32}
_UNKNOWN = np.zeros((0, SHOULDERS), np.float32)


@dataclass(frozen=True)
class Record:
    """One clip or still portrait.

    Attributes:
        key: name inside the shards: letters, digits, `_` and `-`.
        media: the bytes of an MP4 (T frames) or a PNG (one frame).
        suffix: "mp4" or "png".
        expression: (T, E) float32, in the space `info["space"]`.
        camera: (T, 25) float32 labels of the crop.
        landmarks: (T, 478, 2) float16, 0..1 across the crop (outside that range where the face leaves the crop).
        found: (T,) bool; False where the face was lost and the track is interpolated.
        info: provenance, JSON values only.
        shoulders: (T, 5) float32, see `Motion`; zeros where they are not seen, or the record was made without them.

    Raises:
        ShapeError: the shapes do not match.  InputError: an invalid key or suffix, or numbers that are not finite.
    """

    key: str
    media: bytes
    suffix: str
    expression: NDArray[np.float32]
    camera: NDArray[np.float32]
    landmarks: NDArray[np.float16]
    found: NDArray[np.bool_]
    info: dict[str, Any] = field(default_factory=dict)
    shoulders: NDArray[np.float32] = field(default_factory=lambda: _UNKNOWN)

    def __post_init__(self) -> None:
        if not KEY_PATTERN.fullmatch(self.key):
            raise InputError(f"{self.key!r} cannot name a record; use letters, digits, _ and -")
        if self.suffix not in MEDIA_SUFFIXES:
            raise InputError(f"record {self.key} is a .{self.suffix}; a record is one of {', '.join(MEDIA_SUFFIXES)}")
        object.__setattr__(self, "shoulders", five_numbers(self.shoulders, len(self.expression)))
        for name, dtype in _NUMBERS.items():
            value = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if not np.isfinite(value).all():
                raise InputError(f"record {self.key} has numbers in {name} that are not finite; prepare it again")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "found", np.ascontiguousarray(self.found, dtype=np.bool_))
        frames = len(self.expression)
        check_shape(self.expression, "T E", f"expression of {self.key}")
        check_shape(self.camera, f"{frames} {LABEL_SIZE}", f"camera of {self.key}")
        check_shape(self.landmarks, f"{frames} N 2", f"landmarks of {self.key}")
        check_shape(self.found, f"{frames}", f"found of {self.key}")
        check_shape(self.shoulders, f"{frames} {SHOULDERS}", f"shoulders of {self.key}")
        if frames == 0 or (self.suffix == "png" and frames != 1):
            raise ShapeError(f"record {self.key} has {frames} frames; a png has one and an mp4 at least one")

    @property
    def frames(self) -> int:
        """T."""
        return len(self.expression)

    @property
    def kind(self) -> str:
        """Either "video" or "image"."""
        return "image" if self.suffix == "png" else "video"

    def motion(self, space: str) -> Motion:
        """How its face moves, T frames of an expression space; raises what `Motion` does."""
        return Motion(self.expression, self.camera, FPS, space, shoulders=self.shoulders)


@dataclass(frozen=True)
class Entry:
    """One entry of the index: the location of a record, and what is known about it without opening it."""

    key: str
    shard: str
    kind: str
    frames: int
    person: str
    terms: str
    fingerprint: str
    """Identifies the source's contents and the preparation settings; if equal, the source is not prepared again."""
    file: str = ""
    """Name of the source file in the report."""
    place: str = ""
    """Identifies the path of the source, so that a changed file replaces its old records."""
    inside: Box = WHOLE
    """Left, top, right, bottom (0..1 of the crop) of the part that shows the source; the rest repeats its edge."""
    sitting: str = ""
    """Names the sitting of a portrait: portraits of one person and one sitting are training pairs."""


@dataclass(frozen=True)
class Reject:
    """A source file, or a stretch of one, that did not become a record, and the reason."""

    file: str
    split: str
    reason: str
    detail: str
    fingerprint: str = ""
    place: str = ""


@dataclass(frozen=True)
class Shard:
    """One tar of the index."""

    file: str
    records: int
    frames: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The contents of `index.json`."""

    space: str
    expression_size: int
    entries: tuple[Entry, ...] = ()
    shards: tuple[Shard, ...] = ()
    rejects: tuple[Reject, ...] = ()

    @property
    def frames(self) -> int:
        """Frames in all records."""
        return sum(entry.frames for entry in self.entries)

    def to_json(self) -> str:
        """The text of `index.json`."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "space": self.space,
            "expression_size": self.expression_size,
            "records": len(self.entries),
            "videos": sum(entry.kind == "video" for entry in self.entries),
            "images": sum(entry.kind == "image" for entry in self.entries),
            "frames": self.frames,
            "people": len({entry.person for entry in self.entries}),
        }
        lists = {
            "shards": [vars(shard) for shard in self.shards],
            "entries": [
                {name: value for name, value in vars(entry).items() if value or name != "sitting"}
                for entry in self.entries
            ],
            "rejects": [vars(reject) for reject in self.rejects],
        }
        return json.dumps({**head, **lists}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Place) -> Index:
        """Inverse of `to_json`; `where` names the file in the `InputError` for a damaged or unknown index."""
        try:
            value = json.loads(text)
            if value["format"] != FORMAT or value["version"] != VERSION:
                raise InputError(
                    f"{where} is {value['format']} version {value['version']}, but this release reads {FORMAT} version "
                    f"{VERSION}; prepare the data again"
                )
            index = cls(
                str(value["space"]),
                int(value["expression_size"]),
                tuple(
                    Entry(**{**entry, "inside": parse_box(entry.get("inside", WHOLE))}) for entry in value["entries"]
                ),
                tuple(Shard(**shard) for shard in value["shards"]),
                tuple(Reject(**reject) for reject in value["rejects"]),
            )
            if not all(type(entry.frames) is int and entry.frames > 0 for entry in index.entries):
                raise ValueError("a record has no number of frames")
            if not all(type(entry.sitting) is str for entry in index.entries):
                raise ValueError("a sitting is no word")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where} is damaged ({error}); prepare the data again") from error
        for shard in index.shards:
            if Path(shard.file).name != shard.file:
                raise InputError(f"{where} names a shard outside its folder ({shard.file}); prepare the data again")
        return index


def has_split(data: Place, name: str) -> bool:
    """Whether a prepared folder has this split."""
    split = inside(data, name)
    if isinstance(split, Path):
        return kind_at(split) == "folder"
    return fetch(f"{split}/{INDEX_NAME}") is not None


def read_index(folder: Path | str) -> Index:
    """The index of one split, a folder or its URL.

    Raises:
        InputError: the folder does not exist or is not a prepared split, or its index is damaged.
        MissingExtra: see `locations.fetch`.
    """
    place = as_place(folder)
    path = inside(place, INDEX_NAME)
    text = _index_text(path)
    if text is None:
        known = [] if isinstance(place, str) else [child.parent.name for child in sorted(place.glob(f"*/{INDEX_NAME}"))]
        hint = f"name one of its splits: {', '.join(known)}" if known else "make it with: export3d prepare"
        raise InputError(f"{folder} is not a prepared split (no readable {INDEX_NAME}); {hint}")
    return Index.from_json(text, path)


def _index_text(path: Place) -> str | None:
    try:
        if isinstance(path, Path):
            return path.read_text(encoding="utf-8") if kind_at(path) == "file" else None
        data = fetch(path)
        return None if data is None else data.decode()
    except (OSError, UnicodeDecodeError):
        return None


def read_tar(path: Path | str) -> Iterator[Record]:
    """The records of one tar, a file or its URL, in order.

    Raises:
        InputError: the file is missing or damaged, or holds anything but records.
    """
    place = as_place(path)
    if isinstance(place, str):
        data = fetch(place)
        if data is None:
            raise InputError(f"cannot read shard {place} (it does not exist); prepare the data again")
        yield from _read(io.BytesIO(data), place)
        return
    try:
        with place.open("rb") as stream:
            yield from _read(stream, place)
    except OSError as error:
        raise InputError(f"cannot read shard {place} ({error}); prepare the data again") from error


def _read(stream: IO[bytes], path: Place) -> Iterator[Record]:
    """The records of a tar read from a stream; `path` names it in errors."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            members: dict[str, bytes] = {}
            current = ""
            for member in archive:
                name, _, extension = member.name.partition(".")
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or member.size > _MAX_MEMBER_BYTES:
                    raise InputError(f"{path} holds {member.name!r}, which is not part of a record; prepare it again")
                if name != current and members:
                    yield _record(path, current, members)
                    members = {}
                current = name
                members[extension] = content.read()
            if members:
                yield _record(path, current, members)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"cannot read shard {path} ({error}); prepare the data again") from error


def read_shard(folder: Place, shard: Shard) -> Iterator[Record]:
    """The records of one tar of a split, in order. A tar from a URL is held in memory and its checksum is verified.

    Raises:
        InputError: as for `read_tar` and `locations.fetch`.
    """
    path = inside(folder, shard.file)
    if isinstance(path, Path):
        yield from read_tar(path)
        return
    data = fetch(path, shard.bytes, shard.sha256)
    if data is None:
        raise InputError(f"{path} is missing, although the index names it; copy the prepared folder there again")
    yield from _read(io.BytesIO(data), path)


def read_record(folder: Place, entry: Entry) -> Record:
    """The record of one line of an index (`InputError` as `read_tar`). The last tar from a URL is kept in memory."""
    path = inside(folder, entry.shard)
    records = read_tar(path) if isinstance(path, Path) else _read(io.BytesIO(_downloaded(path)), path)
    found = next((record for record in records if record.key == entry.key), None)
    if found is None:
        raise InputError(f"{path} lacks record {entry.key}, which the index names; prepare the data again")
    return found


@lru_cache(maxsize=1)
def _downloaded(url: str) -> bytes:
    """A tar of a split; its name is made of its contents."""
    data = fetch(url)
    if data is None:
        raise InputError(f"{url} is missing, although the index names it; copy the prepared folder there again")
    return data


def read_shards(folder: Path | str, index: Index | None = None) -> Iterator[Record]:
    """All records of a split in the order of its index (`InputError` as `read_shard`)."""
    for shard in (index or read_index(folder)).shards:
        yield from read_shard(as_place(folder), shard)


def _record(path: Place, key: str, members: dict[str, bytes]) -> Record:
    suffix = next((name for name in MEDIA_SUFFIXES if name in members), None)
    if suffix is None or "json" not in members or "track.safetensors" not in members:
        raise InputError(f"record {key} in {path} is incomplete; prepare the data again")
    try:
        info = json.loads(members["json"])
        track = load_tensors(members["track.safetensors"])
        shoulders = track.get("shoulders", _UNKNOWN)
        return Record(
            key,
            members[suffix],
            suffix,
            track["expression"],
            track["camera"],
            track["landmarks"],
            track["found"],
            info,
            shoulders,
        )
    except (ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"record {key} in {path} is damaged ({error}); prepare the data again") from error


def parse_box(values: Any) -> Box:
    """Left, top, right, bottom (0..1) as a tuple of floats."""
    left, top, right, bottom = map(float, values)
    return left, top, right, bottom
