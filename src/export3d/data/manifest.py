"""Chooses the files to prepare: videos and portraits from folders, URLs or a manifest, split by person."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import posixpath
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import NamedTuple

from export3d.data.clips import Limits, media_kind
from export3d.data.shards import INDEX_NAME, Reject, read_index
from export3d.errors import InputError
from export3d.files import check_input, kind_at, paths_in, reading, reason
from export3d.locations import (
    Place,
    as_place,
    file_size,
    inside,
    kind_of,
    local_copy,
    name_of,
    names,
    read,
    read_part,
)
from export3d.motion.bfm64 import SUFFIXES

logger = logging.getLogger(__name__)

VERSION = 2
"""Version of the preparation. It is part of every fingerprint: raising it causes every file to be prepared again."""
PARTS_FOLDER = "parts"
"""Folder inside a split for the output of finished jobs."""
_PROBE_BYTES = 1 << 20
_VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif", ".flv", ".wmv", ".ogv"}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VAL_FRACTION = 0.1
_DEEPEST = 99
_AT_ONCE = 16
"""Files at URLs that are looked at together."""
_FEW = 4
"""With fewer videos than this, all are used for training and none is held out, unless a share is asked for."""


@dataclass(frozen=True)
class Job:
    """One source file to prepare.

    Attributes:
        path: the file, or its URL.
        size: of the file, bytes.
        file: name of the file in the report.
        split, person, terms: from the manifest, or the defaults.
        origin: other columns of the manifest, kept as provenance.
        key: key of the record.
        fingerprint, place: see `shards.Entry`.
        parts: folder or URL for the job's output.
        coefficients: file or folder of the file's expression coefficients; None: expressions are tracked.
    """

    path: Place
    size: int
    file: str
    split: str
    person: str
    terms: str
    origin: dict[str, str] = field(default_factory=dict)
    key: str = ""
    fingerprint: str = ""
    place: str = ""
    parts: Place = Path()
    coefficients: Path | None = None


def read_manifest(path: Place) -> dict[Place, dict[str, str]]:
    """The rows of a manifest by the resolved path or the URL of their file; `InputError` if any row is invalid."""
    if isinstance(path, Path):
        check_input(path, InputError, "a CSV file with the columns file, person, split")
    try:
        data = read(path)
        if data is None:
            raise InputError(f"{path} does not exist; give a CSV file with the columns file, person, split")
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        missing = {"file", "person", "split"} - set(reader.fieldnames or ())
        if missing:
            lacks = f"the column{'s' if len(missing) > 1 else ''} {', '.join(sorted(missing))}"
            raise InputError(f"{path} lacks {lacks}; its first line names the columns")
        rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {path} ({reason(error)}); give a CSV file in UTF-8") from error
    split_of: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not row["file"] or not row["person"] or not _SPLIT_NAME.fullmatch(row["split"]):
            raise InputError(f"{path} line {number} needs a file, a person and a split (letters, digits, _ and -)")
        if split_of.setdefault(row["person"], row["split"]) != row["split"]:
            raise InputError(
                f"{path} line {number} puts {row['person']} into {row['split']} and into {split_of[row['person']]}; "
                "a person belongs to one split"
            )
    with reading(str(path)):  # a NUL character in a name
        return {_beside(path, row["file"]): row for row in rows}


def _beside(manifest: Place, file: str) -> Place:
    """The file that a manifest names: a URL, or a path relative to the manifest."""
    place = as_place(file)
    if isinstance(place, str):
        return place
    if isinstance(manifest, Path):
        return Path(os.path.realpath(manifest.parent / place))
    scheme, path = manifest.split("://", 1)
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), file))}"


def find_files(
    inputs: Sequence[Place], rows: dict[Place, dict[str, str]] | None
) -> tuple[list[tuple[Place, str]], int]:
    """Find the files to prepare: (place, name in the report) of each, and the number of other files in the folders.

    Raises:
        InputError: an input does not exist, or nothing is found.
    """
    files: dict[Place, str] = {}
    ignored = 0
    if not inputs and rows:
        files = {path: row["file"] for path, row in rows.items()}
    for given in inputs:
        kind = kind_of(given)
        if isinstance(given, str) and kind is not None:
            found = {name_of(given): given} if kind == "file" else {n: inside(given, n) for n in _names_in(given)}
            for name, place in found.items():
                if kind == "file" or PurePath(name).suffix.lower() in _VIDEO_SUFFIXES | _IMAGE_SUFFIXES:
                    files.setdefault(place, name)
                else:
                    ignored += 1
        elif isinstance(given, str):
            raise InputError(f"{given} does not exist; check the address")
        elif kind == "file":
            files.setdefault(given.resolve(), given.name)
        elif kind == "folder":
            for path in _files_in(given):
                if path.suffix.lower() in _VIDEO_SUFFIXES | _IMAGE_SUFFIXES or _is_media(path):
                    files.setdefault(path.resolve(), path.relative_to(given).as_posix())
                else:
                    ignored += 1
        else:
            problem = "is not a regular file" if kind else "does not exist"
            raise InputError(f"{given} {problem}; give videos, images or folders of them")
    if not files:
        raise InputError("there is nothing to prepare; give videos, images or folders of them")
    return list(files.items()), ignored


def _names_in(url: str) -> list[str]:
    """Names of the files below a URL, sorted, without hidden ones."""
    return [name for name in names(url, _DEEPEST) if not any(part.startswith(".") for part in name.split("/"))]


def _files_in(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, sorted, without hidden ones; warns of subfolders that cannot be listed.

    Broken links and pipes are among them: a name that promises a video is told with what is wrong.

    Raises:
        InputError: the folder itself cannot be listed.
    """
    found = []
    for path in paths_in(folder):
        if path.name.startswith("."):
            continue
        try:
            if kind_at(path) != "folder":
                found.append(path)
            elif not path.is_symlink():
                found += _files_in(path)
        except InputError as error:
            logger.warning("left out: %s", error)
    return found


def make_jobs(
    files: Sequence[tuple[Place, str]],
    rows: dict[Place, dict[str, str]] | None,
    out: Place,
    limits: Limits,
    val_fraction: float | None,
    coefficients: Path | None = None,
) -> tuple[list[Job], list[Reject]]:
    """Make one job per file, with unique keys and fingerprints; also returns the files that cannot be prepared.

    With a folder of coefficients, a file without its own is one of the latter.

    Raises:
        InputError: no file can be read any more, as when the connection is lost.
    """
    looks = _looks([place for place, _ in files])
    held_out = set[str]()
    if rows is None:
        videos = {place: look for place, look in looks.items() if isinstance(look, _Look) and look.kind == "video"}
        known = None if coefficients is not None else limits  # with coefficients a file is known by its place alone
        held_out = _held_out(videos, out, val_fraction, known)
    drafts: list[Job] = []
    rejects: list[Reject] = []
    contents: dict[str, str] = {}
    for path, name in files:
        if rows is None:
            split = "val" if _stem(path) in held_out else "train"
            job = _unlisted(path, name, split)
        elif path in rows:
            row = dict(rows[path])
            if sitting := row.pop("sitting", "").strip():
                row["sitting"] = sitting
            job = Job(path, 0, row.pop("file"), row.pop("split"), row.pop("person"), row.pop("terms", ""), row)
        else:
            rejects.append(Reject(name, "", "not in the manifest", f"{name} has no line in the manifest"))
            continue
        look = looks[path]
        if isinstance(look, InputError):
            detail = str(look).replace(str(path), job.file)
            rejects.append(Reject(job.file, job.split, "unreadable", detail))
            continue
        first = contents.setdefault(look.digest, job.file)
        if first != job.file:
            rejects.append(Reject(job.file, job.split, "duplicate", f"{job.file} has the same contents as {first}"))
            continue
        more: list[object] = ["sitting"] if "sitting" in job.origin else []  # earlier releases kept the word alone
        if coefficients is not None:
            try:
                own = coefficients_of(coefficients, job.file)
                more.append(_coefficients_digest(own))
                job = replace(job, coefficients=own)
            except (InputError, OSError) as error:
                rejects.append(Reject(job.file, job.split, "coefficients", str(error)))
                continue
        fingerprint = _fingerprint(job, look, limits, *more)
        place = _place(path)
        parts = parts_of(out, job.split)
        drafts.append(replace(job, size=look.size, fingerprint=fingerprint, place=place, parts=parts))
    return _with_keys(drafts, out), rejects


def _unlisted(path: Place, name: str, split: str) -> Job:
    """The job of a file without a manifest."""
    return Job(path, 0, name, split, _stem(path), "unstated")


def _fingerprint(job: Job, look: _Look, limits: Limits, *more: object) -> str:
    """The same as long as a job would give the same output."""
    facts = [VERSION, look.digest, job.split, job.person, job.terms, job.origin, asdict(limits), *more]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def coefficients_of(folder: Path, file: str) -> Path:
    """The coefficients of `file` (name in the report) in a folder: NAME.npz, NAME.mat, or a folder NAME of such files.

    NAME is the file's path without its ending; of a path that leads out of the folder, the last part alone.

    Raises:
        InputError: there are none, or several.
    """
    name = PurePath(file)
    if name.is_absolute() or ".." in name.parts:
        name = PurePath(name.name)
    base = folder / name.with_suffix("")
    found = [path for path in (base, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)) if kind_at(path)]
    if len(found) != 1:
        known = ", ".join(path.name for path in found)
        raise InputError(
            f"{file} has several coefficients in {folder} ({known}); keep one of them"
            if found
            else f"{file} has no coefficients; give them as {base}.mat, {base}.npz or a folder {base} of such files"
        )
    return found[0]


def parts_of(out: Place, split: str) -> Place:
    """Where the output of a split's finished jobs lies."""
    return inside(inside(out, split), PARTS_FOLDER)


def split_folders(out: Place) -> list[Place]:
    """Folders or URLs of the splits in `out`, sorted by name."""
    if isinstance(out, Path):
        return [path.parent for path in sorted(out.glob(f"*/{INDEX_NAME}"))]
    return [inside(out, name.rpartition("/")[0]) for name in names(out, 2) if name.endswith(f"/{INDEX_NAME}")]


def _held_out(videos: Mapping[Place, _Look], out: Place, share: float | None, limits: Limits | None) -> set[str]:
    """Stems of the videos held out for validation. Images are not held out: they have no second frame.

    Nor are videos that were refused, unless their contents or the limits, if given, have changed since. Where a share
    is held out, at least one video is, and at least one is left to train on. `share` None: see `_VAL_FRACTION`, `_FEW`.
    """
    indices = {name_of(folder): read_index(folder) for folder in split_folders(out)}
    used = {entry.place for index in indices.values() for entry in index.entries}
    rejects = [reject for index in indices.values() for reject in index.rejects]
    refused = {reject.place: reject for reject in rejects if reject.place not in used}

    def is_refused(path: Place, look: _Look) -> bool:
        reject = refused.get(_place(path))
        if reject is None or limits is None:
            return reject is not None
        return reject.fingerprint == _fingerprint(_unlisted(path, reject.file, reject.split), look, limits)

    stems = {_stem(path) for path, look in videos.items() if not is_refused(path, look)}
    fewest = _FEW if share is None else 2
    if share == 0.0 or len(stems) < fewest:
        return set()
    wanted = round((_VAL_FRACTION if share is None else share) * len(stems))
    before = {entry.person: name for name, index in indices.items() for entry in index.entries}
    held = {stem for stem in stems if before.get(stem) == "val"}
    missing = min(max(1, wanted), len(stems) - 1) - len(held)
    others = sorted(stems - held, key=lambda stem: (stem in before, _fraction(stem)))
    return held | set(others[: max(0, missing)])


def _with_keys(jobs: list[Job], out: Place) -> list[Job]:
    """Name each job's record after its file; files of the same name get a part of their fingerprint as a suffix."""
    wanted = [re.sub(r"[^A-Za-z0-9_-]+", "_", _stem(job.path))[:100] or "clip" for job in jobs]
    counts = Counter((job.split, name.lower()) for job, name in zip(jobs, wanted))
    taken = {
        (name_of(folder), re.sub(r"-\d\d$", "", entry.key).lower()): entry.place
        for folder in split_folders(out)
        for entry in read_index(folder).entries
    }
    named = []
    for job, name in zip(jobs, wanted):
        slot = (job.split, name.lower())
        if counts[slot] > 1 or taken.get(slot, job.place) != job.place:
            name = f"{name}-{job.fingerprint[:8]}"
        named.append(replace(job, key=name))
    return named


def _place(path: Place) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _is_media(path: Path) -> bool:
    try:
        return kind_at(path) == "file" and media_kind(path) is not None
    except OSError:
        return False


def _stem(path: Place) -> str:
    return PurePath(name_of(path)).stem


class _Look(NamedTuple):
    """What tells a file from others: its size in bytes, a digest of its contents, and its kind (`media_kind`)."""

    size: int
    digest: str
    kind: str | None


def _looks(places: Sequence[Place]) -> dict[Place, _Look | InputError]:
    """A look at each file, or why there is none; `InputError` if no URL of a whole batch can be read."""
    looks: dict[Place, _Look | InputError] = {place: _look(place) for place in places if isinstance(place, Path)}
    urls = [place for place in places if isinstance(place, str)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(urls), _AT_ONCE):
            batch = urls[start : start + _AT_ONCE]
            found = list(pool.map(_look, batch))
            problems = [look for look in found if isinstance(look, InputError)]
            if len(problems) == len(batch):
                raise problems[0]
            looks.update(zip(batch, found))
    return looks


def _look(place: Place) -> _Look | InputError:
    try:
        if isinstance(place, Path) and (there := kind_at(place)) != "file":  # a pipe would be waited for
            problem = "is a link to nothing" if there is None else "is not a regular file"
            return InputError(f"{place} {problem}; replace it by the file")
        size, digest, head = _contents(place)
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(place, Path):
                kind = media_kind(place)
            elif head.startswith(b"GIF8"):  # counted to its end
                with local_copy(place) as copy:
                    kind = media_kind(copy)
            else:
                start = Path(folder, "start")
                start.write_bytes(head)
                kind = media_kind(start)
    except OSError as error:
        return InputError(f"{place} cannot be opened ({reason(error)}); check its permissions")
    except InputError as error:
        return error
    return _Look(size, digest, kind)


def _contents(place: Place) -> tuple[int, str, bytes]:
    """A file's size, a digest of it and of the first and last megabyte, and the first megabyte.

    The digest distinguishes files without reading them whole.
    """
    size = file_size(place)
    head = read_part(place, 0, min(size, _PROBE_BYTES))  # stores refuse a range of nothing
    tail = head if size <= _PROBE_BYTES else read_part(place, size - _PROBE_BYTES, _PROBE_BYTES)
    return size, hashlib.sha256(size.to_bytes(8, "little") + head + tail).hexdigest(), head


def _coefficients_digest(path: Path) -> list[str]:
    files = paths_in(path) if kind_at(path) == "folder" else [path]
    return [f"{file.name} {_contents(file)[1]}" for file in files if kind_at(file) == "file"]


def _fraction(name: str) -> float:
    """A pseudo-random number in 0..1 that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
