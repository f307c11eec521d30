"""The methods that stand beside ours, on a canonical face with a smooth texture, and on the bundled portrait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import export3d.camera as cameras
from export3d.data.shards import FPS, Record
from export3d.errors import ShapeError
from export3d.evaluation.measures.image import psnr
from export3d.evaluation.protocols.driven import DrivenClip, Reenactment, driven_clip
from export3d.evaluation.protocols.references import (
    REFERENCES,
    Copy,
    LandmarkWarp,
    MeshRepose,
    Oracle,
    expression_motion,
)
from export3d.evaluation.reports.clips import ORACLE, SIMPLE
from export3d.face.landmark_sets import FACE_OVAL
from export3d.face.mesh import canonical_mesh
from export3d.image import to_tensor, to_uint8
from export3d.motion.arkit import ARKIT52
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained

CPU = torch.device("cpu")
SIZE = 128
MOVERS = [LandmarkWarp, MeshRepose]


def label(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return cameras.from_pose(np.array([yaw, pitch, roll]), np.array([x, y, 2.7]))


def seen(camera: np.ndarray) -> np.ndarray:
    """(478, 2) landmarks of the canonical face, 0..1."""
    mesh = canonical_mesh().vertices
    irises = [mesh[[33, 133]].mean(0)] * 5 + [mesh[[362, 263]].mean(0)] * 5
    return cameras.project(np.concatenate([mesh, irises]), camera)


def texture(size: int = SIZE) -> np.ndarray:
    """(3, size, size) waves of about 15 pixels."""
    y, x = np.mgrid[0:size, 0:size] * (2 * np.pi / 15)
    waves = np.stack([np.sin(x), np.cos(y), np.sin(0.7 * x + 0.7 * y)])
    return (127.5 + 100 * waves).round().astype(np.uint8)


def clip_of(
    labels: list[np.ndarray],
    frames: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    space: str = "arkit52",
) -> DrivenClip:
    """A clip whose first frame is the source; every frame shows the same picture unless frames are given."""
    count = len(labels)
    pictures = np.stack([texture()] * count) if frames is None else frames
    expression = np.zeros((count, 64 if space == "bfm64" else 52)) if scores is None else scores
    points = np.stack([seen(one) for one in labels]) if landmarks is None else landmarks
    camera = np.stack(labels)
    record = Record("made", b"", "mp4", expression, camera, points, np.ones(count, bool), {})
    motion = Motion(expression, camera, FPS, space)
    return DrivenClip(record, torch.from_numpy(pictures), motion, 0, np.arange(1, count), 0)


def driven(method: type, clip: DrivenClip) -> Tensor:
    return method()(clip, CPU)(clip.driven).image


def inner(camera: np.ndarray, margin: float = 0.75) -> np.ndarray:
    """(SIZE, SIZE) bool: well within the face's outline."""
    from PIL import Image, ImageDraw

    oval = seen(camera)[list(FACE_OVAL)] * SIZE
    oval = oval.mean(0) + margin * (oval - oval.mean(0))
    canvas = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in oval.tolist()], fill=1)
    return np.array(canvas, dtype=bool)


# --- what every one of them must do -----------------------------------------------------------------------------------


def test_the_references_have_the_names_that_reports_know(tiny_weights: Path) -> None:
    assert tuple(REFERENCES) == (*SIMPLE, ORACLE)
    model = load_pretrained(tiny_weights)
    made = [type(make(model)) for make in REFERENCES.values()]
    assert made == [Copy, LandmarkWarp, MeshRepose, Oracle]


@pytest.mark.parametrize("method", MOVERS)
def test_nothing_moved_is_the_source_itself(method: type) -> None:
    clip = clip_of([label(20, -8, 5, 0.03)] * 2)
    assert (driven(method, clip) - clip.images([0])).abs().max() < 1 / 255


@pytest.mark.parametrize("method", [Copy, *MOVERS])
def test_one_at_a_time_is_the_same_as_all_together(method: type) -> None:
    clip = clip_of([label(), label(15, 3, 4), label(-30, x=0.05), label(0, 20)])
    predict = method()(clip, CPU)
    together = predict(clip.driven).image
    assert torch.equal(together, torch.cat([predict(clip.driven[k : k + 1]).image for k in range(3)]))
    assert together.shape == (3, 3, SIZE, SIZE)


@pytest.mark.parametrize("method", MOVERS)
@pytest.mark.parametrize("away", [label(80), label(0, -50), label(0, 0, 170), label(x=0.6, y=-0.5)])
def test_no_motion_however_wild_leaves_holes(method: type, away: np.ndarray) -> None:
    """The source is bright everywhere: anything that is not would come from outside of it."""
    frames = np.full((2, 3, SIZE, SIZE), 220, np.uint8)
    pictures = driven(method, clip_of([label(), away], frames))
    assert torch.isfinite(pictures).all()
    assert pictures.abs().max() <= 1
    assert pictures.min() > 0.7


@pytest.mark.parametrize("method", MOVERS)
def test_landmarks_that_are_no_face_do_no_harm(method: type, make_clip: Callable[..., Record]) -> None:
    clip = driven_clip(make_clip("a"), "arkit52", 64)
    pictures = driven(method, clip)
    assert torch.isfinite(pictures).all()
    assert pictures.abs().max() <= 1


@pytest.mark.parametrize("method", MOVERS)
def test_landmarks_of_another_kind_are_refused(method: type) -> None:
    clip = clip_of([label()] * 2, landmarks=np.zeros((2, 68, 2)))
    with pytest.raises(ShapeError, match="landmarks of made"):
        driven(method, clip)


# --- motion -----------------------------------------------------------------------------------------------------------


def test_landmarks_that_slide_take_the_face_along() -> None:
    points = np.stack([seen(label())] * 2)
    points[1] += np.array([8, -4]) / SIZE
    clip = clip_of([label()] * 2, landmarks=points)
    expected = torch.roll(clip.images([0]), (-4, 8), (2, 3))
    inside = np.roll(inner(label(), 0.95), (-4, 8), (0, 1))
    error = (driven(LandmarkWarp, clip) - expected).abs()[0].amax(0)
    assert error[inside].max() < 0.06  # landmarks are stored to a sixteenth of a pixel
    corners = (driven(LandmarkWarp, clip) - clip.images([0])).abs()[0].amax(0)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 0.1


@pytest.mark.parametrize("method", MOVERS)
@pytest.mark.parametrize("camera", [label(x=0.06), label(20), label(-25, 10, 8), label(0, -15, 0, -0.04, 0.03)])
@pytest.mark.parametrize("landmark", [4, 50, 280])
def test_a_mark_on_the_face_goes_where_the_camera_sees_it(method: type, camera: np.ndarray, landmark: int) -> None:
    """The nose tip and both cheeks, from the front and turned by up to 25 degrees."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    before, after = (seen(one)[landmark] * SIZE for one in (label(), camera))
    dot = np.exp(-((x - before[0]) ** 2 + (y - before[1]) ** 2) / (2 * 2.0**2))
    frames = np.repeat((255 * dot).round().astype(np.uint8)[None, None], 3, 1).repeat(2, 0)
    found = driven(method, clip_of([label(), camera], frames))[0, 0].numpy() + 1
    found = found**8  # where it is brightest: about the nose the mark is stretched on one side, hidden on the other
    centre = np.array([(found * x).sum(), (found * y).sum()]) / found.sum()
    assert np.linalg.norm(centre - after) < 0.8
    assert np.linalg.norm(before - after) > 2


@pytest.mark.parametrize("method", MOVERS)
def test_what_is_far_from_the_face_stays(method: type) -> None:
    clip = clip_of([label(), label(20, 5, 10, 0.04)])
    change = (driven(method, clip) - clip.images([0])).abs()[0].amax(0).numpy()
    edge = np.concatenate([change[:60, :6].ravel(), change[:60, -6:].ravel()])
    assert np.median(edge) < 0.3 * np.median(change[inner(label())])
    assert change[[0, 0], [0, -1]].max() < 0.2


@pytest.mark.parametrize("method", MOVERS)
def test_the_far_cheek_hides_behind_the_nose(method: type) -> None:
    """Turned by 60 degrees one half of the face is not seen any more: its colour is gone, the other's is there."""
    frames = np.zeros((2, 3, SIZE, SIZE), np.uint8)
    frames[:, 0, :, : SIZE // 2] = 255
    frames[:, 2, :, SIZE // 2 :] = 255
    camera = label(60)
    picture = to_uint8(driven(method, clip_of([label(), camera], frames))[0])
    at = seen(camera) * SIZE
    near, far = (at[n].astype(int) for n in (50, 280))
    assert near[0] < far[0]  # the viewer's left half has come to the front
    assert picture[near[1], near[0]].tolist() == [255, 0, 0]
    assert at[280, 0] < at[4, 0]  # the far cheek is behind the nose
    assert picture[far[1], far[0], 0] > 200


# --- expression -------------------------------------------------------------------------------------------------------


def scores(**values: float) -> np.ndarray:
    out = np.zeros(52)
    for name, value in values.items():
        out[ARKIT52.index(name)] = value
    return out


@pytest.fixture(scope="module")
def neutral() -> np.ndarray:
    mesh = canonical_mesh().vertices
    return np.concatenate([mesh, mesh[[33, 263]]])


def test_no_change_of_scores_moves_nothing(neutral: np.ndarray) -> None:
    same = scores(jawOpen=0.4, eyeBlinkLeft=0.3)
    assert (expression_motion(neutral, same, same) == 0).all()


def test_the_jaw_takes_lower_lip_and_chin_but_neither_upper_lip_nor_nose(neutral: np.ndarray) -> None:
    motion = expression_motion(neutral, scores(), scores(jawOpen=0.5)) / cameras.UNITS_PER_CM
    assert motion[14, 1] == pytest.approx(1.5, abs=1e-9)
    assert motion[17, 1] > 1  # below the lip nothing is held: it bends along
    assert motion[152, 1] > 0.5
    assert np.abs(motion[[13, 0]]).max() < 0.3
    assert np.abs(motion[[4, 6, 33, 263, 10]]).max() < 0.2
    back = expression_motion(neutral, scores(jawOpen=0.5), scores())
    np.testing.assert_allclose(back, -motion * cameras.UNITS_PER_CM, atol=1e-9)


def test_a_blink_closes_its_own_eye(neutral: np.ndarray) -> None:
    moved = neutral + expression_motion(neutral, scores(), scores(eyeBlinkLeft=0.75))
    opening = [np.linalg.norm(points[386] - points[374]) for points in (neutral, moved)]
    other = [np.linalg.norm(points[159] - points[145]) for points in (neutral, moved)]
    assert opening[1] < 0.15 * opening[0]
    assert other[1] == pytest.approx(other[0])
    half = neutral + expression_motion(neutral, scores(), scores(eyeBlinkLeft=0.4))
    assert np.linalg.norm(half[386] - half[374]) == pytest.approx(0.5 * opening[0], rel=0.01)


def test_a_smile_is_a_mirror_image_of_the_other_sides(neutral: np.ndarray) -> None:
    left, right = (expression_motion(neutral, scores(), scores(**{f"mouthSmile{s}": 0.8})) for s in ("Left", "Right"))
    np.testing.assert_allclose(left[291], right[61] * [-1, 1, 1], atol=1e-9)
    assert left[291, 0] > 0 > left[291, 1]
    assert np.linalg.norm(left[61]) < 0.3 * np.linalg.norm(left[291])


def test_the_driving_scores_open_the_mouth_of_the_mesh_and_it_is_dark_inside() -> None:
    values = np.zeros((2, 52))
    values[1, ARKIT52.index("jawOpen")] = 0.9
    frames = np.full((2, 3, SIZE, SIZE), 200, np.uint8)
    lips = seen(label())[[13, 14]] * SIZE
    picture = driven(MeshRepose, clip_of([label()] * 2, frames, scores=values))[0, 0]
    middle = lips.mean(0) + np.array([0.0, 8.0])
    assert picture[int(middle[1]), int(middle[0])] < 0.0 < 0.5 < picture[int(lips[0, 1]) - 4, int(middle[0])]
    assert (picture < 0.5).float().mean() < 0.05
    assert driven(LandmarkWarp, clip_of([label()] * 2, frames, scores=values)).min() > 0.5  # its landmarks say closed


def test_in_another_expression_space_the_mesh_is_rigid() -> None:
    values = np.random.default_rng(0).normal(size=(2, 64))
    clip = clip_of([label(), label(10)], scores=values, space="bfm64")
    assert torch.equal(driven(MeshRepose, clip), driven(MeshRepose, clip_of([label(), label(10)])))


# --- the oracle, and real faces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["tiny_weights", "rigid_weights"])
def test_the_oracle_drives_each_frame_by_itself(
    make_clip: Callable[..., Record], weights: str, request: pytest.FixtureRequest
) -> None:
    clip = driven_clip(make_clip("a"), "arkit52", 64)
    model = load_pretrained(request.getfixturevalue(weights))
    found = Oracle(model)(clip, CPU)(clip.driven[:2]).image
    for number, row in enumerate(clip.driven[:2]):
        itself = DrivenClip(clip.record, clip.frames, clip.motion, int(row), clip.driven, 0)
        expected = Reenactment(model)(itself, CPU)(np.array([row])).image
        torch.testing.assert_close(found[number : number + 1], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], Reenactment(model)(clip, CPU)(clip.driven[:1]).image[0], atol=1e-3)


def test_on_a_face_that_tilts_warp_and_mesh_come_nearer_than_the_copy(astronaut_turns: list[np.ndarray]) -> None:
    """Seen by the landmarker again, their faces lie near the truth's, and look more like it."""
    pytest.importorskip("mediapipe")
    from export3d.face.landmarks import FaceLandmarker
    from export3d.face.pose import fit_cameras

    truth = [astronaut_turns[k] for k in (0, 6)]  # upright, and tilted by 12 degrees
    with FaceLandmarker() as landmarker:
        faces = [landmarker.detect(picture)[0] for picture in truth]
        points = np.stack([face.landmarks[:, :2] for face in faces])
        clip = clip_of(
            list(fit_cameras(points, 256)[0]),
            np.stack([np.moveaxis(picture, -1, 0) for picture in truth]),
            points / 256,
            np.stack([face.scores for face in faces]),
        )
        (left, top), (right, bottom) = points[1].min(0).astype(int), points[1].max(0).astype(int)
        box = (..., slice(top, bottom), slice(left, right))
        missed, likeness = {}, {}
        for method in (Copy, LandmarkWarp, MeshRepose):
            picture = driven(method, clip)
            found = landmarker.detect(to_uint8(picture[0]))[0].landmarks[:, :2]
            missed[method] = float(np.linalg.norm(found - points[1], axis=1).mean())
            likeness[method] = float(psnr(picture[box], to_tensor(truth[1])[None][box]))
    assert missed[Copy] > 5
    assert missed[LandmarkWarp] < 1.0
    assert missed[MeshRepose] < 2.0
    assert likeness[LandmarkWarp] > likeness[Copy] + 2
    assert likeness[MeshRepose] > likeness[Copy] + 2
    print(missed, likeness)
