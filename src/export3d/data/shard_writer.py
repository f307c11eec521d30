"""Writes and verifies a folder of shards: complete shards first, then the index."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.numpy import save as save_tensors

from export3d.data.shards import (
    INDEX_NAME,
    MAX_SHARD_BYTES,
    WHOLE,
    Entry,
    Index,
    Record,
    Reject,
    Shard,
    parse_box,
    read_index,
    read_tar,
)
from export3d.errors import InputError, ShapeError
from export3d.files import kind_at, make_folder, replacing, write_bytes


def write_tar(path: Path, records: Iterable[Record]) -> None:
    """Write records to one tar, atomically; the same records give the same bytes.

    Raises:
        OutputError: the folder cannot be written.
    """
    with replacing(path) as temporary, tarfile.open(temporary, mode="w:", format=tarfile.USTAR_FORMAT) as archive:
        for record in records:
            for extension, data in _members(record).items():
                member = tarfile.TarInfo(f"{record.key}.{extension}")
                member.size = len(data)
                member.mode = 0o644
                archive.addfile(member, io.BytesIO(data))


def update(
    folder: Path,
    records: Iterable[Record],
    rejects: Iterable[Reject] = (),
    *,
    drop: Iterable[str] = (),
    space: str = "arkit52",
    max_bytes: int = MAX_SHARD_BYTES,
) -> Index:
    """Add records to a split and remove others, in one atomic step.

    Only tars that lose a record are rewritten; new records go to new tars. A record replaces one with the same key.

    Args:
        folder: folder of the split; created if missing.
        records: new records, each with `person`, `terms` and `fingerprint` in its `info`.
        rejects: appended to the rejects in the index.
        drop: fingerprints whose records and rejects are removed.
        space: expression space of the records.
        max_bytes: maximum size of a tar.

    Returns:
        The new index.

    Raises:
        OutputError: the folder cannot be written; the split is unchanged.  InputError: the existing split is damaged.
    """
    folder, gone = Path(folder), set(drop)
    make_folder(folder)
    old = read_index(folder) if kind_at(folder / INDEX_NAME) else Index(space, 0)
    if old.entries and old.space != space:
        raise InputError(f"{folder} holds expressions in {old.space}, not {space}; choose another folder")
    known = {entry.key: entry for entry in old.entries}
    builder = _ShardBuilder(folder, max_bytes)
    for record in records:
        if record.key in known:
            gone.add(known.pop(record.key).fingerprint)
        builder.add(record)
    stale = {entry.shard for entry in old.entries if entry.fingerprint in gone}
    for name in sorted(stale):
        for record in read_tar(folder / name):
            entry = known.get(record.key)
            if entry is not None and entry.fingerprint not in gone:
                builder.add(record)
    builder.close()
    kept = [entry for entry in old.entries if entry.shard not in stale]
    sizes = {builder.expression_size, old.expression_size if kept else 0} - {0}
    if len(sizes) > 1:
        raise ShapeError(f"{folder} cannot hold expressions of {min(sizes)} and of {max(sizes)} numbers")
    index = Index(
        space,
        max(sizes, default=0),
        (*kept, *builder.entries),
        (*(shard for shard in old.shards if shard.file not in stale), *builder.shards),
        (*(reject for reject in old.rejects if reject.fingerprint not in gone), *rejects),
    )
    write_bytes(folder / INDEX_NAME, index.to_json().encode())
    named = {shard.file for shard in index.shards}
    for path in [*folder.glob("*.tar"), *folder.glob(".*.tar"), *folder.glob(".*.json")]:
        if path.name not in named:
            path.unlink(missing_ok=True)
    return index


def verify(folder: Path) -> list[str]:
    """The problems of a split, one sentence each; empty if every checksum and count agrees with its index.

    Raises:
        InputError: the index cannot be read.
    """
    folder = Path(folder)
    index = read_index(folder)
    problems: list[str] = []
    for shard in index.shards:
        path = folder / shard.file
        if kind_at(path) != "file":
            problems.append(f"{shard.file} is missing")
            continue
        if _sha256(path) != shard.sha256:
            problems.append(f"{shard.file} does not match its checksum")
            continue
        expected = {entry.key: entry for entry in index.entries if entry.shard == shard.file}
        try:
            found = {record.key: record for record in read_tar(path)}
        except (InputError, ShapeError) as error:
            problems.append(str(error))
            continue
        if list(found) != list(expected):
            problems.append(f"the records in {shard.file} do not match the index")
        problems += [
            f"{key} has {record.frames} frames, the index says {expected[key].frames}"
            for key, record in found.items()
            if key in expected and record.frames != expected[key].frames
        ]
    return problems


class _ShardBuilder:
    """Collects records and closes a tar whenever the next record would make it too large."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.entries: list[Entry] = []
        self.shards: list[Shard] = []
        self.expression_size = 0
        self._folder, self._max_bytes = folder, max_bytes
        self._pending: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        size = len(record.media) + record.expression.nbytes + record.camera.nbytes + record.landmarks.nbytes + 8192
        if self._pending and self._bytes + size > self._max_bytes:
            self.close()
        if self.expression_size not in (0, record.expression.shape[1]):
            raise ShapeError(
                f"record {record.key} has {record.expression.shape[1]} expression numbers, "
                f"the others {self.expression_size}"
            )
        self.expression_size = record.expression.shape[1]
        self._pending.append(record)
        self._bytes += size

    def close(self) -> None:
        if not self._pending:
            return
        draft = self._folder / ".shard.tar"
        write_tar(draft, self._pending)
        digest = _sha256(draft)
        # Named after its checksum: a new tar never overwrites one that the current index still names.
        path = self._folder / f"{self._folder.name}-{digest[:12]}.tar"
        os.replace(draft, path)
        frames = sum(record.frames for record in self._pending)
        self.shards.append(Shard(path.name, len(self._pending), frames, path.stat().st_size, digest))
        for record in self._pending:
            info = record.info
            self.entries.append(
                Entry(
                    record.key,
                    path.name,
                    record.kind,
                    record.frames,
                    str(info.get("person", record.key)),
                    str(info.get("terms", "")),
                    str(info.get("fingerprint", record.key)),
                    str(info.get("file", "")),
                    str(info.get("place", "")),
                    parse_box(info.get("inside", WHOLE)),
                )
            )
        self._pending, self._bytes = [], 0


def _members(record: Record) -> dict[str, bytes]:
    track = {
        "expression": record.expression,
        "camera": record.camera,
        "landmarks": record.landmarks,
        "found": record.found,
    }
    return {
        "json": (json.dumps(record.info, indent=1, ensure_ascii=False) + "\n").encode(),
        "track.safetensors": save_tensors(track),
        record.suffix: record.media,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
