"""Scores of a clip: sums over chunks, worst frame, strip, samples for the Fréchet distance; without and with faces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from export3d.errors import ConfigError
from export3d.evaluation.measures import facial_motion
from export3d.evaluation.protocols.scoring import Chunk, ClipScorer, image_metrics
from export3d.evaluation.protocols.settings import Scoring

PLAIN = Scoring(backbone="none", faces=False)


@pytest.fixture
def frames() -> np.ndarray:
    """(10, 64, 64, 3): noise that differs from frame to frame."""
    return np.random.default_rng(0).integers(40, 200, (10, 64, 64, 3)).astype(np.uint8)


def chunks(targets: np.ndarray, size: int, **predictions: np.ndarray) -> Iterator[Chunk]:
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        rows = 100 + np.arange(start, min(start + size, len(targets)))
        yield Chunk(rows, targets[part], {name: made[part] for name, made in predictions.items()})


def worse(pictures: np.ndarray, by: int) -> np.ndarray:
    return (pictures.astype(int) + by).clip(0, 255).astype(np.uint8)


def test_a_perfect_prediction_scores_inf_and_one(frames: np.ndarray) -> None:
    with ClipScorer(PLAIN) as scorer:
        found = scorer.score("a", frames[0], chunks(frames, 4, ours=frames), len(frames))
    assert found.scores == {"ours": {"psnr": math.inf, "ssim": pytest.approx(1.0, abs=1e-6)}}
    assert found.frames == 10


def test_scores_are_means_over_frames_whatever_the_chunks(frames: np.ndarray) -> None:
    made = worse(frames, 10)
    made[3] = worse(frames[3], 40)
    expected = [
        -10 * np.log10(np.square((a.astype(float) - b) / 255).mean()) for a, b in zip(made, frames, strict=True)
    ]
    with ClipScorer(PLAIN) as scorer:
        found = [scorer.score("a", frames[0], chunks(frames, size, ours=made, copy=frames), 10) for size in (1, 3, 64)]
    for scores in found:
        assert scores.scores["ours"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert scores.scores["copy"]["psnr"] == math.inf
        assert scores.worst == 103
        np.testing.assert_array_equal(scores.strip, found[0].strip)


def test_the_strip_shows_three_frames_and_the_worst_with_every_method(frames: np.ndarray) -> None:
    made = worse(frames, 10)
    made[0] = 0
    with ClipScorer(PLAIN) as scorer:
        strip = scorer.score("a", frames[0], chunks(frames, 4, ours=made, copy=frames), 10).strip
    assert strip.shape[1] == 4 * (64 + 4) + 4
    assert strip.shape[0] == 4 * (64 + 14 + 4) + 4
    np.testing.assert_array_equal(strip[18 : 18 + 64, 4 : 4 + 64], frames[0])
    assert strip[18 : 18 + 64, 4 + 2 * 68 : 4 + 2 * 68 + 64].max() == 0  # ours of the worst frame, the first


def test_progress_is_told(frames: np.ndarray) -> None:
    told: list[int] = []
    with ClipScorer(PLAIN) as scorer:
        scorer.score("a", frames[0], chunks(frames, 4, ours=frames), 10, told.append)
    assert told == [4, 8, 10]


def test_lpips_is_left_out_where_its_weights_are_not_at_hand(alex_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [m.name for m in image_metrics(Scoring())] == ["psnr", "ssim"]
    assert [m.name for m in image_metrics(Scoring(backbone_file=alex_file))] == ["psnr", "ssim", "lpips_uniform"]
    with pytest.raises(ConfigError, match="--backbone none takes no weights"):
        image_metrics(Scoring(backbone="none", backbone_file=alex_file))


def test_without_truth_nothing_is_measured_that_needs_one() -> None:
    with ClipScorer(PLAIN, truth=False) as scorer:
        assert scorer.measures == ()
        assert scorer.overall_measures == ()


# --- faces ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def face(astronaut_turns: list[np.ndarray]) -> np.ndarray:
    """(T, 256, 256, 3): a real face that turns."""
    return np.stack(astronaut_turns[::4])


@pytest.mark.slow
def test_a_real_face_against_itself_is_perfect_and_its_copy_is_not(face: np.ndarray) -> None:
    pytest.importorskip("mediapipe")
    copy = np.broadcast_to(face[:1], face.shape)
    with ClipScorer(Scoring(backbone="none")) as scorer:
        names = [measure.name for measure in scorer.measures]
        found = scorer.score("a", face[0], chunks(face, 64, ours=face, copy=copy), len(face))
        overall = [measure.name for measure in scorer.overall_measures]
    assert names[:2] == ["psnr", "ssim"]
    assert {"akd", "csim_dlib", "aed", "apd", "apd6", "flicker_face", "flicker_background", "found"} < set(names)
    ours, still = found.scores["ours"], found.scores["copy"]
    assert list(ours) == names
    assert all(math.isnan(ours[measure.name]) for measure in facial_motion.MEASURES)  # the face only tilts
    for name in ("akd", "aed", "apd", "apd6"):
        assert ours[name] == pytest.approx(0.0, abs=1e-6)
        assert still[name] > 0.001
    assert ours["found"] == 1.0
    assert still["sharpness"] == pytest.approx(1.0)  # the copy is the source
    assert 0.5 < ours["sharpness"] < 2.0
    assert still["akd"] > 3.0
    assert ours["csim_dlib"] <= 1.0 + 1e-6
    assert still["csim_dlib"] == pytest.approx(1.0, abs=1e-5)  # the copy is the source
    assert ours["yaw"] == pytest.approx(1.0)
    assert math.isnan(still["yaw"]) or abs(still["yaw"]) < 0.5
    assert overall == ["frechet_dlib"]
    assert set(found.features["frechet_dlib"]) == {"target", "ours", "copy"}
    np.testing.assert_allclose(
        found.features["frechet_dlib"]["target"], found.features["frechet_dlib"]["ours"], atol=1e-6
    )


def test_a_source_without_a_face_is_noted_and_leaves_csim_undefined(face: np.ndarray) -> None:
    pytest.importorskip("mediapipe")
    grey = np.full_like(face[0], 128)
    with ClipScorer(Scoring(backbone="none"), truth=False) as scorer:
        names = [measure.name for measure in scorer.measures]
        found = scorer.score("a", grey, chunks(face[:3], 64, ours=face[:3]), 3)
    assert "psnr" not in names
    assert "akd" not in names
    assert math.isnan(found.scores["ours"]["csim_dlib"])
    assert found.scores["ours"]["aed"] == pytest.approx(0.0, abs=1e-6)
    assert "no face was found in the source" in found.note
    assert found.worst == -1


def test_a_prediction_without_a_face_is_not_found_and_has_no_landmark_error(face: np.ndarray) -> None:
    pytest.importorskip("mediapipe")
    made = face[:4].copy()
    made[1:] = 128
    with ClipScorer(Scoring(backbone="none")) as scorer:
        found = scorer.score("a", face[0], chunks(face[:4], 64, ours=made), 4).scores["ours"]
    assert found["found"] == pytest.approx(0.25)
    assert found["akd"] == pytest.approx(0.0, abs=1e-6)
