"""Scores of saved images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from export3d.errors import InputError
from export3d.evaluation.protocols import runner
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.same import same_identity
from export3d.evaluation.protocols.saved import score_predictions
from export3d.evaluation.protocols.settings import RunSettings, Scoring
from export3d.workers.outcome import Crash

PLAIN = Scoring(backbone="none", faces=False)
FILES = ["clips", "report.html", "report.json", "report.md", "sheet.png"]


def test_saved_pictures_score_the_same_as_the_model_that_made_them(
    split: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    saved = tmp_path / "saved"
    ours = same_identity(
        split, tmp_path / "a", weights=tiny_weights, references=(), scoring=PLAIN, run=RunSettings(save=saved)
    )
    theirs = score_predictions(saved, tmp_path / "b", scoring=PLAIN)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [f for f in FILES if f != "sheet.png"]
    assert theirs.methods == ("prediction", "copy")
    found = {clip.key: clip.scores for clip in theirs.clips}
    for clip in ours.clips:
        assert found[clip.key]["prediction"] == pytest.approx(
            {name: value for name, value in clip.scores["ours"].items() if name != "rendered"}
        )
        assert found[clip.key]["copy"] == pytest.approx(clip.scores["copy"])


def test_a_folder_with_one_wrong_frame_is_not_scored_at_all(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    saved, out = tmp_path / "saved", tmp_path / "b"
    same_identity(
        split, tmp_path / "a", weights=tiny_weights, references=(), scoring=PLAIN, run=RunSettings(save=saved)
    )
    (saved / "walks" / "prediction" / "00002.png").unlink()
    (saved / "rests" / "target" / "00001.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        score_predictions(saved, out, scoring=PLAIN)
    assert "walks" in str(caught.value)
    assert "rests" in str(caught.value)
    assert not (out / "report.json").exists()


def test_pictures_of_which_none_could_be_scored_are_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, out = tmp_path / "saved", tmp_path / "out"
    with PredictionWriter(saved).clip("walks", np.zeros((64, 64, 3), np.uint8)) as clip:
        clip.add(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.uint8))
    monkeypatch.setattr(runner, "run_jobs", lambda jobs, *_: ((job, Crash(-9)) for job in jobs))
    with pytest.raises(InputError, match=r"saved could be scored: the process that scored it died \(exit code -9\)"):
        score_predictions(saved, out, scoring=PLAIN)
    assert not (out / "report.json").exists()


@pytest.mark.slow
def test_saved_pictures_can_be_scored_without_truth(tmp_path: Path, astronaut_turns: list[np.ndarray]) -> None:
    """As across identities: nothing that needs a true picture, and no copy."""
    pytest.importorskip("mediapipe")
    frames = np.stack(astronaut_turns[:6])
    with PredictionWriter(tmp_path / "saved").clip("a", frames[0]) as clip:
        clip.add(frames, frames[:, :, ::-1])
    report = score_predictions(tmp_path / "saved", tmp_path / "out", truth=False)
    names = {measure.name for measure in report.measures}
    assert report.methods == ("prediction",)
    assert {"csim_dlib", "aed", "apd", "flicker_face"} <= names
    assert not names & {"psnr", "ssim", "akd"}
    assert math.isfinite(report.clips[0].value("prediction", "csim_dlib"))
