"""Fits `assets/pose_steady.safetensors`, the maps that take an expression's share off a fitted pose (`face/pose.py`).

    python benchmarks/pose_steady.py PREPARED/train PSEUDO/train -o pose_steady.safetensors [--portraits 40]
    python benchmarks/pose_steady.py PREPARED/train PSEUDO/train -o pose_steady.safetensors --keep map

PREPARED is made by `export3d prepare`, PSEUDO from it by `export3d pseudo-clips`. The first map (`map`) is linear in
where the landmarks lie beside the canonical mesh; it is fitted by least squares, mirrored faces included. It learns
from heads that are known to be still, or nearly:

- puppets: pseudo-clips, the frames in which the head was not turned;
- renders: portraits moved along the basis of the packaged weights before a fixed camera;
- talk: of quick changes in clips the part that goes with mouth and lids (one linear regression over all clips).

It must not answer to anything else, so its answers to these are penalised:

- turns: of puppets up to the largest turn, and of heads in clips by ten degrees;
- people: how resting faces differ, and above all what they have in common;
- noise on every landmark of up to a pixel each way, whose share of the pose is taken off instead.

The packaged map was fitted when the portraits' own cameras were still the plain fit to 33 landmarks (a map of zeros),
to renders of earlier weights; a second fit differs from it. `--keep map` or `--keep scores` takes that map as it is
packaged: on the scores' map all cameras hang, prepared ones and those that the weights were trained with.

The second map (`scores`) is what the 52 scores tell of the first one's answers: ridge regression over the frames of all
clips and pseudo-clips, mirrored ones included, answers and scores less their mean in each clip. Here poses are fitted
with the person's own face shape, and those of clips smoothed, as the tracker does.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save

import export3d.camera as camera
from export3d.animate.animator import Animator
from export3d.data.pseudo_clips import TURN_DEG
from export3d.data.shards import Record, read_shards
from export3d.errors import NoFaceFound
from export3d.expression.sliders import coefficients, natural_range
from export3d.face import pose
from export3d.face.crop import CROP_SIZE
from export3d.face.landmarks import FaceLandmarker
from export3d.face.mesh import VERTICES, canonical_mesh
from export3d.face.smooth import smooth, smooth_cameras
from export3d.files import write_bytes
from export3d.motion.arkit import ARKIT52, ARKIT52_MIRRORED

PIXEL = camera.RADIUS / (CROP_SIZE * camera.FOCAL)
"""World units: a pixel of the crop at the default distance."""
WEIGHTS = {"puppets": 1.0, "renders": 6.0, "talk": 30.0, "noise": 4.0}
PENALTIES = {"turned puppets": 6.0, "turning clips": 0.3, "people": 0.5, "mean": 30.0}
RIDGE = 0.02
SCORES_RIDGE = 2e-5
"""For each frame."""
PSEUDO_WEIGHT = 0.25
"""Of a frame of a pseudo-clip beside one of a clip."""
QUICK = 6.0
"""Frames: what a parabola under a Gaussian window of this width does not follow is a quick change."""
TURNING_DEG = (6.0, 4.0)
"""Standard deviation of yaw or pitch in a clip in which the head turns a lot."""
TALK = (
    *("jawOpen", "mouthSmile", "eyeBlink", "mouthPucker", "mouthFunnel", "mouthUpperUp", "mouthLowerDown"),
    *("mouthShrugLower", "mouthPress"),
)
MIRRORED_TWIST = np.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])

Array = np.ndarray


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("prepared", type=Path)
    arguments.add_argument("pseudo", type=Path)
    arguments.add_argument("-o", "--output", type=Path, required=True)
    arguments.add_argument("--portraits", type=int, default=40, help="portraits that are rendered")
    arguments.add_argument("--keep", choices=("map", "scores"), help="fit the other map alone")
    options = arguments.parse_args()
    records = list(read_shards(options.prepared))
    made = list(read_shards(options.pseudo))
    clips = [record for record in records if record.kind == "video"]
    if options.keep == "map":
        by_unit = pose.steady_map().astype(np.float16)
    else:
        by_unit = landmark_map([record for record in records if record.kind == "image"], clips, made, options.portraits)
    if options.keep == "scores":
        told = pose.scores_map().astype(np.float32)
    else:
        told = scores_map(clips, made, by_unit.astype(np.float64)).astype(np.float32)
    maps = {"map": np.ascontiguousarray(by_unit), "scores": np.ascontiguousarray(told)}
    write_bytes(options.output, save(maps))


def landmark_map(stills: list[Record], clips: list[Record], made: list[Record], portraits: int) -> Array:
    """(6, 468, 2) float16 of `pose.steady_map`."""
    still, turned = puppets(made)
    rest = resting(stills, clips)
    mean = mirrored(rest).mean(0, keepdims=True)
    learned = {
        "puppets": still,
        "renders": renders(stills, portraits),
        "talk": talk(clips),
        "noise": noise(stills),
    }
    shunned = {"turned puppets": turned, "turning clips": turns(clips), "people": rest - mean, "mean": mean}
    left, right = RIDGE * np.eye(2 * VERTICES), np.zeros((2 * VERTICES, 6))
    for name, (beside, twist) in learned.items():
        both = mirrored(beside)
        left += WEIGHTS[name] / len(both) * both.T @ both
        right += WEIGHTS[name] / len(both) * both.T @ np.concatenate([twist, twist * MIRRORED_TWIST])
    for name, beside in shunned.items():
        both = mirrored(beside)
        left += PENALTIES[name] / len(both) * both.T @ both
    fitted = np.linalg.solve(left, right)
    for name, (beside, twist) in learned.items():
        before, after = (np.degrees(x[:, :3].std(0)).round(2) for x in (twist, twist - beside @ fitted))
        print(f"{name}: {len(twist)} changes, pitch, yaw, roll {before} degrees before, {after} after")
    print(f"resting faces: {np.degrees((rest @ fitted)[:, :3].std(0)).round(2)}, {len(rest)} people")
    return (fitted / PIXEL).T.reshape(6, VERTICES, 2).astype(np.float16)


def scores_map(clips: list[Record], made: list[Record], by_unit: Array) -> Array:
    """(6, 52) of `pose.scores_map`, from the answers of a landmark map (6, 468, 2)."""
    scores, twist = [], []
    for records, weight in ((clips, 1.0), (made, PSEUDO_WEIGHT)):
        for record in records:
            landmarks = landmarks_of(record)
            rotation, translation, beside = fit(landmarks, pose.person_shape(landmarks, CROP_SIZE))
            told = PIXEL * beside @ by_unit.reshape(6, -1).T
            if records is clips:
                poses = (rotation, translation), pose.moved(rotation, translation, told)
                before, after = (smooth_cameras(_label(*one), record.info["fps"]) for one in poses)
                told = twists(*_pose(before), *_pose(after))
            seen = record.expression[record.found].astype(np.float64)
            scores.append(weight**0.5 * (seen - seen.mean(0)))
            twist.append(weight**0.5 * (told - told.mean(0)))
    frames = np.concatenate([*scores, *(one[:, ARKIT52_MIRRORED] for one in scores)])
    wanted = np.concatenate([*twist, *(one * MIRRORED_TWIST for one in twist)])
    ridge = SCORES_RIDGE * len(frames) * np.eye(len(ARKIT52))
    found = np.linalg.solve(frames.T @ frames + ridge, frames.T @ wanted)
    left = ((wanted - frames @ found) ** 2).mean(0) / (wanted**2).mean(0)
    print(f"{len(frames) // 2} frames, told by the scores: pitch, yaw, roll {(1 - left[:3]).round(2)} of the variance")
    strongest = np.argsort(-np.abs(found[:, 0]))[:8]
    print("degrees of pitch a unit:", ", ".join(f"{ARKIT52[n]} {np.degrees(found[n, 0]):+.1f}" for n in strongest))
    return found.T


def fit(landmarks: Array, shape: Array | None = None) -> tuple[Array, Array, Array]:
    """Rotation (T, 3, 3), translation (T, 3) and `pose.beside_mesh` as (T, 936) pixels of (T, 478, 2) crop pixels."""
    mesh = canonical_mesh()
    vertices = mesh.vertices if shape is None else shape
    image = (landmarks[:, :VERTICES, :2].astype(float) / CROP_SIZE - 0.5) / camera.FOCAL
    points, seen = vertices[mesh.pose_landmarks], image[:, mesh.pose_landmarks]
    rotation, translation = pose.solve(points, seen, mesh.pose_weights)
    beside = pose.beside_mesh(image, vertices, rotation, translation) / PIXEL
    return rotation, translation, beside.reshape(len(beside), -1)


def twists(rotation: Array, translation: Array, wanted: Array, place: Array) -> Array:
    """(T, 6) what makes poses the wanted ones: rotation vector and shift, along the head's axes."""
    back = np.swapaxes(rotation, 1, 2)
    turn = back @ wanted
    sine = np.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]], 1)
    angle = np.arccos(((np.trace(turn, axis1=1, axis2=2) - 1) / 2).clip(-1, 1))
    vector = sine / 2 * (angle / np.sin(angle).clip(1e-9))[:, None]
    return np.concatenate([vector, np.einsum("tij,tj->ti", back, place - translation)], axis=1)


def mirrored(beside: Array) -> Array:
    """Rows (N, 936) and, below them, those of the mirrored faces."""
    vertices = canonical_mesh().vertices
    twin = np.linalg.norm((vertices * [-1, 1, 1])[:, None] - vertices, axis=2).argmin(1)
    other = beside.reshape(-1, VERTICES, 2)[:, twin] * [-1, 1]
    return np.concatenate([beside, other.reshape(beside.shape)])


def landmarks_of(record: Record) -> Array:
    return record.landmarks[record.found].astype(np.float64) * CROP_SIZE


def puppets(records: list[Record]) -> tuple[tuple[Array, Array], Array]:
    """Changes of still puppets with what to take off; and what the largest turns do (5 rows, by regression)."""
    beside, twist, moved, angles = [], [], [], []
    for record in records:
        if record.info["bank"][0] != -1:
            continue
        turn = np.array(record.info["turn_deg"])
        rotation, translation, found = fit(landmarks_of(record))
        still = ~turn.any(1)
        still[0] = False
        own = np.broadcast_to(rotation[0], rotation.shape), np.broadcast_to(translation[0], translation.shape)
        twist.append(twists(rotation, translation, *own)[still])
        beside.append((found - found[0])[still])
        moved.append((found - found[0])[turn.any(1)])
        angles.append(turn[turn.any(1)] / TURN_DEG)
    yaw, pitch, roll = np.concatenate(angles).T
    terms = np.stack([yaw, pitch, roll, yaw**2, pitch**2, np.ones_like(yaw)], axis=1)
    answer = np.linalg.lstsq(terms, np.concatenate(moved), rcond=None)[0][:-1]
    return (np.concatenate(beside), np.concatenate(twist)), answer


def renders(stills: list[Record], count: int) -> tuple[Array, Array]:
    """Changes of portraits along directions 1 to 5, singly and together, with what to take off."""
    animator, landmarker, rng = Animator.from_pretrained(), FaceLandmarker(), np.random.default_rng(5)
    low, high = natural_range(animator.model)[:5].T
    beside, twist = [], []
    for number in rng.permutation(len(stills))[:count]:
        picture = np.asarray(Image.open(io.BytesIO(stills[number].media)).convert("RGB"))
        source = animator.encode(picture)
        own = coefficients(animator.model, source.expression)
        room = np.stack([low - own[:5], high - own[:5]])
        steps = [share * end * unit for unit in np.eye(5)[:4] for end in room for share in (0.5, 1.0)]
        steps += [(rng.uniform(low, high) - own[:5]) * rng.uniform(0.5, 1.0) for _ in range(10)]
        moves = np.pad([np.zeros(5), *steps], ((0, 0), (0, len(own) - 5)))
        shown = [landmarker.detect(animator.render(source, source.expression, source.camera, move)) for move in moves]
        if not shown[0]:
            raise NoFaceFound(f"no face in the render of {stills[number].key}; leave the record out")
        rotation, translation, found = fit(np.stack([faces[0].landmarks for faces in shown if faces]))
        own_pose = np.broadcast_to(rotation[0], rotation.shape), np.broadcast_to(translation[0], translation.shape)
        twist.append(twists(rotation, translation, *own_pose)[1:])
        beside.append((found - found[0])[1:])
    return np.concatenate(beside), np.concatenate(twist)


def talk(clips: list[Record]) -> tuple[Array, Array]:
    """The part of quick changes that goes with the scores TALK, with what to take off."""
    beside, twist, scores = [], [], []
    for record in clips:
        rotation, translation, found = fit(landmarks_of(record))
        if len(found) < 10 * QUICK:
            continue
        angles = camera.head_angles(_label(rotation, translation))
        change = twists(rotation, translation, camera.head_rotation(smooth(angles, QUICK)), smooth(translation, QUICK))
        score = np.stack([_score(record, name) for name in TALK], axis=1)
        good = np.abs(change[:, :3]).max(1) < np.radians(5.0)
        beside.append((found - smooth(found, QUICK))[good])
        twist.append(change[good])
        scores.append((score - smooth(score, QUICK))[good])
    together = np.concatenate(scores)
    slopes = np.linalg.solve(together.T @ together, together.T @ np.concatenate([*map(np.hstack, zip(beside, twist))]))
    explained = together @ slopes
    return explained[:, :-6], explained[:, -6:]


def noise(stills: list[Record]) -> tuple[Array, Array]:
    """Changes by a pixel of noise, with what to take off."""
    rng = np.random.default_rng(0)
    own = np.repeat([landmarks_of(record)[0] for record in stills[:1000:50]], 60, axis=0)
    rotation, translation, beside = fit(own)
    noisy, place, found = fit(own + rng.uniform(-1.0, 1.0, own.shape))
    return found - beside, twists(noisy, place, rotation, translation)


def turns(clips: list[Record]) -> Array:
    """What ten degrees of yaw and of pitch do, by regression in each clip with enough of them."""
    rows = []
    for record in clips:
        rotation, translation, found = fit(landmarks_of(record))
        angles = camera.head_angles(_label(rotation, translation))
        yaw, pitch, roll = (angles - angles.mean(0)).T
        enough = np.array([yaw.std(), pitch.std()]) >= TURNING_DEG
        if enough.any():
            terms = np.stack([yaw, pitch, roll, yaw**2, pitch**2, np.ones_like(yaw)], axis=1)
            rows.append(10.0 * np.linalg.lstsq(terms, found, rcond=None)[0][:2][enough])
    return np.concatenate(rows)


def resting(stills: list[Record], clips: list[Record]) -> Array:
    """(N, 936) faces at rest: portraits with a quiet mouth, and of each clip the five frames with the calmest mouth."""
    mouth = [number for number, name in enumerate(ARKIT52) if name.startswith(("mouth", "jaw"))]
    quiet = [
        landmarks_of(r)[0] for r in stills if r.expression[0, mouth].max() < 0.3 and _score(r, "jawOpen")[0] < 0.05
    ]
    for record in clips:
        calm = np.linalg.norm(record.expression[record.found][:, mouth], axis=1).argsort()[:5]
        quiet.append(landmarks_of(record)[calm].mean(0))
    return fit(np.stack(quiet))[2]


def _score(record: Record, name: str) -> Array:
    return record.expression[record.found][:, [n for n, full in enumerate(ARKIT52) if full.startswith(name)]].mean(1)


def _pose(labels: Array) -> tuple[Array, Array]:
    return camera.head_rotation(camera.head_angles(labels)), camera.head_position(labels)


def _label(rotation: Array, translation: Array) -> Array:
    cam2world = np.tile(np.eye(4), (len(rotation), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(rotation, 1, 2)
    cam2world[:, :3, 3] = -np.einsum("tji,tj->ti", rotation, translation)
    return camera.pack(cam2world, np.tile(camera.default_intrinsics(), (len(rotation), 1, 1)))


if __name__ == "__main__":
    main()
