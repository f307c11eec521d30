"""Same-identity reenactment: one frame of a clip is the source, every other one is driven and compared with the truth.

The rules, so that a number can be reproduced:

- *Source*: of the frames in which the face was found, the one with the smallest |yaw| + |pitch| + |roll|; the first of
  equals.
- *Driven*: all other frames in which the face was found (or every N-th of them), with their own tracked expressions and
  cameras (absolute motion). Frames equal to the source pixel for pixel, as slow recordings repeated at 25 a second have
  them, are left out: a copy is infinitely good there.
- *Pictures*: face crops at the model's size; predictions are rounded to 8 bits before they are compared, so that saved
  and scored pictures agree.
- *Scores*: a metric's mean over a clip's frames, then over clips.
- *Groups*: clips on which copying the source scores under 20 dB move; on the others a copy is nearly perfect.

Clips are read, driven and forgotten one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.animate.animator import pick_device
from export3d.animate.export import check_output, make_folder, write_sheet
from export3d.camera import head_angles
from export3d.checkpoint import load_weights
from export3d.data.frames import decode
from export3d.data.shards import Entry, Record, read_index, read_shards
from export3d.errors import ConfigError, InputError, NoFaceFound
from export3d.evaluation.figures import Case, Gallery, sheet_rows
from export3d.evaluation.metrics import PSNR, SSIM, Metric, lpips
from export3d.evaluation.report import BASELINE, MOVING_DB, RETRACKED, ClipResult, Report
from export3d.files import write_bytes
from export3d.image import to_uint8
from export3d.model import Export3D
from export3d.motion import Motion, compare
from export3d.pretrained import PACKAGED, load_pretrained

if TYPE_CHECKING:
    from export3d.face.tracker import Tracker

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
Predict = Callable[[Rows], Tensor]
"""Frame numbers (B,) to predicted images (B, 3, R, R) in [-1, 1]."""

OURS = "ours"
FPS = 25.0
BATCH = 4
_ANGLE_SCALE_DEG = 15.0


@dataclass(frozen=True)
class DrivenClip:
    """One clip, ready to be scored.

    Attributes:
        record: provenance and track.
        frames: (T, 3, R, R) uint8.
        motion: T frames at 25 a second.
        source: number of the source frame.
        driven: numbers of the frames to predict.
        identical: how many others equal the source and were left out.
    """

    record: Record
    frames: Tensor
    motion: Motion
    source: int
    driven: Rows
    identical: int

    def images(self, rows: Rows | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Frames (B, 3, R, R) float32 in [-1, 1]."""
        return self.frames[torch.as_tensor(rows)].to(device).float().div_(127.5).sub_(1.0)

    @property
    def farthest(self) -> int:
        """The driven frame that differs most from the source in pose and expression (`distance_from`)."""
        return int(self.driven[np.argmax(distance_from(self.motion, self.source)[self.driven])])


class Method(Protocol):
    """A way to predict driven frames from the source; called once a clip, then once a batch."""

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict: ...


class Reenactment:
    """The model: source encoded once, then planes and a frame for each driving expression and camera."""

    def __init__(self, model: Export3D) -> None:
        self.model = model

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        expression = torch.from_numpy(np.array(clip.motion.expression)).to(device)
        camera = torch.from_numpy(np.array(clip.motion.camera)).to(device)
        image, row = clip.images([clip.source], device), [clip.source]
        features = self.model.encode(image, camera[row], expression[row])

        def predict(rows: Rows) -> Tensor:
            at = torch.from_numpy(rows).to(device)
            return self.model.frame(self.model.planes(features, expression[at]), camera[at])

        return predict


class Copy:
    """The source frame itself, whatever drives: what any method has to beat."""

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        source = clip.images([clip.source], device)
        return lambda rows: source.expand(len(rows), -1, -1, -1)


def same_identity(
    split: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    every: int = 1,
    backbone: str = "alex",
    backbone_file: Path | None = None,
    heads_file: Path | None = None,
    retrack: bool = False,
    publishable_only: bool = True,
    max_clips: int | None = None,
    device: str | torch.device = "auto",
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Report:
    """Score weights on a prepared split and write `report.json`, `report.md` and `sheet.png`.

    Args:
        split: a folder of shards (`export3d prepare` makes one for each split); its still portraits are passed over.
        out: folder for the results, made if missing.
        weights: by default those inside the package.
        every: drive every N-th of the further frames.
        backbone, backbone_file, heads_file: of LPIPS, see `metrics.lpips`; backbone `none` leaves LPIPS out.
        retrack: also track the result and correlate it with the driving motion (drives all frames, whatever `every`).
        publishable_only: show only people on the sheet whose pictures may be published (`figures.publishable`).
        max_clips: only the first clips of the split.
        device: "auto" (a CUDA device if there is one), or what `torch.device` takes.
        batch: frames driven together.
        progress: called with (frames done, frames), the latter an estimate.

    Raises:
        InputError: not a prepared split, no clip in it, or another expression space than the weights'.
        CheckpointError: no such weights.  MissingExtra: no tracker.
        OutputError: `out` cannot be written.  ConfigError: settings that cannot work, or no weights for LPIPS.
    """
    split = Path(split)
    chosen = pick_device(device)
    index = read_index(split)
    model = load_pretrained(weights).to(chosen)
    if index.space != model.config.space:
        raise InputError(
            f"{split} holds expressions in {index.space} but the weights were trained on {model.config.space}; "
            "prepare the clips in that space or use other weights"
        )
    metrics = [PSNR, SSIM]
    if backbone != "none":
        metrics.append(lpips(backbone, backbone_file, heads_file, chosen))
    out = make_folder(out)
    for name in ("report.json", "report.md", "sheet.png"):
        check_output(out / name)
    gallery = Gallery(publishable_only=publishable_only)
    size = model.config.generator.image_size
    results, skipped = evaluate_split(
        split,
        {OURS: Reenactment(model), BASELINE: Copy()},
        metrics,
        size=size,
        every=every,
        max_clips=max_clips,
        device=chosen,
        batch=batch,
        retrack=retrack,
        gallery=gallery,
        progress=progress,
    )
    report = Report(
        f"Same-identity reenactment on {split.resolve().name}",
        {
            **what_was_scored(model, weights, split),
            "source": "most frontal found frame (smallest |yaw| + |pitch| + |roll|)",
            "driven": "every further found frame" if every == 1 else f"one in {every} of the further found frames",
            "moving": f"copy under {MOVING_DB:g} dB",
        },
        (OURS, BASELINE),
        tuple(metrics),
        tuple(results),
        skipped,
        tuple(case.credit for case in gallery.cases),
    )
    if gallery.cases:
        write_sheet(out / "sheet.png", *sheet_rows(gallery.cases))
    write_bytes(out / "report.json", report.to_json().encode())
    write_bytes(out / "report.md", report.markdown().encode())
    return report


def evaluate_split(
    split: Path,
    methods: dict[str, Method],
    metrics: Sequence[Metric],
    *,
    size: int,
    every: int = 1,
    max_clips: int | None = None,
    device: torch.device | str = "cpu",
    batch: int = BATCH,
    retrack: bool = False,
    gallery: Gallery | None = None,
    progress: Progress | None = None,
) -> tuple[list[ClipResult], dict[str, str]]:
    """Score methods on the clips of a split, one clip in memory at a time.

    Args:
        methods: by name; `copy` must be among them (it decides which clips move), the first one is tracked again and
            shown in the gallery.
        metrics: PSNR must be among them.
        size: R of the pictures.
        gallery: collects cases for a contact sheet.
        every, max_clips, device, batch, retrack, progress: see `same_identity`.

    Returns:
        Results, and for each video that could not be scored the reason.

    Raises:
        InputError: the split is damaged, or no clip in it can be scored.
    """
    if every < 1 or batch < 1 or (max_clips is not None and max_clips < 1):
        raise ConfigError("every, batch and the number of clips must each be at least 1")
    device = torch.device(device)
    index = read_index(split)
    videos = [entry for entry in index.entries if entry.kind == "video"][:max_clips]
    total = sum(_expected(entry, 1 if retrack else every) for entry in videos)
    before = 0
    results: list[ClipResult] = []
    skipped: dict[str, str] = {}
    tracker = _tracker() if retrack else None
    try:
        for entry, record in zip(videos, _videos(split)):

            def count(frames: int, before: int = before) -> None:
                if progress is not None:
                    progress(min(total, before + frames), total)

            try:
                clip = driven_clip(record, index.space, size, every)
                results.append(score_clip(clip, methods, metrics, device, batch, tracker, gallery, count))
            except NoFaceFound as error:
                skipped[record.key] = str(error)
            before += _expected(entry, 1 if retrack else every)
            count(0, before)
    finally:
        if tracker is not None:
            tracker.close()
    if not results:
        reason = next(iter(skipped.values()), "it holds no video")
        raise InputError(f"nothing in {split} can be scored: {reason}; name a prepared split with clips")
    return results, skipped


@torch.inference_mode()
def score_clip(
    clip: DrivenClip,
    methods: dict[str, Method],
    metrics: Sequence[Metric],
    device: torch.device,
    batch: int = BATCH,
    tracker: Tracker | None = None,
    gallery: Gallery | None = None,
    count: Callable[[int], None] | None = None,
) -> ClipResult:
    """Drive one clip by every method and compare with the truth; see `evaluate_split`."""
    first = next(iter(methods))
    predict = {name: method(clip, device) for name, method in methods.items()}
    found: dict[str, dict[str, list[Tensor]]] = {n: {m.name: [] for m in metrics} for n in methods}
    shown, shown_ours = clip.farthest, None
    ours: list[NDArray[np.uint8]] = []
    rows = clip.driven if tracker is None else np.arange(len(clip.frames))
    is_driven = np.isin(rows, clip.driven)
    for start in range(0, len(rows), batch):
        part, scored = rows[start : start + batch], is_driven[start : start + batch]
        target = clip.images(part[scored], device)
        for name in methods:
            whole = tracker is not None and name == first
            image = _eight_bits(predict[name](part if whole else part[scored])) if whole or scored.any() else target
            if whole:
                ours += list(to_uint8(image))
                image = image[torch.from_numpy(scored).to(device)]
            if name == first and shown in part[scored]:
                shown_ours = to_uint8(image[int(np.flatnonzero(part[scored] == shown)[0])])
            if scored.any():
                for metric in metrics:
                    found[name][metric.name].append(metric.score(image, target).double().cpu())
        if count is not None:
            count(start + len(part))
    scores = {n: {m: float(torch.cat(values).mean()) for m, values in by.items()} for n, by in found.items()}
    retracked, note = ({}, "") if tracker is None else _retracked(clip, first, ours, tracker)
    info = clip.record.info
    terms, origin, person = str(info.get("terms", "")), origin_of(info), str(info.get("person", clip.record.key))
    if gallery is not None and shown_ours is not None:
        source, driving = to_uint8(clip.images([clip.source, shown]))
        movement = -scores[BASELINE]["psnr"]
        case = Case(clip.record.key, person, terms, origin, movement, shown, source, driving, shown_ours)
        gallery.offer(case)
    return ClipResult(
        clip.record.key, person, terms, origin, len(clip.driven), clip.source, clip.identical, scores, retracked, note
    )


def driven_clip(record: Record, space: str, size: int, every: int = 1) -> DrivenClip:
    """Decode a record and choose its source and driven frames by the rules above.

    Raises:
        NoFaceFound: fewer than two different frames show the face.
    """
    motion = Motion(record.expression, record.camera, FPS, space)
    frames = torch.from_numpy(decode(record, size))
    if not record.found.any():
        raise NoFaceFound(f"the face was not found in any frame of {record.key}; prepare it again")
    source = most_frontal(motion.camera, record.found)
    equal = (frames == frames[source]).flatten(1).all(dim=1).numpy()
    driven = np.flatnonzero(record.found & ~equal)[::every]
    if len(driven) == 0:
        raise NoFaceFound(f"{record.key} has no second frame that shows the face and differs; use a longer clip")
    return DrivenClip(record, frames, motion, source, driven, int((record.found & equal).sum()) - 1)


def most_frontal(camera: NDArray[np.floating[Any]], found: NDArray[np.bool_]) -> int:
    """Number of the found frame with the smallest |yaw| + |pitch| + |roll|; labels (T, 25) and (T,) not all False."""
    turned = np.abs(head_angles(camera)).sum(axis=-1)
    return int(np.argmin(np.where(found, turned, np.inf)))


def distance_from(motion: Motion, frame: int) -> NDArray[np.float64]:
    """(T,) how far each frame is from one: summed head angles in units of 15 degrees plus summed expression changes."""
    angles = np.abs(motion.angles_deg - motion.angles_deg[frame]).sum(axis=-1) / _ANGLE_SCALE_DEG
    return np.asarray(angles + np.abs(motion.expression - motion.expression[frame]).sum(axis=-1), dtype=np.float64)


def _retracked(
    clip: DrivenClip, method: str, pictures: list[NDArray[np.uint8]], tracker: Tracker
) -> tuple[dict[str, dict[str, float]], str]:
    """Correlations of the tracked prediction, and of the real clip tracked again, with the driving motion."""
    out: dict[str, dict[str, float]] = {}
    note = ""
    real = np.moveaxis(clip.frames.numpy(), 1, -1)
    for name, frames in ((method, pictures), ("tracker", [np.ascontiguousarray(frame) for frame in real])):
        try:
            track = tracker.track_frames(frames, FPS, f"{name} of {clip.record.key}")
        except NoFaceFound as error:
            note = str(error)
            continue
        correlation = compare(clip.motion, track.motion)["correlation"]
        out[name] = {key: correlation[key] for key in RETRACKED if key in correlation}
    return out, note


def _tracker() -> Tracker:
    from export3d.face.tracker import Tracker

    return Tracker()


def _videos(split: Path) -> Iterator[Record]:
    return (record for record in read_shards(split) if record.kind == "video")


def _expected(entry: Entry, every: int) -> int:
    """About how many frames a clip will have driven."""
    return max(1, -(-(entry.frames - 1) // every))


def _eight_bits(image: Tensor) -> Tensor:
    """What a saved picture would hold."""
    return image.add(1.0).mul(127.5).round_().clamp_(0.0, 255.0).div_(127.5).sub_(1.0)


def what_was_scored(model: Export3D, weights: Path | str | None, split: Path) -> dict[str, Any]:
    """The settings that every protocol reports: weights, how they were trained, version, split and image size."""
    file = PACKAGED if weights is None else Path(weights)
    return {
        "weights": f"{'packaged' if weights is None else file.name}, tensors {_tensors_digest(model)}",
        "trained": load_weights(file)[2],
        "export3d": _version(),
        "split": f"{split.resolve().name}, {len(read_index(split).entries)} records, {_shards_digest(split)}",
        "image_size": model.config.generator.image_size,
    }


def origin_of(info: dict[str, Any]) -> str:
    """The data set or repository that a record's provenance names, or nothing."""
    origin = info.get("origin", {})
    return str(origin.get("source", "")) if isinstance(origin, dict) else ""


def _tensors_digest(model: Export3D) -> str:
    """Identifies weights by what they are, however the file was written."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"sha256 {digest.hexdigest()[:12]}"


def _shards_digest(split: Path) -> str:
    together = "".join(shard.sha256 for shard in read_index(split).shards)
    return f"shards sha256 {hashlib.sha256(together.encode()).hexdigest()[:12]}"


def _version() -> str:
    try:
        return metadata.version("export3d")
    except metadata.PackageNotFoundError:
        return "unknown"
