"""Pseudo-clips: animated still portraits, which show the same known expressions on many people.

A bank holds a few hundred changes of expression observed in real clips (a frame's scores minus those of its clip at
rest), chosen to lie far apart. The first frame of a pseudo-clip is the portrait itself. Each other frame adds a change
from the bank to the portrait's own scores; half of them also turn the head (`face/repose.py`). Every frame is then
tracked like any other image: its labels describe what the image shows, not what was requested.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export3d.camera import head_angles, head_rotation
from export3d.data.clips import Limits, encode_clip
from export3d.data.shard_writer import update
from export3d.data.shards import FPS, INDEX_NAME, Record, Reject, read_index, read_shards
from export3d.errors import ConfigError, InputError, counted
from export3d.face import pose
from export3d.face.crop import CROP_SIZE
from export3d.face.landmarks import FaceLandmarker
from export3d.face.morphable import MorphableFace
from export3d.face.repose import Puppet
from export3d.files import check_folder
from export3d.locations import Place, as_place, exists, inside, name_of, write
from export3d.motion.arkit import ARKIT52
from export3d.workers.outcome import Crash
from export3d.workers.run import Workers, run_jobs

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Progress = Callable[[int, int, str], None]

VERSION = 1
"""Version of the way pseudo-clips are made; part of each fingerprint."""
BANK_NAME = "bank.json"
MAX_TURNED_DEG = 25.0
MAX_ERROR_PX = 2.5
TURN_DEG = np.array([15.0, 10.0, 5.0])
"""Largest turn of the head in either direction: yaw, pitch, roll."""
_BATCH = 50
_REST_SHARE = 0.1
_STRATA = {
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "jaw": ("jawOpen",),
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "pucker": ("mouthPucker", "mouthFunnel"),
    "brows up": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    "brows down": ("browDownLeft", "browDownRight"),
    "lips": ("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight"),
    "press": ("mouthPressLeft", "mouthPressRight", "mouthShrugLower", "mouthRollLower"),
}
"""Kinds of change and the scores that define them. Every clip gets one of each kind before a second of any."""
_STRATUM_SIZE = 32
_STRONG = 0.4
"""A change is of a kind if its strength is at least this share of the kind's 99.5th percentile."""
_GAZE = [number for number, name in enumerate(ARKIT52) if name.startswith("eyeLook")]


@dataclass(frozen=True, eq=False)
class Bank:
    """M changes of expression.

    Attributes:
        changes: (M, 52) float64; gaze scores are 0, since a portrait's eyes cannot be turned.
        kinds: the kind that each change was chosen for; "any" for the rest.
        origins: the record and frame that each change comes from.
    """

    changes: Array
    kinds: tuple[str, ...]
    origins: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def digest(self) -> str:
        """Identifies the contents of the bank."""
        return hashlib.sha256(self.changes.astype("<f4").tobytes()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of `bank.json`."""
        lines = [
            {
                "number": n,
                "kind": kind,
                "record": record,
                "frame": frame,
                "change": [round(float(x), 4) for x in change],
            }
            for n, (change, kind, (record, frame)) in enumerate(zip(self.changes, self.kinds, self.origins))
        ]
        return json.dumps({"space": "arkit52", "changes": lines}) + "\n"

    @classmethod
    def of(cls, clips: Iterable[tuple[str, NDArray[Any]]], per_kind: int = _STRATUM_SIZE) -> Bank:
        """Choose a bank from clips, each given as (name, scores (T, 52)). The same clips give the same bank.

        Raises:
            InputError: the clips have too few frames.
        """
        changes, origins = [], []
        for name, scores in clips:
            values = np.asarray(scores, dtype=np.float64).copy()
            values[:, _GAZE] = 0.0
            calm = np.argsort(np.linalg.norm(values, axis=1), kind="stable")[: max(1, int(_REST_SHARE * len(values)))]
            changes.append(values - values[calm].mean(0))
            origins += [(name, frame) for frame in range(len(values))]
        pool = np.concatenate(changes) if changes else np.zeros((0, len(ARKIT52)))
        if len(pool) < 2 * per_kind:
            raise InputError(
                f"the split's clips show {len(pool)} frames, too few for a bank of expressions; add videos"
            )
        rng = np.random.default_rng(0)
        scale = np.percentile(np.abs(pool), 99.5, axis=0)
        points = pool / np.maximum(scale, 0.05)
        chosen: list[int] = []
        kinds: list[str] = []
        for kind, names in _STRATA.items():
            strength = pool[:, [ARKIT52.index(name) for name in names]].mean(1)
            strong = np.flatnonzero(strength >= _STRONG * np.percentile(strength, 99.5))
            chosen += sorted(rng.permutation(strong)[:per_kind].tolist())
            kinds += [kind] * min(len(strong), per_kind)
        others = _far_apart(points, 2 * per_kind)
        chosen += others.tolist()
        kinds += ["any"] * len(others)
        return cls(pool[chosen], tuple(kinds), tuple(origins[n] for n in chosen))

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` distinct numbers of changes: one of each kind before a second of any."""
        order: list[int] = []
        piles = [
            rng.permutation([n for n, k in enumerate(self.kinds) if k == kind]) for kind in dict.fromkeys(self.kinds)
        ]
        for depth in range(max(map(len, piles))):
            layer = [int(pile[depth]) for pile in piles if depth < len(pile)]
            order += rng.permutation(layer).tolist()
        return np.array(order[:count])


def _far_apart(points: Array, count: int) -> NDArray[np.int64]:
    """Farthest-point sampling from the point nearest to the mean: numbers of at most `count` points."""
    chosen = [int(np.argmin(((points - points.mean(0)) ** 2).sum(1)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


@dataclass(frozen=True)
class PseudoReport:
    """The result of a run: records in the split, portraits processed and skipped in this run, rejects by reason."""

    records: int
    done: int
    skipped: int
    refused: dict[str, int]
    seconds: float

    def summary(self) -> str:
        """A readable summary of a few lines."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.refused.items()) or "nothing"
        return (
            f"{counted(self.records, 'pseudo-clip')}; {counted(self.done, 'portrait')} in {self.seconds:.0f} s, "
            f"{self.skipped} already done\n"
            f"refused: {reasons}"
        )


def pseudo_clips(
    split: Path | str,
    out: Path | str,
    face_model: Path | str,
    landmark_map: Path | str,
    frames: int = 13,
    seed: int = 0,
    limit: int | None = None,
    workers: Workers = 1,
    exclude: Iterable[str] = (),
    progress: Progress | None = None,
) -> PseudoReport:
    """Turn the still portraits of a prepared split into clips: a new split in the same format.

    Portraits are processed in an order that depends only on their names, and written in batches of fifty. The split is
    therefore valid whenever a run is stopped, and the next run continues.

    Args:
        split: the prepared split, a folder or its URL; its videos provide the expressions, its stills the people.
        out: folder or URL of the new split, with the bank as `bank.json`.
        face_model, landmark_map: see `MorphableFace.load`.
        frames: frames per clip, the portrait included.
        seed: determines the changes and turns of each portrait.
        limit: use at most this many portraits.
        workers: number of processes, 0 for this one, or a `Cluster`.
        exclude: keys of portraits to leave out.
        progress: called with (portraits done, portraits, key of the last).

    Raises:
        InputError: the split is not prepared or has no portraits, or the face model cannot be read.
        OutputError: `out` cannot be written.
    """
    began = time.monotonic()
    split, out = as_place(split), as_place(out)
    if isinstance(out, Path):
        check_folder(out)
    if frames < 2 or (isinstance(workers, int) and workers < 0):
        raise ConfigError("pseudo-clips need at least two frames, and workers must not be negative")
    index = read_index(split)
    if index.space != "arkit52":
        raise InputError(f"{split} holds expressions in {index.space}; pseudo-clips are made of tracked arkit52 scores")
    if _real(split) == _real(out):
        raise ConfigError(f"{out} is the input split itself; choose another folder")
    portraits = {entry.key for entry in index.entries if entry.kind == "image"} - set(exclude)
    wanted = sorted(portraits, key=lambda key: hashlib.sha256(key.encode()).digest())[:limit]
    if not wanted:
        raise InputError(f"{split} holds no portraits to make pseudo-clips of; prepare some")
    stills: dict[str, Record] = {}
    moving: list[tuple[str, NDArray[Any]]] = []
    chosen = set(wanted)
    for record in read_shards(split, index):
        if record.key in chosen:
            stills[record.key] = record
        elif record.kind == "video":
            moving.append((record.key, record.expression[record.found]))
    bank = Bank.of(sorted((name, scores) for name, scores in moving if len(scores)))
    done = set()
    if exists(inside(out, INDEX_NAME)):
        old = read_index(out)
        done = {entry.fingerprint for entry in old.entries} | {reject.fingerprint for reject in old.rejects}
    jobs = [_Job(stills[key], frames, seed, bank) for key in wanted]
    todo = [job for job in jobs if job.fingerprint not in done]
    records: list[Record] = []
    rejects: list[Reject] = []
    start = functools.partial(_start, str(face_model), str(landmark_map))
    update(out, [])
    write(inside(out, BANK_NAME), bank.to_json().encode())
    for number, (job, outcome) in enumerate(run_jobs(todo, start, workers), 1):
        if isinstance(outcome, Record):
            records.append(outcome)
        else:
            reason, detail = ("crashed", "the process died") if isinstance(outcome, Crash) else outcome
            rejects.append(Reject(job.still.key, name_of(out), reason, detail, job.fingerprint))
        if number % _BATCH == 0 or number == len(todo):
            update(out, records, rejects)
            records, rejects = [], []
        if progress is not None:
            progress(number, len(todo), job.still.key)
    index = read_index(out)
    refused = dict(Counter(reject.reason for reject in index.rejects).most_common())
    return PseudoReport(len(index.entries), len(todo), len(jobs) - len(todo), refused, time.monotonic() - began)


def _real(place: Place) -> Place:
    return place.rstrip("/") if isinstance(place, str) else place.resolve()


@dataclass(frozen=True)
class _Job:
    """One portrait."""

    still: Record
    frames: int
    seed: int
    bank: Bank

    @property
    def fingerprint(self) -> str:
        facts = [VERSION, self.still.info.get("fingerprint", self.still.key), self.frames, self.seed, self.bank.digest]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _start(face_model: str, landmark_map: str) -> Callable[[_Job], Record | tuple[str, str]]:
    import torch

    torch.set_num_threads(1)
    return functools.partial(_do, MorphableFace.load(face_model, landmark_map), FaceLandmarker())


def _do(face: MorphableFace, landmarker: FaceLandmarker, job: _Job) -> Record | tuple[str, str]:
    """The pseudo-clip of one portrait, or the reason why there is none: (reason, sentence)."""
    still, bank = job.still, job.bank
    yaw, pitch, _ = head_angles(still.camera[0])
    if max(abs(yaw), abs(pitch)) > MAX_TURNED_DEG:
        return (
            "turned away",
            f"{still.key} is turned by {yaw:.0f} and {pitch:.0f} degrees, the limit is {MAX_TURNED_DEG:.0f}",
        )
    image = np.asarray(Image.open(io.BytesIO(still.media)).convert("RGB"))
    own = still.expression[0].astype(np.float64)
    puppet = Puppet(face, image, still.landmarks[0].astype(np.float64) * CROP_SIZE, own)
    if puppet.fit.error_px > MAX_ERROR_PX:
        return (
            "poor fit",
            f"{still.key}: the face model fits to {puppet.fit.error_px:.1f} px, the limit is {MAX_ERROR_PX}",
        )
    name = f"{job.seed}:{still.key}".encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
    numbers = bank.draw(job.frames - 1, rng)
    turns = rng.uniform(-1.0, 1.0, (len(numbers), 3)) * TURN_DEG
    turns[rng.permutation(len(numbers))[: len(numbers) // 2]] = 0.0
    turns[:, 0] *= np.where(np.abs(yaw + turns[:, 0]) > MAX_TURNED_DEG, -1.0, 1.0)
    pictures, filled = [image], [np.ones(image.shape[:2], dtype=bool)]
    for number, turn in zip(numbers, turns):
        view = puppet.view((own + bank.changes[number]).clip(0.0, 1.0), head_rotation(turn))
        pictures.append(view.image)
        filled.append(np.all((view.source > 0) & (view.source < CROP_SIZE), axis=-1))
    return _tracked(job, puppet.fit.error_px, landmarker, pictures, numbers, turns, np.stack(filled))


def _tracked(
    job: _Job,
    error_px: float,
    landmarker: FaceLandmarker,
    pictures: list[NDArray[np.uint8]],
    numbers: NDArray[np.int64],
    turns: Array,
    filled: NDArray[np.bool_],
) -> Record | tuple[str, str]:
    still, limits = job.still, Limits()
    seen = [landmarker.detect(picture) for picture in pictures]
    rows = np.flatnonzero([len(faces) > 0 for faces in seen])
    if len(rows) < 2:
        return "face lost", f"{still.key} shows a face in {len(rows)} of its {len(pictures)} frames"
    landmarks = np.stack([seen[row][0].landmarks[:, :2] for row in rows]).astype(np.float64)
    scores = np.stack([seen[row][0].scores for row in rows])
    shape = pose.person_shape(landmarks, CROP_SIZE)
    camera, distance = pose.fit_cameras(landmarks, CROP_SIZE, shape, scores)
    good = distance <= limits.max_reprojection_px
    if good.sum() < 2:
        return "poor track", f"{still.key}: the head fits to {np.median(distance):.1f} px in its frames"
    rows, landmarks, scores, camera, distance = rows[good], landmarks[good], scores[good], camera[good], distance[good]
    info = {
        **still.info,
        "kind": "video",
        "frames": len(rows),
        "fps": FPS,
        "synthetic": "pseudo-clip: one portrait reposed by a face model; what an opened mouth shows is made up",
        "still": still.key,
        "bank": [-1 if row == 0 else int(numbers[row - 1]) for row in rows],
        "turn_deg": [[0.0] * 3 if row == 0 else [round(float(x), 2) for x in turns[row - 1]] for row in rows],
        "fit_px": round(error_px, 3),
        "inside": _common(still.info.get("inside", [0.0, 0.0, 1.0, 1.0]), filled[rows]),
        "found": 1.0,
        "reprojection_px": round(float(np.median(distance)), 3),
        "fingerprint": job.fingerprint,
        "place": "",
    }
    media = encode_clip([pictures[row] for row in rows], len(rows), limits.crf, still.key)
    return Record(
        f"{still.key}-pseudo",
        media,
        "mp4",
        scores,
        camera.astype(np.float32),
        (landmarks / CROP_SIZE).clip(-4.0, 4.0).astype(np.float16),
        np.ones(len(rows), dtype=np.bool_),
        info,
    )


def _common(inside: list[float], filled: NDArray[np.bool_]) -> list[float]:
    """The still's box without the rows and columns that are mostly repeated edge in some frame."""
    columns = np.flatnonzero((filled.mean(1) > 0.5).all(0))
    rows = np.flatnonzero((filled.mean(2) > 0.5).all(0))
    size = filled.shape[-1]
    mine = [columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size]
    pick = (max, max, min, min)
    return [round(float(choose(a, b)), 5) for choose, a, b in zip(pick, inside, mine)]
