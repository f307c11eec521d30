"""Cross-identity reenactment: one person's frame is driven by another person's clip (Sec. 4.2, Table 2; Table 3).

There is no true picture to compare with, so the figures say whose face came out and whether it moves as asked:

- *CSIM*: cosine of the source's and the generated face's identity (`identity`); higher is better.
- *Leak*: the same cosine between the generated face and the driving frame behind it: appearance that the raw expression
  values carried over from the driver makes it rise; lower is better. Its reference is the cosine of the two strangers.
- *AED*: mean absolute difference of the 52 ARKit scores, tracked again in the result, from those that drove it.
- *APD*: the same of yaw, pitch and roll, degrees.
- correlations of yaw, jawOpen and eyeBlink, tracked again, with what drove them.

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

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.animate.animator import pick_device
from export3d.animate.drive import rebase
from export3d.animate.export import check_output, make_folder, write_sheet
from export3d.camera import from_pose, head_angles, head_position
from export3d.data.frames import decode
from export3d.data.shards import Index, Record, read_index, read_shards
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.driven import BATCH, FPS, most_frontal
from export3d.evaluation.figures import Case, Gallery, publishable, sheet_rows
from export3d.evaluation.identity import PACKAGED, Identity, csim, load_identity
from export3d.evaluation.protocol import Progress, origin_of, what_was_scored
from export3d.evaluation.report import RETRACKED, Estimate, bootstrap, cell, number, paired_difference, strict, table
from export3d.face.crop import CROP_SIZE
from export3d.face.smooth import Smoothing
from export3d.face.tracker import Track, Tracker
from export3d.files import check_input, write_bytes
from export3d.image import resize, to_tensor, to_uint8
from export3d.model import Export3D
from export3d.motion import Motion, compare
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]
Transfer = Literal["absolute", "relative"]

FRAMES = 40
_DRIVEN_BY_EACH = 2
_ANGLE_SCALE_DEG = 15.0
_MUST_AGREE = ("split", "identity", "motion", "frames")
"""Settings without which two reports cannot be compared pair by pair."""


@dataclass(frozen=True)
class Pair:
    """Keys of the record that is animated and of the clip that drives it."""

    source: str
    driver: str

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.source} by {self.driver}"


@dataclass(frozen=True)
class Measure:
    """A figure of a pair, and how tables show it.

    Attributes:
        name: key in reports.
        title: with unit and an arrow that says which way is good.
        digits: after the decimal point.
        definition: one line for the report.
    """

    name: str
    title: str
    digits: int
    definition: str


@dataclass(frozen=True)
class PairResult:
    """What was found for one pair.

    Attributes:
        pair: who was driven by whom.
        frames: generated.
        found: share of the generated frames in which the tracker saw a face.
        source_frame: number of the source's frame.
        values: measure to the mean over the frames, or the correlation; NaN where it is not defined.
        reference: the same of real pictures: for identity the real driving frames against the source, for motion the
            real driving frames tracked again.
    """

    pair: Pair
    frames: int
    found: float
    source_frame: int
    values: dict[str, float]
    reference: dict[str, float]


@dataclass(frozen=True)
class CrossReport:
    """A cross-identity evaluation; its JSON is what `--against` reads.

    Attributes:
        settings: everything that decides the numbers.
        measures: in the order of the tables.
        pairs: results.
        skipped: pairs that could not be scored, and why.
        credits: of the contact sheet.
        other: name and pair to measures of the report that this one is compared with.
    """

    title: str
    settings: dict[str, Any]
    measures: tuple[Measure, ...]
    pairs: tuple[PairResult, ...]
    skipped: dict[str, str]
    credits: tuple[dict[str, str], ...] = ()
    other: tuple[str, dict[str, dict[str, float | None]]] | None = None

    def mean(self, measure: str, reference: bool = False) -> Estimate:
        """Mean over the pairs where it is defined, with its interval."""
        values = np.array([(p.reference if reference else p.values).get(measure, math.nan) for p in self.pairs])
        values = values[~np.isnan(values)]
        return bootstrap(len(values), lambda draws: values[draws].mean(axis=-1))

    def difference(self, measure: str) -> Estimate:
        """Ours minus the other report's, over common pairs; NaN without one."""
        theirs = {} if self.other is None else self.other[1]
        return paired_difference(
            {p.pair.name: p.values[measure] for p in self.pairs},
            {name: values.get(measure) for name, values in theirs.items()},
        )

    def to_json(self) -> str:
        """Everything, as strict JSON; what is not defined is null."""
        names = [measure.name for measure in self.measures]
        value = {
            "title": self.title,
            "settings": self.settings,
            "measures": {measure.name: measure.definition for measure in self.measures},
            "summary": {
                name: {"mean": asdict(self.mean(name)), "reference": asdict(self.mean(name, reference=True))}
                for name in names
            },
            "pairs": [asdict(result) for result in self.pairs],
            "skipped": self.skipped,
            "sheet": list(self.credits),
        }
        if self.other is not None:
            value["against"] = {"report": self.other[0], **{name: asdict(self.difference(name)) for name in names}}
        return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def summary_table(self) -> str:
        """Markdown: a row for each measure."""
        rows = [["measure", "ours", "real pictures"]]
        rows[0] += [] if self.other is None else [f"ours minus {self.other[0]}"]
        for m in self.measures:
            row = [m.title, cell(self.mean(m.name), m.digits), cell(self.mean(m.name, reference=True), m.digits)]
            rows.append(row if self.other is None else [*row, cell(self.difference(m.name), m.digits, "+")])
        return table(rows)

    def pair_table(self) -> str:
        """Markdown: a row for each pair."""
        rows = [["source", "driver", "frames", "face found", *(measure.title for measure in self.measures)]]
        for p in self.pairs:
            cells = [number(p.values[measure.name], measure.digits) for measure in self.measures]
            rows.append([p.pair.source, p.pair.driver, str(p.frames), f"{p.found:.0%}", *cells])
        return table(rows)

    def markdown(self) -> str:
        """The whole report as a page."""
        parts = [
            f"# {self.title}",
            self.summary_table(),
            f"Means over {len(self.pairs)} pairs, 95 % bootstrap intervals over pairs. *Real pictures*: for CSIM and "
            "leak the real driving frames against the source, two strangers; for the rest the real driving frames "
            "tracked again, the best that can be hoped for.",
            "## Pairs",
            self.pair_table(),
        ]
        if self.skipped:
            parts += ["\n".join(f"- {name} was left out: {reason}" for name, reason in self.skipped.items())]
        parts += ["## Definitions", "\n".join(f"- {m.title}: {m.definition}" for m in self.measures)]
        parts += ["\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items())]
        if self.credits:
            shown = "; ".join(f"{c['clip']} ({c['source']}, {c['terms']})" for c in self.credits)
            parts += ["## Contact sheet", f"Left to right, top to bottom: {shown}."]
        return "\n\n".join(parts) + "\n"


def choose_pairs(index: Index) -> tuple[Pair, ...]:
    """The pairs of a split by rule: in the order of people's names, each one's first clip drives the next two people.

    "First" is by key; people without a clip are driven and drive nobody. The last people drive the first ones.
    """
    people: dict[str, list[str]] = {}
    for entry in sorted(index.entries, key=lambda entry: (entry.person, entry.key)):
        people.setdefault(entry.person, []).append(entry.key)
    videos = {entry.key for entry in index.entries if entry.kind == "video"}
    names = list(people)
    pairs = []
    for i, person in enumerate(names):
        clip = next((key for key in people[person] if key in videos), None)
        others = [names[(i + step) % len(names)] for step in range(1, _DRIVEN_BY_EACH + 1)]
        if clip is not None:
            pairs += [Pair(people[other][0], clip) for other in dict.fromkeys(others) if other != person]
    return tuple(pairs)


def read_pairs(path: Path | str) -> tuple[Pair, ...]:
    """Pairs from a CSV file with the columns `source` and `driver`; lines that begin with # are remarks.

    Raises:
        InputError: no such file, other columns, an empty field or no pair.
    """
    path = check_input(path, InputError, "a list of pairs")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; give a CSV file with the columns source and driver") from error
    rows = list(csv.DictReader(line for line in lines if line.strip() and not line.startswith("#")))
    if not rows or not {"source", "driver"} <= set(rows[0]):
        raise InputError(f"{path} holds no pairs; give a CSV file with the columns source and driver")
    pairs = [Pair(row["source"] or "", row["driver"] or "") for row in rows]
    if not all(pair.source and pair.driver for pair in pairs) or len(set(pairs)) != len(pairs):
        raise InputError(f"{path} has a pair that is not complete or is there twice; correct it")
    return tuple(pairs)


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
    publishable_only: bool = True,
    max_pairs: int | None = None,
    device: str | torch.device = "auto",
    batch: int = BATCH,
    progress: Progress | None = None,
) -> CrossReport:
    """Drive people by other people's clips, score it and write `report.json`, `report.md` and `sheet.png`.

    Args:
        split: a folder of shards; portraits may be sources, videos both.
        out: folder for the results, made if missing.
        weights: by default those inside the package.
        pairs: a file as `read_pairs` takes it; by default `choose_pairs`.
        identity: descriptors for CSIM, see `identity.load_identity`.
        motion: what is taken from the driver, see above.
        frames: at most so many of each driving clip.
        against: `report.json` of another run on the same pairs; the paired differences are added to the report.
        publishable_only: show only people on the sheet whose pictures may be published (`figures.publishable`).
        max_pairs: only the first ones.
        device: "auto" (a CUDA device if there is one), or what `torch.device` takes.
        batch: frames rendered together.
        progress: called with (frames done, frames), the latter an estimate.

    Raises:
        InputError: not a prepared split, pairs that are not in it, or a report to compare with that was made otherwise.
        CheckpointError: no such weights.  MissingExtra: no tracker, or no onnxruntime for an ONNX file.
        OutputError: `out` cannot be written.  ConfigError: settings that cannot work.
    """
    split, chosen = Path(split), pick_device(device)
    if min(frames, batch, 1 if max_pairs is None else max_pairs) < 1 or not identity:
        raise ConfigError("frames, batch and the number of pairs must be at least 1, and identity needs a descriptor")
    index = read_index(split)
    model = load_pretrained(weights).to(chosen)
    if {index.space, model.config.space} != {"arkit52"}:
        raise InputError(
            f"{split} holds expressions in {index.space} and the weights take {model.config.space}; cross-identity "
            "scores are made of tracked ARKit scores, so both must be arkit52"
        )
    listed = (choose_pairs(index) if pairs is None else read_pairs(pairs))[:max_pairs]
    _check_pairs(listed, index)
    identities = [load_identity(name) for name in identity]
    out = make_folder(out)
    for name in ("report.json", "report.md", "sheet.png"):
        check_output(out / name)
    settings = {
        **what_was_scored(model, weights, split),
        "pairs": "by rule: each clip drives the next two people" if pairs is None else Path(pairs).name,
        "identity": [descriptor.description for descriptor in identities],
        "motion": motion,
        "frames": f"at most {frames} of each driving clip, evenly spaced",
        "source": "most frontal found frame (smallest |yaw| + |pitch| + |roll|)",
    }
    other = None if against is None else _read_report(Path(against), settings)
    gallery = Gallery(publishable_only=False)
    results: dict[Pair, PairResult] = {}
    skipped: dict[str, str] = {}
    total, done = len(listed) * frames, 0
    with Tracker(smoothing=Smoothing(pose_s=0, distance_s=0, expression_s=0)) as tracker:
        for driver, sources in _by_driver(listed, split):
            try:
                clip = _Driver(driver, frames, model.config.generator.image_size, tracker, identities)
            except NoFaceFound as error:
                skipped |= {Pair(source.key, driver.key).name: str(error) for source in sources}
                sources = []
            for source in sources:
                pair = Pair(source.key, driver.key)
                try:
                    results[pair], case = _score(pair, source, clip, model, motion, identities, tracker, chosen, batch)
                    infos = (source.info, driver.info)
                    if all(not publishable_only or publishable(str(i.get("terms")), origin_of(i)) for i in infos):
                        gallery.offer(case)
                except NoFaceFound as error:
                    skipped[pair.name] = str(error)
                done += frames
                if progress is not None:
                    progress(done, total)
    if not results:
        raise InputError(f"no pair of {split} could be scored: {next(iter(skipped.values()))}")
    report = CrossReport(
        f"Cross-identity reenactment on {split.resolve().name}",
        settings,
        _measures(identities),
        tuple(results[pair] for pair in listed if pair in results),
        skipped,
        tuple(case.credit for case in gallery.cases),
        other,
    )
    if gallery.cases:
        write_sheet(out / "sheet.png", *sheet_rows(gallery.cases))
    write_bytes(out / "report.json", report.to_json().encode())
    write_bytes(out / "report.md", report.markdown().encode())
    return report


def asked_motion(
    driver: Motion,
    source_camera: NDArray[np.floating[Any]],
    source_expression: NDArray[np.floating[Any]],
    how: Transfer,
) -> Motion:
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


class _Driver:
    """A driving clip: its motion, the chosen frames, and what tracking and identity see in them."""

    def __init__(
        self, record: Record, frames: int, size: int, tracker: Tracker, identities: Sequence[Identity]
    ) -> None:
        found = np.flatnonzero(record.found)
        if len(found) < 2:
            raise NoFaceFound(f"the face was found in fewer than two frames of {record.key}; prepare it again")
        self.record = record
        self.rows = found[np.linspace(0, len(found) - 1, min(frames, len(found))).round().astype(int)]
        self.motion = Motion(record.expression, record.camera, FPS)
        self.pictures = _enlarged(decode(record, size)[self.rows])
        self.track = tracker.track_frames(self.pictures, FPS, record.key)
        self.who = _describe(identities, self.pictures, self.track)

    @property
    def wanted(self) -> Motion:
        """The motion at the chosen frames."""
        return _at(self.motion, self.rows)


@torch.inference_mode()
def _score(
    pair: Pair,
    source: Record,
    driver: _Driver,
    model: Export3D,
    how: Transfer,
    identities: Sequence[Identity],
    tracker: Tracker,
    device: torch.device,
    batch: int,
) -> tuple[PairResult, Case]:
    if not source.found.any():
        raise NoFaceFound(f"the face was not found in {source.key}; prepare it again")
    frame = most_frontal(source.camera, source.found)
    camera, expression = source.camera[frame], source.expression[frame]
    still = decode(source, model.config.generator.image_size)[frame]
    asked = _at(asked_motion(driver.motion, camera, expression, how), driver.rows)

    features = model.encode(
        to_tensor(np.moveaxis(still, 0, -1))[None].to(device),
        *(torch.from_numpy(np.array(value))[None].to(device) for value in (camera, expression)),
    )
    expressions, cameras = (torch.from_numpy(np.array(v)).to(device) for v in (asked.expression, asked.camera))
    parts = [
        to_uint8(model.frame(model.planes(features, e), c))
        for e, c in zip(torch.split(expressions, batch), torch.split(cameras, batch))
    ]
    pictures = _enlarged(np.moveaxis(np.concatenate(parts), -1, 1))
    track = tracker.track_frames(pictures, FPS, pair.name)

    shown_source = _enlarged(still[None])[0]
    landmarks = source.landmarks[frame].astype(np.float64) * CROP_SIZE
    values, reference = _movement(asked, track), _movement(driver.wanted, driver.track)
    for descriptor, who, stranger in zip(identities, _describe(identities, pictures, track), driver.who):
        own = descriptor(shown_source, landmarks)
        values[f"csim_{descriptor.name}"] = float(csim(who, own).mean())
        values[f"leak_{descriptor.name}"] = float(csim(who, stranger).mean())
        reference[f"csim_{descriptor.name}"] = reference[f"leak_{descriptor.name}"] = float(csim(stranger, own).mean())

    away = np.abs(asked.angles_deg - head_angles(camera)).sum(axis=-1) / _ANGLE_SCALE_DEG
    away = away + np.abs(asked.expression - expression).sum(axis=-1)
    at = int(away.argmax())
    info, theirs = source.info, driver.record.info
    case = Case(
        f"{pair.source} driven by {pair.driver}",
        str(theirs.get("person", pair.driver)),
        str(theirs.get("terms", "")),
        f"{origin_of(info)}, {info.get('terms', '')}; {origin_of(theirs)}",
        float(away[at]),
        int(driver.rows[at]),
        shown_source,
        driver.pictures[at],
        pictures[at],
    )
    return PairResult(pair, len(pictures), float(track.found.mean()), frame, values, reference), case


def _movement(asked: Motion, track: Track) -> dict[str, float]:
    """AED, APD and correlations of a tracked result with what was asked for."""
    agreement = compare(asked, track.motion)
    return {
        "aed": float(np.abs(asked.expression - track.motion.expression).mean()),
        "apd": float(np.mean([agreement["mean_abs_difference"][name] for name in ("yaw", "pitch", "roll")])),
        **{name: agreement["correlation"][name] for name in RETRACKED},
    }


def _measures(identities: Sequence[Identity]) -> tuple[Measure, ...]:
    measures = []
    for who in identities:
        measures += [
            Measure(
                f"csim_{who.name}", f"CSIM {who.name} ↑", 3, "cosine of identity, generated frames and source frame"
            ),
            Measure(f"leak_{who.name}", f"leak {who.name} ↓", 3, "the same, generated frames and driving frames"),
        ]
    return (
        *measures,
        Measure(
            "aed", "AED ↓", 4, "mean |difference| of 52 ARKit scores, tracked again, from those that were asked for"
        ),
        Measure("apd", "APD (degrees) ↓", 2, "mean |difference| of yaw, pitch and roll, tracked again, from the asked"),
        *(
            Measure(name, f"{name} ↑", 2, f"Pearson correlation of {name}, tracked again, with the asked")
            for name in RETRACKED
        ),
    )


def _describe(identities: Sequence[Identity], pictures: Sequence[Picture], track: Track) -> list[NDArray[np.float32]]:
    """For each descriptor (K, D) of K pictures, by the track's landmarks; a lost face by its neighbours'."""
    landmarks = track.crop.from_crop(track.landmarks)
    return [np.stack([who(picture, at) for picture, at in zip(pictures, landmarks)]) for who in identities]


def _enlarged(pictures: NDArray[np.uint8]) -> list[Picture]:
    """(K, 3, R, R) uint8 to K pictures (256, 256, 3)."""
    return list(to_uint8(resize(to_tensor(np.moveaxis(pictures, 1, -1)), CROP_SIZE)))


def _at(motion: Motion, rows: NDArray[np.int64]) -> Motion:
    return replace(motion, expression=motion.expression[rows], camera=motion.camera[rows])


def _by_driver(pairs: Sequence[Pair], split: Path) -> Iterator[tuple[Record, list[Record]]]:
    """Each driving record with its sources; pictures stay compressed until they are needed."""
    keys = {key for pair in pairs for key in (pair.source, pair.driver)}
    records = {record.key: record for record in read_shards(split) if record.key in keys}
    for driver in dict.fromkeys(pair.driver for pair in pairs):
        yield records[driver], [records[pair.source] for pair in pairs if pair.driver == driver]


def _check_pairs(pairs: Sequence[Pair], index: Index) -> None:
    entries = {entry.key: entry for entry in index.entries}
    for pair in pairs:
        missing = [key for key in (pair.source, pair.driver) if key not in entries]
        if missing:
            raise InputError(
                f"the pair {pair.name} names {missing[0]}, which the split does not hold; use its own list"
            )
        if entries[pair.driver].kind != "video":
            raise InputError(f"the pair {pair.name} is driven by a still picture; name a clip as driver")
        if entries[pair.driver].person == entries[pair.source].person:
            raise InputError(f"the pair {pair.name} is one and the same person; name two people")
    if not pairs:
        raise InputError("the split holds no clip that could drive another person; prepare more clips")


def _read_report(path: Path, settings: dict[str, Any]) -> tuple[str, dict[str, dict[str, float | None]]]:
    """Name and values of another run; its settings must be the same where pairs would not be comparable."""
    try:
        other = json.loads(
            check_input(path, InputError, "a report of a cross-identity run").read_text(encoding="utf-8")
        )
        theirs = {Pair(**result["pair"]).name: result["values"] for result in other["pairs"]}
        differing = [name for name in _MUST_AGREE if other["settings"][name] != settings[name]]
        name = str(other["settings"]["weights"]).split(",")[0]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the report.json of a cross-identity run; make one with --protocol cross"
        ) from error
    if differing:
        raise InputError(f"{path} was made with other settings ({', '.join(differing)}); repeat that run with these")
    return name, theirs
