"""Expression pre-training on synthetic faces: the task, and the encoder that a run writes."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from export3d.camera import Camera
from export3d.cli.main import main
from export3d.data import frame_window
from export3d.data.contrastive import ContrastConfig
from export3d.data.frame_layout import Clip
from export3d.data.frames import FrameStore
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError
from export3d.expression.contrastive import CLeBSConfig, contrastive_loss
from export3d.expression.encoder import ExpressionConfig
from export3d.motion.motion import SHOULDERS
from export3d.pretrained import load_encoder
from export3d.training.loop import Result, train
from export3d.training.loop_config import LoopConfig
from export3d.training.pretrain import PretrainConfig, PretrainTask, held_out, run, videos
from export3d.training.recipes import resolve
from export3d.training.regularisers import ExpressionError
from export3d.training.state import load_state

FRAMES = 8
SMALL = PretrainConfig(
    model=CLeBSConfig(width=8, groups=4, expression=ExpressionConfig(hidden=32, n=4, d=16)),
    frames=ContrastConfig(frames=FRAMES, size=32, augment=False),
)


def face(person: int, scores: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a mouth that opens, brows that rise, a gaze that moves, in a person's colours."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    skin, mark = np.random.default_rng(person).uniform([120] * 3, 220), np.random.default_rng(person).uniform(0, 60, 3)
    mouth = (np.abs(x - 0.5) < 0.2) & (np.abs(y - 0.75) < 0.01 + 0.15 * scores[0])
    brows = (np.abs(x - 0.5) < 0.3) & (np.abs(y - 0.35 + 0.15 * scores[1]) < 0.04)
    eye = (x - 0.3 - 0.4 * scores[2]) ** 2 + (y - 0.5) ** 2 < 0.006
    return np.where((mouth | brows | eye)[..., None], mark, skin).round().astype(np.uint8)


def drawn(person: int, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (T, size, size, 3) of a clip and the expressions (T, 52) they show."""
    rng = np.random.default_rng(100 + person)
    expression = rng.uniform(0, 0.05, (frames, 52))
    expression[:, :3] = rng.random((frames, 3))
    return np.stack([face(person, scores, size) for scores in expression]), expression.astype(np.float32)


def landmarks(frames: int) -> np.ndarray:
    """(T, 478, 2): a box around the face."""
    return np.random.default_rng(0).uniform(0.12, 0.88, (frames, 478, 2)).astype(np.float16)


def made_up_store(
    people: range = range(6), lengths: tuple[int, ...] = (16,), kind: str = "video", size: int = 48
) -> FrameStore:
    counts = list(itertools.islice(itertools.cycle(lengths), len(people)))
    starts = [0, *itertools.accumulate(counts)]
    clips = [Clip(f"clip{p}", kind, f"person{p}", "open", at, n) for p, at, n in zip(people, starts, counts)]
    made = [drawn(person, count, size) for person, count in zip(people, counts)]
    total = sum(counts)
    return FrameStore(
        frames=torch.from_numpy(np.concatenate([pictures for pictures, _ in made])).permute(0, 3, 1, 2).contiguous(),
        expression=torch.from_numpy(np.concatenate([expression for _, expression in made])),
        camera=torch.from_numpy(Camera.orbit().label).float().expand(total, 25),
        shoulders=torch.zeros(total, SHOULDERS),
        landmarks=torch.from_numpy(landmarks(total)),
        found=torch.ones(total, dtype=torch.bool),
        clip=torch.from_numpy(np.repeat(np.arange(len(clips)), counts)),
        clips=tuple(clips),
        space="arkit52",
    )


def loop(**changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "batch_size": 2, "max_images": 12, "log_every": 2, "sheet_every": 0, "validate_every": 0, "save_every": 0,
        "lr": 3e-3, "warmup_images": 4, "ema_halflife_images": 8, "ema_rampup": 0.5, "precision": "fp32", "cpu": True,
        "tensorboard": False, "progress": False,
    }  # fmt: skip
    return LoopConfig(**{**settings, **changes})


# ---- what the loop relies on -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_retrieval_on_new_people_becomes_far_better_than_chance(tmp_path: Path) -> None:
    task = PretrainTask(SMALL, made_up_store(range(12)), val=made_up_store(range(50, 54)))
    with torch.no_grad():
        before = task.validate(task.module)
    result = train(task, tmp_path, loop(batch_size=4, max_images=4 * 60, validate_every=4 * 60))
    assert set(result.validation) == {"loss", "top1", "top5"}
    assert result.validation["top1"] > 0.45 > 3 / FRAMES > before["top1"]
    assert result.validation["loss"] < 0.5 * before["loss"]


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
def test_six_steps_are_three_and_a_resume_and_three_bit_for_bit(tmp_path: Path) -> None:
    """With all sources of randomness: clips, frames, crops, colours, mirror images, noise, pseudo-clips."""
    config = replace(SMALL, frames=replace(SMALL.frames, augment=True))
    stores = made_up_store(range(3), (16, 5)), [made_up_store(range(20, 22), kind="pseudo")]
    at_once = train(PretrainTask(config, *stores), tmp_path / "once", loop(max_images=12))
    train(PretrainTask(config, *stores), tmp_path / "twice", loop(max_images=6))
    torch.manual_seed(12345)
    resumed = train(PretrainTask(config, *stores), tmp_path / "twice", loop(max_images=12))
    assert (at_once.step, resumed.step) == (6, 6)
    a, b = everything(at_once), everything(resumed)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name


def test_the_loss_is_a_mean_over_clips_of_any_length() -> None:
    task = PretrainTask(SMALL, made_up_store(range(4), (16, 5)))
    batch = task.batch(0, 6, 0, 1)
    assert {group["image"].shape[1] for group in batch["groups"]} == {5, FRAMES}
    each = []
    with torch.no_grad():
        total = task.losses(batch, 0)["total"]
        for group in batch["groups"]:
            for x, e in zip(group["image"], group["expression"]):
                each.append(contrastive_loss(*task.clebs(x[None], e[None]), SMALL.model.temperature))
    torch.testing.assert_close(total, torch.stack(each).mean(), rtol=1e-4, atol=1e-4)


def test_the_objective_and_the_temperature_reach_the_loss() -> None:
    totals = []
    for changes in ({}, {"objective": "printed"}, {"objective": "symmetric"}, {"temperature": 0.5}):
        task = PretrainTask(replace(SMALL, model=replace(SMALL.model, **changes)), made_up_store(range(2)))  # type: ignore[arg-type]
        with torch.no_grad():
            terms = task.losses(task.batch(0, 2, 0, 1), 0)
        assert set(terms) == {"total", "top5"}
        assert 0 <= float(terms["top5"]) <= 1
        totals.append(round(float(terms["total"]), 5))
    assert len(set(totals)) == 4


def test_the_positive_that_was_drawn_reaches_the_loss() -> None:
    task = PretrainTask(replace(SMALL, frames=replace(SMALL.frames, positives="one")), made_up_store(range(4)))
    batch = task.batch(0, 4, 0, 1)
    (group,) = batch["groups"]
    with torch.no_grad():
        image, expression = task.clebs(group["image"], group["expression"])
        wanted = contrastive_loss(image, expression, SMALL.model.temperature, positive=group["positive"])
        assert float(task.losses(batch, 0)["total"]) == pytest.approx(float(wanted))
        assert float(wanted) != pytest.approx(float(contrastive_loss(image, expression, SMALL.model.temperature)))


def test_validation_and_sheets_do_not_change_the_towers() -> None:
    task = PretrainTask(SMALL, made_up_store(range(2)), val=made_up_store(range(50, 52)))
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    with torch.no_grad():
        assert task.validate(task.module) == task.validate(task.module)
        sheet = task.sheet(task.module)
    for name, value in task.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert sheet.dtype == np.uint8
    assert sheet.shape == (4 * 96 + 5 * 4, 8 * 96 + 9 * 4, 3)  # two clips, eight frames, the nearest frames below


# ---- data ------------------------------------------------------------------------------------------------------------


def test_scores_are_standardised_by_the_real_videos_together_or_one_by_one() -> None:
    store, pseudo = made_up_store(range(3)), made_up_store(range(9, 12), kind="pseudo")
    together = (store.expression - store.expression.mean(0)).square().mean().sqrt()
    for standardise in ("together", "each"):
        task = PretrainTask(replace(SMALL, standardise=standardise), store, [pseudo])  # type: ignore[arg-type]
        encoder = task.clebs.expression
        torch.testing.assert_close(encoder.mean, store.expression.mean(0))
        each = store.expression.std(0, correction=0)
        wanted = {"together": together.expand(52), "each": each}[standardise]
        torch.testing.assert_close(encoder.deviation, wanted.clamp_min(0.02))
    unchanged = PretrainTask(replace(SMALL, standardise="none"), store, [pseudo]).clebs.expression
    assert torch.equal(unchanged.mean, torch.zeros(52))
    assert torch.equal(unchanged.deviation, torch.ones(52))


def test_only_found_frames_of_videos_count() -> None:
    store = made_up_store(range(2))
    found = store.found.clone()
    found[3:9] = False
    clips = (store.clips[0], replace(store.clips[1], kind="image"))
    chosen = videos(replace(store, found=found, clips=clips))
    assert torch.equal(chosen, store.expression[[0, 1, 2, *range(9, 16)]])


def test_held_out_frames_are_spread_over_each_clip_that_is_long_enough() -> None:
    rows = held_out(made_up_store(range(3), (16, 5, 8)), 8)
    assert [row.tolist() for row in rows] == [[0, 2, 4, 6, 9, 11, 13, 15], list(range(21, 29))]


def test_a_validation_split_of_short_clips_is_no_obstacle(tmp_path: Path) -> None:
    task = PretrainTask(SMALL, made_up_store(range(2), (5,)), val=made_up_store(range(50, 52), (5,)))
    result = train(task, tmp_path, loop(max_images=4, validate_every=2, sheet_every=2))
    assert result.images_seen == 4


def test_pseudo_clips_have_their_share() -> None:
    stores = made_up_store(range(2)), [made_up_store(range(9, 11), kind="pseudo")]
    stores[1][0].expression.add_(10.0)
    for share in (0.0, 0.5, 1.0):
        task = PretrainTask(replace(SMALL, pseudo_share=share), *stores)
        (group,) = task.batch(0, 60, 0, 1)["groups"]
        found = float((group["expression"].mean((1, 2)) > 5).float().mean())
        assert abs(found - share) < 0.2 * (share == 0.5) + 1e-6


def test_spaces_are_not_mixed() -> None:
    store = made_up_store(range(2))
    other = replace(store, expression=torch.rand(len(store), 64), space="bfm64")
    for given in ({"pseudo": [other]}, {"val": other}):
        with pytest.raises(InputError, match=r"arkit52.*bfm64"):
            PretrainTask(SMALL, store, **given)  # type: ignore[arg-type]


def test_data_without_videos_are_refused() -> None:
    with pytest.raises(InputError, match="two frames"):
        PretrainTask(SMALL, made_up_store(range(2), (1,), "image"))


# ---- from a prepared folder to a frozen encoder ----------------------------------------------------------------------


def prepare(folder: Path, people: range, frames: int = 10, size: int = 128) -> None:
    """A prepared split of short videos."""
    records = []
    for person in people:
        pictures, expression = drawn(person, frames, size)
        stream = io.BytesIO()
        with av.open(stream, "w", format="mp4") as container:
            video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            video.height = video.width = size
            video.pix_fmt = "yuv420p"
            for picture in pictures:
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode())
        info = {"person": f"person{person}", "terms": "open", "fingerprint": f"print{person}", "space": "arkit52"}
        camera = np.repeat(Camera.orbit().label[None].astype(np.float32), frames, axis=0)
        found = np.ones(frames, dtype=bool)
        points = landmarks(frames)
        records.append(Record(f"clip{person}", stream.getvalue(), "mp4", expression, camera, points, found, info))
    update(folder, records)


def test_a_run_leaves_a_frozen_encoder_with_settled_directions(tmp_path: Path) -> None:
    prepare(tmp_path / "data" / "train", range(2))
    prepare(tmp_path / "data" / "val", range(2, 3))
    prepare(tmp_path / "pseudo", range(3, 4))
    result = run(
        tmp_path / "data",
        tmp_path / "out",
        replace(SMALL, frames=replace(SMALL.frames, augment=True)),
        loop(max_images=4, validate_every=4, sheet_every=4),
        pseudo=[tmp_path / "pseudo"],
        cache=tmp_path / "cache",
    )
    assert set(result.validation) == {"loss", "top1", "top5"}
    names = ["pseudo0-128.safetensors", "train-128.safetensors", "val-128.safetensors"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == names

    encoder = load_encoder(tmp_path / "out" / "clebs.safetensors")
    assert encoder.config == SMALL.model.expression
    assert not any(p.requires_grad for p in encoder.parameters())
    assert (encoder.low < encoder.high).all()
    sidecar = json.loads((tmp_path / "out" / "clebs.json").read_text("utf-8"))
    assert sidecar["info"]["clips_seen"] == 4
    ExpressionError.load(tmp_path / "out" / "reader.safetensors")

    task = PretrainTask(SMALL, made_up_store(range(2)))
    task.clebs.load_state_dict(load_state(result.checkpoint).ema)  # the averaged weights, not the last
    beta = torch.rand(20, 52)
    with torch.no_grad():
        wanted, found = task.clebs.expression(beta), encoder(beta)
    torch.testing.assert_close(found / found.norm(), wanted / wanted.norm(), rtol=0, atol=1e-5)


def test_the_papers_form_sees_whole_frames_and_keeps_the_axes_as_trained(tmp_path: Path) -> None:
    prepare(tmp_path / "data" / "train", range(2), size=64)
    settings = resolve(PretrainConfig, "paper").config
    small = replace(
        settings,
        model=replace(settings.model, width=8, expression=SMALL.model.expression),
        frames=replace(settings.frames, frames=5, size=48),
    )
    result = run(tmp_path / "data", tmp_path / "out", small, loop(max_images=4), cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train-48.safetensors"]
    encoder, state = load_encoder(tmp_path / "out" / "clebs.safetensors"), load_state(result.checkpoint)
    for name, value in encoder.state_dict().items():
        if name not in ("low", "high"):
            assert torch.equal(value, state.ema[f"expression.{name}"]), name
    assert torch.equal(encoder.deviation, torch.ones(52))
    assert (encoder.low < encoder.high).all()
    assert any("running_mean" in name for name in state.model), "BatchNorm"

    reader = ExpressionError.load(tmp_path / "out" / "reader.safetensors")
    image = torch.rand(2, 3, 48, 48) * 2 - 1
    boxes = torch.rand(2, 2, 478, 2)
    assert reader(image, image.flip(-1), boxes[0]) == reader(image, image.flip(-1), boxes[1]), "no face box"


@pytest.mark.slow
def test_a_run_on_a_window_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "data" / "train", range(6), size=64)
    monkeypatch.setattr(frame_window, "_MIN_BLOCK", 1)
    row = 3 * 32 * 32 + 52 * 4 + 25 * 4 + 478 * 2 * 2 + 1 + 8
    frames = replace(SMALL.frames, frames=4, crop="whole")
    config = replace(SMALL, frames=frames, memory=45 * row / 1e9)  # blocks of five frames: a clip each turn

    def go(name: str, clips: int) -> tuple[dict[str, Any], bytes]:
        result = run(tmp_path / "data", tmp_path / name, config, loop(max_images=clips))
        return everything(result), (tmp_path / name / "clebs.safetensors").read_bytes()

    whole = go("whole", 6)
    go("parts", 2)
    assert go("parts", 6)[1] == whole[1]
    again = go("parts", 6)
    assert again[1] == whole[1], "ranges are measured on the first window"
    for name, value in whole[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[0][name])), name


def test_a_window_and_a_cache_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "index.json").touch()
    with pytest.raises(ConfigError, match="leave --cache and --pseudo out"):
        run(tmp_path, tmp_path / "out", replace(SMALL, memory=1.0), loop(), cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="memory must be positive"):
        replace(SMALL, memory=0.0)


def test_the_command_names_the_remedy_for_a_folder_that_was_not_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "export3d prepare" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"frozen": True}, {"basis": False}])
def test_an_encoder_that_could_not_be_used_is_refused_before_training(change: dict[str, bool]) -> None:
    expression = replace(SMALL.model.expression, **change)
    with pytest.raises(ConfigError, match="change basis or frozen"):
        PretrainTask(replace(SMALL, model=replace(SMALL.model, expression=expression)), made_up_store())
