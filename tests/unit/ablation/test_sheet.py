"""The contact sheet of an ablation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export3d.ablation.scores import ablate
from export3d.data.shard_writer import update
from export3d.data.shards import Record
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


@pytest.mark.usefixtures("judged")
def test_the_sheet_shows_publishable_people_alone_the_same_for_all_rows(
    data: Path, config: ReconstructionConfig, tmp_path: Path
) -> None:
    found = ablate(data, tmp_path / "out", config, loop(max_images=2), TWO)
    assert found is not None
    assert [credit.split(" (")[0] for credit in found.credits[:2]] in (["anna", "bert"], ["bert", "anna"])
    driven = found.credits[2:]
    assert driven
    assert not any("cora" in credit for credit in found.credits)  # her terms are not stated
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        width, height = sheet.size
    assert 4 * 128 <= width < 5 * 128  # source, driving, two variants
    assert len(found.credits) * 128 <= height < (len(found.credits) + 1) * 128


@pytest.mark.usefixtures("judged")
def test_without_anybody_to_show_there_is_no_sheet(
    data: Path, config: ReconstructionConfig, tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    update(data / "val", [make_record(key, "unstated", frames=4) for key in ("anna", "bert")])
    found = ablate(data, tmp_path / "out", config, loop(max_images=2), ("clebs",))
    assert found is not None
    assert found.credits == ()
    assert not (tmp_path / "out" / "sheet.png").exists()
    assert "sheet.png" not in found.markdown()
