"""The same-identity protocol on two made-up clips and an untrained network."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from export3d.camera import Camera, from_pose
from export3d.data import shards
from export3d.data.shards import Record, update
from export3d.errors import CheckpointError, ConfigError, InputError, NoFaceFound, OutputError
from export3d.evaluation.metrics import PSNR, SSIM
from export3d.evaluation.protocol import (
    Copy,
    DrivenClip,
    Reenactment,
    distance_from,
    driven_clip,
    evaluate_split,
    most_frontal,
    same_identity,
)
from export3d.image import to_uint8
from export3d.pretrained import load_pretrained

Make = Callable[..., Record]
CPU = torch.device("cpu")


def labels(*angles: tuple[float, float, float]) -> np.ndarray:
    return from_pose(np.array(angles, dtype=float), np.tile([0.0, 0.0, 2.7], (len(angles), 1)))


# --- the rules --------------------------------------------------------------------------------------------------------


def test_the_source_is_the_frame_with_the_smallest_sum_of_angles() -> None:
    camera = labels((9, 0, 0), (-4, 3, -1), (0, 0, 8.5), (5, -5, 5))
    assert most_frontal(camera, np.ones(4, bool)) == 1


def test_the_source_is_a_frame_in_which_the_face_was_found() -> None:
    camera = labels((0, 0, 0), (20, 0, 0), (30, 0, 0))
    assert most_frontal(camera, np.array([False, True, True])) == 1


def test_of_equally_frontal_frames_the_first_is_taken() -> None:
    label = Camera.look_at().label
    assert most_frontal(np.stack([label] * 3), np.array([False, True, True])) == 1


def test_every_further_found_frame_is_driven(make_clip: Make) -> None:
    record = make_clip("a", yaws=(12, -3, 25, 8, 18), found=[True, True, False, True, True])
    clip = driven_clip(record, "arkit52", 64)
    assert clip.source == 1
    assert clip.driven.tolist() == [0, 3, 4]
    assert driven_clip(record, "arkit52", 64, every=2).driven.tolist() == [0, 4]


def test_frames_that_equal_the_source_are_left_out_and_counted(
    make_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_clip("a")
    pictures = np.full((record.frames, 3, 64, 64), 7, np.uint8)
    monkeypatch.setattr("export3d.evaluation.protocol.decode", lambda record, size: pictures)
    with pytest.raises(NoFaceFound, match="no second frame"):
        driven_clip(record, "arkit52", 64)
    pictures[4] += 1
    clip = driven_clip(record, "arkit52", 64)
    assert (clip.driven.tolist(), clip.identical) == ([4], 4)


def test_the_farthest_frame_differs_most_in_pose_and_expression(make_clip: Make) -> None:
    clip = driven_clip(make_clip("a", yaws=(0, 1, 60, 2)), "arkit52", 64)
    flat = np.full((4, 52), 0.1, np.float32)
    same = DrivenClip(
        clip.record, clip.frames, type(clip.motion)(flat, clip.motion.camera, 25.0, "arkit52"), 0, clip.driven, 0
    )
    assert same.farthest == 2
    assert distance_from(same.motion, 0)[2] == pytest.approx(4.0, abs=0.2)  # 60 degrees of yaw in units of 15
    flat[3] = 0.9
    shifted = DrivenClip(
        clip.record, clip.frames, type(clip.motion)(flat, clip.motion.camera, 25.0, "arkit52"), 0, clip.driven, 0
    )
    assert shifted.farthest == 3


def test_the_copy_is_the_source_and_ours_is_what_the_model_renders(make_clip: Make, tiny_weights: Path) -> None:
    clip = driven_clip(make_clip("a"), "arkit52", 64)
    rows = np.array([0, 2])
    source = clip.images([clip.source])
    assert torch.equal(Copy()(clip, CPU)(rows), source.expand(2, -1, -1, -1))
    model = load_pretrained(tiny_weights)
    expected = model(source.expand(2, -1, -1, -1), torch.tensor(clip.motion.expression[rows]),
                     torch.tensor(clip.motion.camera[rows])).image.clamp(-1, 1)  # fmt: skip
    torch.testing.assert_close(Reenactment(model)(clip, CPU)(rows), expected, atol=1e-4, rtol=1e-4)


# --- scores -----------------------------------------------------------------------------------------------------------


class Oracle:
    """Predicts the truth, moved by a fixed amount."""

    def __init__(self, error: float) -> None:
        self.error = error

    def __call__(self, clip: DrivenClip, device: torch.device) -> Callable[[np.ndarray], Tensor]:
        return lambda rows: clip.images(rows, device) + self.error


def test_a_perfect_prediction_scores_inf_and_one(split: Path) -> None:
    results, _ = evaluate_split(split, {"ours": Oracle(0.0), "copy": Copy()}, [PSNR, SSIM], size=64)
    for result in results:
        assert result.scores["ours"]["psnr"] == math.inf
        assert result.scores["ours"]["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_predictions_are_scored_as_they_would_be_saved(split: Path) -> None:
    """A third of a grey level vanishes in 8 bits."""
    results, _ = evaluate_split(split, {"ours": Oracle(0.3 / 127.5), "copy": Copy()}, [PSNR], size=64)
    assert {result.scores["ours"]["psnr"] for result in results} == {math.inf}


def test_scores_are_means_over_driven_frames_whatever_the_batch(split: Path, make_clip: Make) -> None:
    clip = driven_clip(make_clip("walks"), "arkit52", 64)
    frames = clip.frames.double() / 255
    expected = [-10 * (frames[row] - frames[clip.source]).square().mean().log10().item() for row in clip.driven]
    for batch in (1, 2, 64):
        results, _ = evaluate_split(split, {"ours": Oracle(0.1), "copy": Copy()}, [PSNR], size=64, batch=batch)
        by_key = {result.key: result for result in results}
        assert by_key["walks"].scores["copy"]["psnr"] == pytest.approx(np.mean(expected), abs=1e-4)
        assert by_key["walks"].frames == len(expected)


def test_clips_that_cannot_be_scored_are_listed_not_dropped_in_silence(split: Path) -> None:
    results, skipped = evaluate_split(split, {"ours": Oracle(0.1), "copy": Copy()}, [PSNR], size=64)
    assert [result.key for result in results] == ["walks", "rests"]
    assert list(skipped) == ["gone"]
    assert "no second frame" in skipped["gone"]


def test_one_clip_is_in_memory_at_a_time(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    alive: list[weakref.ref[DrivenClip]] = []

    class Watch(Copy):
        def __call__(self, clip: DrivenClip, device: torch.device) -> Callable[[np.ndarray], Tensor]:
            assert all(other() is None or other() is clip for other in alive[:-1])
            alive.append(weakref.ref(clip))
            return super().__call__(clip, device)

    evaluate_split(split, {"copy": Watch()}, [PSNR], size=64)
    assert len(alive) == 2
    assert alive[0]() is None


def test_progress_counts_up_to_the_total(split: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate_split(
        split, {"copy": Copy()}, [PSNR], size=64, batch=2, progress=lambda done, total: calls.append((done, total))
    )
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (15, 15)


def test_the_number_of_clips_can_be_limited(split: Path) -> None:
    results, skipped = evaluate_split(split, {"copy": Copy()}, [PSNR], size=64, max_clips=1)
    assert [result.key for result in results] == ["walks"]
    assert not skipped


# --- tracking the result ----------------------------------------------------------------------------------------------


class FakeTracker:
    """Sees the same motion in every clip."""

    def __init__(self, motion, lose: str = "") -> None:
        self.motion, self.lose, self.seen = motion, lose, []

    def track_frames(self, frames, fps, name):
        self.seen.append((name, len(frames), frames[0].shape))
        if self.lose and self.lose in name:
            raise NoFaceFound(f"no face in {name}")
        return type("Track", (), {"motion": self.motion})

    def close(self) -> None: ...


def test_the_tracked_result_is_correlated_with_what_drove_it(
    split: Path, make_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = driven_clip(make_clip("walks"), "arkit52", 64)
    tracker = FakeTracker(clip.motion)
    monkeypatch.setattr("export3d.evaluation.protocol._tracker", lambda: tracker)
    methods = {"ours": Oracle(0.1), "copy": Copy()}
    results, _ = evaluate_split(split, methods, [PSNR], size=64, every=3, max_clips=1, retrack=True)
    assert results[0].retracked["ours"] == pytest.approx({"yaw": 1.0, "jawOpen": 1.0, "eyeBlink": 1.0})
    assert results[0].retracked["tracker"]["yaw"] == pytest.approx(1.0)
    assert tracker.seen == [("ours of walks", 6, (64, 64, 3)), ("tracker of walks", 6, (64, 64, 3))]
    plain, _ = evaluate_split(split, methods, [PSNR], size=64, every=3, max_clips=1)
    assert plain[0].scores == results[0].scores
    assert not plain[0].retracked


def test_a_result_without_a_face_is_noted(split: Path, make_clip: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = driven_clip(make_clip("walks"), "arkit52", 64)
    tracker = FakeTracker(clip.motion, lose="ours")
    monkeypatch.setattr("export3d.evaluation.protocol._tracker", lambda: tracker)
    results, _ = evaluate_split(
        split, {"ours": Oracle(0.1), "copy": Copy()}, [PSNR], size=64, max_clips=1, retrack=True
    )
    assert "ours" not in results[0].retracked
    assert results[0].note == "no face in ours of walks"


# --- the whole --------------------------------------------------------------------------------------------------------


def test_everything_is_written(split: Path, tmp_path: Path, tiny_weights: Path, alex_file: Path) -> None:
    out = tmp_path / "results" / "first"
    report = same_identity(split, out, weights=tiny_weights, backbone_file=alex_file)
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md", "sheet.png"]
    value = json.loads((out / "report.json").read_text())
    assert [clip["key"] for clip in value["clips"]] == ["walks", "rests"]
    assert [clip["group"] for clip in value["clips"]] == ["moving", "still"]
    assert set(value["clips"][0]["scores"]["ours"]) == {"psnr", "ssim", "lpips_uniform"}
    assert value["settings"]["weights"].startswith("tiny.safetensors, tensors sha256 ")
    assert str(tmp_path) not in (out / "report.json").read_text() + (out / "report.md").read_text()
    assert (out / "report.md").read_text() == report.markdown()
    assert [credit["clip"] for credit in report.credits] == ["walks"]


def test_the_sheet_shows_source_farthest_frame_and_ours(
    split: Path, tmp_path: Path, tiny_weights: Path, make_clip: Make
) -> None:
    same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none", batch=1)
    clip = driven_clip(make_clip("walks"), "arkit52", 64)
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        sheet = np.array(image)
    ours = Reenactment(load_pretrained(tiny_weights))(clip, CPU)(np.array([clip.farthest]))
    expected = [*to_uint8(clip.images([clip.source, clip.farthest])), to_uint8(ours)[0]]
    top = sheet.shape[0] - 64 - 4
    for column, picture in enumerate(expected):
        left = 4 + column * 68
        shown = sheet[top : top + 64, left : left + 64].astype(int)
        assert np.abs(shown - picture).max() <= 1, column


def test_without_anyone_to_show_there_is_no_sheet(tmp_path: Path, make_clip: Make, tiny_weights: Path) -> None:
    split = tmp_path / "val"
    update(split, [make_clip("a", terms="unstated")])
    assert same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none").credits == ()
    assert not (tmp_path / "out" / "sheet.png").exists()
    shown = same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none", publishable_only=False)
    assert [credit["clip"] for credit in shown.credits] == ["a"]
    assert (tmp_path / "out" / "sheet.png").exists()


def test_the_same_weights_give_the_same_report(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    for name in ("a", "b"):
        same_identity(split, tmp_path / name, weights=tiny_weights, backbone="none")
    for file in ("report.json", "report.md", "sheet.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_a_split_is_refused(tmp_path: Path, tiny_weights: Path) -> None:
    with pytest.raises(InputError, match=r"not a prepared split.*export3d prepare"):
        same_identity(tmp_path / "nowhere", tmp_path / "out", weights=tiny_weights, backbone="none")
    assert not (tmp_path / "out").exists()


def test_a_split_without_clips_is_refused(tmp_path: Path, tiny_weights: Path, make_clip: Make) -> None:
    split = tmp_path / "val"
    update(split, [make_clip("a", found=[True] + [False] * 5)])
    with pytest.raises(InputError, match=r"nothing in .*val can be scored: a has no second frame"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none")
    update(split, [], drop=["print-a"])
    with pytest.raises(InputError, match="it holds no video"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none")


def test_missing_weights_are_refused(split: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        same_identity(split, tmp_path / "out", weights=tmp_path / "nothing.safetensors", backbone="none")


def test_another_expression_space_is_refused(
    split: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = split / shards.INDEX_NAME
    path.write_text(path.read_text().replace('"space": "arkit52"', '"space": "bfm64"'))
    with pytest.raises(InputError, match=r"bfm64.*arkit52"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none")


def test_an_output_that_is_a_file_is_refused(split: Path, tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="out"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none")


@pytest.mark.parametrize("setting", [{"every": 0}, {"batch": 0}, {"max_clips": 0}])
def test_senseless_settings_are_refused(split: Path, tmp_path: Path, tiny_weights: Path, setting: dict) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        same_identity(split, tmp_path / "out", weights=tiny_weights, backbone="none", **setting)


# --- real clips -------------------------------------------------------------------------------------------------------


def test_a_real_clip_tracked_again_follows_itself(shared_data: Path, tmp_path: Path) -> None:
    """The whole way with a real face: prepared, copied (not moving at all), and tracked again."""
    pytest.importorskip("mediapipe")
    from export3d.data.prepare import prepare

    logging.getLogger("mediapipe").setLevel(logging.ERROR)
    prepare([shared_data / "clips" / "p0988_01.mp4"], tmp_path, shared_data / "manifest.csv", workers=0)
    results, _ = evaluate_split(
        tmp_path / "val", {"ours": Oracle(0.0), "copy": Copy()}, [PSNR], size=256, every=5, retrack=True
    )
    assert results[0].origin == "filby89/spectre"
    assert results[0].terms == "non-commercial"
    # Pictures that equal the truth are tracked like the truth.
    assert results[0].retracked["ours"] == results[0].retracked["tracker"]
    assert results[0].retracked["ours"]["yaw"] > 0.9
    assert results[0].retracked["ours"]["jawOpen"] > 0.9
    # She hardly blinks (measured 0.78 to 0.81, where clips with blinks give 0.99): what is left is mostly tremor.
    assert results[0].retracked["ours"]["eyeBlink"] > 0.5
