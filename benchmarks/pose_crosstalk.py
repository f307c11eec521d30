"""How far a fitted head follows its face, and what is left when the expression's share is taken off (`face/pose.py`).

    python benchmarks/pose_crosstalk.py PREPARED/val --face-model ict_face.npz --landmark-map mediapipe_to_ict.npz

*Plain* is the fit to the 33 landmarks alone, *scores* the tracker's `pose.fit_cameras` with the frames' scores,
*landmarks* is `pose.still_cameras`.

1. Puppets: portraits whose head is known to be still, each score raised to its natural maximum (99th percentile of the
   split's frames): mean change of the fitted angles, and the change that nine people in ten stay below, degrees.
2. Clips: degrees of pitch for each unit of a score, by linear regression of quick changes; the correlation of pitch
   with jawOpen; the slope of angles on plain angles where heads turn; distance of the landmarks from their
   projections.
3. How much cameras change, on clips and on portraits with a quiet mouth; noise of up to a pixel each way.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import export3d.camera as camera
from export3d.data.shards import Record, read_shards
from export3d.face import pose
from export3d.face.crop import CROP_SIZE
from export3d.face.landmarks import FaceLandmarker
from export3d.face.morphable import MorphableFace
from export3d.face.repose import Puppet
from export3d.face.smooth import smooth
from export3d.motion.arkit import ARKIT52

SCORES = (
    *("jawOpen", "mouthSmile", "mouthPucker", "mouthFunnel", "mouthLowerDown", "mouthUpperUp", "mouthShrugLower"),
    *("mouthPress", "mouthRollLower", "eyeBlink", "browInnerUp", "browOuterUp", "browDown"),
)
QUICK = ("jawOpen", "mouthSmile", "mouthPucker", "mouthFunnel", "mouthLowerDown", "mouthUpperUp", "eyeBlink")
"""Without the brows: their scores follow the head's pitch, whatever the brows do."""
QUICK_FRAMES = 6.0
MOST_TURNED_DEG = 20.0
WORST_FIT_PX = 2.5

Array = np.ndarray


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("split", type=Path)
    arguments.add_argument("--face-model", type=Path, required=True)
    arguments.add_argument("--landmark-map", type=Path, required=True)
    arguments.add_argument("--people", type=int, default=24)
    options = arguments.parse_args()
    records = list(read_shards(options.split))
    clips = [record for record in records if record.kind == "video"]
    stills = [record for record in records if record.kind == "image"]
    face = MorphableFace.load(options.face_model, options.landmark_map)
    puppets(face, stills, {name: np.concatenate([_score(r, name) for r in records]) for name in SCORES}, options.people)
    talk(clips)
    changes(clips, stills)


def plain(landmarks: Array, scores: Array, shape: Array | None = None) -> Array:
    """Labels (T, 25) by the 33 landmarks alone: (T, 478, 2) pixels of the crop, (T, 52)."""
    return pose.fit_cameras(landmarks, CROP_SIZE, shape)[0]


def by_scores(landmarks: Array, scores: Array, shape: Array | None = None) -> Array:
    """Labels (T, 25) as the tracker fits them."""
    return pose.fit_cameras(landmarks, CROP_SIZE, shape, scores)[0]


def by_landmarks(landmarks: Array, scores: Array, shape: Array | None = None) -> Array:
    """Labels (T, 25) as `sheet basis` fits them."""
    return pose.still_cameras(landmarks, CROP_SIZE, shape)[0]


FITS: tuple[Callable[..., Array], ...] = (plain, by_scores, by_landmarks)


def fits_of_clip(clip: Record) -> list[Array]:
    """Labels (T, 25) of every fit, before smoothing; all but the plain one with the person's own face shape."""
    landmarks, scores = _landmarks(clip), _scores(clip)
    shape = pose.person_shape(landmarks, CROP_SIZE)
    return [how(landmarks, scores, None if how is plain else shape) for how in FITS]


def puppets(face: MorphableFace, stills: list[Record], seen: dict[str, Array], people: int) -> None:
    landmarker, amounts = FaceLandmarker(), {name: np.percentile(values, 99) for name, values in seen.items()}
    changes: dict[str, list[Array]] = {name: [] for name in SCORES}
    count = 0
    for still in stills:
        own = still.expression[0].astype(np.float64)
        picture = np.asarray(Image.open(io.BytesIO(still.media)).convert("RGB"))
        if np.abs(camera.head_angles(still.camera[0])[:2]).max() > MOST_TURNED_DEG or count == people:
            continue
        puppet = Puppet(face, picture, _landmarks(still)[0], own)
        if puppet.fit.error_px > WORST_FIT_PX:
            continue
        count += 1
        rest = _angles(landmarker, puppet.view(own).image)
        for name, amount in amounts.items():
            scores = own.copy()
            numbers = _numbers(name)
            scores[numbers] = np.maximum(scores[numbers], amount)
            moved = _angles(landmarker, puppet.view(scores).image)
            if rest is not None and moved is not None:
                changes[name].append(moved - rest)
    print(f"{count} puppets; plain → scores, landmarks, degrees: mean (nine in ten below)\n")
    print("| score | to | pitch | yaw | roll |\n| --- | --- | --- | --- | --- |")
    for name, values in changes.items():
        mean, most = np.mean(values, axis=0), np.percentile(np.abs(values), 90, axis=0)
        by_fit = [[f"{mean[n, k]:+.1f} ({most[n, k]:.1f})" for n in range(len(FITS))] for k in (1, 0, 2)]
        cells = [f"{cell[0]} → {', '.join(cell[1:])}" for cell in by_fit]
        print(f"| {name} | {amounts[name]:.2f} | {' | '.join(cells)} |")


def talk(clips: list[Record]) -> None:
    scores, angles, jaw, gains, far = [], [], [], [], []
    for clip in clips:
        landmarks, labels = _landmarks(clip), fits_of_clip(clip)
        found = np.stack([camera.head_angles(label) for label in labels])
        score = _quick(np.stack([_score(clip, name) for name in QUICK], axis=1))
        quick = np.stack([_quick(one) for one in found], axis=1)
        scores.append(score)
        angles.append(quick[:, :, 1])
        if score[:, 0].std() > 0.02:
            jaw.append([np.corrcoef(score[:, 0], pitch)[0, 1] for pitch in quick[:, :, 1].T])
        turns = [found[0, :, k].std() > least for k, least in enumerate((5.0, 3.0))]
        slope = [[np.polyfit(found[0, :, k], one[:, k], 1)[0] for k in (0, 1)] for one in found[1:]]
        gains.append(np.where(turns, slope, np.nan))
        shapes = [None] * len(labels) + [pose.person_shape(landmarks, CROP_SIZE, label) for label in labels]
        distances = [pose.reprojection(landmarks, label, CROP_SIZE, s) for label, s in zip(labels * 2, shapes)]
        far.append(np.median(distances, axis=1))
    slopes = np.linalg.lstsq(np.concatenate(scores), np.concatenate(angles), rcond=None)[0]
    print(f"\n{len(clips)} clips, {sum(map(len, scores))} frames; pitch, degrees for each unit of a score\n")
    print("| score | plain | scores | landmarks |\n| --- | --- | --- | --- |")
    for name, slope in zip(QUICK, slopes):
        print(f"| {name} | {' | '.join(f'{value:+.1f}' for value in slope)} |")
    print(f"\ncorrelation of pitch with jawOpen, mean of {len(jaw)} clips: {_row(np.mean(jaw, axis=0))}")
    for k, name in enumerate(("yaw", "pitch")):
        slope = np.array(gains)[:, :, k]
        slope = slope[np.isfinite(slope[:, 0])]
        around = [f"{np.median(one):.2f} ({one.min():.2f} to {one.max():.2f})" for one in slope.T]
        print(f"{name} on plain {name}, {len(slope)} clips: {', '.join(around)}")
    middle = np.median(far, axis=0)
    print(f"distance, canonical mesh, px: {_row(middle[: len(FITS)])}; own shape: {_row(middle[len(FITS) :])}")


def changes(clips: list[Record], stills: list[Record]) -> None:
    mouth = [number for number, name in enumerate(ARKIT52) if name.startswith(("mouth", "jaw"))]
    calm = [still for still in stills if still.expression[0, mouth].max() < 0.3]
    quiet, scores = (np.concatenate([of(still) for still in calm]) for of in (_landmarks, _scores))
    groups = {
        f"{len(quiet)} portraits with a quiet mouth": [how(quiet, scores) for how in FITS],
        f"{len(clips)} clips": [np.concatenate(labels) for labels in zip(*map(fits_of_clip, clips))],
    }
    for name, labels in groups.items():
        for how, other in zip(FITS[1:], labels[1:]):
            turn = camera.head_angles(other) - camera.head_angles(labels[0])
            move = np.linalg.norm(_middle(other) - _middle(labels[0]), axis=1) * CROP_SIZE
            print(
                f"{name}, change of yaw, pitch, roll {how.__name__}: median {_row(np.median(turn, axis=0))}, of its "
                f"size {_row(np.median(np.abs(turn), axis=0))}, 95 % {_row(np.percentile(np.abs(turn), 95, axis=0))} "
                f"degrees; origin in the crop: median {np.median(move):.2f}, 95 % {np.percentile(move, 95):.2f} px"
            )
    rng = np.random.default_rng(1)  # not the noise that the map was fitted to
    still = np.repeat(quiet[:, None], 50, axis=1)
    noisy = (still + rng.uniform(-1.0, 1.0, still.shape)).reshape(-1, *quiet.shape[1:])
    for how in (plain, by_landmarks):  # scores have no part in this noise
        left = camera.head_angles(how(noisy, scores)).reshape(len(quiet), 50, 3).std(1).mean(0)
        print(f"noise of up to a pixel leaves {_row(left)} degrees of yaw, pitch, roll {how.__name__}")


def _angles(landmarker: FaceLandmarker, picture: Array) -> Array | None:
    faces = landmarker.detect(picture)
    if not faces:
        return None
    landmarks = faces[0].landmarks[None, :, :2].astype(np.float64)
    return np.concatenate([camera.head_angles(how(landmarks, faces[0].scores[None])) for how in FITS])


def _middle(labels: Array) -> Array:
    """(T, 2) where the head's origin lies in the crop, crop widths."""
    place = camera.head_position(labels)
    return camera.FOCAL * place[:, :2] / place[:, 2:]


def _quick(values: Array) -> Array:
    return values - smooth(values, QUICK_FRAMES)


def _row(values: Array) -> str:
    return ", ".join(f"{value:+.2f}" if values.min() < 0 else f"{value:.2f}" for value in values)


def _landmarks(record: Record) -> Array:
    return record.landmarks[record.found].astype(np.float64) * CROP_SIZE


def _scores(record: Record) -> Array:
    return record.expression[record.found].astype(np.float64)


def _numbers(name: str) -> list[int]:
    return [number for number, full in enumerate(ARKIT52) if full.removesuffix("Left").removesuffix("Right") == name]


def _score(record: Record, name: str) -> Array:
    return record.expression[record.found][:, _numbers(name)].mean(1)


if __name__ == "__main__":
    main()
