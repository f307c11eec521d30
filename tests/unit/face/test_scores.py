"""The tracker's scores, read from landmarks in PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.errors import CheckpointError, ShapeError
from export3d.face import scores
from export3d.face.landmarks import FaceLandmarker
from export3d.face.scores import SEEN, ScoreReader
from export3d.motion.arkit import ARKIT52


@pytest.fixture(scope="module")
def reader() -> ScoreReader:
    return ScoreReader()


def test_landmarks_read_as_the_tracker_reads_them(
    reader: ScoreReader, landmarker: FaceLandmarker, astronaut: np.ndarray
) -> None:
    for picture in (astronaut, np.ascontiguousarray(astronaut[:, ::-1])):
        (face,) = landmarker.detect(picture)
        read = reader(torch.from_numpy(face.landmarks[None, :, :2]))[0]
        assert read.shape == (len(ARKIT52),)
        np.testing.assert_allclose(read.numpy(), face.scores, atol=1e-4)


def test_place_and_size_of_the_face_change_nothing(
    reader: ScoreReader, landmarker: FaceLandmarker, astronaut: np.ndarray
) -> None:
    points = torch.from_numpy(landmarker.detect(astronaut)[0].landmarks[None, :, :2])
    there = reader(torch.cat([points, points / 512.0, 3.0 * points + torch.tensor([7.0, -40.0])]))
    torch.testing.assert_close(there, there[:1].expand(3, -1), atol=1e-4, rtol=0)


def test_a_score_tells_the_landmarks_that_it_sees_where_to_go(
    reader: ScoreReader, landmarker: FaceLandmarker, astronaut: np.ndarray
) -> None:
    points = torch.from_numpy(landmarker.detect(astronaut)[0].landmarks[None, :, :2]).requires_grad_()
    smile = reader(points)[0, ARKIT52.index("mouthSmileLeft")]
    (way,) = torch.autograd.grad(smile, points)
    assert way[0, list(SEEN)].norm(dim=-1).min() > 0
    unseen = [number for number in range(478) if number not in SEEN]
    assert not way[0, unseen].any()
    calmer = reader((points - 30.0 * way / way.norm()).detach())[0, ARKIT52.index("mouthSmileLeft")]
    assert calmer < smile - 0.1


def test_nothing_in_it_is_trained_or_saved(reader: ScoreReader) -> None:
    assert not list(reader.parameters())
    assert not reader.state_dict()


def test_other_shapes_are_refused(reader: ScoreReader) -> None:
    with pytest.raises(ShapeError, match="landmarks"):
        reader(torch.zeros(1, 468, 2))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "FILE", tmp_path / "scores.safetensors")
    with pytest.raises(CheckpointError, match=r"no network of scores at .*scores\.safetensors"):
        ScoreReader()
    (tmp_path / "scores.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"network of scores .* is damaged"):
        ScoreReader()
