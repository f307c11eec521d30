"""The ablation of Table 3: rows that differ in nothing but their variant, trained once, scored alike, in one table."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export3d import config as model_settings
from export3d.ablation import rows, scores
from export3d.ablation.rows import PAPER, ROWS, train_rows
from export3d.ablation.scores import ablate
from export3d.ablation.table import Ablation, Column, RowResult
from export3d.camera import Camera
from export3d.data.shards import Record, update
from export3d.errors import CheckpointError, ConfigError, InputError, TrainingError
from export3d.evaluation.measures.image import Measure
from export3d.evaluation.reports.cross import CrossReport
from export3d.evaluation.reports.report import ClipResult, Report
from export3d.expression.directions import measure_ranges
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.losses import ReconstructionWeights
from export3d.pretrained import load_pretrained, save_encoder
from export3d.training import reconstruction
from export3d.training.loop_config import LoopConfig
from export3d.training.reconstruction import ReconstructionConfig
from export3d.training.state import load_state
from export3d.weights.file import load_weights

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


def record(key: str, terms: str = "open", frames: int = 1) -> Record:
    """A portrait, or a clip whose pictures are noise in the person's colour."""
    rng = np.random.default_rng(list(key.encode()))
    pictures = (rng.uniform(40, 200, 3) + rng.uniform(-20, 20, (frames, 64, 64, 3))).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pictures[0]).save(stream, format="PNG")
    media, suffix = stream.getvalue(), "png"
    if frames > 1:
        media, suffix = video(pictures), "mp4"
    return Record(
        key,
        media,
        suffix,
        rng.random((frames, 52), dtype=np.float32),
        np.stack([Camera.orbit(float(yaw)).label for yaw in rng.uniform(-20, 20, frames)]).astype(np.float32),
        rng.uniform(0.3, 0.7, (frames, 478, 2)).astype(np.float16),
        np.ones(frames, dtype=bool),
        {"person": f"person-{key}", "terms": terms, "fingerprint": f"print-{key}", "space": "arkit52"},
    )


def video(pictures: np.ndarray) -> bytes:
    """The bytes of an MP4."""
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared folder: portraits to train on; two clips to score, and a portrait that may not be shown."""
    folder = tmp_path / "data"
    update(folder / "train", [record(f"still{i}") for i in range(3)])
    update(folder / "val", [record("anna", frames=4), record("bert", frames=4), record("cora", "unstated")])
    return folder


@pytest.fixture
def config(tmp_path: Path) -> ReconstructionConfig:
    """Preset tiny at 32 pixels, with a pre-trained encoder of its sizes."""
    torch.manual_seed(3)
    encoder = ExpressionEncoder(ExpressionConfig(hidden=32, n=10, d=32))
    expression = torch.rand(50, 52)
    encoder.standardise(expression.mean(0), expression.std(0))
    measure_ranges(encoder, expression)
    return replace(PLAIN, expression=save_encoder(encoder, tmp_path / "clebs.safetensors", {}))


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)[0]


# ---- equal training --------------------------------------------------------------------------------------------------


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


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that were trained, in order."""
    done: list[str] = []
    real = rows.run

    def watched(data: Path, out: Path, *args: Any, **options: Any) -> Any:
        done.append(out.name)
        return real(data, out, *args, **options)

    monkeypatch.setattr(rows, "run", watched)
    return done


def test_a_finished_row_is_left_as_it_is(
    data: Path, config: ReconstructionConfig, tmp_path: Path, runs: list[str]
) -> None:
    train_rows(data, tmp_path / "out", config, loop(), ("clebs",))
    before = (tmp_path / "out" / "clebs" / "weights.safetensors").stat().st_mtime_ns
    train_rows(data, tmp_path / "out", config, loop(log_every=1, sheet_every=2), TWO)
    assert runs == ["clebs", "direct_3dmm"]
    assert (tmp_path / "out" / "clebs" / "weights.safetensors").stat().st_mtime_ns == before


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
    for name in ("mirror", "grad_clip", "model.generator.align", "image_size"):
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
    data: Path, config: ReconstructionConfig, tmp_path: Path
) -> None:
    train_rows(data, tmp_path / "out", config, loop(max_images=2), TWO)
    assert config.expression is not None
    encoder = ExpressionEncoder(ExpressionConfig(hidden=32, n=10, d=32))
    save_encoder(encoder, config.expression, {})
    with pytest.raises(ConfigError, match=r"out/clebs was trained with other settings \(expression clebs"):
        train_rows(data, tmp_path / "out", config, loop(max_images=2), TWO)
    train_rows(data, tmp_path / "out", config, loop(max_images=2), ("direct_3dmm",))  # has no such encoder
    update(data / "train", [record("more")])
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


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "changes", "rows", "told"),
    [
        ({"max_images": None, "max_minutes": 5.0}, {}, TWO, "equally many images.*--max-images"),
        ({"max_images": None}, {}, TWO, "loop.max_images"),
        ({"max_minutes": 5.0, "decay": "clock"}, {}, TWO, "follows the clock"),
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


# ---- the table -------------------------------------------------------------------------------------------------------

PSNR = Column("same", "psnr", "PSNR (dB) ↑", 2, "of the difference")
LEAK = Column("cross", "leak_dlib", "leak dlib ↓", 3, "cosine")
HIDDEN = Column("same", "flicker_face", "flicker", 2, "restlessness")


def result(name: Any, psnr: list[float], leak: list[float], note: str = "") -> RowResult:
    values = {
        PSNR.key: {f"clip{i}": value for i, value in enumerate(psnr)},
        LEAK.key: {f"pair{i}": value for i, value in enumerate(leak)},
        HIDDEN.key: {"clip0": 1.0},
    }
    return RowResult(name, 3000, 20.0, 1_234_567, 1_000_000, 21.5, values, note)


def compared() -> Ablation:
    rows = (
        result("direct_3dmm", [20.0, 30.0, 25.0], [0.5, 0.7, NAN]),
        result("e2e_lebs_n5", [19.0, 31.0, 25.0], [NAN] * 3, "no face came out"),
        result("clebs", [22.0, 32.0, 27.0], [0.4, 0.6, 0.5]),
    )
    reference = {PSNR.key: {f"clip{i}": 18.0 for i in range(3)}, LEAK.key: {f"pair{i}": 0.8 for i in range(3)}}
    return Ablation({"max_images": 3000}, (PSNR, HIDDEN, LEAK), rows, reference, ("anna (somewhere, open)",))


def line(text: str, name: str) -> list[str]:
    """The cells of the first row of a Markdown table that begins with a name."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_table_has_a_row_a_variant_with_means_and_intervals_over_cases() -> None:
    found = compared()
    text = found.table()
    assert line(text, "variant") == ["variant", "same: PSNR (dB) ↑", "cross: leak dlib ↓"]
    direct = line(text, "Direct 3DMM")
    assert direct[1].startswith("25.00 [20.00, 30.00]")
    assert direct[2] == "0.600 [0.500, 0.700] (of 2)"  # and says over how many
    assert line(text, "E2E LeBS (n = 5)")[2] == "–"
    assert line(text, "Full (CLeBS)")[1].startswith("27.00")
    assert line(text, "*no model*")[1:] == ["18.00 [18.00, 18.00]", "0.800 [0.800, 0.800]"]


def test_differences_are_paired_and_clear_ones_are_bold() -> None:
    found = compared()
    text = found.difference_table()
    direct = line(text, "Direct 3DMM")
    assert direct[1] == "**-2.00 [-2.00, -2.00]**"  # the clips differ by ten, the rows by two on every one
    assert direct[2] == "**+0.100 [+0.100, +0.100]**"
    assert line(text, "E2E LeBS (n = 5)")[1].startswith("**-2.00 [-3.00")
    assert line(text, "E2E LeBS (n = 5)")[2] == "–"
    assert "Full (CLeBS)" not in text
    unclear = replace(found, rows=(result("direct_3dmm", [22.5, 31.5, 27.0], [0.4] * 3), found.rows[-1]))
    assert not line(unclear.difference_table(), "Direct 3DMM")[1].startswith("**")


def test_the_page_has_the_budget_the_papers_figures_and_the_caveats() -> None:
    text = compared().markdown()
    assert line(text[text.index("## Budget") :], "Direct 3DMM") == [
        "Direct 3DMM", "direct_3dmm", "3,000", "20", "1,234,567", "1,000,000", "21.50",
    ]  # fmt: skip
    paper = text[text.index("## The paper's Table 3") :]
    assert line(paper, "Full (CLeBS)")[1:] == [
        "23.555", "0.704", "3.453", "0.811", "0.082", "0.030", "0.694", "0.208", "0.080",
    ]  # fmt: skip
    assert line(paper, "Direct 3DMM")[1] == "23.077"
    assert "E2E LeBS (n = 25)" not in paper  # only the rows that were run
    assert "Not to be ranked" in paper
    assert "E2E LeBS (n = 5): no face came out" in text
    assert "- max images: 3000" in text
    assert "1. anna (somewhere, open)" in text


def test_the_papers_rows_are_named_in_its_order() -> None:
    assert list(PAPER) == list(ROWS)
    assert PAPER["e2e_lebs_n25"] == "E2E LeBS (n = 25)"
    assert PAPER["clebs"] == "Full (CLeBS)"


def test_the_json_is_strict_and_has_what_the_tables_leave_out() -> None:
    found = json.loads(compared().to_json(), parse_constant=lambda name: pytest.fail(name))
    assert found["compared_with"] == "clebs"
    direct = found["rows"][0]
    assert direct["mean"]["same psnr"]["mean"] == 25.0
    assert direct["difference"]["cross leak_dlib"]["mean"] == pytest.approx(0.1)
    assert direct["values"]["cross leak_dlib"]["pair2"] is None
    assert "same flicker_face" in direct["mean"]
    assert found["paper"]["Full (CLeBS)"]["same identity PSNR"] == 23.555


def test_one_row_alone_has_nothing_to_be_compared_with() -> None:
    alone = replace(compared(), rows=compared().rows[-1:])
    assert "case by case" not in alone.markdown()
    assert alone.difference(alone.rows[0], PSNR).mean == 0.0


# ---- from data to the table ------------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Protocols that judge at once: figures come from the number of basis vectors of the weights they are given."""
    asked: list[tuple[str, Path]] = []

    class Nothing:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def same(split: Path, out: Path, *, weights: Path, **options: Any) -> Report:
        asked.append(("same", weights))
        n = float(load_pretrained(weights).config.expression.n)
        measures = (Measure("psnr", "PSNR (dB)", True, 2, "of the difference"),)
        scores = {"ours": {"psnr": n}, "copy": {"psnr": 1.0}}
        clips = [ClipResult(key, key, "open", "", 3, 0, 0, scores) for key in ("anna", "bert")]
        return Report("made", {}, ("ours", "copy"), measures, tuple(clips))

    def cross(split: Path, out: Path, *, weights: Path, **options: Any) -> CrossReport:
        asked.append(("cross", weights))
        n = float(load_pretrained(weights).config.expression.n)
        if n == 5:
            raise InputError("no pair could be scored: no face came out")
        out.mkdir(exist_ok=True)
        real = {"aed": 0.01, "yaw": 0.9}
        found = {"bert by anna": {"aed": n / 100, "yaw": NAN}, "anna by bert": {"aed": n / 100, "yaw": 0.5}}
        pairs = [
            ClipResult(key, "", "", "", 3, 0, 0, {"ours": values, "real pictures": real})
            for key, values in found.items()
        ]
        measures = (Measure("aed", "AED", False, 3, "mean"), Measure("yaw", "yaw", True, 2, "correlation"))
        return CrossReport("made", {}, ("ours", "real pictures"), measures, tuple(pairs))

    monkeypatch.setattr(scores, "ClipScorer", Nothing)
    monkeypatch.setattr(scores, "same_identity", same)
    monkeypatch.setattr(scores, "cross_identity", cross)
    return asked


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
def test_without_anybody_to_show_there_is_no_sheet(data: Path, config: ReconstructionConfig, tmp_path: Path) -> None:
    update(data / "val", [record(key, "unstated", frames=4) for key in ("anna", "bert")])
    found = ablate(data, tmp_path / "out", config, loop(max_images=2), ("clebs",))
    assert found is not None
    assert found.credits == ()
    assert not (tmp_path / "out" / "sheet.png").exists()
    assert "sheet.png" not in found.markdown()


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
def make_person() -> Callable[..., Record]:
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
            video(np.stack([crop(frame, track.crop) for frame in frames])),
            "mp4",
            track.motion.expression.astype(np.float32),
            track.motion.camera.astype(np.float32),
            (track.landmarks / CROP_SIZE).astype(np.float16),
            track.found,
            {"person": key, "terms": "open", "fingerprint": f"print-{key}", "space": "arkit52"},
        )

    return make
