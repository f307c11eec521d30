"""Cross-identity reenactment: one person's frame is driven by another person's clip (Sec. 4.2, Table 2; Table 3).

There is no ground truth, so the measures say whose face was generated and whether it moves as requested:

- *CSIM*: cosine of the source's and the generated face's identity (`identity`); higher is better.
- *Leak*: the same cosine between the generated face and its driving frame. It rises when the raw expression values
  carry the driver's appearance over; lower is better. Its reference is the cosine of the two strangers.
- *AED*: mean absolute difference between the 52 ARKit scores tracked in the result and those that drove it.
- *APD*: the same for yaw, pitch and roll, degrees.
- With a network that reads 64 coefficients and a pose, AED and APD are the paper's (Sec. 6.4): mean absolute
  differences between what it reads in the result and in the driving frames.
- correlations of yaw, jawOpen and eyeBlink, tracked in the result, with the motion that drove it. If that motion is in
  a space without names (bfm64), jawOpen and eyeBlink are compared with those tracked in the driving frames.
- gaze, mouth and eyelids (`facial_motion`), tracked in the result, with the same tracked in the driving frames.

The driver's real frames are scored in the same way: two strangers, and the tracker's own error. Pairs are scored one at
a time, in one process or in several, and finished pairs are kept (`results`).

The rules:

- *Pairs*: from a file, or by rule: people in the order of their names, each person's first clip drives the next two
  people's first record, the last people the first.
- *Source*: the most frontal found frame, as in the same-identity protocol.
- *Driven*: at most N evenly spaced found frames of the driving clip.
- *Motion*: `absolute` renders the driver's expression values unchanged and the head at the driver's angles; in this
  case expression values leak appearance. The position of the head is the source's, moved as the driver's moves about
  its median, so that the size of the driver's face does not enter through the camera. `relative` is what
  `export3d animate` does (`animate.drive.rebase`).
- *Images*: rendered at the model's size and rounded to 8 bits; enlarged to 256 for tracking and identity. Nothing is
  smoothed in time, because the frames are not neighbours. At another size only sharpness is measured at that size, and
  everything else on the frames reduced to the model's.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.animate.animator import pick_device
from export3d.animate.drive import rebase
from export3d.camera import from_pose, head_position
from export3d.data.decoding import decode
from export3d.data.shards import Index, Record, read_index, read_record
from export3d.engines.choice import pick_engine
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.measures import facial_motion, temporal
from export3d.evaluation.measures.face_readers import ARKIT, load_expression
from export3d.evaluation.measures.identity import csim, load_identity
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.measures.rendered import MEASURES as RENDERED
from export3d.evaluation.measures.rendered import on_grid, rendered_scores
from export3d.evaluation.measures.sharpness import MEASURE as SHARPNESS
from export3d.evaluation.measures.sharpness import sharpness
from export3d.evaluation.measures.temporal import Flicker
from export3d.evaluation.protocols.driven import at_size, distance_from, most_frontal
from export3d.evaluation.protocols.originals import Original, check_size, folders_of, resized, with_pixels
from export3d.evaluation.protocols.pairs import check_pairs, choose_pairs, read_pairs
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.provenance import (
    engine_of_run,
    inputs_of_run,
    name_of_split,
    origin_of,
    sizes_of_run,
)
from export3d.evaluation.protocols.results import Results, Shown
from export3d.evaluation.protocols.retracked import SeenFrames, cross_measures, movement_scores, read_scores
from export3d.evaluation.protocols.runner import Progress, finished_clips, score_all, share_threads
from export3d.evaluation.protocols.scoring import Chunk, ClipScores, clip_strip, enlarged
from export3d.evaluation.protocols.settings import RunSettings
from export3d.evaluation.reports.clips import OURS, REAL, ClipResult
from export3d.evaluation.reports.cross import CrossReport, Pair, read_cross_report
from export3d.evaluation.reports.figures import publishable
from export3d.face.crop import CROP_SIZE, crop
from export3d.face.identity import PACKAGED
from export3d.face.smooth import Smoothing
from export3d.face.tracker import Tracker
from export3d.image import to_tensor, to_uint8
from export3d.locations import Place, as_place
from export3d.model import Export3D, Planes
from export3d.motion.motion import Motion
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]
Transfer = Literal["absolute", "relative"]

FRAMES = 40


def cross_identity(
    split: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    pairs: Path | str | None = None,
    identity: Sequence[str | Path] = (PACKAGED,),
    expression: str | Path = ARKIT,
    motion: Transfer = "absolute",
    frames: int = FRAMES,
    against: Path | str | None = None,
    max_pairs: int | None = None,
    size: int | None = None,
    originals: Path | str | None = None,
    publishable_only: bool = True,
    run: RunSettings = RunSettings(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> CrossReport:
    """Drive people by other people's clips, score the results and write the report (`results`).

    A run that was stopped continues if it is repeated with the same settings into the same folder.

    Args:
        split: a folder of shards or its URL; sources may be portraits or videos.
        out: folder for the results, created if missing, or its URL.
        weights: by default those inside the package.
        pairs: a file that `read_pairs` reads; by default `choose_pairs`.
        identity: descriptors for CSIM, see `identity.load_identity`.
        expression: reader of expression and pose for AED and APD, see `face_readers.load_expression`.
        motion: how motion is transferred, see the rules above.
        frames: most frames of each driving clip.
        against: `report.json` of another run on the same pairs; the report gets the paired differences.
        max_pairs: only the first pairs.
        size: of the results, pixels across the face crop; by default the model's. At another size the source's pixels
            come from the file that it was prepared from, and sources whose crop has fewer are left out.
        originals: at another size, a folder in which those files are looked for first, see `originals.folders_of`.
        publishable_only: show on the sheet only people whose images may be published (`figures.publishable`).
        run: device, processes, batch, engine, and where images are saved: in SOURCE_by_DRIVER, with the driver's frames
            as targets.
        progress: called with (frames done, frames); the latter is an estimate.

    Raises:
        InputError: not a prepared split, an expression space that the weights or the reader do not take, unknown pairs,
            images of another run in the folder for images, or a report of another kind or with other settings.
        CheckpointError: no such weights.  MissingExtra: no tracker, or no onnxruntime for an ONNX file.
        OutputError: `out` cannot be written.  ConfigError: invalid settings.
    """
    split, device = as_place(split), pick_device(run.device_of_crew)
    if min(frames, 1 if max_pairs is None else max_pairs) < 1 or not identity:
        raise ConfigError("frames and the number of pairs must be at least 1, and identity needs a descriptor")
    reader = None if str(expression) == ARKIT else load_expression(expression)
    index, model = _in_one_space(split, weights, named=reader is None)
    listed = list(choose_pairs(index) if pairs is None else read_pairs(pairs))
    check_pairs(listed, index)
    check_size(size, model)
    folders = () if size is None else folders_of(split, originals)
    small: dict[str, str] = {}
    if size is not None:
        listed, small = _with_pixels(split, listed, index, size, folders)
    listed = listed[:max_pairs]
    identities = [load_identity(name) for name in identity]
    measures = cross_measures(identities, reader is not None, index.space == ARKIT)
    measures += RENDERED if size is None else ()
    settings = {
        **inputs_of_run(model, weights, split),
        **sizes_of_run(size),
        **engine_of_run(model.to(device), run),
        "pairs": "by rule: each clip drives the next two people" if pairs is None else Path(pairs).name,
        "identity": [descriptor.description for descriptor in identities],
        **({} if reader is None else {"expression and pose": reader.description}),
        "motion": motion,
        "frames": f"at most {frames} of each driving clip, evenly spaced",
        "source": "most frontal found frame (smallest |yaw| + |pitch| + |roll|)",
    }
    other = None if against is None else read_cross_report(Path(against), settings)
    words = [(m.name, m.definition) for m in measures]
    results = Results(out, {**settings, "measures": words, "publishable_only": publishable_only})
    plan = _Plan(
        split=split,
        weights=None if weights is None else Path(weights),
        identity=tuple(identity),
        expression=expression,
        motion=motion,
        frames=frames,
        size=size,
        folders=folders,
        device=str(device),
        publishable_only=publishable_only,
        run=run,
        results=results,
    )
    scored, skipped = _score_pairs(plan, listed, index, progress)
    clips = results.clips(scored)
    title, defined = f"Cross-identity reenactment on {name_of_split(split)}", _defined(measures, clips)
    title += "" if size is None else f", {size} px"
    report = CrossReport(title, settings, (OURS, REAL), defined, clips, skipped=small | skipped, other=other)
    return results.write_report(report, previous=other)


def _in_one_space(split: Place, weights: Path | str | None, named: bool) -> tuple[Index, Export3D]:
    """The split's index and the model; `InputError` unless both are in one space, of `named` scores if asked for."""
    index, model = read_index(split), load_pretrained(weights)
    if index.space != model.config.space:
        raise InputError(
            f"{split} holds expressions in {index.space} but the weights were trained on {model.config.space}; "
            "prepare the clips in that space or use other weights"
        )
    if named and index.space != ARKIT:
        raise InputError(
            f"{split} holds expressions in {index.space}, which the tracker cannot read in generated frames; name a "
            "network that can with --expression FILE.onnx"
        )
    return index, model


def asked_motion(driver: Motion, source_camera: Values, source_expression: Values, how: Transfer) -> Motion:
    """The motion requested of the source: the driver's T frames, transferred by the rules at the top of this file.

    Args:
        driver: the whole driving clip.
        source_camera, source_expression: (25,) and (E,) of the source frame.
        how: "absolute" or "relative".
    """
    if how == "relative":
        return rebase(driver, source_camera, source_expression)
    moved = head_position(driver.camera)
    position = head_position(source_camera) + moved - np.median(moved, axis=0)
    return replace(driver, camera=from_pose(driver.angles_deg, position))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a process needs to score pairs. Its values can be sent to another process."""

    split: Place
    weights: Path | None
    identity: tuple[str | Path, ...]
    expression: str | Path
    motion: Transfer
    frames: int
    size: int | None
    folders: tuple[Path, ...]
    device: str
    publishable_only: bool
    run: RunSettings
    results: Results


def _score_pairs(
    plan: _Plan, pairs: Sequence[Pair], index: Index, progress: Progress | None
) -> tuple[list[str], dict[str, str]]:
    """See `score_all`; raises `InputError` if no pair could be scored."""
    finished = finished_clips(plan.results, plan.run.save, {pair.name: pair.folder for pair in pairs})
    length = {entry.key: entry.frames for entry in index.entries}
    frames = {pair.name: min(plan.frames, length[pair.driver]) for pair in pairs}
    scored, skipped = score_all(pairs, finished, functools.partial(_Work, plan), frames, plan.run.crew, progress)
    if not scored:
        raise InputError(f"no pair of {plan.split} could be scored: {next(iter(skipped.values()))}")
    return scored, skipped


def _with_pixels(
    split: Place, pairs: Sequence[Pair], index: Index, size: int, folders: Sequence[Path]
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs whose source has the pixels, and the reason for each of the others; see `originals.with_pixels`."""
    sources = {pair.source for pair in pairs}
    small = with_pixels(split, [entry for entry in index.entries if entry.key in sources], size, folders)[1]
    reasons = {pair.name: f"{pair.source}: {small[pair.source]}" for pair in pairs if pair.source in small}
    return [pair for pair in pairs if pair.name not in reasons], reasons


def _defined(measures: tuple[Measure, ...], clips: Sequence[ClipResult]) -> tuple[Measure, ...]:
    """The measures, without flicker if no pair has it: spaced frames have none."""
    absent = {m for m in temporal.MEASURES if all(math.isnan(clip.value(OURS, m.name)) for clip in clips)}
    return tuple(m for m in measures if m not in absent)


class _Work:
    """Scores pairs, one at a time; a call returns why a pair could not be scored, or an empty string."""

    def __init__(self, plan: _Plan) -> None:
        share_threads(plan.run.crew)
        self._plan = plan
        self._model = load_pretrained(plan.weights).to(plan.device)
        self._engine = pick_engine(self._model, plan.run.engine)
        self._size = self._model.config.image_size
        self._entries = {entry.key: entry for entry in read_index(plan.split).entries}
        self._identities = [load_identity(name) for name in plan.identity]
        self._reader = None if str(plan.expression) == ARKIT else load_expression(plan.expression)
        self._tracker = Tracker(smoothing=Smoothing(pose_s=0, distance_s=0, expression_s=0))
        self._driver: _Driver | None = None

    def __call__(self, pair: Pair) -> str:
        try:
            self._score(pair)
        except NoFaceFound as error:
            return str(error)
        except InputError as error:
            if self._plan.size is None:
                raise
            return str(error)  # of a file that is not part of the split
        return ""

    def _score(self, pair: Pair) -> None:
        if self._driver is None or self._driver.record.key != pair.driver:  # consecutive pairs often share a driver
            record, space = self._record(pair.driver), self._model.config.space
            self._driver = _Driver(record, space, self._plan.frames, self._size, self._seen)
        driver, source = self._driver, self._record(pair.source)
        if not source.found.any():
            raise NoFaceFound(f"the face was not found in {source.key}; prepare it again")
        frame = most_frontal(source.camera, source.found)
        camera, expression = source.camera[frame], source.expression[frame]
        still = np.ascontiguousarray(np.moveaxis(decode(source, self._size)[frame], 0, -1))
        asked = asked_motion(driver.motion, camera, expression, self._plan.motion).rows(driver.rows)
        pictures, shares, large = self._render(still, source, frame, asked)
        ours, theirs = self._seen(pictures, pair.name), driver.seen

        values, reference = self._movement(asked, ours, driver)
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
        shown_face = np.where(ours.track.found[:, None, None], ours.landmarks, np.nan)
        found = {} if shares is None else rendered_scores(shares, shown_face, CROP_SIZE)
        compared, own_picture = (pictures, still) if large is None else large
        scale = len(own_picture) / CROP_SIZE
        found[SHARPNESS.name] = sharpness(compared, shown_face * scale, own_picture, landmarks * scale)
        for name, of_frames in found.items():
            values[name] = float(np.nanmean(of_frames)) if np.isfinite(of_frames).any() else math.nan

        worst = int(likeness[0].argmin())
        away = distance_from(asked, camera, expression)
        at = int(away.argmax())
        both = [(origin_of(r.info), str(r.info.get("terms", ""))) for r in (source, driver.record)]
        case = None
        if not self._plan.publishable_only or all(publishable(terms, origin) for origin, terms in both):
            pair_shown = enlarged(np.stack([theirs.pictures[at], pictures[at]]))
            case = Shown(float(away[at]), int(driver.rows[at]), shown, *pair_shown)
        result = ClipResult(
            key=pair.name,
            person=str(driver.record.info.get("person", pair.driver)),
            terms="; ".join(terms for _, terms in both),
            origin="; ".join(origin for origin, _ in both),
            frames=len(pictures),
            source_frame=frame,
            identical_frames=0,
            scores={OURS: values, REAL: reference},
            worst_frame=int(driver.rows[worst]),
        )
        strip = clip_strip(still, Chunk(driver.rows, theirs.pictures, {OURS: pictures}), worst)
        with contextlib.ExitStack() as stack:
            if self._plan.run.save is not None:
                saved = stack.enter_context(PredictionWriter(self._plan.run.save).clip(pair.folder, own_picture))
                saved.add(theirs.pictures if large is None else resized(theirs.pictures, len(own_picture)), compared)
            # Before the saved images get their final name: a stop in between only scores the pair again.
            self._plan.results.write(
                result, ClipScores(result.scores, len(pictures), result.worst_frame, strip, {}), case
            )

    def _movement(self, asked: Motion, ours: SeenFrames, driver: _Driver) -> tuple[dict[str, float], dict[str, float]]:
        """Motion measures of the result and of the driving frames, without those that compare these with themselves."""
        own, theirs, absent = driver.motion.rows(driver.rows), driver.seen, set[str]()
        if asked.space != ARKIT:
            asked, own = (replace(theirs.track.motion, camera=motion.camera) for motion in (asked, own))
            absent |= {"jawOpen", "eyeBlink", "mouthLeft", "mouthRight", "mouthPucker"}
        prepared = facial_motion.curves(driver.landmarks, own.expression)
        values = movement_scores(asked, ours) | facial_motion.follows(ours.curves, theirs.curves)
        reference = movement_scores(own, theirs) | facial_motion.follows(theirs.curves, prepared)
        if self._reader is not None:
            values |= read_scores(ours, theirs)
            absent |= {"aed", "apd", "apd6"}
        return values, {name: value for name, value in reference.items() if name not in absent}

    @torch.inference_mode()
    def _render(
        self, still: Picture, source: Record, frame: int, asked: Motion
    ) -> tuple[Picture, NDArray[np.float32] | None, tuple[Picture, Picture] | None]:
        """The source, a frame (R, R, 3) of its record, rendered with the requested motion.

        Returns:
            Images (K, R, R, 3), and their rendered shares (K, 4096), see `measures.rendered.on_grid`. At another size
            N, the images are reduced from those of that size (K, N, N, 3), which are given with their source (N, N, 3)
            instead of the shares.
        """
        known = (source.camera, source.expression, source.landmarks)
        own = (to_tensor(still), *(torch.from_numpy(np.array(values[frame], np.float32)) for values in known))
        image, camera, expression, landmarks = (values[None].to(self._plan.device) for values in own)
        features = self._engine.encode(image, camera, expression, landmarks, crop_mattes(self._engine.model, image))
        wanted = (
            torch.from_numpy(np.array(values)).to(self._plan.device)
            for values in (asked.expression, asked.camera, asked.shoulders)
        )
        parts = zip(*(torch.split(values, self._plan.run.batch) for values in wanted))

        def planes(expression: Tensor, shoulders: Tensor) -> Planes:
            return self._engine.planes(features, expression).with_shoulders(shoulders)

        size = self._plan.size
        if size is not None:
            original = Original(source, size, self._plan.folders)
            photo = original.check(frame, still)
            render = at_size(self._engine, photo, original.box, own[0][None].to(self._plan.device), size)
            large = np.concatenate([render(planes(e, s), c)[0] for e, c, s in parts])
            return resized(large, self._size), None, (large, crop(photo, original.box, size))
        frames = [self._engine.frame_and_share(planes(e, s), c) for e, c, s in parts]
        images, shares = zip(*frames)
        return np.concatenate([to_uint8(image) for image in images]), np.concatenate([on_grid(x) for x in shares]), None

    def _record(self, key: str) -> Record:
        return read_record(self._plan.split, self._entries[key])

    def _seen(self, pictures: Picture, name: str) -> SeenFrames:
        return SeenFrames(pictures, name, self._tracker, self._identities, self._reader)


class _Driver:
    """A driving clip: its motion, the chosen frames, their prepared landmarks (pixels), track and identities."""

    def __init__(
        self, record: Record, space: str, frames: int, size: int, see: Callable[[Picture, str], SeenFrames]
    ) -> None:
        found = np.flatnonzero(record.found)
        if len(found) < 2:
            raise NoFaceFound(f"the face was found in fewer than two frames of {record.key}; prepare it again")
        self.record = record
        self.rows = found[np.linspace(0, len(found) - 1, min(frames, len(found))).round().astype(int)]
        self.landmarks = record.landmarks[self.rows].astype(np.float64) * CROP_SIZE
        self.motion = record.motion(space)
        self.seen = see(np.ascontiguousarray(np.moveaxis(decode(record, size)[self.rows], 1, -1)), record.key)
