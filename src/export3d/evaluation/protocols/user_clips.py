"""Evaluation on the user's own videos: a folder of them becomes a prepared split.

`data.prepare` does the work. This file decides which files are videos and where the shards lie, makes each file its own
person, and keeps the split equal to the folder's present content.
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

from export3d.data.clips import media_kind
from export3d.data.prepare import Progress, prepare
from export3d.data.shard_writer import update
from export3d.data.shards import INDEX_NAME, Entry, Reject, read_index
from export3d.errors import InputError
from export3d.evaluation.protocols.file_names import hidden, unprintable
from export3d.files import kind_at, make_folder, reason, write_bytes

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.json"
"""File beside the split: video name to the reason why it, or a part of it, is not in the split."""
TERMS = "own"
"""Terms of the records: only the user knows how these images may be used."""

_MANIFEST = "videos.csv"
_PROMISES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".mts", ".m2ts", ".3gp",
    ".ogv",
)  # fmt: skip
"""Endings of video files; other videos are recognised by their first bytes."""
_MOST_NAMES = 3


def prepare_clips(
    folder: Path | str, cache: Path | str, *, workers: int | None = None, progress: Progress | None = None
) -> Path:
    """Prepare all videos in a folder and its subfolders as one split.

    Unusable videos are named in a warning and, with the reasons, in `left_out.json` beside the split. Still images are
    ignored: they have no second frame. A repeated call prepares what is new or changed and drops videos that are gone;
    a run that was stopped continues where it stopped.

    Args:
        folder: videos, each of one talking face; hidden names are ignored, symbolic links followed.
        cache: folder that gets a folder per folder of videos.
        workers: processes, see `data.prepare.prepare`.
        progress: called with (files done, files, name of the last).

    Returns:
        The split, a folder of shards.

    Raises:
        InputError: no such folder, no video in it, or no usable video.
        OutputError: the cache cannot be written; finished videos are kept.
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
        usable = bool(kind_at(split / INDEX_NAME)) and any(entry.kind == "video" for entry in read_index(split).entries)
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
    """What `prepare_clips` left out of a split: video name to a sentence; empty if nothing.

    Raises:
        InputError: the file is damaged.
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
    """The files of a folder: resolved paths of videos to their names in it, and other files."""

    videos: dict[Path, str] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    pictures: int = 0
    strangers: int = 0

    def reject(self, name: str, detail: str) -> None:
        self.rejects.append(Reject(name, "", "unreadable", f"{name}: {detail}"))

    @property
    def others(self) -> str:
        """The other files, in words."""
        return f" ({self.pictures} images, {self.strangers} other files)" if self.pictures + self.strangers else ""


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
    """Find the videos; `out` may lie inside the folder and is ignored."""
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
            found.reject(name, "an image under the name of a video" if kind == "image" else problem)
        elif kind == "image":
            found.pictures += 1
        else:
            found.strangers += 1
    return found


def _files(folder: Path, out: Path, found: _Found) -> Iterator[Path]:
    """All files that are not hidden, in the order of names; links are followed, each folder is entered once."""

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
    """The manifest for `prepare`: one split, each file its own person."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["file", "person", "split", "terms", "source"])
    writer.writerows([str(path), name, split, TERMS, source] for path, name in videos.items())
    return table.getvalue().encode()


def _forget(split: Path, files: Collection[str]) -> None:
    """Remove records and rejects of files that left the folder from the split, if there is one."""
    if not kind_at(split / INDEX_NAME):
        return
    index = read_index(split)
    lines: list[Entry | Reject] = [*index.entries, *index.rejects]
    gone = {line.fingerprint for line in lines if line.file not in files}
    if gone:
        update(split, [], drop=gone)


def _by_name(progress: Progress | None, videos: dict[Path, str]) -> Progress | None:
    """Progress with file names relative to the folder."""
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
    """The first three files with the kind of problem, then a count."""
    kinds = {reject.file: reject.reason for reject in sorted(rejects, key=lambda reject: reject.file)}
    text = ", ".join(f"{file} ({kind})" for file, kind in list(kinds.items())[:_MOST_NAMES])
    return text if len(kinds) <= _MOST_NAMES else f"{text} and {len(kinds) - _MOST_NAMES} more"
