"""Cross-identity reenactment: one person's frame is driven by another person's clip (Sec. 4.2, Table 2; Table 3).

There is no true picture to compare with, so the figures say whose face came out and whether it moves as asked:

- *CSIM*: cosine of the source's and the generated face's identity (`identity`); higher is better.
- *Leak*: the same cosine between the generated face and the driving frame behind it: appearance that the raw expression
  values carried over from the driver makes it rise; lower is better. Its reference is the cosine of the two strangers.
- *AED*: mean absolute difference of the 52 ARKit scores, tracked again in the result, from those that drove it.
- *APD*: the same of yaw, pitch and roll, degrees.
- correlations of yaw, jawOpen and eyeBlink, tracked again, with what drove them.

Beside ours stand the driver's real pictures, scored in the same way: two strangers, and the tracker's own error. Pairs
are scored one at a time, in one process or in several, and what is done stays done (`results`).

The rules:

- *Pairs*: a file, or by rule: people in the order of their names, each one's first clip drives the next two people's
  first record, the last ones the first.
- *Source*: the most frontal found frame, as in the same-identity protocol.
- *Driven*: at most N evenly spaced found frames of the driving clip.
- *Motion*: `absolute` renders the driver's expression values as they are and the head at the driver's angles, which is
  the case in which they leak; the head's place and distance are the source's, moved as the driver's move about their
  median, so that the size of the driver's face does not enter through the camera. `relative` is what `export3d animate`
  does (`animate.drive.rebase`).
- *Pictures*: rendered at the model's size, rounded to 8 bits; for tracking and identity all are enlarged to 256.
  Nothing is smoothed in time: the frames are not neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import pick_device
from export3d.animate.drive import rebase
from export3d.camera import from_pose, head_angles, head_position
from export3d.data.frames import decode
from export3d.data.shards import Index, Record, read_index, read_tar
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.measures import temporal
from export3d.evaluation.measures.face import apd6
from export3d.evaluation.measures.identity import PACKAGED, Identity, csim, load_identity
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.measures.temporal import Flicker
from export3d.evaluation.protocols.driven import BATCH, FPS, most_frontal
from export3d.evaluation.protocols.pairs import Pair, check_pairs, choose_pairs, read_pairs
from export3d.evaluation.protocols.predictions import PredictionWriter
from export3d.evaluation.protocols.results import Results, Shown, threads_for
from export3d.evaluation.protocols.runner import Progress, kept_from_before, origin_of, score_all, what_was_scored
from export3d.evaluation.protocols.same import OURS
from export3d.evaluation.protocols.scoring import Chunk, ClipScores, clip_strip, enlarged
from export3d.evaluation.reports.cross import CrossReport, name_of_weights
from export3d.evaluation.reports.figures import publishable
from export3d.evaluation.reports.report import REAL, RETRACKED, ClipResult, Report, clip_result
from export3d.face import pose
from export3d.face.crop import CROP_SIZE
from export3d.face.smooth import Smoothing
from export3d.face.tracker import Tracker
from export3d.files import check_input
from export3d.image import to_tensor, to_uint8
from export3d.motion.compare import compare
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]
Transfer = Literal["absolute", "relative"]

FRAMES = 40
_ANGLE_SCALE_DEG = 15.0
_MUST_AGREE = ("split", "identity", "motion", "frames")
"""Settings without which two reports cannot be compared pair by pair."""


def cross_identity(
    split: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    pairs: Path | str | None = None,
    identity: Sequence[str | Path] = (PACKAGED,),
    motion: Transfer = "absolute",
    frames: int = FRAMES,
    against: Path | str | None = None,
    save: Path | str | None = None,
    workers: int = 0,
    publishable_only: bool = True,
    max_pairs: int | None = None,
    device: str | torch.device = "auto",
    batch: int = BATCH,
    progress: Progress | None = None,
) -> CrossReport:
    """Drive people by other people's clips, score it and write the report (`results`).

    A run that was cut goes on where it stopped, if it is repeated with the same settings into the same folder.

    Args:
        split: a folder of shards; portraits may be sources, videos both.
        out: folder for the results, made if missing.
        weights: by default those inside the package.
        pairs: a file as `read_pairs` takes it; by default `choose_pairs`.
        identity: descriptors for CSIM, see `identity.load_identity`.
        motion: what is taken from the driver, see above.
        frames: at most so many of each driving clip.
        against: `report.json` of another run on the same pairs; the paired differences are added to the report.
        save: folder for the pictures, in the layout of `predictions`: SOURCE_by_DRIVER, the targets being the driver's.
        workers: processes; 0 scores in this one.
        publishable_only: show only people on the sheet whose pictures may be published (`figures.publishable`).
        max_pairs: only the first ones.
        device: "auto" (a CUDA device if there is one), or what `torch.device` takes.
        batch: frames rendered together.
        progress: called with (frames done, frames), the latter an estimate.

    Raises:
        InputError: not a prepared split, pairs that are not in it, pictures of another run in `save`, or a report to
            compare with that was made otherwise.
        CheckpointError: no such weights.  MissingExtra: no tracker, or no onnxruntime for an ONNX file.
        OutputError: `out` cannot be written.  ConfigError: settings that cannot work.
    """
    split, save, chosen = Path(split), None if save is None else Path(save), pick_device(device)
    if min(frames, batch, 1 if max_pairs is None else max_pairs) < 1 or workers < 0 or not identity:
        raise ConfigError(
            "frames, batch and the number of pairs must be at least 1, workers at least 0, and identity needs a "
            "descriptor"
        )
    index = read_index(split)
    model = load_pretrained(weights)
    if {index.space, model.config.space} != {"arkit52"}:
        raise InputError(
            f"{split} holds expressions in {index.space} and the weights take {model.config.space}; cross-identity "
            "scores are made of tracked ARKit scores, so both must be arkit52"
        )
    listed = (choose_pairs(index) if pairs is None else read_pairs(pairs))[:max_pairs]
    check_pairs(listed, index)
    identities = [load_identity(name) for name in identity]
    measures = _measures(identities)
    settings = {
        **what_was_scored(model, weights, split),
        "pairs": "by rule: each clip drives the next two people" if pairs is None else Path(pairs).name,
        "identity": [descriptor.description for descriptor in identities],
        "motion": motion,
        "frames": f"at most {frames} of each driving clip, evenly spaced",
        "source": "most frontal found frame (smallest |yaw| + |pitch| + |roll|)",
    }
    other = None if against is None else _read_report(Path(against), settings)
    words = [(m.name, m.definition) for m in measures]
    results = Results(Path(out), {**settings, "measures": words, "publishable_only": publishable_only})
    plan = _Plan(
        split=split,
        weights=None if weights is None else Path(weights),
        identity=tuple(identity),
        motion=motion,
        frames=frames,
        device=str(chosen),
        batch=batch,
        publishable_only=publishable_only,
        results=results,
        save=save,
        workers=workers,
    )
    scored, skipped = _score_pairs(plan, listed, index, progress)

    def build(clips: tuple[ClipResult, ...], _: dict[str, Any], credits: tuple[dict[str, str], ...]) -> CrossReport:
        title = f"Cross-identity reenactment on {split.resolve().name}"
        shown = _measured(measures, clips)
        return CrossReport(title, settings, (OURS, REAL), shown, clips, skipped=skipped, credits=credits, other=other)

    return results.finish(scored, build, previous=other)


def asked_motion(driver: Motion, source_camera: Values, source_expression: Values, how: Transfer) -> Motion:
    """What the source is asked to do: the driver's T frames as `motion` says (see the module's rules).

    Args:
        driver: the whole driving clip.
        source_camera, source_expression: (25,) and (E,) of the source frame.
    """
    if how == "relative":
        return rebase(driver, source_camera, source_expression)
    moved = head_position(driver.camera)
    position = head_position(source_camera) + moved - np.median(moved, axis=0)
    return replace(driver, camera=from_pose(driver.angles_deg, position))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a process needs to score pairs; made of plain values, so that it can be sent to one."""

    split: Path
    weights: Path | None
    identity: tuple[str | Path, ...]
    motion: Transfer
    frames: int
    device: str
    batch: int
    publishable_only: bool
    results: Results
    save: Path | None
    workers: int


def _score_pairs(
    plan: _Plan, pairs: Sequence[Pair], index: Index, progress: Progress | None
) -> tuple[list[str], dict[str, str]]:
    """See `score_all`; raises `InputError` where no pair could be scored."""
    kept = kept_from_before(plan.results, plan.save, {pair.name: pair.folder for pair in pairs})
    there = {entry.key: entry.frames for entry in index.entries}
    expected = {pair.name: min(plan.frames, there[pair.driver]) for pair in pairs}
    scored, skipped = score_all(pairs, kept, functools.partial(_Work, plan), expected, plan.workers, progress)
    if not scored:
        raise InputError(f"no pair of {plan.split} could be scored: {next(iter(skipped.values()))}")
    return scored, skipped


def _measured(measures: tuple[Measure, ...], clips: Sequence[ClipResult]) -> tuple[Measure, ...]:
    """The measures without flicker where frames that are spaced out have none."""
    absent = {m for m in temporal.MEASURES if all(math.isnan(clip.value(OURS, m.name)) for clip in clips)}
    return tuple(m for m in measures if m not in absent)


class _Work:
    """Scores pairs, one at a time; a call returns why a pair could not be scored, or nothing."""

    def __init__(self, plan: _Plan) -> None:
        threads_for(plan.workers)
        self._plan = plan
        self._model = load_pretrained(plan.weights).to(plan.device)
        self._size = self._model.config.image_size
        self._entries = {entry.key: entry for entry in read_index(plan.split).entries}
        self._identities = [load_identity(name) for name in plan.identity]
        self._tracker = Tracker(smoothing=Smoothing(pose_s=0, distance_s=0, expression_s=0))
        self._driver: _Driver | None = None

    def __call__(self, pair: Pair) -> str:
        try:
            self._score(pair)
        except NoFaceFound as error:
            return str(error)
        return ""

    def _score(self, pair: Pair) -> None:
        if self._driver is None or self._driver.record.key != pair.driver:  # the next pair often has the same one
            self._driver = _Driver(self._record(pair.driver), self._plan.frames, self._size, self._seen)
        driver, source = self._driver, self._record(pair.source)
        if not source.found.any():
            raise NoFaceFound(f"the face was not found in {source.key}; prepare it again")
        frame = most_frontal(source.camera, source.found)
        camera, expression = source.camera[frame], source.expression[frame]
        still = np.ascontiguousarray(np.moveaxis(decode(source, self._size)[frame], 0, -1))
        asked = _at(asked_motion(driver.motion, camera, expression, self._plan.motion), driver.rows)
        pictures = self._render(still, source, frame, asked)
        ours, theirs = self._seen(pictures, pair.name), driver.seen

        values, reference = _movement(asked, ours), _movement(_at(driver.motion, driver.rows), theirs)
        (shown,) = enlarged(still[None])
        landmarks = source.landmarks[frame].astype(np.float64) * CROP_SIZE
        likeness: list[NDArray[np.float64]] = []
        for who, vectors, strangers in zip(self._identities, ours.identity, theirs.identity):
            own = who(shown, landmarks)
            likeness.append(csim(vectors, own))
            values[f"csim_{who.name}"] = float(likeness[-1].mean())
            values[f"leak_{who.name}"] = float(csim(vectors, strangers).mean())
            reference |= dict.fromkeys((f"csim_{who.name}", f"leak_{who.name}"), float(csim(strangers, own).mean()))
        face = np.where(theirs.track.found[:, None, None], theirs.landmarks * (self._size / CROP_SIZE), np.nan)
        flicker = Flicker()
        flicker.add(driver.rows, theirs.pictures, pictures, face)
        values |= flicker.result()

        worst = int(likeness[0].argmin())
        away = np.abs(asked.angles_deg - head_angles(camera)).sum(axis=-1) / _ANGLE_SCALE_DEG
        away = away + np.abs(asked.expression - expression).sum(axis=-1)
        at = int(away.argmax())
        both = [(origin_of(r.info), str(r.info.get("terms", ""))) for r in (source, driver.record)]
        case = None
        if not self._plan.publishable_only or all(publishable(terms, origin) for origin, terms in both):
            pair_shown = enlarged(np.stack([theirs.pictures[at], pictures[at]]))
            case = Shown(float(away[at]), int(driver.rows[at]), shown, *pair_shown)
        result = ClipResult(
            pair.name,
            str(driver.record.info.get("person", pair.driver)),
            "; ".join(terms for _, terms in both),
            "; ".join(origin for origin, _ in both),
            len(pictures),
            frame,
            0,
            {OURS: values, REAL: reference},
            int(driver.rows[worst]),
        )
        strip = clip_strip(still, Chunk(driver.rows, theirs.pictures, {OURS: pictures}), worst)
        with contextlib.ExitStack() as stack:
            if self._plan.save is not None:
                saved = stack.enter_context(PredictionWriter(self._plan.save).clip(pair.folder, still))
                saved.add(theirs.pictures, pictures)
            # Before the pictures get their name: a cut in between scores the pair again and loses nothing.
            self._plan.results.write(
                result, ClipScores(result.scores, len(pictures), result.worst_frame, strip, {}), case
            )

    @torch.inference_mode()
    def _render(self, still: Picture, source: Record, frame: int, asked: Motion) -> Picture:
        """(K, R, R, 3): the source, a frame (R, R, 3) of its record, as it is asked to be."""
        known = (source.camera, source.expression, source.landmarks)
        own = (to_tensor(still), *(torch.from_numpy(np.array(values[frame], np.float32)) for values in known))
        features = self._model.encode(*(values[None].to(self._plan.device) for values in own))
        wanted = (
            torch.from_numpy(np.array(values)).to(self._plan.device) for values in (asked.expression, asked.camera)
        )
        parts = zip(*(torch.split(values, self._plan.batch) for values in wanted))
        return np.concatenate([to_uint8(self._model.frame(self._model.planes(features, e), c)) for e, c in parts])

    def _record(self, key: str) -> Record:
        return next(r for r in read_tar(self._plan.split / self._entries[key].shard) if r.key == key)

    def _seen(self, pictures: Picture, name: str) -> _Seen:
        return _Seen(pictures, name, self._tracker, self._identities)


class _Seen:
    """Pictures (K, R, R, 3), and what tracking and identity see in them at 256; a lost face is bridged.

    Attributes:
        track: its frames are the pictures.
        landmarks: (K, 478, 2) pixels at 256.
        identity: for each descriptor (K, D).
    """

    def __init__(self, pictures: Picture, name: str, tracker: Tracker, identities: Sequence[Identity]) -> None:
        large = enlarged(pictures)
        self.pictures = pictures
        self.track = tracker.track_frames(large, FPS, name)
        self.landmarks = self.track.crop.from_crop(self.track.landmarks)
        self.identity = [who.many(large, self.landmarks) for who in identities]


class _Driver:
    """A driving clip: its motion, the chosen frames, and what is seen in them."""

    def __init__(self, record: Record, frames: int, size: int, see: Callable[[Picture, str], _Seen]) -> None:
        found = np.flatnonzero(record.found)
        if len(found) < 2:
            raise NoFaceFound(f"the face was found in fewer than two frames of {record.key}; prepare it again")
        self.record = record
        self.rows = found[np.linspace(0, len(found) - 1, min(frames, len(found))).round().astype(int)]
        self.motion = Motion(record.expression, record.camera, FPS)
        self.seen = see(np.ascontiguousarray(np.moveaxis(decode(record, size)[self.rows], 1, -1)), record.key)


def _movement(asked: Motion, seen: _Seen) -> dict[str, float]:
    """AED, APD and correlations of pictures with what was asked for, and in how many a face was found."""
    tracked = seen.track.motion
    agreement = compare(asked, tracked)
    labels, _ = pose.fit_cameras(seen.landmarks, CROP_SIZE, scores=tracked.expression)
    return {
        "aed": float(np.abs(asked.expression - tracked.expression).mean()),
        "apd": float(np.mean([agreement["mean_abs_difference"][name] for name in ("yaw", "pitch", "roll")])),
        "apd6": float(apd6(_pose6(asked.camera), _pose6(labels)).mean()),
        **{name: agreement["correlation"][name] for name in RETRACKED},
        "found": float(seen.track.found.mean()),
    }


def _pose6(cameras: Values) -> NDArray[np.float64]:
    """Labels (K, 25) to (K, 6): angles in radians, and the head's position."""
    return np.concatenate([np.radians(head_angles(cameras)), head_position(cameras)], axis=-1)


def _measures(identities: Sequence[Identity]) -> tuple[Measure, ...]:
    measures = []
    for who in identities:
        csim_of = "cosine of identity, generated frames and source frame"
        measures += [
            Measure(f"csim_{who.name}", f"CSIM {who.name}", True, 3, csim_of),
            Measure(f"leak_{who.name}", f"leak {who.name}", False, 3, "the same, generated frames and driving frames"),
        ]
    asked = "tracked again, from the asked"
    position = f"mean |difference| of three angles in radians and position in scene units (54 cm), {asked}"
    return (
        *measures,
        Measure("aed", "AED", False, 4, "mean |difference| of 52 ARKit scores, tracked again, from those asked for"),
        Measure("apd", "APD (degrees)", False, 2, f"mean |difference| of yaw, pitch and roll, {asked}"),
        Measure("apd6", "APD (6 numbers)", False, 4, position),
        *(
            Measure(name, name, True, 2, f"Pearson correlation of {name}, tracked again, with the asked")
            for name in RETRACKED
        ),
        Measure("found", "face found", True, 3, "share of the frames in which the tracker finds a face"),
        *temporal.MEASURES,
    )


def _at(motion: Motion, rows: NDArray[np.int64]) -> Motion:
    return replace(motion, expression=motion.expression[rows], camera=motion.camera[rows])


def _read_report(path: Path, settings: dict[str, Any]) -> Report:
    """Another run, as far as it is compared; its settings must be the same where pairs would not be comparable."""
    try:
        value = json.loads(
            check_input(path, InputError, "a report of a cross-identity run").read_text(encoding="utf-8")
        )
        clips = [
            clip_result({
                "key": Pair(**pair["pair"]).name, "person": "", "terms": "", "origin": "", "identical_frames": 0,
                "frames": pair["frames"], "source_frame": pair["source_frame"],
                "scores": {OURS: {"found": pair["found"], **pair["values"]}},
            })
            for pair in value["pairs"]
        ]  # fmt: skip
        differing = [name for name in _MUST_AGREE if value["settings"][name] != settings[name]]
        other = Report(str(value["title"]), dict(value["settings"]), (OURS,), (), tuple(clips))
        name_of_weights(other)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not the report.json of a cross-identity run; make one with --protocol cross"
        ) from error
    if differing:
        raise InputError(f"{path} was made with other settings ({', '.join(differing)}); repeat that run with these")
    return other
