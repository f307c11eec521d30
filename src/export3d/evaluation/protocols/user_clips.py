"""Evaluation on the user's own videos: any folder of them becomes a prepared split, once.

The work is `data.prepare`'s; what is decided here is which files are videos, who is who (nobody says, so each file is
its own person), where the shards lie, and that a split holds the videos that are in the folder now and no others.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from export3d.animate.export import make_folder
from export3d.data.clips import media_kind
from export3d.data.prepare import Progress, prepare
from export3d.data.shards import INDEX_NAME, Entry, Reject, read_index, update
from export3d.errors import InputError
from export3d.evaluation.protocols.file_names import hidden, unprintable
from export3d.files import reason, write_bytes

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.json"
"""Beside the split: why a video is not in it, or not all of it, by its name in the folder."""
TERMS = "own"
"""Terms of the records: only the user knows what may be done with these pictures."""

_MANIFEST = "videos.csv"
_PROMISES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".mts", ".m2ts", ".3gp",
    ".ogv",
)  # fmt: skip
"""Names by which a file says that it is a video; other videos are known by their first bytes."""
_MOST_NAMES = 3


def prepare_clips(
    folder: Path | str, cache: Path | str, *, workers: int | None = None, progress: Progress | None = None
) -> Path:
    """Prepare all videos in a folder, to its bottom, as one split.

    Videos that cannot be used are named in a warning and, with the reasons, in `left_out.json` beside the split. Still
    pictures are passed over: they have no second frame. Called again it does what is new or changed and forgets videos
    that are gone; a run that was stopped goes on where it stopped.

    Args:
        folder: videos, each of one talking face; hidden names are passed over, symbolic links followed.
        cache: each folder of videos gets a folder of its own in it.
        workers: processes, see `data.prepare.prepare`.
        progress: called with (files done, files, name of the last).

    Returns:
        The split, a folder of shards.

    Raises:
        InputError: no such folder, no video in it, or none that can be used.
        OutputError: the cache cannot be written; what was finished is kept.
        MissingExtra: no tracker.
    """
    folder = Path(folder)
    real = _real_folder(folder)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", real.name).strip("_")[:40] or "videos"
    out = Path(cache) / f"{name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"
    found = _look(folder, out)
    if not found.videos and not found.rejects:
        raise InputError(f"{folder} holds no video{found.others}; give a folder of videos, each of one talking face")
    rejects, split = found.rejects, out / name
    usable = False
    make_folder(out)
    if found.videos:
        _forget(split, {str(path) for path in found.videos})
        write_bytes(out / _MANIFEST, _manifest(found.videos, name, real.name))
        report = prepare([], out, out / _MANIFEST, workers, progress=_by_name(progress, found.videos))
        names = {str(path): relative for path, relative in found.videos.items()}
        inside = str(real) + os.sep
        for reject in report.rejects:
            name_in_folder = names.get(reject.file, reject.file)
            rejects.append(replace(reject, file=name_in_folder, detail=reject.detail.replace(inside, "")))
        usable = (split / INDEX_NAME).exists() and any(entry.kind == "video" for entry in read_index(split).entries)
    write_bytes(out / LEFT_OUT, (json.dumps(_reasons(rejects), indent=1, ensure_ascii=False) + "\n").encode())
    if not usable:
        raise InputError(
            f"no video in {folder} can be used: {_some(rejects)}; {out / LEFT_OUT} says why, give clips of one face "
            "that is near, lit and not turned away"
        )
    if rejects:
        logger.warning("left out of %s, at least in part: %s; %s says why", folder, _some(rejects), out / LEFT_OUT)
    return split


def left_out(split: Path | str) -> dict[str, str]:
    """What `prepare_clips` left out of a split it made: sentences by the name of the video; empty if nothing.

    Raises:
        InputError: the file that tells it is damaged.
    """
    path = Path(split).parent / LEFT_OUT
    try:
        return {str(name): str(why) for name, why in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged; prepare the videos again") from error


# --- what lies in the folder ------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """The files of a folder: videos by their resolved paths with their names in it, and what is none."""

    videos: dict[Path, str] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    pictures: int = 0
    strangers: int = 0

    def reject(self, name: str, detail: str) -> None:
        self.rejects.append(Reject(name, "", "unreadable", f"{name}: {detail}"))

    @property
    def others(self) -> str:
        """Words for what is there instead."""
        return f" ({self.pictures} pictures, {self.strangers} other files)" if self.pictures + self.strangers else ""


def _real_folder(folder: Path) -> Path:
    """The folder's resolved path; `InputError` unless it can be listed."""
    try:
        os.listdir(folder)
        return folder.resolve()
    except FileNotFoundError as error:
        raise InputError(f"{folder} does not exist; give a folder of videos") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder} is a file; give the folder it lies in") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise InputError(f"{folder} cannot be opened ({reason(error)}); check its name and permissions") from error


def _look(folder: Path, out: Path) -> _Found:
    """Find the videos; `out` may lie inside the folder and holds none."""
    found = _Found()
    for path in _files(folder, out, found):
        name = path.relative_to(folder).as_posix()
        promises = path.suffix.lower() in _PROMISES
        try:
            kind = media_kind(path) if path.is_file() else "nothing"
        except OSError as error:
            kind, problem = "nothing", f"cannot be opened ({reason(error)}); check its permissions"
        else:
            problem = "a link to nothing" if path.is_symlink() else "not a regular file"
        if kind == "video" or (kind is None and promises):
            first = found.videos.get(path.resolve())
            if unprintable(name):
                found.reject(ascii(name), "its name has characters that cannot be printed; rename it")
            elif first is None:
                found.videos[path.resolve()] = name
            else:
                found.reject(name, f"the same file as {first}")
        elif promises:
            found.reject(name, "a picture under the name of a video" if kind == "image" else problem)
        elif kind == "image":
            found.pictures += 1
        else:
            found.strangers += 1
    return found


def _files(folder: Path, out: Path, found: _Found) -> Iterator[Path]:
    """Every file that is not hidden, in the order of names, following links but entering each folder once."""

    def refused(error: OSError) -> None:
        found.reject(Path(error.filename).relative_to(folder).as_posix(), f"cannot be opened ({reason(error)})")

    entered = {os.path.realpath(out)}
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refused):
        real = os.path.realpath(here)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (Path(here, name) for name in sorted(files) if not hidden(name))


# --- what is made of them ---------------------------------------------------------------------------------------------


def _manifest(videos: dict[Path, str], split: str, source: str) -> bytes:
    """The manifest for `prepare`: everybody in one split, each file its own person."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["file", "person", "split", "terms", "source"])
    writer.writerows([str(path), name, split, TERMS, source] for path, name in videos.items())
    return table.getvalue().encode()


def _forget(split: Path, files: Collection[str]) -> None:
    """Take the records and rejects of files that are not in the folder any more out of a split, if there is one."""
    if not (split / INDEX_NAME).exists():
        return
    index = read_index(split)
    lines: list[Entry | Reject] = [*index.entries, *index.rejects]
    gone = {line.fingerprint for line in lines if line.file not in files}
    if gone:
        update(split, [], drop=gone)


def _by_name(progress: Progress | None, videos: dict[Path, str]) -> Progress | None:
    """Progress that calls files as the folder does."""
    if progress is None:
        return None
    return lambda done, files, name: progress(done, files, videos[Path(name)])


def _reasons(rejects: list[Reject]) -> dict[str, str]:
    """Sentences by file, in the order of names."""
    reasons: dict[str, list[str]] = {}
    for reject in sorted(rejects, key=lambda reject: reject.file):
        reasons.setdefault(reject.file, []).append(reject.detail)
    return {file: "; ".join(details) for file, details in reasons.items()}


def _some(rejects: list[Reject]) -> str:
    """The first three files with the kind of their trouble, then a count."""
    kinds = {reject.file: reject.reason for reject in sorted(rejects, key=lambda reject: reject.file)}
    text = ", ".join(f"{file} ({kind})" for file, kind in list(kinds.items())[:_MOST_NAMES])
    return text if len(kinds) <= _MOST_NAMES else f"{text} and {len(kinds) - _MOST_NAMES} more"
