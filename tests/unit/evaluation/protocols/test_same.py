"""Same-identity reenactment of a made-up split by an untrained network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export3d.data import shards
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import CheckpointError, ConfigError, InputError, OutputError
from export3d.evaluation.protocols import same
from export3d.evaluation.protocols.driven import Reenactment, driven_clip
from export3d.evaluation.protocols.prediction_writer import PredictionWriter
from export3d.evaluation.protocols.same import same_identity
from export3d.evaluation.protocols.settings import RunSettings, Scoring
from export3d.image import read_image, to_uint8
from export3d.pretrained import load_pretrained

Make = Callable[..., Record]
CPU = torch.device("cpu")
PLAIN = Scoring(backbone="none", faces=False)
FILES = ["clips", "report.html", "report.json", "report.md", "sheet.png"]


def test_everything_is_written(split: Path, tmp_path: Path, tiny_weights: Path, alex_file: Path) -> None:
    out = tmp_path / "results" / "first"
    scoring = replace(PLAIN, backbone="alex", backbone_file=alex_file)
    report = same_identity(split, out, weights=tiny_weights, references=("copy", "warp"), scoring=scoring)
    assert sorted(path.name for path in out.iterdir()) == FILES
    value = json.loads((out / "report.json").read_text())
    assert [clip["key"] for clip in value["clips"]] == ["walks", "rests"]
    assert [clip["group"] for clip in value["clips"]] == ["moving", "still"]
    assert value["methods"] == ["ours", "copy", "warp"]
    assert set(value["clips"][0]["scores"]["ours"]) == {"psnr", "ssim", "lpips_uniform", "rendered"}
    assert value["clips"][0]["scores"]["ours"]["rendered"] == 100.0  # no warp
    assert "rendered" not in value["clips"][0]["scores"]["copy"]
    assert value["settings"]["weights"].startswith("tiny.safetensors, tensors sha256 ")
    assert list(value["skipped"]) == ["gone"]
    assert "no second frame" in value["skipped"]["gone"]
    texts = [(out / name).read_text() for name in ("report.json", "report.md", "report.html")]
    assert not any(str(tmp_path) in text for text in texts)
    assert texts[1] == report.markdown()
    assert "data:image/webp" in texts[2]
    assert [credit["clip"] for credit in report.credits] == ["walks"]


def test_the_figures_are_means_over_the_driven_frames(
    split: Path, tmp_path: Path, tiny_weights: Path, make_clip: Make
) -> None:
    clip = driven_clip(make_clip("walks"), "arkit52", 64)
    frames = clip.frames.double() / 255
    expected = [-10 * (frames[row] - frames[clip.source]).square().mean().log10().item() for row in clip.driven]
    report = same_identity(split, tmp_path / "out", weights=tiny_weights, references=(), scoring=PLAIN)
    assert report.methods == ("ours", "copy")
    assert report.clips[0].value("copy", "psnr") == pytest.approx(np.mean(expected), abs=1e-4)
    assert report.clips[0].frames == len(expected)


def test_a_cut_run_goes_on_and_other_settings_begin_anew(
    split: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scored = tmp_path / "out", list[str]()

    original = same.ClipScorer.score

    def watched(self, name, *rest):
        scored.append(name)
        if name == "rests" and len(scored) == 2:
            raise KeyboardInterrupt
        return original(self, name, *rest)

    monkeypatch.setattr(same.ClipScorer, "score", watched)
    with pytest.raises(KeyboardInterrupt):
        same_identity(split, out, weights=tiny_weights, references=(), scoring=PLAIN)
    assert not (out / "report.json").exists()
    told: list[tuple[int, int]] = []
    same_identity(
        split, out, weights=tiny_weights, references=(), scoring=PLAIN, progress=lambda *now: told.append(now)
    )
    assert scored == ["walks", "rests", "rests"]
    assert told[0] == (5, 15)
    assert told[-1] == (15, 15)
    whole = same_identity(split, tmp_path / "fresh", weights=tiny_weights, references=(), scoring=PLAIN)
    assert (out / "report.json").read_text() == whole.to_json()
    before = len(scored)
    same_identity(split, out, weights=tiny_weights, references=(), scoring=PLAIN, every=2)
    assert len(scored) == before + 2


@pytest.mark.slow
def test_several_processes_give_the_same_report(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    reports = [
        same_identity(
            split,
            tmp_path / str(workers),
            weights=tiny_weights,
            references=("copy",),
            scoring=PLAIN,
            run=RunSettings(workers=workers),
        )
        for workers in (0, 2)
    ]
    assert reports[0].to_json() == reports[1].to_json()


def test_pictures_of_another_run_are_not_overwritten(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    saved = tmp_path / "saved"
    with PredictionWriter(saved).clip("walks", np.zeros((64, 64, 3), np.uint8)) as clip:
        clip.add(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="already holds images of walks from another run"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN, run=RunSettings(save=saved))


def test_the_sheet_shows_source_farthest_frame_and_ours(
    split: Path, tmp_path: Path, tiny_weights: Path, make_clip: Make
) -> None:
    same_identity(split, tmp_path / "out", weights=tiny_weights, references=(), scoring=PLAIN, run=RunSettings(batch=1))
    clip = driven_clip(make_clip("walks"), "arkit52", 64)
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        sheet = np.array(image)
    ours = Reenactment(load_pretrained(tiny_weights))(clip, CPU)(np.array([clip.farthest])).image
    expected = [*to_uint8(clip.images([clip.source, clip.farthest])), to_uint8(ours)[0]]
    top = sheet.shape[0] - 64 - 4
    for column, picture in enumerate(expected):
        left = 4 + column * 68
        shown = sheet[top : top + 64, left : left + 64].astype(int)
        assert np.abs(shown - picture).mean() <= 2, "the sheet's mark moves some values by a few levels"


def test_without_anyone_to_show_there_is_no_sheet(tmp_path: Path, make_clip: Make, tiny_weights: Path) -> None:
    split = tmp_path / "val"
    update(split, [make_clip("a", terms="unstated")])
    assert same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN).credits == ()
    assert not (tmp_path / "out" / "sheet.png").exists()
    shown = same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN, publishable_only=False)
    assert [credit["clip"] for credit in shown.credits] == ["a"]
    assert (tmp_path / "out" / "sheet.png").exists()


def test_the_same_weights_give_the_same_report(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    for name in ("a", "b"):
        same_identity(split, tmp_path / name, weights=tiny_weights, references=(), scoring=PLAIN)
    for file in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    sheets = [read_image(tmp_path / name / "sheet.png") for name in ("a", "b")]
    assert np.array_equal(*sheets), "signatures differ, pixels do not"


def test_a_folder_that_is_not_a_split_is_refused(tmp_path: Path, tiny_weights: Path) -> None:
    with pytest.raises(InputError, match=r"not a prepared split.*export3d prepare"):
        same_identity(tmp_path / "nowhere", tmp_path / "out", weights=tiny_weights, scoring=PLAIN)
    assert not (tmp_path / "out").exists()


def test_a_split_without_clips_is_refused(tmp_path: Path, tiny_weights: Path, make_clip: Make) -> None:
    split = tmp_path / "val"
    update(split, [make_clip("a", found=[True] + [False] * 5)])
    with pytest.raises(InputError, match=r"nothing in .*val can be scored: a has no second frame"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN)
    update(split, [], drop=["print-a"])
    with pytest.raises(InputError, match="it holds no video"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN)


def test_missing_weights_are_refused(split: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        same_identity(split, tmp_path / "out", weights=tmp_path / "nothing.safetensors", scoring=PLAIN)


def test_another_expression_space_is_refused(
    split: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = split / shards.INDEX_NAME
    path.write_text(path.read_text().replace('"space": "arkit52"', '"space": "bfm64"'))
    with pytest.raises(InputError, match=r"bfm64.*arkit52"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN)


def test_an_unknown_reference_is_refused(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown reference 'mirror'; choose from copy, warp, mesh, oracle"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, references=("mirror",), scoring=PLAIN)


def test_an_output_that_is_a_file_is_refused(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="out"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN)


@pytest.mark.parametrize("setting", [{"every": 0}, {"max_clips": 0}])
def test_senseless_settings_are_refused(split: Path, tmp_path: Path, tiny_weights: Path, setting: dict) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, scoring=PLAIN, **setting)
