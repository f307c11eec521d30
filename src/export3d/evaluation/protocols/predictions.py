"""Saved predictions: images of any method in a folder, to be scored by the same code.

    DIR/CLIP/source.png             the method's source
    DIR/CLIP/target/00000.png …     the true frames
    DIR/CLIP/prediction/00000.png … the method's frames, one per true frame

All are square 8-bit RGB PNGs of one size. Pixels are compared as stored: resizing or converting them would change the
scores. A folder is therefore decoded completely before any of it is scored, and all problems are reported at once.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export3d.errors import BadImage, InputError
from export3d.evaluation.protocols.file_names import hidden, printable, unprintable
from export3d.evaluation.protocols.png import UnfitImage, decode_png, is_png
from export3d.files import kind_at, reading, reason

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]

SOURCE, TARGET, PREDICTION = "source.png", "target", "prediction"
MOST_PROBLEMS = 20
"""Problems that are listed; further ones are counted."""
DRAFT = ".partial"
"""Ending of the hidden folder that a clip is written to."""
_MOST_NAMES = 3


@dataclass(frozen=True)
class SavedClip:
    """One clip of a folder of predictions, checked by `read_predictions`.

    Attributes:
        name: of its folder, in Unicode's composed form (NFC).
        folder: that holds its images.
        count: number of true frames, and of predicted ones.
        size: R, pixels per side.
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
            picture = decode_png(path)
        except UnfitImage as error:
            raise BadImage(f"cannot read {path}: {error}") from error
        if picture.shape != (self.size, self.size, 3):
            raise BadImage(
                f"{path} is not {self.size} x {self.size} any more; leave the folder alone while it is scored"
            )
        return picture


def frame_name(number: int) -> str:
    """File name of a frame.

    >>> frame_name(7)
    '00007.png'
    """
    return f"{number:05d}.png"


def read_predictions(folder: Path | str, *, progress: Progress | None = None) -> list[SavedClip]:
    """Check a folder of predictions completely (every image is decoded) and list its clips by name.

    Names that begin with a dot and files of operating systems (`Thumbs.db`, `__MACOSX`, ...) are ignored, unless they
    are images beside frames, or clips. Symbolic links are followed.

    Args:
        folder: with one folder per clip, see the top of this file.
        progress: called with (clips checked, clips).

    Raises:
        InputError: something is wrong; the first 20 problems are listed, further ones counted.
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


# --- what lies in a folder --------------------------------------------------------------------------------------------


def _clip_folders(root: Path, problems: list[str]) -> list[str]:
    """Names of the folders that should be clips; `InputError` if the root itself is wrong."""
    kind = kind_at(root)
    if kind is None:
        raise InputError(f"{root} does not exist; give a folder of predictions")
    if kind != "folder":
        raise InputError(f"{root} is a file; give a folder that holds one folder for each clip")
    with reading(root):
        entries = _entries(root)
    if _is_clip(entries):
        raise InputError(
            f"{root} has {SOURCE}, {TARGET} or {PREDICTION} in it, as one clip has; give a folder that holds one such "
            "folder for each clip"
        )
    visible = {name: is_folder for name, is_folder in entries.items() if not hidden(name)}
    for name in sorted(entries.keys() - visible.keys()):
        if name.startswith(".") and name.endswith(DRAFT):
            logger.warning("%s is a clip that was not written completely; it is ignored", root / name)
        elif is_png(root / name / SOURCE):
            problems.append(f"{printable(name)}: hidden, but it looks like a clip; rename it or move it away")
    strays = [name for name, is_folder in visible.items() if not is_folder]
    if strays:
        problems.append(f"{_listed(_marked(root, strays))}: no folder of a clip; only such folders belong there")
    folders = [name for name, is_folder in visible.items() if is_folder]
    if not folders and not problems:
        raise InputError(f"{root} is empty; give a folder that holds one folder for each clip")
    return sorted(folders)


def _check_clip(folder: Path, problems: list[str]) -> SavedClip | None:
    """The clip, or None after adding what is wrong with it to `problems`."""
    before, where = len(problems), printable(folder.name)
    entries = _visible(folder, where, problems)
    if entries is None:
        return None
    if unprintable(folder.name):
        problems.append(f"{where}: its name has characters that cannot be printed; rename it")
    if not _is_clip(entries):
        nested = [name for name in entries if is_png(folder / name / SOURCE)]
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
        problems.append(f"{where}/{SOURCE}: a folder, not an image")
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
    """Problems between clips that are valid by themselves."""
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
    """The entries that are not ignored; None if the folder cannot be opened. Hidden images are a problem."""
    try:
        entries = _entries(folder)
    except OSError as error:
        problems.append(f"{where}: cannot be opened ({reason(error)}); check its permissions")
        return None
    passed_over = [name for name in entries if hidden(name)]
    pictures = [name for name in passed_over if not entries[name] and is_png(folder / name)]
    if pictures:
        problems.append(f"{_listed(pictures, where)}: a hidden image; rename it or delete it")
    return {name: is_folder for name, is_folder in entries.items() if name not in passed_over}


def _entries(folder: Path) -> dict[str, bool]:
    """Every name in a folder, sorted, and whether it is a folder (links are followed)."""
    with os.scandir(folder) as scan:
        return {entry.name: _is_folder(entry) for entry in sorted(scan, key=lambda entry: entry.name)}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def _is_clip(entries: dict[str, bool]) -> bool:
    return not entries.keys().isdisjoint((SOURCE, TARGET, PREDICTION))


# --- numbers and pixels -----------------------------------------------------------------------------------------------


def _numbers(folder: Path, entries: dict[str, bool], where: str, problems: list[str]) -> list[int]:
    """Sorted numbers of the frames in a folder; they must start at 0 without gaps."""
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
    """Targets without predictions, predictions without targets, and predictions that are the targets themselves."""
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
        width, height = _size(decode_png(path))
    except UnfitImage as error:
        problems.append(f"{where}/{SOURCE}: {error}")
        return None
    if width != height:
        problems.append(f"{where}/{SOURCE}: {width} x {height}, not square; crop it to a square")
        return None
    return height


def _check_frames(folder: Path, numbers: list[int], size: int | None, where: str, problems: list[str]) -> int | None:
    """Decode every frame; returns the size that all must have (the first one's if none was known)."""
    wrong: dict[str, list[str]] = {}
    for name in map(frame_name, numbers):
        try:
            width, height = _size(decode_png(folder / name))
        except UnfitImage as error:
            wrong.setdefault(str(error), []).append(name)
            continue
        if width != height:
            wrong.setdefault(f"{width} x {height}, not square; save squares of the source's size", []).append(name)
        elif size is None:
            size = height
        elif height != size:
            text = f"{height} x {height} where the clip's first image is {size} x {size}; save all at one size"
            wrong.setdefault(text, []).append(name)
    problems += [f"{_listed(names, where)}: {text}" for text, names in wrong.items()]
    return size


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    return int(picture.shape[1]), int(picture.shape[0])


# --- words ------------------------------------------------------------------------------------------------------------


def _sentence(root: Path, problems: list[str]) -> str:
    """All problems in one message that can also be read on one line."""
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
    """The names; dead links are marked."""
    dead = " (a link to nothing)"
    return [name + dead if (folder / name).is_symlink() and not (folder / name).exists() else name for name in names]


def _some(names: Sequence[str]) -> str:
    """The first three, then a count."""
    text = ", ".join(map(printable, names[:_MOST_NAMES]))
    return text if len(names) <= _MOST_NAMES else f"{text} and {len(names) - _MOST_NAMES} more"
