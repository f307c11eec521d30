"""Saved predictions: pictures of any method in a folder, so that one program scores them all.

    DIR/CLIP/source.png             what the method was given
    DIR/CLIP/target/00000.png …     the true frames
    DIR/CLIP/prediction/00000.png … the method's frames, one for each true one

All are 8-bit RGB PNGs, square and of one size. Stored pixels are compared as they are: nothing is resized, converted or
turned, because that would change the scores. A folder is therefore checked to its last pixel before any of it is
scored, and whatever is wrong is told at once.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import stat
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.animate.export import make_folder, write_still
from export3d.errors import BadImage, InputError, OutputError, ShapeError, check_shape
from export3d.files import reason, sniff, write_failure

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]

SOURCE, TARGET, PREDICTION = "source.png", "target", "prediction"
MIN_SIDE, MAX_SIDE = 32, 4096
"""Pixels; below 32 the networks behind LPIPS have nothing left to look at."""
MOST_PROBLEMS = 20
"""So many are written out, the others counted."""

_DRAFT = ".partial"
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
"""What systems put into folders by themselves, beside names that begin with a dot."""
_MAX_BYTES = 256 * 2**20
_MOST_NAMES = 3
_LEVEL = 1
"""Of compression."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHERS = {b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"BM": "BMP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced PNG: first column and row of each pass, and its steps."""
_COLOURS = {0: "grey", 3: "palette", 4: "grey with transparency", 6: "RGB with transparency"}


@dataclass(frozen=True)
class SavedClip:
    """One clip of a folder of predictions, checked by `read_predictions`.

    Attributes:
        name: of its folder, in Unicode's composed form (NFC).
        folder: where it lies.
        count: true frames, and as many predicted ones.
        size: R, pixels a side.
    """

    name: str
    folder: Path
    count: int
    size: int

    def source(self) -> Picture:
        """The source, uint8 (R, R, 3) RGB; `BadImage` if the file changed since it was checked."""
        return self._picture(self.folder / SOURCE)

    def frames(self, start: int, stop: int) -> tuple[Picture, Picture]:
        """Targets and predictions `start` to `stop` (as a slice has them), uint8 (N, R, R, 3) each.

        Raises:
            BadImage: a file changed since it was checked.
        """
        rows = range(*slice(start, stop).indices(self.count))
        targets, predictions = np.empty((2, len(rows), self.size, self.size, 3), np.uint8)
        for at, number in enumerate(rows):
            targets[at] = self._picture(self.folder / TARGET / frame_name(number))
            predictions[at] = self._picture(self.folder / PREDICTION / frame_name(number))
        return targets, predictions

    def _picture(self, path: Path) -> Picture:
        try:
            picture = _decode(path)
        except _Unfit as error:
            raise BadImage(f"cannot read {path}: {error}") from error
        if picture.shape != (self.size, self.size, 3):
            raise BadImage(
                f"{path} is not {self.size} x {self.size} any more; leave the folder alone while it is scored"
            )
        return picture


def frame_name(number: int) -> str:
    """File of a frame.

    >>> frame_name(7)
    '00007.png'
    """
    return f"{number:05d}.png"


def read_predictions(folder: Path | str, *, progress: Progress | None = None) -> list[SavedClip]:
    """Check a folder of predictions completely (every picture is decoded) and list its clips by name.

    Names that begin with a dot and what systems leave behind (`Thumbs.db`, `__MACOSX`, ...) are passed over, unless
    they are pictures beside frames, or clips. Symbolic links are followed.

    Args:
        folder: of one folder for each clip, see the top of this file.
        progress: called with (clips checked, clips).

    Raises:
        InputError: anything is wrong; all of it is told (the first 20 problems, then how many more).
    """
    root = Path(folder)
    clips: list[SavedClip] = []
    problems: list[str] = []
    folders = _clip_folders(root, problems)
    for done, name in enumerate(folders, 1):
        clip = _check_clip(root / name, problems)
        if clip is not None:
            clips.append(clip)
        if progress is not None:
            progress(done, len(folders))
    problems += _clashes(clips)
    if problems:
        raise InputError(_sentence(root, problems))
    return clips


class PredictionWriter:
    """Saves predictions as `read_predictions` reads them; a clip is there as a whole or not at all.

    A clip is written beside its place under a hidden name and renamed when it is complete. What a killed run left under
    such a name goes when its clip is written again. Several processes may write different clips of one folder.

    Args:
        folder: made if missing.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = make_folder(folder)

    def has(self, name: str) -> bool:
        """Whether a clip is there, complete."""
        return (self.folder / name / SOURCE).is_file()

    @contextmanager
    def clip(self, name: str, source: Picture) -> Iterator[ClipWriter]:
        """Write one clip: `with writer.clip(name, source) as clip: clip.add(targets, predictions)`.

        Args:
            name: of its folder; any language, but nothing that some file system refuses.
            source: uint8 (R, R, 3) RGB.

        Raises:
            OutputError: an unsafe name, a clip of that name is there, no frame was added, or the disk refuses; nothing
                is left.
            ShapeError: pictures of other shapes or types.
        """
        wrong = _unsafe(name)
        if wrong:
            raise OutputError(f"{_shown(name)} cannot name a folder of predictions: it {wrong}; rename the clip")
        place, draft = self.folder / name, self.folder / f".{name}{_DRAFT}"
        if os.path.lexists(place):
            raise OutputError(f"{place} is there already; choose another folder or delete it")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            for part in (TARGET, PREDICTION):
                (draft / part).mkdir(parents=True)
            writer = ClipWriter(draft, source)
            yield writer
            if writer.count == 0:
                raise OutputError(f"there are no frames to save of {name}; leave the clip out")
            draft.rename(place)
        except OSError as error:
            raise write_failure(place, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


class ClipWriter:
    """The pictures of one clip; see `PredictionWriter.clip`, which makes it.

    Attributes:
        count: frames so far.
    """

    def __init__(self, folder: Path, source: Picture) -> None:
        self.count = 0
        self._folder, self._size = folder, len(source)
        _check_picture(source, self._size, "the source")
        write_still(folder / SOURCE, source, _LEVEL)

    def add(self, targets: Picture | Sequence[Picture], predictions: Picture | Sequence[Picture]) -> None:
        """Append frames: as many predictions as targets, uint8 (N, R, R, 3) RGB, R being the source's.

        Raises:
            ShapeError: anything else.  OutputError: the disk refuses.
        """
        if len(targets) != len(predictions):
            raise ShapeError(f"{len(targets)} targets need as many predictions, got {len(predictions)}")
        for target, prediction in zip(targets, predictions):
            for picture, part in ((target, TARGET), (prediction, PREDICTION)):
                _check_picture(picture, self._size, f"a picture of the {part}")
                write_still(self._folder / part / frame_name(self.count), picture, _LEVEL)
            self.count += 1


# --- what lies in a folder --------------------------------------------------------------------------------------------


def _clip_folders(root: Path, problems: list[str]) -> list[str]:
    """Names of the folders that should be clips; `InputError` where the root itself is the wrong place."""
    try:
        if not root.exists():
            raise InputError(f"{root} does not exist; give a folder of predictions")
        if not root.is_dir():
            raise InputError(f"{root} is a file; give a folder that holds one folder for each clip")
        entries = _entries(root)
    except OSError as error:
        raise InputError(f"{root} cannot be opened ({reason(error)}); check its name and permissions") from error
    if _is_clip(entries):
        raise InputError(
            f"{root} has {SOURCE}, {TARGET} or {PREDICTION} in it, as one clip has; give a folder that holds one such "
            "folder for each clip"
        )
    visible = {name: is_folder for name, is_folder in entries.items() if not hidden(name)}
    for name in sorted(entries.keys() - visible.keys()):
        if name.startswith(".") and name.endswith(_DRAFT):
            logger.warning("%s is a clip whose writing was cut short; it is passed over", root / name)
        elif _is_png(root / name / SOURCE):
            problems.append(f"{_shown(name)}: hidden, but it looks like a clip; rename it or move it away")
    strays = [name for name, is_folder in visible.items() if not is_folder]
    if strays:
        problems.append(f"{_listed(_marked(root, strays))}: no folder of a clip; only such folders belong there")
    folders = [name for name, is_folder in visible.items() if is_folder]
    if not folders and not problems:
        raise InputError(f"{root} is empty; give a folder that holds one folder for each clip")
    return sorted(folders)


def _check_clip(folder: Path, problems: list[str]) -> SavedClip | None:
    """The clip, or None after adding what is wrong with it to `problems`."""
    before, where = len(problems), _shown(folder.name)
    entries = _visible(folder, where, problems)
    if entries is None:
        return None
    if unprintable(folder.name):
        problems.append(f"{where}: its name has characters that cannot be printed; rename it")
    if not _is_clip(entries):
        nested = [name for name in entries if _is_png(folder / name / SOURCE)]
        if nested:
            problems.append(f"{where}: no clip, but it holds some ({_some(nested)}); move them up or give this folder")
        else:
            problems.append(f"{where}: no clip; it has neither {SOURCE} nor {TARGET} nor {PREDICTION}")
        return None
    strays = entries.keys() - {SOURCE, TARGET, PREDICTION}
    if strays:
        problems.append(
            f"{_listed(_marked(folder, strays), where)}: only {SOURCE}, {TARGET} and {PREDICTION} belong there"
        )
    source = None
    if SOURCE not in entries:
        problems.append(f"{where}: it lacks {SOURCE}")
    elif entries[SOURCE]:
        problems.append(f"{where}/{SOURCE}: a folder, not a picture")
    else:
        source = _source_size(folder / SOURCE, where, problems)
    numbers: dict[str, list[int]] = {}
    size = source
    for part in (TARGET, PREDICTION):
        if part not in entries:
            problems.append(f"{where}: it lacks the folder {part}")
        elif not entries[part]:
            problems.append(f"{where}/{part}: not a folder; it must be one and hold the frames")
        else:
            inside = f"{where}/{part}"
            names = _visible(folder / part, inside, problems)
            if names is not None:
                numbers[part] = _numbers(folder / part, names, inside, problems)
                size = _check_frames(folder / part, numbers[part], size, inside, problems)
    problems += _unequal(folder, where, numbers)
    if len(problems) > before or size is None:
        return None
    return SavedClip(unicodedata.normalize("NFC", folder.name), folder, len(numbers[TARGET]), size)


def _clashes(clips: Iterable[SavedClip]) -> Iterator[str]:
    """What is wrong between clips that are good by themselves."""
    sizes: dict[int, list[str]] = {}
    places: dict[Path, str] = {}
    names: set[str] = set()
    for clip in clips:
        sizes.setdefault(clip.size, []).append(clip.name)
        first = places.setdefault(clip.folder.resolve(), clip.name)
        if first != clip.name:
            yield f"{clip.name}: a link to the same clip as {first}; it would count twice, so delete the link"
        if clip.name in names:
            yield f"{clip.name}: two folders have this name, written with different accents; rename one"
        names.add(clip.name)
    if len(sizes) > 1:
        kinds = ", ".join(f"{size} ({_some(names)})" for size, names in sorted(sizes.items()))
        yield f"clips of different sizes in pixels: {kinds}; scores depend on the size, so save all at one"


def _visible(folder: Path, where: str, problems: list[str]) -> dict[str, bool] | None:
    """The entries that count; None where the folder cannot be opened. Hidden pictures are a problem."""
    try:
        entries = _entries(folder)
    except OSError as error:
        problems.append(f"{where}: cannot be opened ({reason(error)}); check its permissions")
        return None
    passed_over = [name for name in entries if hidden(name)]
    pictures = [name for name in passed_over if not entries[name] and _is_png(folder / name)]
    if pictures:
        problems.append(f"{_listed(pictures, where)}: a hidden picture; rename it or delete it")
    return {name: is_folder for name, is_folder in entries.items() if name not in passed_over}


def _entries(folder: Path) -> dict[str, bool]:
    """Every name in a folder, sorted, and whether it is a folder (links are followed)."""
    with os.scandir(folder) as scan:
        return {entry.name: _is_folder(entry) for entry in sorted(scan, key=lambda entry: entry.name)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _is_clip(entries: dict[str, bool]) -> bool:
    return not entries.keys().isdisjoint((SOURCE, TARGET, PREDICTION))


def _is_png(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode) and sniff(path, 8) == _SIGNATURE
    except OSError:
        return False


def hidden(name: str) -> bool:
    """Whether a name is of the kind that is passed over: hidden, or what a system put there by itself.

    >>> [hidden(name) for name in (".DS_Store", "Thumbs.db", "00000.png")]
    [True, True, False]
    """
    return name.startswith(".") or name.lower() in _LITTER


# --- numbers and pixels -----------------------------------------------------------------------------------------------


def _numbers(folder: Path, entries: dict[str, bool], where: str, problems: list[str]) -> list[int]:
    """Sorted numbers of the frames in a folder; they must begin at 0 and have no gaps."""
    numbers, strays = [], []
    for name, is_folder in entries.items():
        digits = name.removesuffix(".png")
        fits = not is_folder and digits.isascii() and digits.isdigit() and frame_name(int(digits)) == name
        if fits:
            numbers.append(int(digits))
        else:
            strays.append(name)
    if strays:
        problems.append(
            f"{_listed(_marked(folder, strays), where)}: no frame; frames are called 00000.png, 00001.png and so on"
        )
    if not numbers:
        if not strays:
            problems.append(f"{where}: no frames in it; they are called 00000.png, 00001.png and so on")
        return []
    numbers.sort()
    if numbers[0] != 0:
        problems.append(f"{where}: its frames begin at {frame_name(numbers[0])}; number them from {frame_name(0)}")
    gaps = [
        frame_name(a + 1) if b == a + 2 else f"{frame_name(a + 1)} to {frame_name(b - 1)}"
        for a, b in pairwise(numbers)
        if b > a + 1
    ]
    if gaps:
        problems.append(f"{where}: {_some(gaps)} missing between its frames; save all of them, numbered without gaps")
    return numbers


def _unequal(folder: Path, where: str, numbers: dict[str, list[int]]) -> Iterator[str]:
    """Targets without predictions and the other way round, and predictions that are the targets themselves."""
    if len(numbers) < 2:
        return
    targets, predictions = numbers[TARGET], numbers[PREDICTION]
    if os.path.samefile(folder / TARGET, folder / PREDICTION):
        yield f"{where}: {PREDICTION} and {TARGET} are one and the same folder; save the method's own frames"
    elif targets and predictions and targets[-1] != predictions[-1]:
        yield (
            f"{where}: {PREDICTION} ends at {frame_name(predictions[-1])}, {TARGET} at {frame_name(targets[-1])}; "
            "each target needs its prediction"
        )


def _source_size(path: Path, where: str, problems: list[str]) -> int | None:
    """R of the source; None after adding a problem."""
    try:
        width, height = _size(_decode(path))
    except _Unfit as error:
        problems.append(f"{where}/{SOURCE}: {error}")
        return None
    if width != height:
        problems.append(f"{where}/{SOURCE}: {width} x {height}, not square; crop it to a square")
        return None
    return height


def _check_frames(folder: Path, numbers: list[int], size: int | None, where: str, problems: list[str]) -> int | None:
    """Decode every frame; the size that all must have (the first one's where none was known)."""
    wrong: dict[str, list[str]] = {}
    for name in map(frame_name, numbers):
        try:
            width, height = _size(_decode(folder / name))
        except _Unfit as error:
            wrong.setdefault(str(error), []).append(name)
            continue
        if width != height:
            wrong.setdefault(f"{width} x {height}, not square; save squares of the source's size", []).append(name)
        elif size is None:
            size = height
        elif height != size:
            text = f"{height} x {height} where the clip's first picture is {size} x {size}; save all at one size"
            wrong.setdefault(text, []).append(name)
    problems += [f"{_listed(names, where)}: {text}" for text, names in wrong.items()]
    return size


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    return int(picture.shape[1]), int(picture.shape[0])


class _Unfit(Exception):
    """Why a file is no picture that can be scored, as it follows the file's name and a colon."""


def _decode(path: Path) -> Picture:
    """The stored pixels, uint8 (H, W, 3), of an 8-bit RGB PNG that is whole; `_Unfit` for anything else."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Unfit("not a regular file")
        if status.st_size == 0:
            raise _Unfit("empty (0 bytes); copy it again")
        if status.st_size > _MAX_BYTES:
            raise _Unfit(f"larger than {_MAX_BYTES // 2**20} MB, which no picture of a clip is")
        data = path.read_bytes()
    except FileNotFoundError as error:
        gone = "a link to something that does not exist" if path.is_symlink() else "it does not exist"
        raise _Unfit(gone) from error
    except OSError as error:
        raise _Unfit(f"cannot be opened ({reason(error)}); check its permissions") from error
    _check_png(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken text chunks, which say nothing about the pixels
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                pixels: Picture = np.array(image, dtype=np.uint8)
    except Exception as error:  # a parser fails on hostile bytes in any way it likes
        raise _Unfit("damaged; copy it again or save it anew") from error
    return pixels


def _check_png(data: bytes) -> None:
    """Refuse all but whole still PNGs of 8-bit RGB, by their chunks.

    Pillow is not asked: without a word it reduces 16-bit colours to 8, passes over the checksums of pixels and leaves
    rows black that are not there.
    """
    if not data.startswith(_SIGNATURE):
        other = next((name for head, name in _OTHERS.items() if data.startswith(head)), None)
        what = "not a PNG" if other is None else f"{other} under the name of a PNG"
        raise _Unfit(f"{what}; save 8-bit RGB PNGs from the start, since other formats lose or change pixels")
    chunks: dict[bytes, bytes] = {}
    at = len(_SIGNATURE)
    while b"IEND" not in chunks:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            raise _Unfit("not complete; copy it again")
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            raise _Unfit("damaged (a checksum differs); copy it again")
        chunks[kind] = chunks.get(kind, b"") + body if kind == b"IDAT" else body
        at += 12 + length
    header = chunks.get(b"IHDR", b"")
    if len(header) != 13:
        raise _Unfit("damaged (it has no header); copy it again")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colour = header[8], header[9]
    if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise _Unfit(f"{width} x {height}; sides of {MIN_SIDE} to {MAX_SIDE} pixels can be scored")
    if colour != 2 or depth != 8 or b"tRNS" in chunks:
        mode = "RGB with a transparent colour" if (colour, depth) == (2, 8) else _COLOURS.get(colour, "RGB")
        raise _Unfit(f"{depth}-bit {mode}; save 8-bit RGB")
    if b"acTL" in chunks:
        raise _Unfit("an animation; save each frame as a file of its own")
    passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
    sizes = [(len(range(x, width, across)), len(range(y, height, down))) for x, y, across, down in passes]
    expected = sum(rows * (1 + 3 * columns) for columns, rows in sizes if columns)
    try:
        found = len(zlib.decompressobj().decompress(chunks.get(b"IDAT", b""), expected + 1))
    except zlib.error as error:
        raise _Unfit("damaged; copy it again or save it anew") from error
    if found < expected:
        raise _Unfit("not complete, rows of pixels are missing; save it anew")


def _check_picture(picture: Picture, size: int, name: str) -> None:
    check_shape(picture, f"{size} {size} 3", name)
    if picture.dtype != np.uint8:
        raise ShapeError(f"{name} must be uint8, got {picture.dtype}")
    if not MIN_SIDE <= size <= MAX_SIDE:
        raise ShapeError(f"{name} has {size} px a side; {MIN_SIDE} to {MAX_SIDE} can be scored")


# --- words ------------------------------------------------------------------------------------------------------------


def unprintable(name: str) -> bool:
    """Whether a name cannot stand in a report, which is lines of UTF-8: control characters, or bytes that are no text.

    >>> [unprintable(name) for name in ("Zoë and her dog", "two\\nlines", "\\udcff")]
    [False, True, True]
    """
    return any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def _unsafe(name: str) -> str | None:
    """Why a name should not be given to a folder: every file system must take it, and reading must find it."""
    if not name or name.strip(" .") != name or hidden(name):
        return "is empty, hidden, or begins or ends with a dot or a space"
    if any(letter in '<>:"/\\|?*' for letter in name):
        return 'has one of < > : " / \\ | ? *'
    if len(name.encode("utf-8", "replace")) > 200:
        return "is longer than 200 bytes"
    return "has characters that cannot be printed" if unprintable(name) else None


def _sentence(root: Path, problems: list[str]) -> str:
    """All problems in one message that also reads well on a single line."""
    if len(problems) == 1:
        return f"nothing in {root} was scored: {problems[0]}"
    lines = [f"({number}) {problem}" for number, problem in enumerate(problems[:MOST_PROBLEMS], 1)]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
    return "\n  ".join([f"nothing in {root} was scored, {len(problems)} problems:", *lines])


def _listed(names: Iterable[str], where: str = "") -> str:
    """Files of one folder."""
    text = _some(sorted(names))
    return f"{where}/{text}" if where else text


def _marked(folder: Path, names: Iterable[str]) -> list[str]:
    """The same names; links that lead nowhere are said to."""
    dead = " (a link to nothing)"
    return [name + dead if (folder / name).is_symlink() and not (folder / name).exists() else name for name in names]


def _some(names: Sequence[str]) -> str:
    """The first three, then a count."""
    text = ", ".join(map(_shown, names[:_MOST_NAMES]))
    return text if len(names) <= _MOST_NAMES else f"{text} and {len(names) - _MOST_NAMES} more"


def _shown(name: str) -> str:
    """A name as it can be printed anywhere."""
    return ascii(name) if unprintable(name) else name
