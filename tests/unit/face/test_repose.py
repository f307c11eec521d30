"""The rasteriser against a slow twin; the model's fit and the reposed portrait on the bundled photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export3d.camera import FOCAL, head_angles, head_rotation
from export3d.errors import InputError, ShapeError
from export3d.face import pose
from export3d.face.crop import CROP_SIZE, crop
from export3d.face.landmarks import Face, FaceLandmarker
from export3d.face.morphable import MorphableFace, fit_face
from export3d.face.repose import Puppet, mouth_loop, rasterise
from export3d.face.tracker import Tracker
from export3d.motion.arkit import ARKIT52


def slow_rasterise(
    xy: np.ndarray, depth: np.ndarray, triangles: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel and triangle by triangle."""
    index, nearest = np.full((size, size), -1), np.full((size, size), np.inf)
    for row in range(size):
        for column in range(size):
            for t, corners in enumerate(triangles):
                system = np.concatenate([xy[corners].T, np.ones((1, 3))])
                if abs(np.linalg.det(system)) < 1e-9:
                    continue
                w = np.linalg.solve(system, [column + 0.5, row + 0.5, 1.0])
                if (w >= 0).all() and w @ depth[corners] < nearest[row, column]:
                    index[row, column], nearest[row, column] = t, w @ depth[corners]
    return index, nearest


def test_rasteriser_sees_what_its_slow_twin_sees(rng: np.random.Generator) -> None:
    size = 24
    xy, depth = rng.uniform(-5, size + 5, (20, 2)), rng.uniform(1, 2, 20)
    triangles = np.array([rng.permutation(20)[:3] for _ in range(30)] + [[0, 0, 1]])
    index, weights = rasterise(xy, depth, triangles, size)
    expected, nearest = slow_rasterise(xy, depth, triangles, size)
    assert (expected >= 0).mean() > 0.5
    assert (index == expected).all()
    seen = index >= 0
    np.testing.assert_allclose((depth[triangles[index]] * weights).sum(-1)[seen], nearest[seen], atol=1e-9)
    np.testing.assert_allclose(weights.sum(-1), seen, atol=1e-9)


def test_rasterised_weights_give_the_pixel_back() -> None:
    xy, triangles = np.array([[0.0, 0.0], [16.0, 0.0], [0.0, 16.0], [16.0, 16.0]]), np.array([[0, 1, 2], [3, 1, 2]])
    index, weights = rasterise(xy, np.ones(4), triangles, 16)
    y, x = np.mgrid[:16, :16] + 0.5
    assert (index >= 0).all()
    np.testing.assert_allclose((xy[triangles[index]] * weights[..., None]).sum(2), np.stack([x, y], -1), atol=1e-9)


def test_a_mesh_beyond_the_picture_is_not_seen() -> None:
    far = np.array([[-9.0, -9.0], [-5.0, -9.0], [-9.0, -5.0]])
    index, _ = rasterise(far, np.ones(3), np.array([[0, 1, 2]]), 8)
    assert (index == -1).all()


def test_a_file_that_is_no_face_model_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, vertices=np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"wrong\.npz"):
        MorphableFace.load(wrong, wrong)


@pytest.fixture(scope="module")
def face(shared_models: Path) -> MorphableFace:
    folder = shared_models / "face3d"
    return MorphableFace.load(folder / "ict_face.npz", folder / "mediapipe_to_ict.npz")


@pytest.fixture(scope="module")
def portrait(landmarker: FaceLandmarker, astronaut_path: Path) -> tuple[np.ndarray, Face]:
    """The bundled portrait's crop and what is found in it."""
    from export3d.image import read_image

    image = read_image(astronaut_path)
    cropped = crop(image, Tracker(landmarker).track_image(image).crop)
    return cropped, landmarker.detect(cropped)[0]


@pytest.fixture(scope="module")
def puppet(face: MorphableFace, portrait: tuple[np.ndarray, Face]) -> Puppet:
    pytest.importorskip("scipy")
    return Puppet(face, portrait[0], portrait[1].landmarks, portrait[1].scores)


def with_scores(face: Face, **scores: float) -> np.ndarray:
    out = face.scores.astype(np.float64)
    for name, value in scores.items():
        out[ARKIT52.index(name)] = value
    return out


def test_expression_modes_carry_their_names(face: MorphableFace) -> None:
    places = face.at_landmarks(face.expression)
    left, right = (places[ARKIT52.index(f"eyeBlink{side}")] for side in ("Left", "Right"))
    assert left[386, 1] > 0.5, "a blink moves the upper lid down"
    assert abs(left[159, 1]) < 0.05, "of one eye"
    assert right[159, 1] > 0.5
    assert places[ARKIT52.index("jawOpen")][152, 1] > 0.5
    assert not places[ARKIT52.index("tongueOut")].any()


def test_fit_finds_a_made_face_again(face: MorphableFace, rng: np.random.Generator) -> None:
    identity, scores = rng.normal(size=len(face.identity)) * 0.5, np.zeros(52)
    rotation = head_rotation(np.array([12.0, -5.0, 3.0]))
    points = face.at_landmarks(face.shape(identity, scores)) @ rotation.T + [0.3, -0.2, 140.0]
    seen = (points[:, :2] / points[:, 2:] * FOCAL + 0.5) * CROP_SIZE
    fit = fit_face(face, seen, scores, CROP_SIZE)
    assert fit.error_px < 0.4
    np.testing.assert_allclose(fit.rotation, rotation, atol=0.03)


def test_fit_wants_landmarks_and_scores(face: MorphableFace) -> None:
    with pytest.raises(ShapeError, match="478"):
        fit_face(face, np.zeros((5, 2)), np.zeros(52), CROP_SIZE)


def test_spread_keeps_to_the_landmarks_and_the_lips_apart(face: MorphableFace) -> None:
    pytest.importorskip("scipy")
    values = np.zeros((468, 1))
    values[[14, 17, 87, 317]] = 1.0
    spread = face.at_landmarks(face.spread(values))
    assert spread[14] > 0.6
    assert spread[13] < 0.2


def test_the_mouth_has_an_edge(face: MorphableFace) -> None:
    loop = mouth_loop(face)
    assert len(loop) == len(set(loop.tolist())) == 74
    assert np.linalg.norm(np.diff(face.vertices[loop], axis=0), axis=1).max() < 0.5


def test_no_change_gives_the_portrait_back(puppet: Puppet, portrait: tuple[np.ndarray, Face]) -> None:
    image, found = portrait
    view = puppet.view(found.scores)
    assert np.abs(view.image.astype(int) - image).max() <= 2
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE] + 0.5
    np.testing.assert_allclose(view.source, np.stack([x, y], -1), atol=0.05)


@pytest.mark.parametrize(
    ("asked", "at_least"),
    [({"jawOpen": 0.5}, 0.3), ({"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, 0.25), ({"mouthPucker": 0.9}, 0.3)],
)
def test_a_change_is_seen_by_the_tracker(
    puppet: Puppet,
    portrait: tuple[np.ndarray, Face],
    landmarker: FaceLandmarker,
    asked: dict[str, float],
    at_least: float,
) -> None:
    own = portrait[1]
    seen = landmarker.detect(puppet.view(with_scores(own, **asked)).image)[0]
    for name in asked:
        number = ARKIT52.index(name)
        assert seen.scores[number] - own.scores[number] > at_least, name


def test_a_turn_is_seen_by_the_tracker(
    puppet: Puppet, portrait: tuple[np.ndarray, Face], landmarker: FaceLandmarker
) -> None:
    own = portrait[1]
    (before,), _ = pose.fit_cameras(own.landmarks[None, :, :2], CROP_SIZE)
    seen = landmarker.detect(puppet.view(own.scores, head_rotation(np.array([12.0, 6.0, 0.0]))).image)[0]
    (after,), _ = pose.fit_cameras(seen.landmarks[None, :, :2], CROP_SIZE)
    change = head_angles(after) - head_angles(before)
    assert 5.0 < change[0] < 14.0, "the tracker reads a turn of a photo as less than it is"
    assert 3.0 < change[1] < 9.0
    assert abs(change[2]) < 3.0
