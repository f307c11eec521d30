"""Phase two: what is trained, what is frozen, what the discriminator sees; on clips made up for the golden losses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.cli.main import main
from export3d.config import ModelConfig, clebs, tiny
from export3d.data.frames import FrameStore
from export3d.errors import ConfigError, InputError
from export3d.image import resize
from export3d.model import Export3D
from export3d.perceptual import Perceptual
from export3d.pretrained import load_pretrained, save_pretrained
from export3d.training import adversarial as phase
from export3d.training.adversarial import AdversarialConfig, AdversarialTask, run
from export3d.training.loop import Result, train
from export3d.training.loop_config import LoopConfig
from export3d.training.record import read_log
from export3d.training.state import load_state
from tests.tiny_models import PARTS, warped

pytest.importorskip("accelerate")

PLAIN = AdversarialConfig(discriminator="tiny", backbone="none", augment=False, mirror=False, sheet_pairs=2, d_lr=2e-3)
ALL = replace(PLAIN, adv_trainable="all")


@pytest.fixture
def clips(golden: ModuleType) -> FrameStore:
    store: FrameStore = golden.made_up_clips()
    return store


def former(config: ModelConfig | None = None) -> Export3D:
    """A model of phase one with random weights, whose images are not constant."""
    torch.manual_seed(3)
    model = Export3D(config or tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.generator.average.value.normal_(std=0.01)
    return model.eval().requires_grad_(False)


def loop(**changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "batch_size": 2, "max_images": 8, "log_every": 2, "sheet_every": 0, "validate_every": 0, "save_every": 0,
        "lr": 1e-3, "warmup_images": 0, "ema_halflife_images": 4, "ema_rampup": 0.5, "precision": "fp32", "cpu": True,
        "tensorboard": False, "progress": False,
    }  # fmt: skip
    return LoopConfig(**{**settings, **changes})


def go(config: AdversarialConfig, clips: FrameStore, folder: Path, **changes: Any) -> tuple[AdversarialTask, Result]:
    task = AdversarialTask(config, former(), clips)
    return task, train(task, folder, loop(**changes), opponent=task.opponent)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# ---- what is trained -------------------------------------------------------------------------------------------------


def test_with_sr_all_but_the_super_resolution_stays_bit_for_bit(clips: FrameStore, tmp_path: Path) -> None:
    _, result = go(PLAIN, clips, tmp_path)
    state, before = load_state(result.checkpoint), former().state_dict()
    for found in (state.model, state.ema):
        changed = moved(before, found)
        assert changed == {name for name in before if name.startswith("superres.")}


@pytest.mark.slow
def test_with_all_the_whole_model_is_trained_and_the_tri_plane_average_goes_on(
    clips: FrameStore, tmp_path: Path
) -> None:
    task, result = go(ALL, clips, tmp_path)
    changed = moved(former().state_dict(), load_state(result.checkpoint).model)
    wanted = {name for name, _ in task.model.named_parameters()} | {"generator.average.value"}
    assert changed == wanted


MOVING = warped(*PARTS)
"""The warp of `base`, at the size of `tiny`."""


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny(), MOVING], ids=["paper's form", "extended"])
def test_a_pre_trained_expression_encoder_and_the_motion_fitted_to_it_stay_frozen(
    config: ModelConfig, clips: FrameStore, tmp_path: Path
) -> None:
    task = AdversarialTask(ALL, former(clebs(config)), clips)
    state = load_state(train(task, tmp_path, loop(), opponent=task.opponent).checkpoint)
    before = former(clebs(config)).state_dict()
    changed = moved(before, state.model)
    frozen = {name for name in before if name.startswith(("expression.", "warp.motion.", "warp.inner."))}
    wanted = {name for name, _ in task.model.named_parameters()} | {"generator.average.value"}
    assert changed == wanted - frozen
    assert any(name.startswith("warp.motion.") for name in before) == (config is MOVING)


def test_with_all_what_is_moved_is_compared_too_and_with_sr_it_cannot_change(clips: FrameStore) -> None:
    for config in (ALL, PLAIN):
        task = AdversarialTask(config, former(MOVING), clips)
        terms = task.losses(task.batch(0, 2, 0, 1), 0)
        assert ("moved" in terms) == ("landmarks" in terms) == (config is ALL)
        terms["total"].backward()  # type: ignore[no-untyped-call]
        learns = [p.grad is not None for n, p in task.model.named_parameters() if n.startswith("warp.dense.")]
        assert learns
        assert all(learns) == any(learns) == (config is ALL)


def test_with_sr_no_gradient_is_kept_below_the_super_resolution(clips: FrameStore) -> None:
    task = AdversarialTask(PLAIN, former(), clips)
    task.losses(task.batch(0, 2, 0, 1), 0)["total"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for n, p in task.model.named_parameters() if not n.startswith("superres."))
    assert all(p.grad is not None for p in task.model.superres.parameters())


def test_with_sr_what_guides_the_super_resolution_is_trained_too_and_no_other_part_of_the_warp(
    clips: FrameStore, tmp_path: Path
) -> None:
    task = AdversarialTask(PLAIN, former(MOVING), clips)
    before = former(MOVING).state_dict()
    changed = moved(before, load_state(train(task, tmp_path, loop(), opponent=task.opponent).checkpoint).model)
    assert changed == {name for name in before if name.startswith(("superres.", "warp.detail."))}


def test_both_modes_start_with_the_same_images(clips: FrameStore) -> None:
    shown = []
    for config in (PLAIN, ALL):
        task = AdversarialTask(config, former(), clips)
        terms = task.losses(task.batch(0, 2, 0, 1), 0)
        assert task.opponent.shown is not None
        shown.append((task.opponent.shown.fake, float(terms["l2"].detach())))
    assert torch.equal(shown[0][0][0], shown[1][0][0])
    assert torch.equal(shown[0][0][1], shown[1][0][1])
    assert shown[0][1] == shown[1][1]


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_rendered_from_real(clips: FrameStore, tmp_path: Path) -> None:
    _, result = go(PLAIN, clips, tmp_path, max_images=80, batch_size=4)
    lines = read_log(tmp_path / "log.jsonl")
    first, last = lines[0]["opponent"]["losses"], lines[-1]["opponent"]["losses"]
    assert last["score_real"] - last["score_fake"] > first["score_real"] - first["score_fake"] + 0.5
    assert last["real"] + last["fake"] < 0.8 * (first["real"] + first["fake"])
    assert result.images_seen == 80


# ---- Eq. 12 ----------------------------------------------------------------------------------------------------------


def test_equation_12_adds_the_weighted_losses(clips: FrameStore) -> None:
    def terms(**changes: float) -> dict[str, float]:
        task = AdversarialTask(replace(ALL, **changes), former(), clips)  # type: ignore[arg-type]
        return {name: float(value.detach()) for name, value in task.losses(task.batch(0, 2, 0, 1), 0).items()}

    paper, rec, adv = terms(), terms(lambda_rec=3.0), terms(lambda_adv=0.5)
    assert AdversarialConfig().lambda_rec == 1.0
    assert AdversarialConfig().lambda_adv == 0.01
    assert set(paper) == {"l2", "l2_raw", "adversarial", "total"}
    assert paper["total"] == pytest.approx(paper["l2"] + paper["l2_raw"] + paper["adversarial"], rel=1e-6)
    assert rec["l2"] == pytest.approx(3 * paper["l2"], rel=1e-6)
    assert rec["adversarial"] == pytest.approx(paper["adversarial"], rel=1e-6)
    assert adv["adversarial"] == pytest.approx(50 * paper["adversarial"], rel=1e-5)
    assert adv["l2"] == pytest.approx(paper["l2"], rel=1e-6)
    assert adv["total"] == pytest.approx(adv["l2"] + adv["l2_raw"] + adv["adversarial"], rel=1e-6)


def test_the_discriminator_gets_driving_and_rendered_frames_at_both_sizes_with_their_cameras(
    clips: FrameStore,
) -> None:
    task = AdversarialTask(PLAIN, former(), clips)
    batch = task.batch(0, 2, 0, 1)
    task.losses(batch, 0)
    shown = task.opponent.shown
    assert shown is not None
    assert torch.equal(shown.real[0], batch["driving"])
    assert torch.equal(shown.real[1], resize(batch["driving"], 16))
    assert [tuple(picture.shape[1:]) for picture in shown.fake] == [(3, 64, 64), (3, 16, 16)]
    assert torch.equal(shown.camera, batch["camera"])
    assert not any(picture.requires_grad for picture in (*shown.real, *shown.fake))


def test_without_dual_discrimination_both_losses_and_r1_use_the_final_image_alone(clips: FrameStore) -> None:
    task = AdversarialTask(replace(PLAIN, dual=False), former(), clips)
    terms = task.losses(task.batch(0, 2, 0, 1), 0)
    theirs = task.opponent.losses({}, 0)
    assert set(theirs) == {"real", "fake", "r1", "score_real", "score_fake", "total"}
    (terms["total"] + theirs["total"]).backward()
    assert task.opponent.sizes.dual is False
    assert all(p.grad is not None for p in task.model.superres.parameters())


@pytest.mark.slow
def test_r1_is_taken_in_every_kth_step_with_k_times_its_weight(clips: FrameStore) -> None:
    task = AdversarialTask(replace(PLAIN, r1_every=4, r1_gamma=2.0), former(), clips)
    batch = task.batch(0, 2, 0, 1)
    for step in range(9):
        task.losses(batch, 0)
        terms = {name: float(value.detach()) for name, value in task.opponent.losses(batch, step).items()}
        assert ("r1" in terms) == (step in (0, 4, 8))
        assert terms["total"] == pytest.approx(terms["real"] + terms["fake"] + 4 * terms.get("r1", 0.0), rel=1e-5)
    half = AdversarialTask(replace(PLAIN, r1_every=4, r1_gamma=1.0), former(), clips)
    half.losses(batch, 0)
    assert float(half.opponent.losses(batch, 0)["r1"].detach()) == pytest.approx(0.5 * terms["r1"], rel=1e-5)
    none = AdversarialTask(replace(PLAIN, r1_gamma=0.0), former(), clips)
    none.losses(batch, 0)
    assert "r1" not in none.opponent.losses(batch, 0)


@pytest.mark.slow
def test_second_order_gradients_stay_finite_in_half_precision(clips: FrameStore, tmp_path: Path) -> None:
    go(replace(ALL, r1_every=2), clips, tmp_path, precision="bf16")
    lines = read_log(tmp_path / "log.jsonl")
    assert all(np.isfinite(line["opponent"]["losses"]["total"]) for line in lines)


@pytest.mark.parametrize(
    "changes", [{"lambda_adv": -1.0}, {"lambda_rec": -1.0}, {"r1_gamma": -1.0}, {"r1_every": 0}, {"d_lr": 0.0}]
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, float], clips: FrameStore) -> None:
    with pytest.raises(ConfigError, match="must"):
        AdversarialTask(replace(PLAIN, **changes), former(), clips)  # type: ignore[arg-type]


# ---- stop and resume -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", [PLAIN, ALL], ids=["sr", "all"])
def test_a_run_resumes_bit_for_bit_within_an_r1_period(
    config: AdversarialConfig, clips: FrameStore, tmp_path: Path
) -> None:
    """With all sources of randomness: eight steps equal three plus five; R1 is due at steps 0 and 4."""
    config = replace(config, augment=True, mirror=True, r1_every=4)
    _, whole = go(config, clips, tmp_path / "whole", max_images=16)
    go(config, clips, tmp_path / "parts", max_images=6)
    torch.manual_seed(12345)
    _, second = go(config, clips, tmp_path / "parts", max_images=16)
    a, b = load_state(whole.checkpoint), load_state(second.checkpoint)
    assert (a.counters["step"], b.counters["step"]) == (8, 8)
    assert a.opponent is not None
    assert b.opponent is not None
    for one, two in ((a.model, b.model), (a.ema, b.ema), (a.opponent[0], b.opponent[0])):
        assert not moved(one, two)
    for left, right in ((a.optimizer, b.optimizer), (a.opponent[1], b.opponent[1])):
        assert left["state"].keys() == right["state"].keys()
        assert left["state"]
        for index, entries in left["state"].items():
            assert all(torch.equal(value, right["state"][index][name]) for name, value in entries.items())
    both = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    assert [line["opponent"]["losses"] for line in both[0]] == [line["opponent"]["losses"] for line in both[1]]


# ---- figures and sheets ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_validation_reports_both_scores_and_changes_nothing(clips: FrameStore, golden: ModuleType) -> None:
    task = AdversarialTask(PLAIN, former(), clips, golden.made_up_clips(seed=1))
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    with torch.no_grad():
        figures = task.validate(task.module)
        sheet = task.sheet(task.module)
    assert set(figures) == {"psnr", "psnr_copy", "score_real", "score_fake"}
    assert all(np.isfinite(value) for value in figures.values())
    assert sheet.dtype == np.uint8
    assert not moved(before, task.module.state_dict())


@pytest.mark.slow
def test_with_a_perceptual_network_lpips_is_a_term_and_a_figure(
    clips: FrameStore, golden: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export3d.perceptual import _alex
    from export3d.training import pairs

    torch.manual_seed(0)
    monkeypatch.setattr(pairs, "load_perceptual", lambda *given: Perceptual("alex", _alex().state_dict()))
    task = AdversarialTask(replace(PLAIN, backbone="alex"), former(), clips, golden.made_up_clips(seed=1))
    terms = task.losses(task.batch(0, 2, 0, 1), 0)
    assert "lpips" in terms
    assert "lpips_raw" not in terms  # the raw image cannot change
    with torch.no_grad():
        assert task.validate(task.module)["lpips"] > 0


# ---- from weights to weights -----------------------------------------------------------------------------------------


def test_the_model_is_that_of_the_weights_and_its_settings_are_saved_as_json(clips: FrameStore) -> None:
    wide = replace(tiny(), superres=replace(tiny().superres, high_channels=12))
    task = AdversarialTask(replace(PLAIN, coarse=6), former(wide), clips)
    saved = json.loads(json.dumps(task.config))
    assert ModelConfig.from_dict(saved["model"]) == replace(wide, render=replace(wide.render, coarse=6))
    assert saved["adversarial"]["adv_trainable"] == "sr"
    assert saved["discriminator"]["image_size"] == 64


def test_weights_of_another_size_carry_over(golden: ModuleType) -> None:
    small: FrameStore = golden.made_up_clips(size=32)
    task = AdversarialTask(replace(PLAIN, image_size=32), former(), small)
    assert task.losses(task.batch(0, 2, 0, 1), 0)["total"].isfinite()
    for name, value in former().named_parameters():
        assert torch.equal(dict(task.model.named_parameters())[name], value), name


def test_clips_of_another_expression_space_are_refused(clips: FrameStore) -> None:
    other = replace(clips, expression=torch.zeros(len(clips), 64), space="bfm64")
    with pytest.raises(InputError, match="bfm64"):
        AdversarialTask(PLAIN, former(), other)


@pytest.mark.slow
def test_a_run_leaves_weights_that_can_be_loaded(
    clips: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = save_pretrained(former(), tmp_path / "start.safetensors", {"images_seen": 5})
    monkeypatch.setattr(phase, "load_frames", lambda data, size, pseudo, cache, memory: (clips, clips))
    result = run(tmp_path, tmp_path / "run", PLAIN, loop(validate_every=8, sheet_every=8), from_pretrained=start)
    assert {"psnr", "score_real", "score_fake"} <= set(result.validation)
    loaded = load_pretrained(tmp_path / "run" / "weights.safetensors")
    assert not moved(load_state(result.checkpoint).ema, loaded.state_dict())
    side = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert side["info"] == {"images_seen": 8, "phase": "adversarial"}
    assert len(list((tmp_path / "run" / "sheets").glob("*.png"))) == 2
    again = run(tmp_path, tmp_path / "run", PLAIN, loop(max_images=10), from_pretrained=start)
    assert (again.images_seen, again.step) == (10, 5)


def test_a_size_that_the_discriminator_cannot_halve_is_refused_before_clips_are_decoded(tmp_path: Path) -> None:
    start = save_pretrained(former(), tmp_path / "start.safetensors", {"images_seen": 5})
    with pytest.raises(ConfigError, match="64, 128 or 256"):
        run(tmp_path / "nowhere", tmp_path / "run", replace(PLAIN, image_size=96), loop(), from_pretrained=start)


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = save_pretrained(former(), tmp_path / "start.safetensors", {"images_seen": 5})
    given = ["refine", str(tmp_path), "-o", str(tmp_path / "run")]
    assert main(given) == 2
    assert "--from-pretrained" in capsys.readouterr().err
    assert main([*given, "--from-pretrained", str(tmp_path / "none.safetensors")]) == 2
    assert "no weights at" in capsys.readouterr().err
    assert main([*given, "--from-pretrained", str(start), "--set", "model.trainable=all"]) == 2
    assert "export3d prepare" in capsys.readouterr().err
