"""Phase one: its task, on synthetic clips."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from export3d import config as model_settings
from export3d.camera import Camera, project, projected
from export3d.config import ModelConfig, tiny
from export3d.data.frame_layout import Clip
from export3d.data.frames import FrameStore
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError, MissingExtra
from export3d.expression.contrastive import ResNetSE18
from export3d.expression.directions import measure_ranges
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.face.mesh import canonical_mesh
from export3d.face.scores import ScoreReader
from export3d.losses import ReconstructionWeights
from export3d.model import Export3D
from export3d.motion.motion import SHOULDERS
from export3d.pretrained import load_encoder, load_pretrained, save_encoder
from export3d.training import motion_fit
from export3d.training.face_features import FacePerceptual
from export3d.training.loop import Result, train
from export3d.training.loop_config import LoopConfig
from export3d.training.motion_fit import MotionFit
from export3d.training.reconstruction import ReconstructionConfig, ReconstructionTask, explained, run
from export3d.training.record import Recorder
from export3d.training.regularisers import ReaderConfig, save_reader
from export3d.training.state import load_state
from export3d.triplane.blocks import EAdaLN
from export3d.warping.landmark_motion import LandmarkMotion
from export3d.warping.losses import landmark_error, moved_error
from export3d.weights.file import read_sidecar
from tests.tiny_models import PARTS, warped

PLAIN = ReconstructionConfig(preset="tiny", backbone="none", augment=False, mirror=False, sheet_pairs=2)


def picture(person: int, yaw: float, smile: float, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a disc that moves with the head and whose mouth opens."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size - 0.5
    colour = np.random.default_rng(person).uniform(60, 220, size=(2, 3))
    image = np.where(((x - yaw / 300) ** 2 + y**2 < 0.09)[..., None], colour[0], colour[1])
    image = np.where(((np.abs(x - yaw / 200) < 0.1) & (np.abs(y - 0.12) < 0.01 + 0.08 * smile))[..., None], 30.0, image)
    return image.round().astype(np.uint8)


def made_up_store(videos: int = 2, stills: int = 1, frames: int = 5, size: int = 64, seed: int = 0) -> FrameStore:
    """Clips of a few frames, with the expression and camera that the images show."""
    rng = np.random.default_rng(seed)
    clips: list[Clip] = []
    pictures, expressions, cameras, numbers = [], [], [], []
    for person in range(videos + stills):
        count = frames if person < videos else 1
        kind = "video" if person < videos else "image"
        clips.append(Clip(f"clip{person}", kind, f"person{person}", "open", len(pictures), count))
        for _ in range(count):
            yaw, smile = rng.uniform(-25, 25), rng.uniform(0, 1)
            pictures.append(picture(person, yaw, smile, size))
            expressions.append(np.concatenate([[smile], rng.uniform(0, 0.1, 51)]))
            cameras.append(Camera.orbit(yaw).label)
            numbers.append(person)
    total = len(pictures)
    return FrameStore(
        frames=torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(),
        expression=torch.from_numpy(np.stack(expressions)).float(),
        camera=torch.from_numpy(np.stack(cameras)).float(),
        shoulders=torch.zeros(total, SHOULDERS),
        landmarks=torch.from_numpy(rng.uniform(0.3, 0.7, (total, 478, 2))).half(),
        found=torch.ones(total, dtype=torch.bool),
        clip=torch.tensor(numbers),
        clips=tuple(clips),
        space="arkit52",
    )


def loop(**changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "batch_size": 2, "max_images": 16, "log_every": 2, "sheet_every": 0, "validate_every": 0, "save_every": 0,
        "lr": 2e-3, "warmup_images": 4, "ema_halflife_images": 8, "ema_rampup": 0.5, "precision": "fp32", "cpu": True,
        "tensorboard": False, "progress": False,
    }  # fmt: skip
    return LoopConfig(**{**settings, **changes})


def task(config: ReconstructionConfig = PLAIN, **store: Any) -> ReconstructionTask:
    return ReconstructionTask(config, made_up_store(**store))


def taught_task(config: ReconstructionConfig) -> ReconstructionTask:
    """A task with three taught groups beside its clips."""
    return ReconstructionTask(config, made_up_store(), taught=made_up_store(videos=3, stills=0, frames=7, seed=4))


def logged(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of the run's log of one kind."""
    found = []
    for path in sorted(run_dir.glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [line for line in found if kind in line.values()]


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Makes the preset `tiny` have what `base` adds to the paper's form."""
    config = warped("align", "skip", "flow")
    monkeypatch.setitem(model_settings.PRESETS, "tiny", lambda: config)
    return config


# ---- what the loop relies on -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
def test_a_handful_of_steps_lowers_the_loss(tmp_path: Path) -> None:
    config = replace(PLAIN, landmarks=0.1)  # the landmarks of these clips are noise
    trained = ReconstructionTask(config, made_up_store(), seed=1)
    fixed = trained.batch(0, 8, 0, 1)
    with torch.no_grad():
        before = trained.losses(fixed, 0)
    train(trained, tmp_path, loop(max_images=40, batch_size=4, lr=3e-3))
    with torch.no_grad():
        after = trained.losses(fixed, 0)
    assert float(after["total"]) < 0.6 * float(before["total"])
    assert float(after["l2"]) < float(before["l2"])
    assert float(after["l2_raw"]) < float(before["l2_raw"])


def test_known_masks_spare_the_search_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without MediaPipe: a model with a matte trains and is validated by masks that came along."""
    config = warped(*PARTS)
    monkeypatch.setitem(model_settings.PRESETS, "tiny", lambda: config)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    store = made_up_store()
    with pytest.raises(MissingExtra, match="face"):
        ReconstructionTask(PLAIN, store).batch(0, 2, 0, 1)
    store = replace(store, masks=torch.full((len(store), 1, 16, 16), 255, dtype=torch.uint8))
    trained = ReconstructionTask(PLAIN, store, store)
    batch = trained.batch(0, 2, 0, 1)
    assert batch["source_matte"].shape == (2, 1, 64, 64)
    assert (batch["source_matte"] == 1.0).all()
    assert torch.isfinite(trained.losses(batch, 0)["total"])
    with torch.no_grad():
        assert math.isfinite(trained.validate(trained.module)["psnr"])


def everything(result: Result) -> dict[str, Any]:
    """All numbers of a run's last state."""
    state = load_state(result.checkpoint)
    moments = {
        f"optimizer.{parameter}.{name}": value
        for parameter, values in state.optimizer["state"].items()
        for name, value in values.items()
    }
    model = {f"model.{name}": value for name, value in state.model.items()}
    return {**model, **{f"ema.{name}": value for name, value in state.ema.items()}, **moments}


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
@pytest.mark.parametrize("taught", [False, True])
def test_eight_steps_are_four_and_a_resume_and_four_bit_for_bit(tmp_path: Path, taught: bool) -> None:
    """With all sources of randomness: pairs, mirror images, augmentation, ray jitter, and taught groups among pairs."""
    config = replace(PLAIN, augment=True, mirror=True, face_emphasis=2.0, between=1.0)

    def made() -> ReconstructionTask:
        return taught_task(config) if taught else task(config)

    size = 4 if taught else 2
    at_once = train(made(), tmp_path / "once", loop(max_images=8 * size, batch_size=size))
    train(made(), tmp_path / "twice", loop(max_images=4 * size, batch_size=size))
    torch.manual_seed(12345)
    resumed = train(made(), tmp_path / "twice", loop(max_images=8 * size, batch_size=size))
    assert (at_once.step, resumed.step) == (8, 8)
    a, b = everything(at_once), everything(resumed)
    assert a.keys() == b.keys()
    assert any(name.endswith("generator.average.value") for name in a)
    assert any(name.startswith("optimizer.") for name in a)
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name
    assert a["model.generator.average.value"].abs().max() > 0


def test_the_same_seed_gives_the_same_first_losses_and_another_seed_others() -> None:
    def first(seed_images: int) -> list[float]:
        made = task()
        terms = made.losses(made.batch(seed_images, 2, 0, 1), seed_images)
        return [float(value.detach()) for value in terms.values()]

    assert first(0) == first(0)
    assert first(0) != first(2)


def test_a_batch_is_shared_by_processes_without_overlap_and_each_pair_keeps_its_jitter() -> None:
    made = task()
    whole = made.batch(8, 4, 0, 1)
    shares = [made.batch(8, 4, rank, 2) for rank in range(2)]
    for name in whole:
        assert torch.equal(whole[name], torch.cat([share[name] for share in shares])), name
    assert whole["number"].tolist() == [8, 9, 10, 11]


def test_a_step_folds_what_was_generated_into_the_average_after_using_it() -> None:
    made = task()
    batch = made.batch(0, 2, 0, 1)
    average = made.model.generator.average
    with torch.no_grad():
        generated = made.model(
            batch["source"], batch["expression"], batch["camera"], batch["source_camera"], superres=False
        ).generated
        made.losses(batch, 0)
        made.end_step()
    torch.testing.assert_close(average.value, (1 - average.delta) * generated.mean(dim=0))


def test_validation_and_sheets_do_not_change_the_model() -> None:
    made = ReconstructionTask(PLAIN, made_up_store(), made_up_store(seed=1))
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    with torch.no_grad():
        made.validate(made.module)
        made.sheet(made.module)
    for name, value in made.module.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---- settings --------------------------------------------------------------------------------------------------------


def test_expressions_are_standardised_by_the_training_data() -> None:
    store = made_up_store()
    made = ReconstructionTask(PLAIN, store)
    torch.testing.assert_close(made.model.expression.mean, store.expression.mean(0))
    wanted = store.expression.std(0, correction=0).clamp_min(0.02)
    torch.testing.assert_close(made.model.expression.deviation, wanted)


def test_a_single_portrait_is_enough_to_start() -> None:
    made = task(videos=0, stills=1)
    assert made.model.expression.deviation.isfinite().all()
    assert made.losses(made.batch(0, 2, 0, 1), 0)["total"].isfinite()


def test_another_seed_gives_other_pairs_and_other_untrained_weights() -> None:
    first, same, other = (ReconstructionTask(PLAIN, made_up_store(), seed=seed) for seed in (3, 3, 4))
    for name, value in first.batch(0, 8, 0, 1).items():
        assert torch.equal(value, same.batch(0, 8, 0, 1)[name]), name
    assert not torch.equal(first.batch(0, 8, 0, 1)["driving"], other.batch(0, 8, 0, 1)["driving"])
    weight = "renderer.decoder.hidden.weight"
    assert torch.equal(first.model.state_dict()[weight], same.model.state_dict()[weight])
    assert not torch.equal(first.model.state_dict()[weight], other.model.state_dict()[weight])


@pytest.mark.slow
def test_optional_terms_are_weighted_and_join_the_total(tmp_path: Path) -> None:
    sizes = ReaderConfig(width=8, d=16, groups=8, size=32)
    reader = save_reader(ResNetSE18(sizes.width, sizes.d, sizes.groups), sizes, tmp_path / "reader.safetensors")
    weights = {"identity_weight": 2.0, "expression_weight": 3.0, "reading_weight": 5.0, "density_weight": 4.0}
    config = replace(PLAIN, **weights, expression_reader=reader)
    plain, made = task(), task(config)
    added = [name.removesuffix("_weight") for name in weights]
    batch = made.batch(0, 2, 0, 1)
    before, terms = plain.losses(batch, 0), made.losses(batch, 0)
    assert set(terms) == set(before) | set(added)
    torch.testing.assert_close(terms["total"], before["total"] + sum(terms[name] for name in added))
    output = made.draw(batch)
    assert output.image is not None
    assert made.identity is not None
    wanted = 2.0 * made.identity(output.image, batch["driving"], batch["landmarks"])
    torch.testing.assert_close(terms["identity"], wanted)
    for name in added:
        made.model.zero_grad()
        made.losses(batch, 0)[name].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in made.model.generator.parameters()), name


def test_an_error_of_expression_needs_a_reader() -> None:
    with pytest.raises(ConfigError, match="expression_weight needs expression_reader"):
        task(replace(PLAIN, expression_weight=1.0))


def test_the_saved_model_keeps_the_samples_per_ray_of_its_training() -> None:
    made = task(replace(PLAIN, coarse=4, fine=0))
    assert (made.model.renderer.config.coarse, made.model.renderer.config.fine) == (4, 0)
    saved = ModelConfig.from_dict(made.config["model"])
    assert saved == replace(tiny(), render=replace(tiny().render, coarse=4, fine=0))


def test_a_run_can_begin_small() -> None:
    made = task(replace(PLAIN, image_size=32), size=32)
    assert made.losses(made.batch(0, 2, 0, 1), 0)["total"].isfinite()
    assert made.model_config.render.resolution == 8
    with pytest.raises(ConfigError, match="multiple of 32"):
        replace(PLAIN, image_size=40).model_config()


def test_without_super_resolution_only_the_raw_image_is_compared() -> None:
    made = task(replace(PLAIN, superres=False))
    assert set(made.losses(made.batch(0, 2, 0, 1), 0)) == {"l2_raw", "total"}


def test_loss_weights_and_emphasis_reach_the_loss() -> None:
    def terms(**changes: Any) -> dict[str, Tensor]:
        made = task(replace(PLAIN, **changes))
        return dict(made.losses(made.batch(0, 2, 0, 1), 0))

    plain = terms()
    torch.testing.assert_close(terms(weights=ReconstructionWeights(l2=5.0))["l2"], 5 * plain["l2"])
    assert not torch.allclose(terms(face_emphasis=4.0)["l2"], plain["l2"], rtol=1e-4)


def test_the_saved_configuration_is_plain_json() -> None:
    config = replace(PLAIN, heads_file=Path("folder") / "heads.pth")
    saved = json.loads(json.dumps(task(config).config))
    assert saved["reconstruction"]["heads_file"] == str(Path("folder") / "heads.pth")
    assert ModelConfig.from_dict(saved["model"]) == tiny()


def test_the_model_takes_the_expression_space_of_the_data() -> None:
    store = made_up_store()
    other = replace(store, expression=torch.rand(len(store), 64), space="bfm64")
    made = ReconstructionTask(replace(PLAIN, mirror=True), other)
    assert (made.model_config.space, made.model_config.expression.inputs) == ("bfm64", 64)
    assert torch.isfinite(made.losses(made.batch(0, 2, 0, 1), 0)["total"])  # and there is no mirror image of it


def test_weights_validation_data_and_encoders_of_another_space_are_refused() -> None:
    store = made_up_store()
    other = replace(store, expression=torch.zeros(len(store), 64), space="bfm64")
    with pytest.raises(InputError, match="data holds expressions in bfm64, but the weights take arkit52"):
        ReconstructionTask(PLAIN, other, former=Export3D(tiny()))
    with pytest.raises(InputError, match="data holds expressions in bfm64, but the weights take arkit52"):
        ReconstructionTask(PLAIN, store, other)
    with pytest.raises(ConfigError, match="takes 52 expression values, but the data in bfm64 has 64"):
        ReconstructionTask(replace(PLAIN, variants=("clebs",)), other)


# ---- taught groups ---------------------------------------------------------------------------------------------------


def one_expression(store: FrameStore) -> FrameStore:
    """The store with no score but the first."""
    return replace(store, expression=torch.cat([store.expression[:, :1], torch.zeros(len(store), 51)], 1))


@pytest.mark.slow
def test_training_on_mixed_clips_lowers_what_differs_between_expressions(tmp_path: Path) -> None:
    """Without `between` the same steps leave it where it was (0.034)."""
    group = made_up_store(videos=1, stills=0, frames=5)
    shade = torch.linspace(0.0, 1.0, 5)
    group.expression[:, 0] = shade
    group.frames[:, :, 32:56, 16:48] = (255 * shade).byte()[:, None, None, None]
    group = replace(group, camera=group.camera[:1].expand(5, -1).clone())
    config = replace(PLAIN, between=20.0)
    made = ReconstructionTask(config, one_expression(made_up_store()), taught=one_expression(group))
    fixed = made.batch(0, 8, 0, 1)
    assert fixed["taught"].tolist() == [False] * 4 + [True] * 4
    with torch.no_grad():
        before = made.losses(fixed, 0)["between"]
    train(made, tmp_path, loop(max_images=240, batch_size=8, lr=3e-3, warmup_images=0))
    with torch.no_grad():
        after = made.losses(fixed, 0)["between"]
    assert float(after) < 0.7 * float(before)


def test_between_is_a_term_of_its_own_weight_on_taught_groups_alone() -> None:
    def terms(start: int = 4, **changes: Any) -> dict[str, float]:
        made = taught_task(replace(PLAIN, **changes))
        found = made.losses(made.batch(start, 4, 0, 1), 0)
        return {name: float(value.detach()) for name, value in found.items()}

    one, three, none = terms(between=1.0), terms(between=3.0), terms()
    assert set(one) - set(none) == {"between"}
    assert one["between"] > 0
    assert three["between"] == pytest.approx(3 * one["between"], rel=1e-5)
    assert one["total"] == pytest.approx(none["total"] + one["between"], rel=1e-5)
    assert terms(between=1.0, face_emphasis=10.0)["between"] != pytest.approx(one["between"], rel=1e-3)
    assert terms(start=0, between=1.0)["between"] == 0.0  # a batch of real pairs
    assert terms(between=1.0, superres=False)["between"] > 0


def test_the_explained_change_is_that_of_the_expression_alone() -> None:
    target, offset = torch.rand(5, 3, 8, 8), torch.rand(3, 8, 8)
    perfect, half = explained(target + offset, target), explained(0.5 * target + offset, target)
    torch.testing.assert_close(perfect, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(half, torch.tensor([0.5, 1.0]))
    assert explained(offset.expand_as(target), target).abs().max() < 1e-5


def test_validation_reports_the_explained_change_of_held_out_groups() -> None:
    store, held_out = made_up_store(), made_up_store(videos=2, stills=0, frames=7, seed=5)
    made = ReconstructionTask(PLAIN, store, made_up_store(seed=1), taught_val=held_out)
    with torch.no_grad():
        found = made.validate(made.module)
    assert {"psnr", "gain", "correlation"} <= set(found)
    assert abs(found["correlation"]) < 1.0
    alone = ReconstructionTask(PLAIN, store, taught_val=held_out)
    with torch.no_grad():
        assert set(alone.validate(alone.module)) == {"gain", "correlation"}


def test_a_taught_group_shares_its_jitter() -> None:
    made = taught_task(PLAIN)
    assert made.batch(0, 8, 0, 1)["number"].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


def test_without_a_share_the_pairs_are_those_of_real_clips_alone() -> None:
    none = taught_task(replace(PLAIN, taught_share=0.0)).batch(8, 8, 0, 1)
    for name, value in task().batch(8, 8, 0, 1).items():
        assert torch.equal(none[name], value), name


def test_taught_clips_of_another_space_and_shares_out_of_range_are_refused() -> None:
    store = made_up_store()
    other = replace(store, expression=torch.zeros(len(store), 64), space="bfm64")
    with pytest.raises(InputError, match="taught clips are in bfm64"):
        ReconstructionTask(PLAIN, store, taught=other)
    for changes in ({"taught_share": 1.5}, {"between": -1.0}):
        with pytest.raises(ConfigError, match="taught_share"):
            replace(PLAIN, **changes)


@pytest.mark.parametrize("changes", [{"batch_size": 6}, {"batch_size": 8, "accumulate": 4}])
def test_batches_that_taught_groups_do_not_fit_are_refused_before_any_work(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=r"make batch_size [68] a multiple of (4|16)$"):
        run(tmp_path / "none", tmp_path / "run", replace(PLAIN, taught=("taught",)), LoopConfig(**changes))
    assert not (tmp_path / "run").exists()


# ---- flow ------------------------------------------------------------------------------------------------------------


MOVED = ("landmarks", "flow")
"""The terms of models that move their source."""


@pytest.mark.usefixtures("extended")
def test_the_errors_of_landmarks_and_flow_are_terms_with_a_weight_of_their_own() -> None:
    def terms(weight: float) -> dict[str, float]:
        made = task(replace(PLAIN, landmarks=weight, flow=weight))
        return {k: float(v.detach()) for k, v in made.losses(made.batch(0, 2, 0, 1), 0).items()}

    one, five, none = terms(1.0), terms(5.0), terms(0.0)
    for name in MOVED:
        assert one[name] > 0
        assert five[name] == pytest.approx(5 * one[name], rel=1e-5)
        assert name not in none
    for found in (one, five):
        assert found["total"] == pytest.approx(none["total"] + sum(found[name] for name in MOVED), rel=1e-5)


@pytest.mark.usefixtures("extended")
def test_the_flow_alone_learns_to_carry_landmarks() -> None:
    made = task(replace(PLAIN, flow=1.0))
    batch = made.batch(0, 4, 0, 1)
    optimizer = torch.optim.Adam([*made.model.generator.parameters(), *made.model.warp.skip.parameters()], lr=3e-3)
    found = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = made.losses(batch, 0)["flow"]
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.9 * found[0]
    assert all(p.grad is None for p in made.model.renderer.parameters())


@pytest.mark.parametrize("name", ["direct_3dmm", "e2e_lebs_n10", "e2e_lebs_n5"])
@pytest.mark.usefixtures("extended")
def test_trained_end_to_end_the_error_of_landmarks_reaches_motion_and_encoder(name: str) -> None:
    made = ReconstructionTask(
        replace(PLAIN, variants=(name,), landmarks=1.0, motion_steps=2), with_real_landmarks(made_up_store())
    )
    made.fit_motion()
    made.losses(made.batch(0, 4, 0, 1), 0)["landmarks"].backward()
    assert made.landmark_motion is not None
    for part in (made.landmark_motion, made.model.expression):
        for key, parameter in part.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.count_nonzero() > 0, key
    assert all(p.grad is None for p in made.model.generator.parameters())


def with_real_landmarks(store: FrameStore) -> FrameStore:
    """The store with landmarks of a head that its cameras see, whose chin follows the first score."""
    vertices = np.repeat(canonical_mesh().vertices[None], len(store), axis=0)
    chin = vertices[..., 1] > np.quantile(vertices[..., 1], 0.75)
    vertices[..., 1] += 0.06 * chin * store.expression[:, :1].numpy()
    irises = [vertices[:, corners].mean(axis=1, keepdims=True).repeat(5, axis=1) for corners in ([33, 133], [263, 362])]
    points = project(np.concatenate([vertices, *irises], axis=1), store.camera.double().numpy())
    return replace(store, landmarks=torch.from_numpy(points).half())


def error_of_landmarks(made: ReconstructionTask) -> float:
    """Of 32 pairs, through the whole model's own steps."""
    pairs = made.batch(0, 32, 0, 1)
    own = (pairs[f"source_{name}"] for name in ("camera", "expression", "landmarks"))
    with torch.no_grad():
        motion = made.model.planes(made.model.encode(pairs["source"], *own), pairs["expression"]).motion
    assert motion is not None
    assert motion.points is not None
    return float(landmark_error(motion.points, pairs["landmarks"], pairs["camera"]))


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
def test_the_motion_is_fitted_to_landmarks_before_there_are_pictures() -> None:
    made = ReconstructionTask(replace(PLAIN, motion_steps=40), with_real_landmarks(made_up_store(frames=12)))
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    at_first = error_of_landmarks(made)
    fitted = made.fit_motion()
    found = error_of_landmarks(made)
    assert found < 0.6 * at_first
    assert found == pytest.approx(fitted, rel=0.3)
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("warp.motion."), name
    assert all(p.requires_grad and p.grad is None for p in made.model.expression.parameters())
    after = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert made.fit_motion() == 0.0  # what is fitted or trained stays
    assert all(torch.equal(value, after[name]) for name, value in made.model.state_dict().items())


def with_read_scores(store: FrameStore) -> FrameStore:
    """The store whose landmarks differ by a person's own face and whose scores are what they read as."""
    landmarks = with_real_landmarks(store).landmarks.float()
    own = torch.tensor([[1.0, 1.0], [0.92, 1.0], [1.0, 0.94], [1.05, 1.0]])
    landmarks = 0.5 + (landmarks - 0.5) * own[store.clip][:, None]
    return replace(store, landmarks=landmarks.half(), expression=ScoreReader()(landmarks))


def error_of_scores(made: ReconstructionTask) -> float:
    """Of 32 faces with another person's expression and camera."""
    motion, pairs = made.landmark_motion, made.batch(0, 32, 0, 1)
    assert motion is not None
    asked, camera = (pairs[name].roll(1, 0) for name in ("expression", "camera"))
    with torch.no_grad():
        own, given = (motion.input(made.model.expression(x), x) for x in (pairs["source_expression"], asked))
        face = motion.face(own, pairs["source_landmarks"], pairs["source_camera"], 0.45)
        return float((ScoreReader()(projected(motion(given, face), camera)[0]) - asked).abs().mean())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the fit to scores takes eight pairs."""
    monkeypatch.setattr(motion_fit, "_READ_PAIRS", 8)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_fitted_to_scores_a_face_shows_another_ones_expression_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LandmarkMotion, "amplify", lambda *given, **named: None)  # which is for what pictures lose
    found = {}
    for steps in (0, 40):
        monkeypatch.setitem(model_settings.PRESETS, "tiny", lambda: warped("align", "skip", "flow", "scores"))
        made = ReconstructionTask(
            replace(PLAIN, motion_steps=30, score_steps=steps), with_read_scores(made_up_store(4, 0, frames=12))
        )
        assert made.fit_motion() > 0.0
        found[steps] = error_of_scores(made), error_of_landmarks(made)
    assert found[40][0] < 0.8 * found[0][0]
    assert found[40][1] < 1.2 * found[0][1]


@pytest.mark.slow
@pytest.mark.usefixtures("extended", "few")
def test_steps_for_scores_fit_a_fitted_motion_on_and_without_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    store = with_read_scores(made_up_store(4, 0))
    made = ReconstructionTask(replace(PLAIN, motion_steps=5), store)
    made.fit_motion()
    motion = made.landmark_motion
    assert motion is not None
    kept = {name: value.clone() for name, value in motion.state_dict().items()}
    plain = []
    monkeypatch.setattr(MotionFit, "to_scores", lambda fit, steps: plain.append(motion.out.weight.clone()) or [0.1])
    made.settings = replace(made.settings, score_steps=2)
    assert made.fit_motion() == pytest.approx(0.1)
    lips = 3 * 13 + 1
    torch.testing.assert_close(1.3 * plain[0][lips], kept["out.weight"][lips])
    for name, value in motion.state_dict().items():
        torch.testing.assert_close(value, kept[name])
    monkeypatch.undo()
    monkeypatch.setattr(motion_fit, "_READ_PAIRS", 8)
    made.fit_motion()
    assert not torch.equal(motion.out.weight, kept["out.weight"])
    assert all(p.requires_grad for p in motion.parameters())


def test_scores_are_read_of_the_trackers_expressions_only() -> None:
    store = made_up_store()
    other = replace(store, expression=torch.rand(len(store), 64), space="bfm64")
    with pytest.raises(
        ConfigError, match="score_steps compares landmarks with arkit52 scores, but the data is in bfm64"
    ):
        ReconstructionTask(replace(PLAIN, score_steps=1), other)


@pytest.mark.parametrize("freeze", [(), ("warp",)])
def test_scores_need_a_motion_that_is_trained(freeze: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if freeze:
        monkeypatch.setitem(model_settings.PRESETS, "tiny", lambda: warped("align", "skip", "flow"))
    with pytest.raises(ConfigError, match="score_steps fits the warp's motion of landmarks"):
        task(replace(PLAIN, score_steps=1, freeze=freeze))


@pytest.mark.usefixtures("extended")
def test_the_motion_stays_rigid_where_nobody_wants_it() -> None:
    made = task(replace(PLAIN, motion_steps=0))
    assert made.fit_motion() == 0.0
    assert made.landmark_motion is not None
    assert not made.landmark_motion.out.weight.any()


def test_a_model_that_does_not_move_its_source_has_no_such_terms() -> None:
    made = task(replace(PLAIN, landmarks=10.0, flow=10.0))
    assert not set(MOVED) & set(made.losses(made.batch(0, 2, 0, 1), 0))
    assert made.fit_motion() == 0.0


# ---- dense motion ----------------------------------------------------------------------------------------------------


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Makes the preset `tiny` take detail from its source too, moved by dense motion."""
    config = warped("align", "skip", "flow", "detail", "dense")
    monkeypatch.setitem(model_settings.PRESETS, "tiny", lambda: config)
    return config


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("name", ["moved", "optical"])
def test_errors_of_the_sources_motion_are_terms_of_their_own_weight(name: str) -> None:
    def terms(weight: float) -> dict[str, float]:
        made = task(replace(PLAIN, **{name: weight}))
        return {k: float(v.detach()) for k, v in made.losses(made.batch(0, 2, 0, 1), 0).items()}

    one, five, none = terms(1.0), terms(5.0), terms(0.0)
    assert set(one) == {"l2", "l2_raw", "landmarks", "moved", name, "total"}
    assert set(none) == set(one) - {name}
    assert one[name] > 0
    assert five[name] == pytest.approx(5 * one[name], rel=1e-5)
    for found in (one, five, none):
        assert found["total"] == pytest.approx(sum(v for k, v in found.items() if k != "total"), rel=1e-5)


@pytest.mark.usefixtures("dense")
def test_what_is_moved_is_compared_with_the_driving_frame_by_the_weight_of_the_settings() -> None:
    made = task()
    batch = made.batch(0, 2, 0, 1)
    output = made.draw(batch)
    assert output.warped is not None
    wanted = PLAIN.moved * moved_error(output.warped, batch["driving"], None)
    torch.testing.assert_close(made.losses(batch, 0)["moved"], wanted)
    made.losses(batch, 0)["moved"].backward()
    assert made.model.warp is not None
    assert made.model.warp.dense is not None
    assert made.model.warp.dense.share.weight.grad is not None
    assert made.model.warp.dense.share.weight.grad.count_nonzero() > 0
    assert all(p.grad is None for p in made.model.generator.parameters())


@pytest.mark.usefixtures("dense")
def test_with_a_frozen_encoder_what_is_moved_is_compared_while_dense_motion_is_trained(tmp_path: Path) -> None:
    config = replace(PLAIN, variants=("clebs",), expression=saved_encoder(tmp_path), motion_steps=1)
    made = task(config)
    made.fit_motion()
    assert set(made.losses(made.batch(0, 2, 0, 1), 0)) == {"l2", "l2_raw", "moved", "total"}
    assert made.model.warp is not None
    assert made.model.warp.dense is not None
    made.model.warp.dense.requires_grad_(False)
    assert set(made.losses(made.batch(0, 2, 0, 1), 0)) == {"l2", "l2_raw", "total"}
    sheet = task(replace(config, variants=("clebs", "no_dense")))
    sheet.fit_motion()
    assert set(sheet.losses(sheet.batch(0, 2, 0, 1), 0)) == {"l2", "l2_raw", "total"}


@pytest.mark.parametrize("part", ["mouth", "eyes"])
def test_the_error_of_an_enlarged_part_is_a_term_of_its_own_weight(part: str) -> None:
    def terms(weight: float) -> dict[str, float]:
        made = task(replace(PLAIN, **{part: weight}))
        return {k: float(v.detach()) for k, v in made.losses(made.batch(0, 2, 0, 1), 0).items()}

    one, three, none = terms(1.0), terms(3.0), terms(0.0)
    assert set(one) - set(none) == {part}
    assert one[part] > 0
    assert three[part] == pytest.approx(3 * one[part], rel=1e-5)
    assert one["total"] == pytest.approx(none["total"] + one[part], rel=1e-5)


@pytest.mark.usefixtures("dense")
def test_without_super_resolution_nothing_is_moved() -> None:
    made = task(replace(PLAIN, superres=False))
    assert set(made.losses(made.batch(0, 2, 0, 1), 0)) == {"l2_raw", "landmarks", "total"}


# ---- variants and the frozen encoder ---------------------------------------------------------------------------------


def saved_encoder(folder: Path, **sizes: int) -> Path:
    """A pre-trained encoder of preset `tiny`'s sizes, as far as a file tells."""
    encoder = ExpressionEncoder(ExpressionConfig(**{"hidden": 32, "n": 10, "d": 32, **sizes}))
    expression = made_up_store().expression
    encoder.standardise(expression.mean(0) + 0.1, expression.std(0) + 0.1)
    measure_ranges(encoder, expression)
    return save_encoder(encoder, folder / "clebs.safetensors", {})


def test_variants_change_the_preset_in_turn() -> None:
    config = replace(PLAIN, variants=("e2e_lebs_n5", "no_lowpass"), image_size=32)
    found = config.model_config()
    assert found.expression == replace(tiny().expression, n=5)
    assert (found.generator.lowpass_sigma, found.generator.image_size) == (0.0, 32)
    with pytest.raises(ConfigError, match="no_eyes"):
        replace(PLAIN, variants=("no_eyes",)).model_config()


@pytest.mark.parametrize("name", ["direct_3dmm", "e2e_lebs_n25", "e2e_lebs_n5"])
def test_a_variant_that_is_trained_end_to_end_trains_its_encoder(name: str, tmp_path: Path) -> None:
    made = task(replace(PLAIN, variants=(name,)))
    before = {k: v.clone() for k, v in made.model.expression.named_parameters()}
    train(made, tmp_path, loop(max_images=6))
    for key, value in made.model.expression.named_parameters():
        assert not torch.equal(value, before[key]), key


def test_a_frozen_encoder_is_bit_equal_after_training_the_generator(tmp_path: Path) -> None:
    path = saved_encoder(tmp_path)
    made = task(replace(PLAIN, variants=("clebs",), expression=path))
    result = train(made, tmp_path / "run", loop(max_images=8))
    state = load_state(result.checkpoint)
    for name, value in load_encoder(path).state_dict().items():  # statistics and ranges too
        for found in (made.model.state_dict(), state.model, state.ema):
            assert torch.equal(found[f"expression.{name}"], value), name
    assert all(p.grad is None for p in made.model.expression.parameters())
    modulations = [m.modulation.weight for m in made.model.modules() if isinstance(m, EAdaLN)]
    assert all(weight.detach().count_nonzero() > 0 for weight in modulations)  # while the generator listens
    assert json.loads(json.dumps(made.config))["reconstruction"]["expression"] == str(path)


@pytest.mark.usefixtures("extended")
def test_with_a_frozen_encoder_the_motion_is_fitted_and_then_left(tmp_path: Path) -> None:
    made = task(replace(PLAIN, variants=("clebs",), expression=saved_encoder(tmp_path), motion_steps=1))
    made.fit_motion()
    motion = made.landmark_motion
    assert motion is not None
    assert motion.out.weight.any()
    assert not any(p.requires_grad for p in motion.parameters())
    flows = [p for name, p in made.model.named_parameters() if name.startswith("warp.skip.flows.")]
    assert flows
    assert all(p.requires_grad for p in flows)
    terms = made.losses(made.batch(0, 2, 0, 1), 0)
    assert "landmarks" not in terms  # nothing is trained that could lower it
    assert "flow" not in terms  # nor does anybody ask for it


@pytest.mark.parametrize("sizes", [{"n": 5}, {"d": 16}])
def test_an_encoder_of_another_size_is_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model needs n 10 and d 32.* export3d pretrain .*model\.expression=FILE"):
        task(replace(PLAIN, variants=("clebs",), expression=saved_encoder(tmp_path, **sizes)))


def test_a_run_continues_weights_of_another_encoder_and_size_with_the_frozen_one(tmp_path: Path) -> None:
    prepare(tmp_path / "data" / "train", range(3))
    first = replace(PLAIN, image_size=32)
    run(tmp_path / "data", tmp_path / "small", first, loop(max_images=2))
    path = saved_encoder(tmp_path)
    run(
        tmp_path / "data",
        tmp_path / "large",
        replace(PLAIN, variants=("clebs",), expression=path),
        loop(max_images=2),
        from_pretrained=tmp_path / "small" / "weights.safetensors",
    )
    continued = load_pretrained(tmp_path / "large" / "weights.safetensors")
    assert continued.config.expression.frozen
    for name, value in load_encoder(path).state_dict().items():
        assert torch.equal(continued.expression.state_dict()[name], value), name


def test_weights_to_begin_with_keep_their_settings_and_their_encoder() -> None:
    wanted = model_settings.variant(model_settings.variant(warped("align", "skip", "flow"), "no_skip"), "clebs")
    former = Export3D(wanted)
    made = ReconstructionTask(replace(PLAIN, preset=None), made_up_store(), former=former)
    assert made.model.config == wanted
    for name, value in former.state_dict().items():
        assert torch.equal(made.model.state_dict()[name], value), name


def test_an_encoder_that_is_named_goes_before_that_of_the_weights(tmp_path: Path) -> None:
    former = Export3D(model_settings.variant(tiny(), "clebs"))
    path = saved_encoder(tmp_path)
    made = ReconstructionTask(replace(PLAIN, preset=None, expression=path), made_up_store(), former=former)
    for name, value in load_encoder(path).state_dict().items():
        assert torch.equal(made.model.expression.state_dict()[name], value), name


def test_neither_preset_nor_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--from-pretrained"):
        run(tmp_path, tmp_path / "out", replace(PLAIN, preset=None), loop())


def test_the_packaged_features_take_the_place_of_lpips_where_its_weights_are_not_at_hand(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as where it is not installed
    assert isinstance(task(replace(PLAIN, backbone="auto")).perceptual, FacePerceptual)
    assert "loss.backbone_file" in caplog.text
    with pytest.raises(MissingExtra):
        task(replace(PLAIN, backbone="squeeze"))


def test_lpips_is_taken_where_its_weights_are_named(shared_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = shared_models / "lpips" / "squeezenet1_1_features_fp32.pth"
    made = task(replace(PLAIN, backbone="auto", backbone_file=features)).perceptual
    assert made is not None
    assert made.backbone == "squeeze"
    assert caplog.text == ""


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler looks at
def test_a_compiled_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced into graphs that run as they are: a real backend needs a C++ compiler and minutes."""
    compiled, compile_as_it_is = [], torch.compile

    def traced(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return compile_as_it_is(function, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced)
    for name in ("plain", "compiled"):
        made = ReconstructionTask(PLAIN, made_up_store(), made_up_store(seed=1), seed=1)
        train(made, tmp_path / name, loop(max_images=6, validate_every=4, compile=name == "compiled"))
    assert len(compiled) == 3, "generator, renderer and super-resolution; there is no dense motion"
    for kind in ("train", "validation"):
        one, two = logged(tmp_path / "plain", kind), logged(tmp_path / "compiled", kind)
        assert len(one) == len(two) >= 2
        for a, b in zip(one, two):
            assert b.get("losses", b.get("figures")) == pytest.approx(a.get("losses", a.get("figures")), rel=1e-4)


# ---- frozen parts ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
def test_frozen_parts_stay_as_they_are_and_the_run_resumes(tmp_path: Path) -> None:
    """The tri-plane EMA belongs to the generator; the fit of landmarks to the warp."""
    config = replace(PLAIN, freeze=("generator", "warp", "expression"), landmarks=1.0, flow=1.0, motion_steps=3)

    def start() -> ReconstructionTask:
        made = ReconstructionTask(config, made_up_store(), seed=1)
        assert made.fit_motion() == 0.0
        return made

    before = {name: value.clone() for name, value in start().module.state_dict().items()}
    for images in (4, 8):
        made = start()
        result = train(made, tmp_path / "cut", loop(max_images=images))
    whole = train(start(), tmp_path / "whole", loop(max_images=8))
    one, two = load_state(result.checkpoint), load_state(whole.checkpoint)
    assert all(torch.equal(value, two.model[name]) for name, value in one.model.items())
    changed = {name.partition(".")[0] for name, value in one.model.items() if not torch.equal(value, before[name])}
    assert changed == {"renderer", "superres"}
    frozen = [p for name, p in made.module.named_parameters() if name.partition(".")[0] in config.freeze]
    assert frozen
    assert not any(p.requires_grad or p.grad is not None for p in frozen)


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [
        (("generator", "eyes"), "freeze names 'eyes', which is no part of a model; choose from expression, generator"),
        (("warp",), "freeze names 'warp', but this model has none"),
        (("expression", "generator", "renderer", "superres"), "leaves nothing to train"),
    ],
)
def test_freezing_what_cannot_be_frozen_is_refused(freeze: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        task(replace(PLAIN, freeze=freeze))


# ---- figures and sheets ----------------------------------------------------------------------------------------------


def test_validation_compares_with_copying_the_source_on_fixed_pairs() -> None:
    made = ReconstructionTask(PLAIN, made_up_store(), made_up_store(seed=1))
    with torch.no_grad():
        figures = made.validate(made.module)
        assert made.validate(made.module) == figures
    assert set(figures) == {"psnr", "psnr_copy"}
    assert 3 < figures["psnr"] < figures["psnr_copy"] < 60
    assert task().validate(made.module) == {}


def test_with_a_perceptual_network_validation_has_its_distances_too() -> None:
    made = ReconstructionTask(replace(PLAIN, backbone="dlib"), made_up_store(), made_up_store(seed=1))
    drawn = next(made.drawn(made.module, 3))
    with torch.no_grad():
        figures = made.figures(drawn)
        wanted = {
            "lpips": made.perceptual(drawn.image.clamp(-1, 1), drawn.pair["driving"]),
            "lpips_copy": made.perceptual(drawn.pair["source"], drawn.pair["driving"]),
        }
    assert set(figures) == {"psnr", "psnr_copy", *wanted}
    for name, value in wanted.items():
        assert torch.equal(figures[name], value)


def test_copying_a_still_is_exact() -> None:
    """With one still per person, source and driving frame are equal: PSNR is at its limit of 100 dB."""
    made = ReconstructionTask(PLAIN, made_up_store(), made_up_store(videos=0, stills=2))
    with torch.no_grad():
        assert made.validate(made.module)["psnr_copy"] == pytest.approx(100.0)


def test_a_sheet_has_one_row_per_pair_with_source_driving_result_raw_and_depth() -> None:
    made = task()
    with torch.no_grad():
        sheet = made.sheet(made.module)
    assert sheet.dtype == np.uint8
    height, width, channels = sheet.shape
    assert channels == 3
    assert 5 * 64 <= width < 6 * 64
    assert 2 * 64 <= height < 3 * 64
    assert sheet.std() > 10


# ---- from a prepared folder to weights -------------------------------------------------------------------------------


def prepare(folder: Path, people: range, size: int = 64) -> None:
    """A prepared split of portraits."""
    records = []
    rng = np.random.default_rng(people.start)
    for person in people:
        stream = io.BytesIO()
        Image.fromarray(picture(person, 0.0, 0.5, size)).save(stream, format="PNG")
        records.append(
            Record(
                f"still{person}",
                stream.getvalue(),
                "png",
                rng.random((1, 52), dtype=np.float32),
                Camera.orbit().label[None].astype(np.float32),
                rng.uniform(0.3, 0.7, (1, 478, 2)).astype(np.float16),
                np.ones(1, dtype=bool),
                {"person": f"person{person}", "terms": "open", "fingerprint": f"print{person}", "space": "arkit52"},
            )
        )
    update(folder, records)


@pytest.mark.slow
def test_a_run_leaves_weights_that_can_be_loaded_and_continued_at_another_size(tmp_path: Path) -> None:
    prepare(tmp_path / "data" / "train", range(3))
    prepare(tmp_path / "data" / "val", range(3, 5))
    small = run(
        tmp_path / "data",
        tmp_path / "small",
        replace(PLAIN, image_size=32),
        loop(max_images=4, validate_every=4, sheet_every=4),
        cache=tmp_path / "cache",
    )
    assert set(small.validation) == {"psnr", "psnr_copy"}
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "train-32.safetensors",
        "val-32.safetensors",
    ]
    weights = tmp_path / "small" / "weights.safetensors"
    loaded = load_pretrained(weights)
    assert loaded.config.generator.image_size == 32
    average = load_state(small.checkpoint).ema
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, average[name]), name

    large = run(
        tmp_path / "data",
        tmp_path / "large",
        PLAIN,
        loop(max_images=2, lr=1e-12, warmup_images=0),
        from_pretrained=weights,
    )
    assert large.images_seen == 2
    continued: Export3D = load_pretrained(tmp_path / "large" / "weights.safetensors")
    assert continued.config.generator.image_size == 64
    for name, value in loaded.named_parameters():
        torch.testing.assert_close(dict(continued.named_parameters())[name], value, atol=1e-6, rtol=0)


def test_a_run_logs_each_term_of_the_loss(tmp_path: Path) -> None:
    train(task(), tmp_path, loop(max_images=4))
    lines = logged(tmp_path, "train")
    assert lines
    assert {"l2", "l2_raw", "total"} <= set(lines[-1]["losses"])


def test_a_folder_that_was_not_prepared_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="export3d prepare"):
        run(tmp_path, tmp_path / "out", PLAIN, loop())


@pytest.mark.slow
def test_weights_are_written_in_small_halves_at_every_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever fetches a few files of a run gets weights before it ends."""
    prepare(tmp_path / "data" / "train", range(3))
    seen: list[int] = []
    save = Recorder.line

    def look(self: Recorder, *given: Any, **figures: Any) -> None:
        save(self, *given, **figures)
        if (tmp_path / "run" / "weights.json").is_file():
            seen.append(read_sidecar(tmp_path / "run" / "weights.safetensors")["info"]["images_seen"])
            load_pretrained(tmp_path / "run" / "weights.safetensors")

    monkeypatch.setattr(Recorder, "line", look)
    settings = loop(max_images=8, save_every=4, weights_part_mb=0.2)
    result = run(tmp_path / "data", tmp_path / "run", replace(PLAIN, image_size=32), settings)
    assert seen == [4, 4]
    parts = sorted((tmp_path / "run").glob("weights.safetensors*"))
    assert len(parts) > 2
    assert all(part.stat().st_size <= 200_000 for part in parts)
    loaded, average = load_pretrained(tmp_path / "run" / "weights.safetensors"), load_state(result.checkpoint).ema
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, average[name].half().float()), name
