"""Taught clips: a trained model renders real sources under other people's expressions, for another model to learn from.

In a real clip expression, pose and light change together. A taught clip is a group that separates them: its first frame
is a real source, the others are the teacher's renders of it under several expressions at one camera. Their labels are
what the teacher was asked for; their landmarks are where the teacher moved them. `data.taught` reads the groups.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.camera import from_pose, head_angles, head_position, projected
from export3d.data.clips import Limits, encode_clip
from export3d.data.decoding import decode
from export3d.data.shard_writer import update
from export3d.data.shards import FPS, INDEX_NAME, WHOLE, Entry, Index, Record, read_index, read_shard
from export3d.data.taught import GROUP, KEY
from export3d.errors import CheckpointError, ConfigError, InputError
from export3d.files import check_folder, kind_at
from export3d.image import to_uint8
from export3d.locations import Place, as_place, inside
from export3d.model import Export3D
from export3d.motion.arkit import ARKIT52
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained
from export3d.weights.file import read_sidecar
from export3d.weights.hub import locate
from export3d.weights.names import title

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Progress = Callable[[int, int, str], None]

VERSION = 1
"""Version of the way groups are made; part of each fingerprint."""
STRONG_SHARE = 0.25
"""Share of a group's expressions with a wide mouth, and share with closed eyes; the rest are any frames."""
STRONGEST = 0.05
"""A wide mouth is among this share of all frames by jawOpen, closed eyes by the two eyeBlink scores."""
VIEWS = {"own": 0.2, "near": 0.3, "pose": 0.25, "turned": 0.25}
"""Kinds of camera and their shares: the source's own, a small turn from it, the head pose of another person's frame,
and a turn of `TURNED_DEG` from the source."""
NEAR_DEG = np.array([6.0, 4.0, 2.0])
"""Standard deviation of a small turn: yaw, pitch, roll."""
TURNED_DEG = (20.0, 30.0)
"""Range of the yaw that "turned" adds to the source's, in either direction."""
_MAX_YAW_DEG = 45.0
"""A turn that would exceed this yaw goes the other way."""
_SCORES = (("jawOpen",), ("eyeBlinkLeft", "eyeBlinkRight"))
MOST = 1000
"""Largest number of expressions of a group, which is rendered in memory, and of groups of a source."""
_AT_ONCE = 8
_BATCH = 50


@dataclass(frozen=True)
class TeachReport:
    """The result of a run: groups in the split, groups rendered and skipped in this run, frames rendered, seconds."""

    groups: int
    done: int
    skipped: int
    frames: int
    seconds: float

    def summary(self) -> str:
        """A readable summary in one line."""
        rate = f", {self.frames / self.seconds:.1f} per second" if self.done and self.seconds else ""
        return (
            f"{self.groups} groups; {self.done} made ({self.frames} frames rendered in {self.seconds:.0f} s{rate}), "
            f"{self.skipped} already done"
        )


def teach(
    data: Path | str,
    out: Path | str,
    weights: Path | str | None = None,
    *,
    split: str = "train",
    expressions: int = 8,
    cameras: int = 1,
    seed: int = 0,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TeachReport:
    """Render every portrait and clip of a split under other people's expressions: a new split in the same format.

    A group depends only on its source, the teacher, the settings and the split's frames. Groups are written fifty at a
    time. The split is therefore valid whenever a run is stopped, and the next run makes what is missing. Groups of
    another teacher, seed or number of expressions are made again.

    Args:
        data: prepared folder or its URL; people and expressions come from this split alone.
        out: folder for the taught split, `out/split`.
        weights: the teacher, see `weights.hub.locate`; it must move landmarks, as `base` does.
        split: name of the split.
        expressions: renders per group.
        cameras: groups per record, each with its own camera and, in a clip, its own source frame.
        seed: determines source frames, expressions and cameras.
        limit: use at most this many records, chosen by a hash of their keys.
        device: where the teacher renders.
        progress: called with (groups done, groups, key of the last).

    Raises:
        InputError: the split is not prepared, is taught itself or has no video, or its expressions are in another
            space.
        ConfigError: a setting is out of range, or the teacher moves no landmarks.
        CheckpointError: the weights are missing or damaged, or give numbers that are not finite.
        OutputError: `out` cannot be written.
    """
    began = time.monotonic()
    if not GROUP <= expressions <= MOST or not 1 <= cameras <= MOST or (limit is not None and limit < 1):
        raise ConfigError(
            f"teaching needs {GROUP} to {MOST} expressions, 1 to {MOST} cameras and a limit of at least 1"
        )
    folder, made = inside(as_place(data), split), check_folder(Path(out) / split)
    index = read_index(folder)
    if isinstance(folder, Path) and folder.resolve() == made.resolve():
        raise ConfigError(f"{made} is the input split itself; choose another folder")
    if any(KEY.fullmatch(entry.key) for entry in index.entries):
        raise InputError(
            f"{folder} holds taught clips, but a source is a real frame; name the data they were made from"
        )
    teacher = _Teacher.load(weights, index.space, folder, device)
    done = _done(made)
    chosen = sorted(index.entries, key=lambda entry: hashlib.sha256(entry.key.encode()).digest())[:limit]
    jobs = {
        entry.key: [_Job(entry, number, seed, expressions, teacher.sha256) for number in range(cameras)]
        for entry in chosen
    }
    todo = {key: [job for job in mine if job.fingerprint not in done] for key, mine in jobs.items()}
    total = sum(map(len, todo.values()))
    update(made, [], space=index.space)
    rendered = 0
    if total:
        faces = Faces.of(folder, index)
        sources = _sources(folder, index, todo)
        groups = (group for record, mine in sources for group in teacher.groups(record, mine, faces))
        rendered = _write(made, groups, index.space, total, progress)
    found = len(read_index(made).entries)
    skipped = sum(map(len, jobs.values())) - total
    return TeachReport(found, rendered, skipped, rendered * expressions, time.monotonic() - began)


@dataclass(frozen=True, eq=False)
class Faces:
    """Frames of a split's videos in which the face was found: N measured expressions and head poses.

    Attributes:
        expression: (N, E) float32.
        camera: (N, 25) float32.
        person: (N,) number of the person.
        people: the number of each person.
        origins: the clip and frame of each.
        strong: rows with a wide mouth, and rows with closed eyes; none in a space without named scores.
    """

    expression: Floats
    camera: Floats
    person: Rows
    people: dict[str, int]
    origins: list[tuple[str, int]]
    strong: tuple[Rows, ...]

    @classmethod
    def of(cls, folder: Place, index: Index) -> Faces:
        """Read the tracks of a split's videos.

        Raises:
            InputError: there are none.
        """
        wanted = {entry.key: entry.person for entry in index.entries if entry.kind == "video"}
        people = {person: number for number, person in enumerate(sorted(set(wanted.values())))}
        clips: dict[str, tuple[Floats, Floats, Rows]] = {}
        for shard in index.shards:
            if any(entry.shard == shard.file and entry.key in wanted for entry in index.entries):
                for record in read_shard(folder, shard):
                    rows = np.flatnonzero(record.found)
                    if record.key in wanted and len(rows):
                        clips[record.key] = record.expression[rows], record.camera[rows], rows
        if not clips:
            raise InputError(f"{folder} holds no video, so there are no expressions to teach; prepare videos too")
        names = sorted(clips)
        expression = np.concatenate([clips[name][0] for name in names])
        strong = _strongest(expression) if index.space == "arkit52" else ()
        return cls(
            expression,
            np.concatenate([clips[name][1] for name in names]),
            np.concatenate([np.full(len(clips[name][2]), people[wanted[name]]) for name in names]),
            people,
            [(name, int(row)) for name in names for row in clips[name][2]],
            strong,
        )

    def others(self, person: str) -> Rows:
        """Rows of everybody else; all rows if there is nobody else."""
        rows = np.flatnonzero(self.person != self.people.get(person, -1))
        return rows if len(rows) else np.arange(len(self.person))

    def draw(self, others: Rows, count: int, rng: np.random.Generator) -> Rows:
        """`count` rows of `others` in random order: `STRONG_SHARE` of each kind of strong expression, the rest any."""
        rows: list[int] = []
        for pile in self.strong:
            mine = np.intersect1d(pile, others, assume_unique=True)
            rows += rng.choice(mine, min(int(STRONG_SHARE * count), len(mine)), replace=False).tolist()
        rest = count - len(rows)
        rows += rng.choice(others, rest, replace=len(others) < rest).tolist()
        return rng.permutation(rows)


def _strongest(expression: Floats) -> tuple[Rows, ...]:
    """The rows (N, 52) with the widest mouths, and those with the most closed eyes, in ascending order."""
    count = max(1, round(STRONGEST * len(expression)))
    strengths = (expression[:, [ARKIT52.index(name) for name in names]].mean(1) for names in _SCORES)
    return tuple(np.sort(np.argsort(-strength, kind="stable")[:count]) for strength in strengths)


@dataclass(frozen=True)
class _Job:
    """One group of one source."""

    entry: Entry
    number: int
    seed: int
    expressions: int
    teacher: str

    @property
    def key(self) -> str:
        return f"{self.entry.key[:180]}-taught{self.number:02d}"

    @property
    def fingerprint(self) -> str:
        source = (self.entry.key, self.entry.fingerprint)
        facts = [VERSION, *source, self.number, self.seed, self.expressions, self.teacher]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class _Teacher:
    """The teacher's network and what names it."""

    model: Export3D
    name: str
    sha256: str

    @classmethod
    def load(cls, weights: Path | str | None, space: str, where: Place, device: torch.device | str) -> _Teacher:
        path = locate(weights)[0]
        model = load_pretrained(path).to(device)
        if model.config.space != space:
            raise InputError(
                f"{where} has expressions in {space}, but the teacher {title(path)} takes {model.config.space}; "
                "choose another teacher with --weights"
            )
        if model.warp is None or model.warp.motion is None:
            raise ConfigError(
                f"the teacher {title(path)} moves no landmarks, so its images cannot be labelled; use base or weights "
                "of its kind"
            )
        return cls(model, title(path), str(read_sidecar(path)["file"]["sha256"]))

    def groups(self, record: Record, jobs: list[_Job], faces: Faces) -> Iterator[Record]:
        """The groups of one source record; none if its face was never found."""
        usable = np.flatnonzero(record.found)
        if not len(usable):
            return
        pictures = decode(record, self.model.config.image_size)
        others = faces.others(jobs[0].entry.person)
        for job in jobs:
            name = f"{job.seed}:{job.entry.key}:{job.number}".encode()
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
            row = int(rng.choice(usable))
            camera, view = _view(record.camera[row], faces, others, rng)
            rows = faces.draw(others, job.expressions, rng)
            driving = faces.expression[rows]
            images, landmarks = self._render(pictures[row], record, row, driving, camera)
            tracks = (
                np.concatenate([record.expression[row : row + 1], driving]),
                np.concatenate([record.camera[row : row + 1], np.repeat(camera[None], len(rows), 0)]),
                np.concatenate([record.landmarks[row : row + 1], landmarks.clip(-4.0, 4.0).astype(np.float16)]),
            )
            made = {
                "teacher": {"weights": self.name, "sha256": self.sha256},
                "seed": job.seed,
                "source": {"record": record.key, "frame": row},
                "camera": view,
                "expressions": [faces.origins[number] for number in rows],
            }
            size = self.model.config.image_size
            media = encode_clip([pictures[row].transpose(1, 2, 0), *images], 1 + len(rows), Limits().crf, job.key, size)
            info = _info(record, job, size, made)
            yield Record(job.key, media, "mp4", *tracks, np.ones(1 + len(rows), dtype=np.bool_), info)

    @torch.inference_mode()
    def _render(
        self, picture: NDArray[np.uint8], record: Record, row: int, driving: Floats, camera: Floats
    ) -> tuple[NDArray[np.uint8], Floats]:
        """Images (n, H, H, 3) of a source (3, H, H) with expressions (n, E) at a camera (25,), and (n, 478, 2)."""
        known = (record.camera, record.expression, record.landmarks)
        own, expression, places = (self._tensor(x[row : row + 1]) for x in known)
        source = self._tensor(picture[None]) / 127.5 - 1.0
        encoded = self.model.encode(source, own, expression, places, crop_mattes(self.model, source))
        images, landmarks = [], []
        for part in np.array_split(driving, -(-len(driving) // _AT_ONCE)):
            planes = self.model.planes(encoded, self._tensor(part))
            labels = self._tensor(np.repeat(camera[None], len(part), 0))
            assert planes.motion is not None
            assert planes.motion.points is not None
            image, points = self.model.frame(planes, labels), projected(planes.motion.points, labels)[0]
            if not (image.isfinite().all() and points.isfinite().all()):
                raise CheckpointError(f"the teacher {self.name} gives numbers that are not finite; use other weights")
            images.append(to_uint8(image))
            landmarks.append(points.cpu().numpy())
        return np.concatenate(images), np.concatenate(landmarks)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(next(self.model.parameters()))


def _view(own: Floats, faces: Faces, others: Rows, rng: np.random.Generator) -> tuple[Floats, dict[str, Any]]:
    """A camera (25,) for a source seen by the camera `own`, and its provenance."""
    kind = str(rng.choice(list(VIEWS), p=list(VIEWS.values())))
    if kind == "own":
        return own, {"kind": kind}
    info: dict[str, Any] = {"kind": kind}
    angles = head_angles(own)
    if kind == "pose":
        row = int(rng.choice(others))
        angles, info["from"] = head_angles(faces.camera[row]), faces.origins[row]
    else:
        turn = rng.normal(0.0, NEAR_DEG)
        if kind == "turned":
            turn[0] = rng.uniform(*TURNED_DEG) * rng.choice((-1.0, 1.0))
            turn[0] *= -1.0 if abs(angles[0] + turn[0]) > _MAX_YAW_DEG else 1.0
        angles = angles + turn
    return from_pose(angles, head_position(own)).astype(np.float32), info


def _info(record: Record, job: _Job, size: int, made: dict[str, Any]) -> dict[str, Any]:
    return {
        **record.info,
        "kind": "video",
        "frames": 1 + job.expressions,
        "fps": FPS,
        "size": size,
        "synthetic": "taught: the first frame is real, the others are rendered from it by the teacher",
        "taught": made,
        "inside": list(WHOLE),
        "found": 1.0,
        "fingerprint": job.fingerprint,
        "place": "",
    }


def _done(made: Path) -> set[str]:
    """Fingerprints of the groups in an output folder; raises `ConfigError` if it holds anything else."""
    if not kind_at(made / INDEX_NAME):
        return set()
    entries = read_index(made).entries
    strange = [entry.key for entry in entries if not KEY.fullmatch(entry.key)]
    if strange:
        raise ConfigError(f"{made} holds records that were not taught ({strange[0]}); choose another folder")
    return {entry.fingerprint for entry in entries}


def _sources(folder: Place, index: Index, todo: dict[str, list[_Job]]) -> Iterator[tuple[Record, list[_Job]]]:
    """The records that have groups to make, and these groups; other shards are not read."""
    for shard in index.shards:
        if any(entry.shard == shard.file and todo.get(entry.key) for entry in index.entries):
            for record in read_shard(folder, shard):
                if todo.get(record.key):
                    yield record, todo[record.key]


def _write(made: Path, groups: Iterable[Record], space: str, total: int, progress: Progress | None) -> int:
    """Write groups fifty at a time, the last ones also if the run is interrupted; returns their number."""
    waiting: list[Record] = []
    number = 0
    try:
        for number, group in enumerate(groups, 1):
            waiting.append(group)
            if len(waiting) == _BATCH:
                update(made, waiting, space=space)
                waiting = []
            if progress is not None:
                progress(number, total, group.key)
    finally:
        if waiting:
            update(made, waiting, space=space)
    return number
