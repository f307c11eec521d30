"""Taught clips: what a teacher renders of a prepared split, kept as shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.camera import Camera, head_angles, projected
from export3d.cli.main import main
from export3d.data import teacher
from export3d.data.decoding import decode
from export3d.data.frames import FrameStore
from export3d.data.shard_writer import update, verify
from export3d.data.shards import Index, Record, read_index, read_shards
from export3d.data.teacher import STRONG_SHARE, TURNED_DEG, VIEWS, Faces, _view, teach
from export3d.errors import CheckpointError, ConfigError, InputError, OutputError
from export3d.image import to_uint8
from export3d.motion.arkit import ARKIT52
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained, save_pretrained
from export3d.weights.file import read_sidecar
from tests.tiny_models import PARTS, awake, warped

Make = Callable[..., Record]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the form of `base`, as small as `tiny`."""
    torch.manual_seed(3)
    return save_pretrained(awake(warped(*PARTS)), tmp_path_factory.mktemp("teacher") / "tiny.safetensors", {})


@pytest.fixture
def data(split: Path, make_record: Make) -> Path:
    """Splits `train` (three clips, three stills) and `val` (two clips)."""
    update(split.parent / "val", [make_record(f"val{i}", 5) for i in range(2)])
    return split.parent


def contents(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Media and provenance of each record."""
    return {record.key: (record.media, json.dumps(record.info)) for record in read_shards(folder)}


@pytest.mark.slow
def test_a_group_is_a_real_frame_and_what_the_teacher_renders_of_it(data: Path, weights: Path, tmp_path: Path) -> None:
    report = teach(data, tmp_path / "out", weights, expressions=6, limit=2)
    assert (report.groups, report.done, report.skipped, report.frames) == (2, 2, 0, 12)
    out = tmp_path / "out" / "train"
    assert verify(out) == []
    real = {record.key: record for record in read_shards(data / "train")}
    model = load_pretrained(weights)
    for group in read_shards(out):
        made = group.info["taught"]
        source, row = real[made["source"]["record"]], made["source"]["frame"]
        assert made["teacher"] == {"weights": "tiny.safetensors", "sha256": read_sidecar(weights)["file"]["sha256"]}
        assert (group.key, group.info["person"]) == (f"{source.key}-taught00", source.info["person"])
        assert (made["seed"], group.frames, group.info["terms"]) == (0, 7, "open")
        shown, picture = decode(group, 64), decode(source, 64)[row]
        assert np.abs(shown[0].astype(float) - picture).mean() < 3.0  # H.264
        for name in ("expression", "camera", "landmarks"):
            np.testing.assert_array_equal(getattr(group, name)[0], getattr(source, name)[row])
        assert len({camera.tobytes() for camera in group.camera[1:]}) == 1
        for (clip, frame), expression in zip(made["expressions"], group.expression[1:], strict=True):
            assert clip != source.key
            np.testing.assert_array_equal(expression, real[clip].expression[frame])
        own = (torch.from_numpy(x[row : row + 1]).float() for x in (source.camera, source.expression, source.landmarks))
        with torch.inference_mode():
            image = torch.from_numpy(picture[None]) / 127.5 - 1.0
            encoded = model.encode(image, *own, crop_mattes(model, image))
            planes = model.planes(encoded, torch.from_numpy(group.expression[1:]))
            camera = torch.from_numpy(group.camera[1:])
            images = to_uint8(model.frame(planes, camera))
            points = projected(planes.motion.points, camera)[0]
        smooth = [x.reshape(6, 8, 8, 8, 8, 3).mean((2, 4)) for x in (shown[1:].transpose(0, 2, 3, 1), images)]
        away = np.abs(smooth[0] - smooth[1]).mean()
        assert away < 2.0
        assert away < np.abs(smooth[0] - smooth[1][::-1]).mean()
        np.testing.assert_allclose(group.landmarks[1:], points.clamp(-4, 4), atol=4e-3)


@pytest.mark.slow
def test_a_second_run_makes_what_is_missing_and_the_same_seed_the_same(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    teach(data, once, weights, expressions=4, limit=2, cameras=2)
    teach(data, twice, weights, expressions=4, limit=1)
    report = teach(data, twice, weights, expressions=4, limit=2, cameras=2)
    assert (report.groups, report.done, report.skipped) == (4, 3, 1)
    assert contents(once / "train") == contents(twice / "train")
    assert teach(data, twice, weights, expressions=4, limit=2, cameras=2).done == 0
    other = teach(data, twice, weights, expressions=4, limit=2, cameras=2, seed=1)
    assert (other.groups, other.done) == (4, 4)
    assert contents(once / "train").keys() == contents(twice / "train").keys()
    assert contents(once / "train") != contents(twice / "train")


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_has_made(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "_BATCH", 2)

    def stop(done: int, total: int, key: str) -> None:
        assert total == 6
        if done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        teach(data, out, weights, expressions=4, progress=stop)
    assert verify(out / "train") == []
    kept = contents(out / "train")
    assert len(kept) == 3
    assert teach(data, out, weights, expressions=4).done == 3
    assert kept.items() <= contents(out / "train").items()
    assert sorted(path.suffix for path in (out / "train").iterdir()) == [".json", ".tar", ".tar", ".tar", ".tar"]


@pytest.mark.slow
def test_people_of_another_split_are_never_taught_unless_it_is_named(data: Path, weights: Path, tmp_path: Path) -> None:
    teach(data, tmp_path / "out", weights, expressions=4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    for group in read_shards(tmp_path / "out" / "train"):
        named = [group.key, *(clip for clip, _ in group.info["taught"]["expressions"])]
        assert not any(name.startswith("val") for name in named)
    assert teach(data, tmp_path / "out", weights, expressions=4, split="val").groups == 2
    assert {entry.person for entry in read_index(tmp_path / "out" / "val").entries} == {"person-val0", "person-val1"}


# ---- expressions and cameras -----------------------------------------------------------------------------------------


def faces(count: int = 400) -> Faces:
    """Frames of ten people; one in forty opens the mouth wide, another one in forty closes the eyes."""
    rng = np.random.default_rng(5)
    expression = rng.uniform(0, 0.2, (count, 52)).astype(np.float32)
    strong = np.arange(0, count, 40), np.arange(20, count, 40)
    expression[strong[0], ARKIT52.index("jawOpen")] = 0.9
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        expression[strong[1], ARKIT52.index(name)] = 0.8
    clip = np.arange(count) * 10 // count
    camera = np.stack([Camera.orbit(yaw).label for yaw in rng.uniform(-15, 15, count)]).astype(np.float32)
    origins = [(f"clip{number}", row) for row, number in enumerate(clip)]
    return Faces(expression, camera, clip, {str(n): n for n in range(10)}, origins, teacher._strongest(expression))


def test_wide_mouths_and_closed_eyes_get_their_share_and_come_from_others() -> None:
    found, rng = faces(), np.random.default_rng(0)
    others = found.others("3")
    assert (found.person[others] != 3).all()
    assert len(others) == 360
    wide = closed = 0
    for _ in range(50):
        rows = found.draw(others, 8, rng)
        assert len(rows) == 8
        assert set(rows) <= set(others)
        wide += sum(row in found.strong[0] for row in rows)
        closed += sum(row in found.strong[1] for row in rows)
    assert wide >= 50 * 8 * STRONG_SHARE
    assert closed >= 50 * 8 * STRONG_SHARE
    assert {row for row in range(400) if found.expression[row, ARKIT52.index("jawOpen")] == np.float32(0.9)} <= set(
        found.strong[0]
    )
    assert len(found.others("unknown")) == 400


def test_a_single_person_is_taught_its_own_expressions() -> None:
    found = faces(40)
    alone = Faces(found.expression, found.camera, np.zeros(40, int), {"me": 0}, found.origins, ())
    assert len(alone.draw(alone.others("me"), 60, np.random.default_rng(0))) == 60


def test_cameras_are_of_four_kinds_in_their_shares() -> None:
    found, rng = faces(), np.random.default_rng(0)
    for own in (found.camera[0], Camera.orbit(40.0).label.astype(np.float32)):
        kinds: dict[str, list[float]] = {kind: [] for kind in VIEWS}
        for _ in range(400):
            label, info = _view(own, found, found.others("0"), rng)
            yaw, _, _ = head_angles(label)
            kinds[info["kind"]].append(yaw - head_angles(own)[0])
            if info["kind"] == "pose":
                clip, row = info["from"]
                assert found.origins[row][0] == clip != "clip0"
                np.testing.assert_allclose(head_angles(label), head_angles(found.camera[row]), atol=1e-3)
            assert abs(yaw) < 60
        for kind, share in VIEWS.items():
            assert len(kinds[kind]) == pytest.approx(400 * share, abs=40)
        assert not np.any(kinds["own"])
        turns = np.abs(kinds["turned"])
        assert TURNED_DEG[0] - 0.01 <= turns.min() <= turns.max() <= TURNED_DEG[1] + 0.01
        assert 2.0 < np.std(kinds["near"]) < 10.0


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_folder_without_shards_is_refused_and_nothing_is_written(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["teach", str(tmp_path), "-o", str(out), "--weights", str(weights), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export3d: ")
    assert error.count("\n") == 1
    assert "export3d prepare" in error
    assert not out.exists()


def test_an_output_that_is_a_file_is_refused_before_anything_is_rendered(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file"):
        teach(data, tmp_path / "file", weights)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_with_other_records_is_left_alone(data: Path, weights: Path) -> None:
    before = contents(data / "val")
    with pytest.raises(ConfigError, match="input split itself"):
        teach(data, data, weights)
    update(data / "made" / "train", list(read_shards(data / "val")))
    with pytest.raises(ConfigError, match=r"not taught \(val0\); choose another folder"):
        teach(data, data / "made", weights)
    assert contents(data / "made" / "train") == before


def test_a_teacher_of_another_space_is_refused(tmp_path: Path, weights: Path, make_record: Make) -> None:
    update(tmp_path / "train", [make_record("a", 5)], space="bfm64")
    with pytest.raises(InputError, match=r"expressions in bfm64, but the teacher tiny.safetensors takes arkit52"):
        teach(tmp_path, tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_teach_are_refused(data: Path, weights: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="moves no landmarks"):
        teach(data, tmp_path / "out", tiny_weights)
    broken = tmp_path / weights.name
    broken.with_suffix(".json").write_bytes(weights.with_suffix(".json").read_bytes())
    broken.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"tiny.safetensors"):
        teach(data, tmp_path / "out", broken)
    with pytest.raises(CheckpointError, match="no weights 'nobody'"):
        teach(data, tmp_path / "out", "nobody")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["superres.high_rgb.weight", "warp.motion.out.weight"])
def test_weights_with_numbers_that_are_not_finite_teach_nothing(
    data: Path, weights: Path, tmp_path: Path, part: str
) -> None:
    model = load_pretrained(weights)
    model.get_parameter(part).data.view(-1)[0] = torch.nan
    broken = save_pretrained(model, tmp_path / "nan.safetensors", {})
    with pytest.raises(CheckpointError, match=r"nan.safetensors gives numbers that are not finite"):
        teach(data, tmp_path / "out", broken, expressions=4)
    assert list(read_shards(tmp_path / "out" / "train")) == []


@pytest.mark.parametrize(
    "settings", [{"expressions": 3}, {"cameras": 0}, {"limit": 0}, {"expressions": 10**6}, {"cameras": 10**9}]
)
def test_settings_out_of_range_are_refused(data: Path, weights: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="needs 4 to 1000 expressions, 1 to 1000 cameras"):
        teach(data, data / "out", weights, **settings)


def test_what_was_taught_is_no_source(weights: Path, tmp_path: Path, make_record: Make) -> None:
    update(tmp_path / "taught" / "train", [make_record("clip0-taught00", 5)])
    with pytest.raises(InputError, match="holds taught clips, but a source is a real frame"):
        teach(tmp_path / "taught", tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_portraits_alone_have_no_expressions_to_teach(tmp_path: Path, weights: Path, make_record: Make) -> None:
    update(tmp_path / "train", [make_record("a", still=True)])
    with pytest.raises(InputError, match="prepare videos too"):
        teach(tmp_path, tmp_path / "out", weights)
    assert isinstance(read_index(tmp_path / "out" / "train"), Index)


def test_a_damaged_shard_ends_the_run_and_keeps_the_rest(data: Path, weights: Path, tmp_path: Path) -> None:
    teach(data, tmp_path / "out", weights, expressions=4, limit=2)
    kept = contents(tmp_path / "out" / "train")
    for shard in read_index(data / "train").shards:
        path = data / "train" / shard.file
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"train-\w+\.tar"):
        teach(data, tmp_path / "out", weights, expressions=4)
    assert contents(tmp_path / "out" / "train") == kept


def test_the_command_says_how_to_train_on_the_result(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "taught"
    arguments = ["-o", str(out), "--weights", str(weights), "--expressions", "4", "--limit", "1", "--device", "cpu"]
    assert main(["teach", str(data), *arguments]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.startswith("1 groups; 1 made (4 frames rendered in ")
    assert f"--set data.taught={out}" in stderr
    assert len(FrameStore.load(out / "train", 64)) == 5
