"""Networks that read landmarks and expressions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export3d.camera import Camera
from export3d.errors import CheckpointError, ConfigError, MissingExtra
from export3d.evaluation.measures import face_readers
from export3d.evaluation.measures.face import FaceScorer
from export3d.evaluation.measures.face_readers import deep3d_box, load_expression, load_landmarks
from export3d.face import pose
from export3d.face.crop import CropBox, crop
from export3d.face.landmark_sets import IBUG68
from export3d.face.mesh import canonical_mesh
from tests.drawn_faces import Drawn, drawn_face, drawn_landmarks, plain
from tests.made_up_networks import brightness_network, coefficient_network, constant_network

Picture = np.ndarray


MIRRORED = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    *(45, 44, 43, 42, 47, 46), *(39, 38, 37, 36, 41, 40),
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *(67, 66, 65),
)  # fmt: skip
"""Where each of iBUG's points lies on the mirrored face."""
DLIB68 = (
    (179, 104), (180, 116), (181, 127), (182, 139), (185, 150), (191, 160), (200, 168), (209, 176), (220, 178),
    (232, 177), (243, 171), (253, 163), (260, 154), (265, 143), (268, 131), (270, 120), (272, 108), (186, 94),
    (192, 88), (200, 87), (208, 89), (216, 92), (236, 93), (244, 91), (252, 91), (260, 92), (265, 99), (226, 102),
    (225, 111), (225, 119), (225, 127), (214, 131), (219, 133), (224, 134), (229, 133), (234, 132), (195, 101),
    (200, 98), (207, 98), (212, 104), (206, 104), (199, 104), (237, 106), (243, 100), (250, 100), (255, 105),
    (250, 107), (244, 107), (201, 139), (209, 139), (218, 139), (224, 141), (230, 140), (238, 140), (246, 141),
    (238, 151), (229, 155), (222, 156), (216, 155), (208, 150), (204, 141), (218, 143), (223, 144), (230, 143),
    (243, 142), (229, 150), (223, 151), (217, 150),
)  # fmt: skip
"""The bundled portrait's points by an independent detector trained on iBUG's own annotations (dlib 20.0.1 with
shape_predictor_68_face_landmarks), pixels."""


def test_the_68_points_are_symmetric_as_ibugs_are() -> None:
    assert len(set(IBUG68)) == 68
    points = canonical_mesh().vertices_cm[list(IBUG68)]
    mirrored = points[list(MIRRORED)] * [-1.0, 1.0, 1.0]
    assert np.abs(points - mirrored).max() < 0.01


def test_the_groups_lie_where_they_belong() -> None:
    x, y = pose.project(canonical_mesh().vertices, Camera.orbit().label, 256)[list(IBUG68)].T
    jaw, brows, nose, eyes, mouth = (slice(*ends) for ends in ((0, 17), (17, 27), (27, 36), (36, 48), (48, 68)))
    assert (np.diff(x[jaw])[3:-3] > 0).all()
    assert y[jaw].argmax() == 8
    assert (np.diff(x[brows]) > 0).all()
    assert y[brows].max() < y[eyes].min() < y[nose].max() < y[mouth].min()
    assert (np.diff(y[27:31]) > 0).all()
    assert x[36] < x[37] < x[38] < x[39] < x[42] < x[43] < x[44] < x[45]
    assert (y[[37, 38, 43, 44]] < y[[41, 40, 47, 46]]).all()
    assert (np.diff(x[48:55]) > 0).all()
    assert y[51] < y[62] <= y[66] < y[57]


def test_the_68_points_agree_with_a_detector_that_was_trained_on_them(scorer: FaceScorer, astronaut: Picture) -> None:
    """Sides of the jaw and outer brows are drawn elsewhere by MediaPipe; everything within the face agrees."""
    box = CropBox((224.0, 128.0), 256.0)
    found = box.from_crop(scorer.read([crop(astronaut, box)]).landmarks68[0])
    away = np.linalg.norm(found - (np.array(DLIB68) + 0.5), axis=1)
    assert np.median(away) < 2.0
    assert away[27:].max() < 5.0
    assert away[:27].max() < 14.0


@pytest.fixture(scope="module")
def scorer() -> Iterator[FaceScorer]:
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with FaceScorer() as opened:
        yield opened


@pytest.mark.parametrize("load", [load_landmarks, load_expression])
def test_unknown_names_missing_and_foreign_files_are_refused(load: Callable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        load("dlib68")
    pytest.importorskip("onnxruntime")
    with pytest.raises(CheckpointError, match=r"absent\.onnx does not exist"):
        load(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(CheckpointError, match="cannot be run"):
        load(tmp_path / "bad.onnx")
    (tmp_path / "few.onnx").write_bytes(constant_network(np.zeros((1, 5, 2)), 64))
    with pytest.raises(CheckpointError, match=r"\(1, 5, 2\)|takes 64 px"):
        load(tmp_path / "few.onnx")


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"'\.\[evaluate\]'"):
        load_landmarks(tmp_path / "fan.onnx")


def test_heatmaps_are_read_to_a_quarter_of_a_cell(tmp_path: Path) -> None:
    """A network whose 68 maps are the chip's brightness: all points lie on the one bright spot."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "fan.onnx"
    path.write_bytes(brightness_network(128))
    detector = load_landmarks(path)
    assert detector.name == "fan"
    assert "sha256" in detector.description
    spot = np.array([140.3, 150.8])
    y, x = np.mgrid[0:256, 0:256] + 0.5
    glow = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * 6.0**2))
    picture = np.repeat((255 * glow).round().astype(np.uint8)[..., None], 3, -1)
    landmarks = np.stack([drawn_landmarks(), np.full((478, 2), np.nan)])
    found = detector([picture, picture], landmarks)
    np.testing.assert_allclose(found[0], np.tile(spot, (68, 1)), atol=1.0)
    assert np.isnan(found[1]).all()


def test_the_highest_cell_leans_towards_its_higher_neighbour() -> None:
    maps = np.zeros((68, 5, 8))
    maps[:, 2, 3], maps[:, 2, 4], maps[:, 1, 3] = 1.0, 0.5, 0.2
    np.testing.assert_allclose(face_readers._peaks(maps), np.tile([3.75, 2.25], (68, 1)))
    corner = np.zeros((68, 5, 8))
    corner[:, 0, 0] = 1.0
    np.testing.assert_allclose(face_readers._peaks(corner), np.tile([0.5, 0.5], (68, 1)))


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (2.0, -1.0), (64.0, 0.0)])
@pytest.mark.parametrize("shape", [(1, 68, 2), (1, 136)])
def test_coordinates_may_be_pixels_or_shares(
    tmp_path: Path, scale: float, offset: float, shape: tuple[int, ...]
) -> None:
    """Whatever the unit, the same places of the chip; the chip is face-alignment's square around the face."""
    pytest.importorskip("onnxruntime")
    shares = np.random.default_rng(3).uniform(0.1, 0.9, size=(68, 2))
    path = tmp_path / "points.onnx"
    path.write_bytes(constant_network((shares * scale + offset).reshape(shape), 64))
    landmarks = drawn_landmarks()
    found = load_landmarks(path)([np.zeros((256, 256, 3), np.uint8)], landmarks[None])[0]
    low, high = landmarks.min(0), landmarks.max(0)
    side = (high - low).sum() * 200 / 195
    centre = (low + high) / 2 - [0, 0.12 * (high - low)[1]]
    np.testing.assert_allclose(found, centre + (shares - 0.5) * side, atol=1e-3)


def test_the_coefficients_of_deep3d_are_taken_apart(tmp_path: Path) -> None:
    """A network that adds the chip's mean colour, 0 to 1, to coefficients that are their own numbers."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "deep3d.onnx"
    path.write_bytes(coefficient_network())
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[..., 0] = 255
    landmarks = np.stack([drawn_landmarks(), np.full((478, 2), np.nan)])
    values, angles, position = load_expression(path)([picture, picture], landmarks, np.zeros((2, 52)))
    expected = np.arange(257) / 1000
    expected[80] += 1.0  # red
    np.testing.assert_allclose(values[0], expected[80:144], atol=1e-5)
    x, y, z = np.degrees(expected[224:227])
    np.testing.assert_allclose(angles[0], [y, -x, -z], atol=1e-4)
    np.testing.assert_allclose(position[0], expected[254:257], atol=1e-5)
    assert all(np.isnan(part[1]).all() for part in (values, angles, position))
    with FaceScorer(identities=(), expression=path, landmarker=Drawn({1: [drawn_face(jawOpen=0.4)]})) as scorer:
        reading = scorer.read(plain(1))
        assert reading.expression.shape == (1, 64)
        assert reading.curves[0, 1] == pytest.approx(0.4)
        assert "64 expression coefficients" in next(m.definition for m in scorer.measures if m.name == "aed")
    (tmp_path / "short.onnx").write_bytes(constant_network(np.zeros((1, 256)), 224))
    with pytest.raises(CheckpointError, match=r"not \(1, 257\)"):
        load_expression(tmp_path / "short.onnx")


def test_deep3ds_square_follows_the_face() -> None:
    """102 pixels of the chip to 10 cm of the face, its origin in the middle, wherever the face is."""
    landmarks = drawn_landmarks()
    box = deep3d_box(landmarks)
    unit = 10 * 0.63 / 34 / 2.7 * 4.2647 * 256  # pixels of the picture to 10 cm, nearly
    assert box.side == pytest.approx(224 / 102 * unit, rel=0.05)
    np.testing.assert_allclose(box.centre, [128.0, 128.0], atol=3.0)
    moved = deep3d_box(landmarks * 0.5 + [30.0, 40.0])
    assert moved.side == pytest.approx(box.side / 2)
    np.testing.assert_allclose(moved.centre, np.array(box.centre) / 2 + [30.0, 40.0])
