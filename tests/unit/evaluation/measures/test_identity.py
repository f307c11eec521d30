"""Identity descriptors on real faces: the bundled portrait, turned, shrunk and compared with strangers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from export3d.animate.drive import bundled_portrait
from export3d.errors import CheckpointError, ConfigError, MissingExtra, ShapeError
from export3d.evaluation.measures.identity import (
    _ARCFACE_POINTS,
    ArcFaceIdentity,
    csim,
    load_identity,
)
from export3d.face.identity import FILE, DlibIdentity, face_chip
from export3d.image import read_image
from export3d.perceptual import read_tensors


@pytest.fixture(scope="module")
def dlib() -> DlibIdentity:
    return DlibIdentity()


@pytest.fixture(scope="module")
def face() -> tuple[np.ndarray, np.ndarray]:
    """The bundled portrait and its landmarks (478, 2), pixels."""
    pytest.importorskip("mediapipe")
    from export3d.face.landmarks import FaceLandmarker

    picture = read_image(bundled_portrait())
    with FaceLandmarker() as landmarker:
        return picture, landmarker.detect(picture)[0].landmarks[:, :2]


# --- the chip ---------------------------------------------------------------------------------------------------------


def test_a_chip_puts_the_points_on_the_template() -> None:
    """A white dot at each point of a turned, scaled and shifted template comes out on the template."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    points = (_ARCFACE_POINTS - 56) @ turn.T * 2.5 + [210, 190]
    y, x = np.mgrid[0:400, 0:400] + 0.5
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 6.0**2)) for px, py in points)
    picture = np.repeat((255 * dots).clip(0, 255).round().astype(np.uint8)[..., None], 3, -1)
    chip = face_chip(picture, points, _ARCFACE_POINTS, 112)[0].numpy()
    yy, xx = np.mgrid[0:112, 0:112] + 0.5
    for px, py in _ARCFACE_POINTS:
        near = chip * (((xx - px) ** 2 + (yy - py) ** 2) < 7**2)
        centre = np.array([(near * xx).sum(), (near * yy).sum()]) / near.sum()
        np.testing.assert_allclose(centre, [px, py], atol=0.1)


def test_a_chip_of_points_that_already_fit_is_the_picture(rng_picture: np.ndarray) -> None:
    chip = face_chip(rng_picture, _ARCFACE_POINTS, _ARCFACE_POINTS, 112)
    expected = torch.from_numpy(rng_picture).permute(2, 0, 1)[None].float()
    doubled = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
    inner = slice(2, -2)
    torch.testing.assert_close(chip[:, inner, inner], F.avg_pool2d(doubled, 2)[0, :, inner, inner], atol=0.02, rtol=0)


@pytest.fixture
def rng_picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(112, 112, 3), dtype=np.uint8)


def test_a_chip_needs_a_uint8_picture(rng_picture: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="uint8"):
        face_chip(rng_picture / 255.0, _ARCFACE_POINTS, _ARCFACE_POINTS, 112)


# --- dlib -------------------------------------------------------------------------------------------------------------


def test_the_descriptor_is_a_unit_vector_and_always_the_same(dlib: DlibIdentity, face: tuple) -> None:
    vector = dlib(*face)
    assert vector.shape == (128,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(vector, dlib(*face))
    assert csim(vector, vector) == pytest.approx(1.0)


def test_a_face_stays_itself_turned_shrunk_and_mirrored(dlib: DlibIdentity, face: tuple) -> None:
    """dlib takes distances under 0.6 for the same person; the network sees the chip, not where the face was."""
    picture, landmarks = face
    own = dlib.distance_vector(picture, landmarks)
    height, width = picture.shape[:2]
    quarter = np.ascontiguousarray(np.rot90(picture)), np.stack([landmarks[:, 1], width - landmarks[:, 0]], axis=-1)
    small = np.asarray(Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.BOX)), landmarks / 2
    assert np.linalg.norm(own - dlib.distance_vector(*quarter)) < 0.05
    assert np.linalg.norm(own - dlib.distance_vector(*small)) < 0.2
    brighter = np.clip(picture * 1.2, 0, 255).astype(np.uint8)
    assert np.linalg.norm(own - dlib.distance_vector(brighter, landmarks)) < 0.3


def test_what_is_no_such_face_is_far_away(dlib: DlibIdentity, face: tuple) -> None:
    picture, landmarks = face
    upside_down = np.stack([landmarks[:, 0], picture.shape[0] - landmarks[:, 1]], axis=-1)
    own = dlib.distance_vector(picture, landmarks)
    assert np.linalg.norm(own) == pytest.approx(1.45, abs=0.15)
    assert np.linalg.norm(own - dlib.distance_vector(picture, upside_down)) > 0.6
    noise = np.random.default_rng(0).integers(0, 256, size=picture.shape, dtype=np.uint8)
    assert np.linalg.norm(own - dlib.distance_vector(noise, landmarks)) > 0.6


def test_similarity_falls_as_the_face_is_blurred_away(dlib: DlibIdentity, face: tuple) -> None:
    picture, landmarks = face
    own, found = dlib(picture, landmarks), []
    height, width = picture.shape[:2]
    for factor in (1, 4, 8, 16, 32):
        coarse = Image.fromarray(picture).resize((width // factor, height // factor), Image.Resampling.BOX)
        found.append(float(csim(own, dlib(np.asarray(coarse.resize((width, height))), landmarks))))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.95


def test_many_faces_are_described_as_one_by_one(dlib: DlibIdentity, face: tuple) -> None:
    """More of them than go through the network together, of several sizes."""
    picture, landmarks = face
    pictures = [np.ascontiguousarray(picture[k:]) for k in range(19)]
    points = np.stack([landmarks - [0, k] for k in range(19)]) + np.linspace(0, 30, 19)[:, None, None]
    alone = np.stack([dlib(p, at) for p, at in zip(pictures, points)])
    found = dlib.many(pictures, points)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, alone, atol=2e-6)
    assert np.abs(alone[0] - alone[-1]).max() > 0.01
    assert dlib.many([], np.zeros((0, 478, 2))).shape == (0, 128)
    with pytest.raises(ShapeError, match="landmarks"):
        dlib.many(pictures, points[:5])


def test_the_network_is_the_one_with_an_affine_behind_each_convolution(dlib: DlibIdentity) -> None:
    """Folded into the weights, as it is for speed, it must give what the unfolded layers give."""
    tensors = read_tensors(FILE)
    name, x = "conv128_1.conv1", torch.randn(1, 128, 9, 9)
    scale, low = tensors[f"{name}.range"]
    weight = tensors[f"{name}.weight"] * scale + low
    gain, bias = (tensors[f"{name}.{part}"].view(-1, 1, 1) for part in ("gain", "bias"))
    expected = F.conv2d(x, weight, padding=1) * gain + bias
    torch.testing.assert_close(dlib._network._layer(x, name, 1, 1), expected, rtol=1e-4, atol=1e-5)


def test_landmarks_of_another_shape_are_refused(dlib: DlibIdentity, face: tuple) -> None:
    with pytest.raises(ShapeError, match="landmarks"):
        dlib(face[0], face[1][:68])


# --- by name ----------------------------------------------------------------------------------------------------------


def test_the_packaged_descriptor_has_a_name() -> None:
    assert load_identity().name == "dlib"


def test_an_unknown_name_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="dlib"):
        load_identity("arcface")


def test_a_missing_or_foreign_onnx_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(CheckpointError, match=r"arcface\.onnx does not exist; give the path of an ArcFace network"):
        load_identity(tmp_path / "arcface.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a network")
    with pytest.raises(CheckpointError, match="ArcFace network"):
        load_identity(bad)


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"'\.\[evaluate\]'"):
        ArcFaceIdentity(tmp_path / "arcface.onnx")


def test_an_onnx_network_gets_the_normalised_chip(tmp_path: Path, face: tuple) -> None:
    """A network that flattens its input and keeps it: what comes out is the chip as (x - 127.5) / 127.5."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "flatten.onnx"
    path.write_bytes(_flatten_network())
    who = load_identity(path)
    assert who.name == "flatten"
    picture, landmarks = face
    eyes = [landmarks[[33, 133]].mean(0), landmarks[[362, 263]].mean(0)]
    points = np.stack([*eyes, landmarks[4], landmarks[61], landmarks[291]])
    expected = ((face_chip(picture, points, _ARCFACE_POINTS, 112) - 127.5) / 127.5).flatten().numpy()
    np.testing.assert_allclose(who(picture, landmarks), expected / np.linalg.norm(expected), atol=1e-6)
    both = who.many([picture, picture], np.stack([landmarks, landmarks]))
    np.testing.assert_allclose(both, [who(picture, landmarks)] * 2)
    assert who.many([], np.zeros((0, 478, 2))).shape == (0, 3 * 112 * 112)


def _flatten_network() -> bytes:
    """The bytes of an ONNX model of one Flatten node, (1, 3, 112, 112) to (1, 37632); protobuf by hand."""

    def number(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value % 128 + 128]), value // 128
        return out + bytes([value])

    def part(field: int, data: bytes | str | int) -> bytes:
        if isinstance(data, int):
            return number(field * 8) + number(data)
        data = data.encode() if isinstance(data, str) else data
        return number(field * 8 + 2) + number(len(data)) + data

    def value(name: str, *shape: int) -> bytes:
        sides = b"".join(part(1, part(1, side)) for side in shape)
        return part(1, name) + part(2, part(1, part(1, 1) + part(2, sides)))

    node = part(1, "x") + part(2, "y") + part(4, "Flatten")
    graph = part(1, node) + part(2, "g") + part(11, value("x", 1, 3, 112, 112)) + part(12, value("y", 1, 3 * 112 * 112))
    return part(1, 8) + part(7, graph) + part(8, part(1, "") + part(2, 13))
