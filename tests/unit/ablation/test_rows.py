"""The rows of Table 3: settings, and training with equal budgets."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export3d import config as model_settings
from export3d.ablation.rows import ROWS, train_rows
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import CheckpointError, ConfigError, InputError, TrainingError
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.losses import ReconstructionWeights
from export3d.pretrained import load_pretrained, save_encoder
from export3d.training import reconstruction
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig
from export3d.training.state import load_state
from export3d.weights.file import load_weights

PLAIN = ReconstructionConfig(preset="tiny", backbone="none", image_size=32, sheet_pairs=1)
TWO = ("direct_3dmm", "clebs")


def loop(**changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "batch_size": 2, "max_images": 4, "log_every": 2, "sheet_every": 0, "validate_every": 0, "save_every": 0,
        "lr": 2e-3, "warmup_images": 0, "ema_halflife_images": 0, "precision": "fp32", "cpu": True,
        "tensorboard": False, "progress": False,
    }  # fmt: skip
    return LoopConfig(**{**settings, **changes})


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)[0]


@pytest.mark.slow
def test_every_row_trains_the_same_preset_with_its_own_variant_for_the_same_images(
    data: Path, config: ReconstructionConfig, tmp_path: Path
) -> None:
    found = train_rows(data, tmp_path / "out", config, loop(), ROWS)
    assert list(found) == list(ROWS)
    sizes = {}
    for row, weights in found.items():
        assert weights == tmp_path / "out" / row / "weights.safetensors"
        assert load_weights(weights)[2]["images_seen"] == 4
        model = load_pretrained(weights)
        sizes[row] = (model.config.expression.n, model.config.expression.basis, model.config.expression.frozen)
        assert model.config.generator == config.model_config().generator
    assert sizes == {
        "direct_3dmm": (10, False, False),
        "e2e_lebs_n25": (25, True, False),
        "e2e_lebs_n10": (10, True, False),
        "e2e_lebs_n5": (5, True, False),
        "clebs": (10, True, True),
    }


def test_rows_begin_with_the_same_weights_and_see_the_same_pairs(
    data: Path, config: ReconstructionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the encoder and the maps that read it."""
    seen: dict[str, list[torch.Tensor]] = {}
    begun: dict[str, dict[str, torch.Tensor]] = {}

    class Watched(reconstruction.ReconstructionTask):
        def batch(self, *args: Any) -> Any:
            row = self.settings.variants[-1]
            if row not in begun:
                begun[row] = {name: value.detach().clone() for name, value in self.model.named_parameters()}
            batch = super().batch(*args)
            seen.setdefault(row, []).append(batch["driving"])
            return batch

    monkeypatch.setattr(reconstruction, "ReconstructionTask", Watched)
    train_rows(data, tmp_path / "out", config, loop(), TWO)
    one, other = (seen[row] for row in TWO)
    assert len(one) == 2
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
    first, second = (begun[row] for row in TWO)
    shared = [name for name in first if not name.startswith("expression.") and ".modulation." not in name]
    assert len(shared) > 50
    for name in shared:
        assert torch.equal(first[name], second[name]), name


def test_what_all_rows_begin_with_can_be_named(
    data: Path, config: ReconstructionConfig, tmp_path: Path, tiny_weights: Path
) -> None:
    still = loop(lr=1e-12, max_images=2)
    found = train_rows(data, tmp_path / "out", config, still, ("e2e_lebs_n5",), from_pretrained=tiny_weights)
    given, got = parameters(tiny_weights), parameters(found["e2e_lebs_n5"])
    assert not (tmp_path / "out" / "start.safetensors").exists()
    names = [name for name in given if name.startswith(("superres.", "renderer.")) and given[name].ndim > 1]
    assert names
    for name in names:
        torch.testing.assert_close(got[name], given[name], atol=1e-6, rtol=0)


def test_variants_of_all_rows_are_added_to_each(data: Path, config: ReconstructionConfig, tmp_path: Path) -> None:
    changed = replace(config, variants=("no_lowpass",))
    found = train_rows(data, tmp_path / "out", changed, loop(max_images=2), ("e2e_lebs_n5",))
    model = load_pretrained(found["e2e_lebs_n5"])
    assert (model.config.generator.lowpass_sigma, model.config.expression.n) == (0.0, 5)


def test_a_finished_row_is_left_as_it_is(
    data: Path, config: ReconstructionConfig, tmp_path: Path, runs: list[str]
) -> None:
    train_rows(data, tmp_path / "out", config, loop(), ("clebs",))
    before = (tmp_path / "out" / "clebs" / "weights.safetensors").stat().st_mtime_ns
    train_rows(data, tmp_path / "out", config, loop(log_every=1, sheet_every=2), TWO)
    assert runs == ["clebs", "direct_3dmm"]
    assert (tmp_path / "out" / "clebs" / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_cut_row_goes_on_to_the_same_end(
    data: Path, config: ReconstructionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the row that was never cut."""
    at_once = train_rows(data, tmp_path / "once", config, loop(max_images=8), ("e2e_lebs_n5",))["e2e_lebs_n5"]
    out = tmp_path / "out"

    class Cut(reconstruction.ReconstructionTask):
        def batch(self, images_seen: int, *shape: int) -> Any:
            if images_seen == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(images_seen, *shape)

    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "ReconstructionTask", Cut)
        with pytest.raises(TrainingError, match=r"row e2e_lebs_n5 was stopped after 4 of 8 images; the same command"):
            train_rows(data, out, config, loop(max_images=8), ("e2e_lebs_n5", "clebs"))
    assert not (out / "clebs").exists()
    resumed = train_rows(data, out, config, loop(max_images=8), ("e2e_lebs_n5",))["e2e_lebs_n5"]
    a, b = parameters(at_once), parameters(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    states = sorted((out / "e2e_lebs_n5" / "checkpoints").iterdir())
    assert load_state(states[-1]).counters["images_seen"] == 8


@pytest.mark.slow
def test_a_longer_budget_goes_on_and_a_shorter_one_is_refused(
    data: Path, config: ReconstructionConfig, tmp_path: Path, runs: list[str]
) -> None:
    rows = ("e2e_lebs_n5",)
    train_rows(data, tmp_path / "out", config, loop(max_images=4), rows)
    found = train_rows(data, tmp_path / "out", config, loop(max_images=6), rows)
    assert load_weights(found["e2e_lebs_n5"])[2]["images_seen"] == 6
    with pytest.raises(ConfigError, match="max_images 6 there, 4 here"):
        train_rows(data, tmp_path / "out", config, loop(max_images=4), rows)
    train_rows(data, tmp_path / "decays", config, loop(max_images=4, decay="images"), rows)
    with pytest.raises(ConfigError, match="max_images 4 there, 6 here"):  # its learning rate has fallen already
        train_rows(data, tmp_path / "decays", config, loop(max_images=6, decay="images"), rows)
    assert len(runs) == 3


@pytest.mark.parametrize(
    ("changes", "schedule", "told"),
    [
        ({}, {"lr": 1e-3}, "lr 0.002 there, 0.001 here"),
        ({}, {"betas": (0.5, 0.9)}, "betas"),
        ({"hard_fraction": 0.5}, {}, r"hard_fraction 0\.0 there, 0\.5 here"),
        ({"weights": ReconstructionWeights(l2=3.0)}, {}, r"weights\.l2 1\.0 there, 3\.0 here"),
        ({"variants": ("no_lowpass",)}, {}, "variants"),
        ({"preset": "base"}, {}, "preset tiny there, base here"),
    ],
)
def test_a_row_of_other_settings_is_refused_before_anything_is_trained(
    data: Path,
    config: ReconstructionConfig,
    tmp_path: Path,
    changes: dict[str, Any],
    schedule: dict[str, Any],
    told: str,
    runs: list[str],
) -> None:
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("e2e_lebs_n5",))
    with pytest.raises(ConfigError, match=told) as caught:
        train_rows(
            data,
            tmp_path / "out",
            replace(config, **changes),
            loop(max_images=2, **schedule),
            ("direct_3dmm", "e2e_lebs_n5"),
        )
    assert "choose another folder" in str(caught.value)
    assert runs == ["e2e_lebs_n5"]


def test_a_setting_that_is_younger_than_the_row_counts_as_its_default(
    data: Path, config: ReconstructionConfig, tmp_path: Path, runs: list[str]
) -> None:
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("e2e_lebs_n5",))
    path = tmp_path / "out" / "e2e_lebs_n5" / "row.json"
    words = json.loads(path.read_text("utf-8"))
    for name in ("mirror", "grad_clip", "model.generator.lowpass_sigma", "image_size"):
        del words[name]
    path.write_text(json.dumps(words), "utf-8")
    with pytest.raises(ConfigError, match=r"\(image_size None there, 32 here\)"):  # and nothing else
        train_rows(data, tmp_path / "out", config, loop(max_images=2), ("e2e_lebs_n5",))
    path.write_text(json.dumps({**words, "image_size": 32}), "utf-8")
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("e2e_lebs_n5",))
    assert runs == ["e2e_lebs_n5"]


def test_a_preset_that_was_changed_since_is_another_setting(
    data: Path, config: ReconstructionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("direct_3dmm",))
    former = model_settings.tiny()
    wider = replace(former, superres=replace(former.superres, mid_channels=24))
    monkeypatch.setitem(model_settings.PRESETS, "tiny", lambda: wider)
    with pytest.raises(ConfigError, match=r"model\.superres\.mid_channels 16 there, 24 here"):
        train_rows(data, tmp_path / "out", config, loop(max_images=2), TWO)


def test_another_encoder_or_other_data_are_other_settings(
    data: Path, config: ReconstructionConfig, tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    train_rows(data, tmp_path / "out", config, loop(max_images=2), TWO)
    assert config.expression is not None
    encoder = ExpressionEncoder(ExpressionConfig(hidden=32, n=10, d=32))
    save_encoder(encoder, config.expression, {})
    with pytest.raises(ConfigError, match=r"out/clebs was trained with other settings \(expression clebs"):
        train_rows(data, tmp_path / "out", config, loop(max_images=2), TWO)
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("direct_3dmm",))  # has no such encoder
    update(data / "train", [make_record("more")])
    with pytest.raises(ConfigError, match="data 3 records, 3 frames"):
        train_rows(data, tmp_path / "out", config, loop(max_images=2), ("direct_3dmm",))


def test_the_folder_of_another_command_is_not_touched(data: Path, config: ReconstructionConfig, tmp_path: Path) -> None:
    (tmp_path / "out" / "clebs" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a run of another command"):
        train_rows(data, tmp_path / "out", config, loop(), ("clebs",))


def test_a_damaged_settings_file_is_named(data: Path, config: ReconstructionConfig, tmp_path: Path) -> None:
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("clebs",))
    (tmp_path / "out" / "clebs" / "row.json").write_text("[")
    with pytest.raises(InputError, match=r"row\.json is damaged; delete"):
        train_rows(data, tmp_path / "out", config, loop(max_images=2), ("clebs",))


@pytest.mark.parametrize(
    ("schedule", "changes", "rows", "told"),
    [
        ({"max_images": None, "max_minutes": 5.0}, {}, TWO, "equally many images.*loop.max_images"),
        ({"max_images": None}, {}, TWO, "loop.max_images"),
        ({"max_minutes": 5.0, "decay": "clock"}, {}, TWO, "rate by the clock differs from row to row"),
        ({}, {}, (), "rows must be different ones of direct_3dmm"),
        ({}, {}, ("clebs", "clebs"), "rows must be different"),
        ({}, {}, ("no_skip",), "rows must be different ones"),
        ({}, {"variants": ("clebs",)}, TWO, "clebs is a row of the table"),
        ({}, {"variants": ("no_eyes",)}, TWO, "unknown variant 'no_eyes'"),
        ({}, {"image_size": 33}, TWO, "multiple of 32"),
    ],
)
def test_what_would_not_be_an_ablation_is_refused(
    data: Path,
    config: ReconstructionConfig,
    tmp_path: Path,
    schedule: dict[str, Any],
    changes: dict[str, Any],
    rows: Any,
    told: str,
) -> None:
    with pytest.raises(ConfigError, match=told):
        train_rows(data, tmp_path / "out", replace(config, **changes), loop(**schedule), rows)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_splits_are_needed(data: Path, config: ReconstructionConfig, tmp_path: Path, split: str) -> None:
    (data / split).rename(data / "elsewhere")
    with pytest.raises(InputError, match=f"no folder '{split}'"):
        train_rows(data, tmp_path / "out", config, loop(), TWO)


def test_a_missing_encoder_is_told_before_hours_of_training(
    data: Path, config: ReconstructionConfig, tmp_path: Path, runs: list[str]
) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        train_rows(data, tmp_path / "out", replace(config, expression=tmp_path / "none.safetensors"), loop(), TWO)
    assert runs == []
