"""Glasses that go with the head."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from export3d.config import variant
from export3d.errors import CheckpointError, ShapeError
from export3d.face.landmark_sets import CHIN, EYELIDS, FOREHEAD, IRISES, LIPS
from export3d.face.landmarks import FaceLandmarker
from export3d.model import Export3D
from export3d.warping import glasses
from export3d.warping.glasses import Glasses
from tests.tiny_models import PARTS, awake, inputs, landmarks, matte, warped

RIMS = (168, 6, 117, 118, 119, 346, 347, 348)
"""On the nose, where glasses rest, and below the eyes."""
FREE = (*EYELIDS, *IRISES[0], *IRISES[1], *LIPS, FOREHEAD, CHIN)


@pytest.fixture(scope="module")
def reader() -> Glasses:
    return Glasses()


@pytest.fixture(scope="module")
def face(astronaut_path: Path) -> np.ndarray:
    """(478, 2) pixels of the bundled portrait; skips where mediapipe is not installed."""
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with Image.open(astronaut_path) as image, FaceLandmarker() as landmarker:
        return landmarker.detect(np.array(image.convert("RGB")))[0].landmarks[:, :2]


def drawn(picture: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The picture with dark rims around the eyes, and a bridge."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    wide = float(np.linalg.norm(face[263] - face[33]))
    middles = [face[list(corners)].mean(axis=0) for corners in ((33, 133), (362, 263))]
    width, radius = max(round(0.035 * wide), 1), 0.27 * wide
    for x, y in middles:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(25, 20, 20), width=width)
    across = np.array([radius, 0.0])
    pen.line([tuple(middles[0] + across), tuple(middles[1] - across)], fill=(25, 20, 20), width=width)
    return np.array(image)


def seen(*pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def places(face: np.ndarray, count: int = 1) -> Tensor:
    return torch.from_numpy(face[None] / 512.0).float().expand(count, -1, -1)


# ---- whether there are glasses ---------------------------------------------------------------------------------------


def test_rims_that_are_drawn_on_a_face_are_found_and_the_face_alone_has_none(
    reader: Glasses, face: np.ndarray, astronaut: np.ndarray
) -> None:
    share = reader(seen(astronaut, drawn(astronaut, face)), places(face, 2))
    assert share.shape == (2, 1, 1)
    assert share[0] == 0.0
    assert share[1] > 0.9


@pytest.mark.parametrize("angle", [-90.0, -30.0, 30.0, 180.0])
def test_a_head_that_is_tilted_reads_the_same(
    angle: float, reader: Glasses, face: np.ndarray, astronaut: np.ndarray
) -> None:
    pictures = (astronaut, drawn(astronaut, face))
    tilted = [np.array(Image.fromarray(one).rotate(-angle, Image.Resampling.BICUBIC)) for one in pictures]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = (face - 256.0) @ np.array([[cosine, sine], [-sine, cosine]]) + 256.0
    here, there = (reader.score(seen(*two), places(at, 2)) for two, at in ((pictures, face), (tilted, turned)))
    torch.testing.assert_close(there, here, atol=1.0, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 40.0, 180.0])
def test_the_strip_lies_level_across_the_eyes_from_above_the_brows_to_the_cheeks(angle: float) -> None:
    """An image whose colours are its places shows where the strip is."""
    at = (torch.arange(64) + 0.5) / 64.0
    image = torch.stack([at.expand(64, 64), at[:, None].expand(64, 64)])[None]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = torch.tensor([[cosine, sine], [-sine, cosine]]) * 0.3
    eyes = torch.full((1, 478, 2), 0.5)
    eyes[0, 33], eyes[0, 263] = 0.5 - 0.5 * across, 0.5 + 0.5 * across
    found = glasses._strip(image, eyes)
    assert found.shape == (1, 2, 32, 64)
    for (row, column), (x, y) in {(0, 0): (-0.7, -0.35), (0, 63): (0.7, -0.35), (31, 63): (0.7, 0.35)}.items():
        wanted = 0.5 + x * across + y * down
        torch.testing.assert_close(found[0, :, row, column], wanted, atol=6e-3, rtol=0)
    torch.testing.assert_close(found.mean(dim=(2, 3))[0], torch.tensor([0.5, 0.5]))


def test_the_size_of_the_picture_and_bfloat16_hardly_matter(
    reader: Glasses, face: np.ndarray, astronaut: np.ndarray
) -> None:
    image, at = seen(astronaut, drawn(astronaut, face)), places(face, 2)
    score = reader.score(image, at)
    assert score[0] < -3.0
    assert score[1] > 5.0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reader.score(image, at), score)
    half = reader.score(torch.nn.functional.avg_pool2d(image, 2), at)
    torch.testing.assert_close(half, score, atol=1.5, rtol=0)


def test_the_share_rises_from_none_to_all_with_the_score(reader: Glasses, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.tensor([[1.5], [1.7], [2.25], [3.0], [9.0]])
    monkeypatch.setattr(reader, "score", lambda image, landmarks: scores)
    share = reader(torch.zeros(5, 3, 8, 8), torch.zeros(5, 478, 2)).flatten()
    torch.testing.assert_close(share, torch.tensor([0.0, 0.0486, 0.5, 1.0, 1.0]), atol=1e-3, rtol=0)


def test_nothing_in_it_is_trained_or_saved(reader: Glasses) -> None:
    assert not list(reader.parameters())
    assert not reader.state_dict()


def test_other_shapes_are_refused(reader: Glasses) -> None:
    with pytest.raises(ShapeError, match="landmarks"):
        reader(torch.zeros(1, 3, 64, 64), torch.zeros(1, 468, 2))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glasses, "FILE", tmp_path / "glasses.safetensors")
    with pytest.raises(CheckpointError, match=r"no network of glasses at .*glasses\.safetensors"):
        Glasses()
    (tmp_path / "glasses.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"network of glasses .* is damaged"):
        Glasses()


# ---- what they hold --------------------------------------------------------------------------------------------------


def test_landmarks_around_glasses_stay_and_those_of_eyes_and_lips_move_as_asked(reader: Glasses) -> None:
    points, resting = torch.rand(2, 2, 478, 3)
    found = reader.hold(points, resting, torch.ones(2, 1, 1))
    torch.testing.assert_close(found[:, list(RIMS)], resting[:, list(RIMS)], atol=5e-3, rtol=0)
    assert torch.equal(found[:, list(FREE)], points[:, list(FREE)])
    assert 0.0 <= reader.held.min() < reader.held.max() <= 1.0


def test_the_less_sure_it_is_the_less_is_held_and_each_source_by_its_own_share(reader: Glasses) -> None:
    points, resting = torch.rand(2, 3, 478, 3)
    share = torch.tensor([0.0, 0.5, 1.0])[:, None, None]
    none, half, whole = reader.hold(points, resting, share)
    assert torch.equal(none, points[0])
    wanted = torch.lerp(points, resting, reader.held)
    torch.testing.assert_close(half, (points[1] + wanted[1]) / 2.0)
    torch.testing.assert_close(whole, wanted[2])


def pair() -> tuple[Export3D, Export3D]:
    """The same weights with and without glasses."""
    holding, leaving = awake(warped(*PARTS)), awake(variant(warped(*PARTS), "no_glasses"))
    leaving.load_state_dict(holding.state_dict())
    return holding, leaving


@torch.no_grad()
def test_a_model_holds_the_glasses_of_its_source_and_leaves_faces_without() -> None:
    source, expression, camera = inputs(2)
    source[1] = 0.0  # noise reads as glasses, a plain surface does not
    known = (source, camera, expression, landmarks(camera), matte(source))
    models = pair()
    one, other = (model.encode(*known) for model in models)
    assert one.view is not None
    assert other.view is not None
    assert other.view.glasses is None
    assert one.view.glasses.flatten().tolist() == [1.0, 0.0]
    assert one.view.expand(2).glasses.shape == (2, 1, 1)
    asked = expression.flip(0)
    held, left = (model.planes(of, asked) for model, of in zip(models, (one, other)))
    resting = one.view.face.points
    assert (left.motion.points - resting)[0, list(RIMS)].abs().max() > 2e-3
    torch.testing.assert_close(held.motion.points[0, list(RIMS)], resting[0, list(RIMS)], atol=2e-5, rtol=0)
    assert torch.equal(held.motion.points[0, list(FREE)], left.motion.points[0, list(FREE)])
    assert torch.equal(held.motion.points[1], left.motion.points[1])
    assert (held.motion.flow - left.motion.flow)[0].abs().max() > 1e-4, "the field follows them"


@torch.no_grad()
def test_without_glasses_frames_are_the_same_to_the_bit() -> None:
    source, expression, camera = inputs(2)
    known = (0.0 * source, camera, expression, landmarks(camera), matte(source))
    frames = [model.frame(model.planes(model.encode(*known), expression.flip(0)), camera) for model in pair()]
    assert torch.equal(*frames)
