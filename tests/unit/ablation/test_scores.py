"""Training, scoring and comparing the rows in one call."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export3d.ablation.scores import ablate
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig

NAN = math.nan
PLAIN = ReconstructionConfig(preset="tiny", backbone="none", image_size=32, sheet_pairs=1)
TWO = ("direct_3dmm", "clebs")


def loop(**changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "batch_size": 2, "max_images": 4, "log_every": 2, "sheet_every": 0, "validate_every": 0, "save_every": 0,
        "lr": 2e-3, "warmup_images": 0, "ema_halflife_images": 0, "precision": "fp32", "cpu": True,
        "tensorboard": False, "progress": False,
    }  # fmt: skip
    return LoopConfig(**{**settings, **changes})


def line(text: str, name: str) -> list[str]:
    """The cells of the first row of a Markdown table that begins with a name."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


@pytest.mark.slow
def test_one_call_trains_scores_and_writes_the_table(
    data: Path, config: ReconstructionConfig, tmp_path: Path, judged: list[tuple[str, Path]]
) -> None:
    out = tmp_path / "out"
    rows = ("e2e_lebs_n25", "e2e_lebs_n5", "clebs")
    found = ablate(data, out, config, loop(validate_every=100), rows)
    assert found is not None
    text = (out / "ablation.md").read_text("utf-8")
    assert text == found.markdown()
    assert json.loads((out / "ablation.json").read_text("utf-8"))["settings"]["max_images"] == 4
    assert line(text, "variant") == ["variant", "same: PSNR (dB) ↑", "cross: AED ↓", "cross: yaw ↑"]
    assert line(text, "E2E LeBS (n = 25)")[1:] == [
        "25.00 [25.00, 25.00]", "0.250 [0.250, 0.250]", "0.50 [0.50, 0.50] (of 1)",
    ]  # fmt: skip
    assert line(text, "E2E LeBS (n = 5)")[2:] == ["–", "–"]
    assert "E2E LeBS (n = 5): no pair could be scored" in text
    assert line(text, "*no model*")[1:] == ["1.00 [1.00, 1.00]", "0.010 [0.010, 0.010]", "0.90 [0.90, 0.90]"]
    assert [row.images for row in found.rows] == [4, 4, 4]
    full = found.rows[-1]
    assert 0 < full.trained < full.parameters
    assert math.isfinite(full.psnr)
    assert full.minutes >= 0
    assert len(judged) == 6


@pytest.mark.slow
def test_a_second_start_trains_nothing_and_reads_its_scores(
    data: Path,
    config: ReconstructionConfig,
    tmp_path: Path,
    judged: list[tuple[str, Path]],
    runs: list[str],
) -> None:
    ablate(data, tmp_path / "out", config, loop(), TWO)
    before = (tmp_path / "out" / "ablation.md").read_bytes()
    ablate(data, tmp_path / "out", config, loop(), TWO)
    assert (tmp_path / "out" / "ablation.md").read_bytes() == before
    assert runs == list(TWO)
    assert [name for name, _ in judged].count("cross") == 2  # same identity keeps its own results
    ablate(data, tmp_path / "out", config, loop(), TWO, frames=7)
    assert [name for name, _ in judged].count("cross") == 4
    ablate(data, tmp_path / "out", config, loop(max_images=6), TWO, frames=7)
    assert [name for name, _ in judged].count("cross") == 6  # other weights, other scores


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frames": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
        ({"identity": ()}, "needs a descriptor"),
    ],
)
def test_scores_that_cannot_work_are_refused_before_training(
    data: Path,
    config: ReconstructionConfig,
    tmp_path: Path,
    options: dict[str, Any],
    told: str,
    runs: list[str],
    judged: list[tuple[str, Path]],
) -> None:
    with pytest.raises(ConfigError, match=told):
        ablate(data, tmp_path / "out", config, loop(), TWO, **options)
    assert (runs, judged) == ([], [])


@pytest.mark.parametrize(("pair", "told"), [("anna,zoe", "does not hold zoe"), (None, "holds no clip")])
def test_pairs_that_are_not_there_are_told_before_training(
    data: Path,
    config: ReconstructionConfig,
    tmp_path: Path,
    pair: str | None,
    told: str,
    runs: list[str],
    judged: list[tuple[str, Path]],
) -> None:
    pairs = None
    if pair is None:
        update(data / "val", [], drop=["print-anna", "print-bert"])
    else:
        pairs = tmp_path / "pairs.csv"
        pairs.write_text(f"source,driver\n{pair}\n")
    with pytest.raises(InputError, match=told):
        ablate(data, tmp_path / "out", config, loop(), TWO, pairs=pairs)
    assert (runs, judged) == ([], [])


@pytest.mark.slow
def test_real_faces_are_trained_on_and_scored(
    tmp_path: Path, astronaut_turns: list[np.ndarray], make_person: Callable[..., Record]
) -> None:
    """From the packaged weights, two steps a row: the bundled portrait and her mirror image drive each other."""
    from export3d.pretrained import PACKAGED

    people = [make_person("anna", astronaut_turns), make_person("bert", [turn[:, ::-1] for turn in astronaut_turns])]
    for split in ("train", "val"):
        update(tmp_path / "data" / split, people)
    config = ReconstructionConfig(preset="base", backbone="none", image_size=96, coarse=8, fine=0, motion_steps=1)
    schedule = loop(max_images=4, lr=1e-6, max_minutes=None)
    found = ablate(
        tmp_path / "data", tmp_path / "out", config, schedule, TWO, from_pretrained=PACKAGED, frames=3, every=8
    )
    assert found is not None
    keys = {column.key for column in found.columns}
    assert {"same psnr", "same ssim", "same akd", "same csim_dlib", "same aed", "same apd"} <= keys
    assert {"cross csim_dlib", "cross leak_dlib", "cross aed", "cross apd", "cross yaw"} <= keys
    for row in found.rows:
        assert set(row.values["same psnr"]) == {"anna", "bert"}
        assert set(row.values["cross aed"]) == {"bert by anna", "anna by bert"}
        assert 10 < np.mean(list(row.values["same psnr"].values())) < 40
        assert 0 < np.mean(list(row.values["cross aed"].values())) < 0.5
        assert row.note == ""
    assert len(found.credits) == 4


@pytest.fixture
def make_person(encode: Callable[[np.ndarray], bytes]) -> Callable[..., Record]:
    """make_person(key, pictures): a tracked clip."""
    pytest.importorskip("mediapipe")
    from export3d.face.crop import CROP_SIZE, crop
    from export3d.face.tracker import Tracker

    def make(key: str, pictures: list[np.ndarray]) -> Record:
        frames = [np.ascontiguousarray(picture) for picture in pictures[::2]]
        with Tracker() as tracker:
            track = tracker.track_frames(frames, 25.0, key)
        return Record(
            key,
            encode(np.stack([crop(frame, track.crop) for frame in frames])),
            "mp4",
            track.motion.expression.astype(np.float32),
            track.motion.camera.astype(np.float32),
            (track.landmarks / CROP_SIZE).astype(np.float16),
            track.found,
            {"person": key, "terms": "open", "fingerprint": f"print-{key}", "space": "arkit52"},
        )

    return make
