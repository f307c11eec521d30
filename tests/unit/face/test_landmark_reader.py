"""The tracker's landmarks, read from images in PyTorch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import CheckpointError, ShapeError
from export3d.face import landmark_reader
from export3d.face.landmark_reader import LandmarkReader
from export3d.face.landmarks import FaceLandmarker
from export3d.face.scores import ScoreReader
from export3d.image import to_tensor
from export3d.motion.arkit import ARKIT52


@pytest.fixture(scope="module")
def reader() -> LandmarkReader:
    return LandmarkReader()


@pytest.fixture
def face(landmarker: FaceLandmarker, astronaut: np.ndarray) -> tuple[Tensor, Tensor]:
    """The portrait (1, 3, 512, 512), and its landmarks (1, 478, 2), 0..1."""
    (found,) = landmarker.detect(astronaut)
    return to_tensor(astronaut)[None], torch.from_numpy(found.landmarks[None, :, :2] / len(astronaut)).float()


def in_image(read: Tensor, around: Tensor) -> Tensor:
    """Landmarks of the square around a face, 0..1 across the image."""
    low, high = around.amin(1, keepdim=True), around.amax(1, keepdim=True)
    across = around[:, 263] - around[:, 33]
    x, y = (across / across.norm(dim=-1, keepdim=True))[0]
    turn = torch.stack([torch.stack([x, -y]), torch.stack([y, x])])
    return (low + high) / 2 + (read - 0.5) @ turn.mT * 1.5 * (high - low).amax(-1, keepdim=True)


def test_landmarks_are_where_the_tracker_finds_them(
    reader: LandmarkReader, face: tuple[Tensor, Tensor], astronaut: np.ndarray
) -> None:
    """It cuts its square around what its detector finds, and samples it otherwise."""
    picture, landmarks = face
    apart = (in_image(reader(picture, landmarks), landmarks) - landmarks).norm(dim=-1) * len(astronaut)
    assert float(apart.mean()) < 0.8, "pixels of 512"


def test_scores_read_from_the_picture_are_the_trackers(
    reader: LandmarkReader, landmarker: FaceLandmarker, face: tuple[Tensor, Tensor], astronaut: np.ndarray
) -> None:
    wanted = torch.from_numpy(landmarker.detect(astronaut)[0].scores)
    assert float((ScoreReader()(reader(*face))[0] - wanted).abs().mean()) < 0.02


def test_a_turned_and_smaller_face_reads_the_same(reader: LandmarkReader, face: tuple[Tensor, Tensor]) -> None:
    picture, landmarks = face
    angle = math.radians(25)
    turn = 1.6 * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    grid = F.affine_grid(torch.cat([turn, torch.zeros(2, 1)], 1)[None], [1, 3, 512, 512], align_corners=False)
    moved = F.grid_sample(picture, grid, align_corners=False)
    there = (landmarks - 0.5) @ torch.linalg.inv(turn).mT + 0.5
    here, there = reader(picture, landmarks), reader(moved, there)
    apart = (here - here.mean(1)) - (there - there.mean(1))  # a turned face has another box around it
    assert float(apart.norm(dim=-1).mean()) < 0.01


def test_a_pixel_knows_which_way_a_score_goes(reader: LandmarkReader, face: tuple[Tensor, Tensor]) -> None:
    picture, landmarks = face
    picture = picture.clone().requires_grad_()
    smile = ARKIT52.index("mouthSmileLeft")
    score = ScoreReader()(reader(picture, landmarks))[0, smile]
    (way,) = torch.autograd.grad(score, picture)
    calmer = ScoreReader()(reader((picture - 3.0 * way / way.norm()).detach(), landmarks))[0, smile]
    assert float(calmer) < float(score.detach())


def test_nothing_in_it_is_trained_or_saved(reader: LandmarkReader) -> None:
    assert not list(reader.parameters())
    assert not reader.state_dict()


def test_other_shapes_are_refused(reader: LandmarkReader) -> None:
    with pytest.raises(ShapeError, match="around"):
        reader(torch.zeros(1, 3, 64, 64), torch.zeros(1, 468, 2))


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_reader, "FILE", tmp_path / "landmarks.safetensors")
    with pytest.raises(CheckpointError, match=r"no network of landmarks at .*landmarks\.safetensors"):
        LandmarkReader()
