"""Writes and verifies a split, a folder or its URL: complete shards first, then the index."""

from __future__ import annotations

import hashlib
import io
import json
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
from export3d.locations import Place, as_place, exists, inside, name_of, names, read, remove, write


def write_tar(place: Place, records: Iterable[Record]) -> None:
    """Write records to one tar, whole or not at all; the same records give the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    write(place, _tar(records))


def _tar(records: Iterable[Record]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:", format=tarfile.USTAR_FORMAT) as archive:
        for record in records:
            for extension, data in _members(record).items():
                member = tarfile.TarInfo(f"{record.key}.{extension}")
                member.size = len(data)
                member.mode = 0o644
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def update(
    folder: Path | str,
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
        folder: folder of the split, created if missing, or its URL.
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
    folder, gone = as_place(folder), set(drop)
    old = read_index(folder) if exists(inside(folder, INDEX_NAME)) else Index(space, 0)
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
        for record in read_tar(inside(folder, name)):
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
    write(inside(folder, INDEX_NAME), index.to_json().encode())
    named = {shard.file for shard in index.shards}
    for name in names(folder):
        leftover = name.endswith(".tar") or (name.startswith(".") and name.endswith(".json"))
        if leftover and name not in named:
            remove(inside(folder, name))
    return index


def verify(folder: Path | str) -> list[str]:
    """The problems of a split, one sentence each; empty if every checksum and count agrees with its index.

    Raises:
        InputError: the index cannot be read.
    """
    folder = as_place(folder)
    index = read_index(folder)
    problems: list[str] = []
    for shard in index.shards:
        path = inside(folder, shard.file)
        data = read(path)
        if data is None:
            problems.append(f"{shard.file} is missing")
            continue
        if hashlib.sha256(data).hexdigest() != shard.sha256:
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

    def __init__(self, folder: Place, max_bytes: int) -> None:
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
        data = _tar(self._pending)
        digest = hashlib.sha256(data).hexdigest()
        # Named after its checksum: a new tar never overwrites one that the current index still names.
        name = f"{name_of(self._folder)}-{digest[:12]}.tar"
        write(inside(self._folder, name), data)
        frames = sum(record.frames for record in self._pending)
        self.shards.append(Shard(name, len(self._pending), frames, len(data), digest))
        for record in self._pending:
            info = record.info
            self.entries.append(
                Entry(
                    record.key,
                    name,
                    record.kind,
                    record.frames,
                    str(info.get("person", record.key)),
                    str(info.get("terms", "")),
                    str(info.get("fingerprint", record.key)),
                    str(info.get("file", "")),
                    str(info.get("place", "")),
                    parse_box(info.get("inside", WHOLE)),
                    str(info.get("origin", {}).get("sitting", "")),
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
    if record.shoulders.any():
        track["shoulders"] = record.shoulders
    return {
        "json": (json.dumps(record.info, indent=1, ensure_ascii=False) + "\n").encode(),
        "track.safetensors": save_tensors(track),
        record.suffix: record.media,
    }
