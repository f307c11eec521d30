"""Fits `assets/pose_steady.safetensors`, the map that takes an expression's share off a fitted pose (`face/pose.py`).

    python benchmarks/pose_steady.py PREPARED/train PSEUDO/train -o pose_steady.safetensors [--portraits 40]

PREPARED is made by `export3d prepare`, PSEUDO from it by `export3d pseudo-clips`. The map is linear in where the
landmarks lie beside the canonical mesh; it is fitted by least squares, mirrored faces included. It learns from heads
that are known to be still, or nearly:

- puppets: pseudo-clips, the frames in which the head was not turned;
- renders: portraits moved along the basis of the packaged weights before a fixed camera;
- talk: of quick changes in clips the part that goes with mouth and lids (one linear regression over all clips).

It must not answer to anything else, so its answers to these are penalised:

- turns: of puppets up to the largest turn, and of heads in clips by ten degrees;
- people: how resting faces differ, and above all what they have in common;
- noise on every landmark of up to a pixel each way, whose share of the pose is taken off instead.

The packaged map was fitted when the portraits' own cameras were still the plain fit to 33 landmarks (a map of zeros);
cameras that are steady move the renders a little, so that a second fit differs from it.
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
from export3d.animate.sliders import coefficients, natural_range
from export3d.data.pseudo import TURN_DEG
from export3d.data.shards import Record, read_shards
from export3d.errors import NoFaceFound
from export3d.face import pose
from export3d.face.crop import CROP_SIZE
from export3d.face.landmarks import FaceLandmarker
from export3d.face.mesh import VERTICES, canonical_mesh
from export3d.face.smooth import smooth
from export3d.files import write_bytes
from export3d.motion import ARKIT52

PIXEL = camera.RADIUS / (CROP_SIZE * camera.FOCAL)
"""World units: a pixel of the crop at the default distance."""
WEIGHTS = {"puppets": 1.0, "renders": 6.0, "talk": 30.0, "noise": 4.0}
PENALTIES = {"turned puppets": 6.0, "turning clips": 0.3, "people": 0.5, "mean": 30.0}
RIDGE = 0.02
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
    options = arguments.parse_args()
    records = list(read_shards(options.prepared))
    stills = [record for record in records if record.kind == "image"]
    clips = [record for record in records if record.kind == "video"]
    still, turned = puppets(list(read_shards(options.pseudo)))
    rest = resting(stills, clips)
    mean = mirrored(rest).mean(0, keepdims=True)
    learned = {
        "puppets": still,
        "renders": renders(stills, options.portraits),
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
    by_unit = (fitted / PIXEL).T.reshape(6, VERTICES, 2).astype(np.float16)
    write_bytes(options.output, save({"map": np.ascontiguousarray(by_unit)}))
    for name, (beside, twist) in learned.items():
        before, after = (np.degrees(x[:, :3].std(0)).round(2) for x in (twist, twist - beside @ fitted))
        print(f"{name}: {len(twist)} changes, pitch, yaw, roll {before} degrees before, {after} after")
    print(f"resting faces: {np.degrees((rest @ fitted)[:, :3].std(0)).round(2)}, {len(rest)} people")


def fit(landmarks: Array) -> tuple[Array, Array, Array]:
    """Rotation (T, 3, 3), translation (T, 3) and `pose.beside_mesh` as (T, 936) pixels of (T, 478, 2) crop pixels."""
    mesh = canonical_mesh()
    image = (landmarks[:, :VERTICES, :2].astype(float) / CROP_SIZE - 0.5) / camera.FOCAL
    points, seen = mesh.vertices[mesh.pose_landmarks], image[:, mesh.pose_landmarks]
    rotation, translation = pose.solve(points, seen, mesh.pose_weights)
    beside = pose.beside_mesh(image, mesh.vertices, rotation, translation) / PIXEL
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


def _label(rotation: Array, translation: Array) -> Array:
    cam2world = np.tile(np.eye(4), (len(rotation), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(rotation, 1, 2)
    cam2world[:, :3, 3] = -np.einsum("tji,tj->ti", rotation, translation)
    return camera.pack(cam2world, np.tile(camera.default_intrinsics(), (len(rotation), 1, 1)))


if __name__ == "__main__":
    main()
