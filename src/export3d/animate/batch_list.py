"""Reads a list of animations, a CSV with a row for each, and checks all of it before any work starts.

The columns are `portrait`, `motion` or `driving`, `output`, and options of `export3d animate` by their names. An empty
cell takes what is given for all rows, and otherwise the option's default.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal, get_args

from export3d.animate.drive import BUNDLED, FPS, bundled_motion
from export3d.animate.export import STILL_SUFFIXES, VIDEO_SUFFIXES
from export3d.animate.head_motion import HeadMotion, check_head_motion
from export3d.errors import ConfigError, Export3DError, InputError
from export3d.face.tracker import face_choice
from export3d.files import check_input
from export3d.locations import Place, as_place, file_size, inside, kind_of, read, read_part
from export3d.motion.arkit import ARKIT52, with_scores
from export3d.photo.options import Frame, check_background, parse_size
from export3d.provenance import signing
from export3d.provenance.statement import Statement, digest_of_file
from export3d.provenance.writing import NO_MARKS, Marks
from export3d.video.reading import frame_range

VERSION = 1
"""Part of every fingerprint: raising it causes every row to be made again."""
INPUTS = ("portrait", "driving", "motion")
OPTIONS = (
    "face", "frame", "size", "background", "driving_face", "relative", "absolute", "start", "seconds", "head_motion",
    "set", "sheet", "label", "no_mark",
)  # fmt: skip
"""Options that differ between rows."""
_SHARED = ("weights", "pure", "device", "engine", "batch_size")
_YES, _NO = ("yes", "true", "1", "on"), ("no", "false", "0", "off")
_PROBE_BYTES = 1 << 17
_AT_ONCE = 16
"""Files that are looked at together: most of the time passes in waiting for a server."""


@dataclass(frozen=True)
class Row:
    """One animation.

    Attributes:
        number: of the row, as a spreadsheet counts; the header is row 1.
        portrait: image file.
        mover: driving video or motion file; a relative path is the name of a bundled motion.
        moves: what the mover was given as.
        output, sheet: the video and the contact sheet, relative to the folder for the results.
        fingerprint: of the row, the contents of its inputs, the weights and the version.
        face, frame, size, background, driving_face, relative, start, seconds, head_motion, scores, label, no_mark: the
            options of `export3d animate`; a background that is an image is a place.
    """

    number: int
    portrait: Place
    mover: Place
    moves: Literal["driving", "motion"]
    output: str
    sheet: str | None
    face: str
    frame: Frame | None
    size: str | None
    background: Place
    driving_face: str
    relative: bool
    start: float
    seconds: float | None
    head_motion: HeadMotion
    scores: dict[str, float]
    label: bool
    no_mark: bool
    fingerprint: str = ""

    @property
    def outputs(self) -> list[str]:
        """What is written, relative to the folder for the results."""
        return [self.output] if self.sheet is None else [self.output, self.sheet]

    def inputs(self) -> Iterator[tuple[Place, str]]:
        """The files that are read, and what each is."""
        yield self.portrait, "a portrait image"
        yield self.mover, "a video of a face" if self.moves == "driving" else "a motion file"
        if self.has_image:
            yield self.background, "an image"

    @property
    def has_image(self) -> bool:
        """Whether the background is an image file."""
        return isinstance(self.background, Path) or "://" in self.background

    def marks(self, statement: Statement) -> Marks:
        """The marks of the outputs, before the policy has its say."""
        return NO_MARKS if self.no_mark else Marks(statement, self.label)


def read_rows(listed: Place, shared: Mapping[str, str], facts: Any = None) -> list[Row]:
    """The rows of a list, in its order.

    Args:
        listed: the CSV, whose relative inputs are beside it.
        shared: cells for all rows, whose relative inputs are in the current folder.
        facts: what else the outputs depend on, for the fingerprints.

    Raises:
        InputError: the list cannot be read, or a row cannot be used: it has a bad value, a missing input, an output
            that leads elsewhere or that another row has, or marks that the policy does not allow.
        ConfigError: the certificate that signs the marks cannot be used.
    """
    faults: dict[int, str] = {}
    rows: list[Row] = []
    for number, own in _table(listed):
        try:
            rows.append(_row(number, _Cells(own, shared, listed)))
            rows[-1].marks(Statement()).agreed()
        except Export3DError as error:
            faults[number] = str(error)
    if any(not row.no_mark for row in rows) and signing.available():
        signing.check()
    kinds = {place: kind for row in rows for place, kind in row.inputs()}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        identities = dict(zip(kinds, pool.map(_identity, *zip(*kinds.items()))))
    taken: dict[str, tuple[str, int]] = {}
    for row in rows:
        for place, _ in row.inputs():
            if isinstance(problem := identities[place], Export3DError):
                faults.setdefault(row.number, str(problem))
        for name in row.outputs:
            other, number = taken.setdefault(_folded(name), (name, row.number))
            if number != row.number:
                like = "" if other == name else f", written {other}, and some disks take both for one"
                faults.setdefault(row.number, f"{name} is an output of row {number} too{like}; choose another name")
    for row in rows:
        for name in row.outputs:
            for folder in map(str, PurePosixPath(name).parents):
                if there := taken.get(_folded(folder)):
                    sentence = f"{name} needs a folder {folder}, which is an output of row {there[1]}"
                    faults.setdefault(row.number, f"{sentence}; choose another name")
    if faults:
        first = min(faults)
        others = ", ".join(str(number) for number in sorted(faults)[1:6]) + (", …" if len(faults) > 6 else "")
        more = f"; row{'s' if len(faults) > 2 else ''} {others} cannot be used either" if len(faults) > 1 else ""
        raise InputError(f"{listed} row {first}: {faults[first]}{more}")
    return [_with_fingerprint(row, identities, facts) for row in rows]


def _table(listed: Place) -> list[tuple[int, dict[str, str]]]:
    """Number and cells of each row that is not empty."""
    if isinstance(listed, Path):
        check_input(listed, InputError, "a CSV file with the columns portrait, motion or driving, and output")
    data = read(listed)
    if data is None:
        raise InputError(f"{listed} does not exist; check the address")
    lines: list[list[str]] = []
    try:
        lines.extend(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the list {listed} ({error}); give a CSV file in UTF-8") from error
    except csv.Error as error:
        problem = "a quote is not closed" if "end of data" in str(error) else error
        raise InputError(f"cannot read the list {listed} (row {len(lines) + 1}: {problem}); correct the row") from error
    names = [name.strip().replace("-", "_") for name in lines[0]] if lines else []
    if len(names) == 1 and ";" in names[0]:
        raise InputError(f"{listed} has semicolons between its columns; save it with commas")
    while names and not names[-1]:  # a spreadsheet's empty columns
        names.pop()
    for name in names:
        if not name:
            raise InputError(f"{listed} has a column without a name; name it or leave it out")
        if name in _SHARED:
            raise InputError(f"{listed} has a column {name}, which is the same for all rows; give it as an option")
        if name not in (*INPUTS, "output", *OPTIONS):
            known = ", ".join((*INPUTS, "output", *OPTIONS))
            raise InputError(f"{listed} has a column {name!r}, which is not known; the columns are {known}")
        if names.count(name) > 1:
            raise InputError(f"{listed} has the column {name} twice; leave one out")
    table = []
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip() for cell in line]
        if len(cells) > len(names) and any(cells[len(names) :]):
            raise InputError(f"{listed} row {number} has {len(cells)} cells and the header {len(names)}; quote commas")
        if any(cells):
            table.append((number, {name: cell for name, cell in zip(names, cells) if cell}))
    if not table:
        raise InputError(f"{listed} has no rows; give each animation a row with portrait, motion or driving, output")
    return table


class _Cells:
    """The cells of a row, its own before those of all rows."""

    def __init__(self, own: Mapping[str, str], shared: Mapping[str, str], listed: Place) -> None:
        self.own, self._shared, self._listed = own, shared, listed

    def text(self, name: str, default: str = "") -> str:
        return self.own.get(name) or self._shared.get(name) or default

    def place(self, name: str) -> Place:
        text = self.text(name)
        if "://" in text:
            return as_place(text)
        if name in self.own and isinstance(self._listed, str) and not os.path.isabs(text):
            return inside(self._listed.rpartition("/")[0], text)
        folder = self._listed.parent if name in self.own and isinstance(self._listed, Path) else ""
        return Path(os.path.abspath(os.path.join(folder, text)))

    def one_of(self, *names: str) -> str:
        """Which of several cells that exclude each other is there; empty: none."""
        for cells in (self.own, self._shared):
            given = [name for name in names if cells.get(name)]
            if len(given) > 1:
                raise ConfigError(f"{' and '.join(given)} exclude each other; leave one out")
            if given:
                return given[0]
        return ""

    def yes(self, name: str) -> bool:
        text = self.text(name, "no").lower()
        if text not in (*_YES, *_NO):
            raise ConfigError(f"{name} is {text!r}; give yes or no")
        return text in _YES

    def number(self, name: str) -> float | None:
        text = self.text(name)
        try:
            return float(text) if text else None
        except ValueError:
            raise ConfigError(f"{name} is {text!r}; give a number of seconds") from None


def _row(number: int, cells: _Cells) -> Row:
    """One row, checked in itself."""
    if not cells.text("portrait"):
        raise ConfigError("the portrait is missing; give an image with a face")
    moves: Any = cells.one_of("driving", "motion")
    if not moves:
        raise ConfigError("the driving motion is missing; give a driving video or a motion")
    start, seconds = cells.number("start") or 0.0, cells.number("seconds")
    frame_range(start, seconds, FPS)
    way = cells.one_of("relative", "absolute")
    relative = not way or cells.yes(way) == (way == "relative")
    head_motion: Any = cells.text("head_motion", "steady")
    check_head_motion(head_motion)
    if not relative and head_motion != "steady":
        raise ConfigError("absolute motion takes over the driver's framing; leave out head_motion")
    frame: Any = cells.text("frame") or None
    if frame not in (None, *get_args(Frame)):
        raise ConfigError(f"the frame {frame!r} is not possible; give {' or '.join(get_args(Frame))}")
    if frame == "photo" and not relative:
        raise ConfigError("absolute motion takes over the driver's framing, which only a crop can show; use frame crop")
    size = cells.text("size") or None
    if size is not None:
        parse_size(size)
    face = cells.text("face", "largest")
    if face != "all":
        face_choice(face)
    driving_face = cells.text("driving_face", "largest")
    face_choice(driving_face, one=True)
    if moves == "motion":
        if cells.own.get("driving_face", "largest") != "largest":
            raise ConfigError("driving_face chooses a face of a driving video, and a motion holds one; leave it out")
        driving_face = "largest"
    label, no_mark = cells.yes("label"), cells.yes("no_mark")
    if label and no_mark:
        raise ConfigError("label and no_mark exclude each other; leave one out")
    return Row(
        number,
        cells.place("portrait"),
        _mover(cells, moves),
        moves,
        _output(cells.text("output"), VIDEO_SUFFIXES),
        _output(cells.text("sheet"), STILL_SUFFIXES) if cells.text("sheet") else None,
        face,
        frame,
        size,
        _background(cells),
        driving_face,
        relative,
        start,
        seconds,
        head_motion,
        _scores(cells.text("set")),
        label,
        no_mark,
    )


def _mover(cells: _Cells, moves: str) -> Place:
    place, text = cells.place(moves), cells.text(moves)
    bundled = moves == "motion" and text in BUNDLED and kind_of(place) is None
    return Path(text) if bundled else place


def _background(cells: _Cells) -> Place:
    text = cells.text("background", "keep")
    if text in ("keep", "blur") or text.startswith("#"):
        check_background(text)
        return text
    place = cells.place("background")
    if "." not in text and kind_of(place) is None:
        check_background(text)  # refuses what is neither a word nor a file
    return place


def _output(text: str, suffixes: tuple[str, ...]) -> str:
    """A path inside the folder for the results, in its shortest form."""
    if not text:
        raise ConfigError("the output is missing; give the name of a video (.mp4)")
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ConfigError(f"the output {text!r} has a control character; choose another name")
    name = posixpath.normpath(text.replace(os.sep, "/"))
    if PurePath(text).is_absolute() or ":" in name.split("/")[0] or any(p.startswith(".") for p in name.split("/")):
        raise ConfigError(
            f"the output {text} must be a path inside the folder for the results, and no name in it may begin with a "
            "dot; choose another name"
        )
    if PurePath(name).suffix.lower() not in suffixes:
        raise ConfigError(f"the output {text} must end in {' or '.join(suffixes)}; change its name")
    return name


def _folded(name: str) -> str:
    """A key that is the same for names that a disk may take for one: letters in either case, accents joined or not."""
    return unicodedata.normalize("NFC", name).casefold()


def _scores(text: str) -> dict[str, float]:
    scores = {}
    for part in text.split():
        name, _, number = part.partition("=")
        try:
            scores[name] = float(number)
        except ValueError:
            raise ConfigError(f"{part!r} cannot be read; use NAME=VALUE, such as jawOpen=0.8 eyeBlinkLeft=1") from None
    with_scores([0.0] * len(ARKIT52), scores)
    return scores


def _identity(place: Place, kind: str) -> str | Export3DError:
    """What changes when the content of a file does: its digest; of one at a URL, that of its size, begin and end."""
    try:
        if isinstance(place, Path):
            path = place if place.is_absolute() else bundled_motion(str(place))
            return digest_of_file(check_input(path, InputError, kind))
        size = file_size(place)
        begin, end = (read_part(place, at, _PROBE_BYTES) for at in (0, max(0, size - _PROBE_BYTES)))
        return sha256(str(size).encode() + begin + end).hexdigest()
    except Export3DError as error:
        return error


def _with_fingerprint(row: Row, identities: Mapping[Place, str | Export3DError], facts: Any) -> Row:
    told = asdict(row) | {"number": 0, "portrait": "", "mover": "", "background": str(row.background)}
    told |= {f"content {name}": identities[place] for (place, _), name in zip(row.inputs(), ("0", "1", "background"))}
    if row.has_image:
        told["background"] = ""
    agreed = row.marks(Statement()).agreed()
    text = json.dumps([VERSION, facts, told, agreed.wanted, agreed.label], sort_keys=True)
    return replace(row, fingerprint=sha256(text.encode()).hexdigest()[:32])
