import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from export3d import camera
from export3d.errors import BadMotionFile, ConfigError, InputError, OutputError, ShapeError
from export3d.motion import motion
from export3d.motion.arkit import ARKIT52
from export3d.motion.bfm64 import load_bfm64
from export3d.motion.motion import Motion
from tests.hostile import Bomb
from tests.random_motion import random_motion


def test_a_motion_cannot_be_changed(some: Motion) -> None:
    with pytest.raises(FrozenInstanceError):
        some.fps = 30.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        some.expression[0] = 0


def test_a_motion_does_not_share_memory_with_what_it_was_made_of() -> None:
    expression = np.zeros((2, 52), np.float32)
    made = Motion(expression, np.tile(camera.Camera.look_at().label, (2, 1)), 25)
    expression += 1
    assert made.expression.max() == 0
    assert made.expression.dtype == made.camera.dtype == np.float32


def test_a_slice_is_a_motion(some: Motion) -> None:
    part = some[10:20]
    assert (len(part), part.fps, part.space) == (10, some.fps, some.space)
    np.testing.assert_array_equal(part.camera, some.camera[10:20])
    np.testing.assert_array_equal(some[-1].expression, some.expression[-1:])
    np.testing.assert_array_equal(some[::-2].camera, some.camera[::-2])


def of_shots(some: Motion, *lengths: int) -> Motion:
    """The motion in shots of these lengths: 0, away, 1."""
    return replace(some, shot=np.repeat([0, -1, 1], lengths))


def test_frames_are_of_one_shot_unless_told_otherwise(some: Motion) -> None:
    assert some.shot.dtype == np.int32
    assert some.shot.tolist() == [0] * 50
    longer = replace(some, expression=some.expression[:20], camera=some.camera[:20])
    assert longer.shot.tolist() == [0] * 20


def test_shots_are_sliced_compared_saved_and_read(some: Motion, tmp_path: Path) -> None:
    cut = of_shots(some, 20, 10, 20)
    assert cut != some
    assert cut[18:32].shot.tolist() == [0] * 2 + [-1] * 10 + [1] * 2
    cut.save(tmp_path / "a.motion")
    assert Motion.load(tmp_path / "a.motion") == cut
    some.save(tmp_path / "b.motion")
    assert b"shot" not in (tmp_path / "b.motion").read_bytes()


@pytest.mark.parametrize("fps", [50.0, 30.0, 12.0])
def test_resampling_mixes_nothing_across_a_cut(some: Motion, fps: float) -> None:
    values = np.repeat([[0.0], [0.5], [1.0]], [20, 10, 20], axis=0) * np.ones(52)
    cut = of_shots(replace(some, expression=values), 20, 10, 20).resampled(fps)
    np.testing.assert_array_equal(cut.expression[:, 0], np.array([0.0, 1.0, 0.5], np.float32)[cut.shot])
    assert set(cut.shot.tolist()) == {0, -1, 1}


@pytest.mark.parametrize(
    ("shot", "cause"),
    [
        (np.ones(7, int), "shot must be 50 whole numbers"),
        (np.full(50, 0.5), "whole"),
        (np.full(50, -2), "from 0"),
        (np.zeros((50, 2), int), "shape (50, 2)"),
        (np.zeros(50), "float64"),
        (np.full(50, ""), "whole"),
    ],
)
def test_shots_that_cannot_be_are_refused(some: Motion, shot: np.ndarray, cause: str) -> None:
    with pytest.raises((ShapeError, InputError), match=re.escape(cause)):
        replace(some, shot=shot)


def test_nothing_is_known_of_shoulders_unless_told(some: Motion, tmp_path: Path) -> None:
    assert some.shoulders.shape == (50, 5)
    assert not some.shoulders.any()
    some.save(tmp_path / "a.motion")
    assert b"shoulders" not in (tmp_path / "a.motion").read_bytes()
    assert replace(some, expression=np.zeros((20, 52)), camera=some.camera[:20]).shoulders.shape == (20, 5)


def test_shoulders_are_sliced_compared_resampled_saved_and_read(some: Motion, tmp_path: Path) -> None:
    known = replace(some, shoulders=np.linspace([0.0, -0.1, 0.5, -0.2, 0.0], [0.49, 0.1, 1.0, 0.2, 0.1], 50))
    assert known != some
    np.testing.assert_allclose(known[10:13].shoulders[:, 0], [0.1, 0.11, 0.12], atol=1e-6)
    np.testing.assert_allclose(known.rows(np.array([30, 2])).shoulders[:, 0], [0.3, 0.02], atol=1e-6)
    np.testing.assert_allclose(known.resampled(2 * known.fps).shoulders[1, 0], 0.005, atol=1e-6)
    known.save(tmp_path / "a.motion")
    assert Motion.load(tmp_path / "a.motion") == known


def test_shoulders_of_older_files_do_not_turn(some: Motion) -> None:
    known = replace(some[:2], shoulders=[[0.1, 0.2, 1.0], [0.3, 0.1, 0.5]])
    np.testing.assert_allclose(known.shoulders, [[0.1, 0.2, 1.0, 0.0, 0.0], [0.3, 0.1, 0.5, 0.0, 0.0]])


def test_shoulders_are_measured_from_a_frame_and_sure_where_both_are(some: Motion) -> None:
    known = replace(some[:3], shoulders=[[0.1, 0.0, 1.0, 0.0, 0.1], [0.3, 0.2, 0.5, 0.2, 0.1], [0.0] * 5])
    wanted = [[-0.2, -0.2, 0.5, -0.2, 0.0], [0.0, 0.0, 0.5, 0.0, 0.0], [-0.3, -0.2, 0.0, -0.2, -0.1]]
    np.testing.assert_allclose(known.shoulders_from(1), wanted, atol=1e-6)
    each = known.shoulders_from(np.array([0, 0, 1]))
    np.testing.assert_allclose(each, [[0.0, 0.0, 1.0, 0.0, 0.0], [0.2, 0.2, 0.5, 0.2, 0.0], wanted[2]], atol=1e-6)


@pytest.mark.parametrize("frames", [slice(50, 60), slice(7, 7), 50, -51])
def test_no_frames_is_no_motion(some: Motion, frames: slice | int) -> None:
    with pytest.raises(IndexError):
        some[frames]


def test_equality_looks_at_numbers_and_not_at_notes(some: Motion) -> None:
    same = Motion(some.expression, some.camera, some.fps, some.space, {"note": "x"})
    assert same == some
    assert some != some[:-1]
    assert some != Motion(some.expression, some.camera, 30, some.space)
    assert some != "motion"


@pytest.mark.parametrize(
    ("expression", "cameras"),
    [
        ((0, 52), (0, 25)),
        ((5, 51), (5, 25)),
        ((5, 52), (5, 24)),
        ((5, 52), (4, 25)),
        ((52,), (25,)),
        ((1, 5, 52), (5, 25)),
    ],
)
def test_parts_of_the_wrong_shape_are_refused(expression: tuple[int, ...], cameras: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        Motion(np.zeros(expression), np.zeros(cameras), 25.0)


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf"), 1e9])
def test_a_rate_that_is_no_rate_is_refused(some: Motion, fps: float) -> None:
    with pytest.raises(ConfigError, match="fps"):
        Motion(some.expression, some.camera, fps)
    with pytest.raises(ConfigError, match="fps"):
        some.resampled(fps)


def test_an_unknown_space_is_refused(some: Motion) -> None:
    with pytest.raises(ConfigError, match=r"flame100.*arkit52, bfm64"):
        Motion(some.expression, some.camera, 25, "flame100")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_a_motion_is_named_with_its_frame(some: Motion, value: float) -> None:
    expression = some.expression.copy()
    expression[7, 3] = value
    with pytest.raises(InputError, match="expression holds NaN or infinity in frame 7"):
        Motion(expression, some.camera, 25)


def test_scores_are_found_by_name_and_halves_by_their_mean(some: Motion) -> None:
    np.testing.assert_array_equal(some.scores("jawOpen"), some.expression[:, ARKIT52.index("jawOpen")])
    left, right = some.scores("eyeBlinkLeft"), some.scores("eyeBlinkRight")
    np.testing.assert_allclose(some.scores("eyeBlink"), (left + right) / 2, rtol=1e-6)
    np.testing.assert_array_equal(some.scores("jawLeft"), some.expression[:, ARKIT52.index("jawLeft")])
    with pytest.raises(ConfigError, match="earWiggle"):
        some.scores("earWiggle")


def test_score_names_are_taken_in_any_case(some: Motion) -> None:
    np.testing.assert_array_equal(some.scores("JAWOPEN"), some.scores("jawOpen"))


def test_another_space_is_refused_by_naming_both(rng: np.random.Generator) -> None:
    paper = random_motion(rng, space="bfm64")
    paper.require_space("bfm64")
    with pytest.raises(BadMotionFile, match=r"bfm64.*arkit52"):
        paper.require_space("arkit52")
    with pytest.raises(BadMotionFile, match="bfm64"):
        paper.scores("jawOpen")
    with pytest.raises(BadMotionFile, match="give Deep3DFaceRecon's coefficients or use weights"):
        random_motion(rng).require_space("bfm64")


def test_resampling_to_the_same_rate_changes_nothing(some: Motion) -> None:
    assert some.resampled(25.0) == some


def test_resampling_keeps_the_duration(some: Motion) -> None:
    for fps in (12.5, 24, 30, 60):
        assert abs(some.resampled(fps).duration_s - some.duration_s) <= 0.5 / fps


def test_doubling_the_rate_keeps_every_frame_and_puts_one_between(some: Motion) -> None:
    double = some.resampled(50.0)
    np.testing.assert_allclose(double.camera[::2], some.camera, atol=1e-6)
    np.testing.assert_allclose(double.expression[::2], some.expression, atol=1e-6)
    between = (some.expression[1:] + some.expression[:-1]) / 2
    np.testing.assert_allclose(double.expression[1:-1:2], between, atol=1e-6)
    np.testing.assert_array_equal(double.expression[-1], some.expression[-1])


def test_cameras_between_frames_are_cameras_halfway_in_angle() -> None:
    ends = camera.from_pose([[0.0, 0, 0], [60.0, 0, 0]], [[0, 0, 2.7], [0, 0, 3.1]])
    middle = Motion(np.zeros((2, 52)), ends, 25.0).resampled(50.0)[1]
    np.testing.assert_allclose(middle.angles_deg, [[30, 0, 0]], atol=1e-4)
    np.testing.assert_allclose(camera.head_position(middle.camera), [[0, 0, 2.9]], atol=1e-6)
    rotation = camera.unpack(middle.camera)[0][0, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)


def test_a_still_camera_stays_exactly_still_when_resampled() -> None:
    still = Motion(np.zeros((5, 52)), np.tile(camera.Camera.orbit(20, 10).label, (5, 1)), 25.0)
    assert np.ptp(still.resampled(60).camera, axis=0).max() < 1e-6


def test_one_frame_can_be_resampled(some: Motion) -> None:
    assert len(some[0].resampled(100.0)) == 4
    assert len(some[0].resampled(1.0)) == 1


@pytest.mark.parametrize("fps", [1e-320, 1e-300, 1e-12, 1e-3])
def test_a_rate_that_would_give_millions_of_frames_is_refused(some: Motion, fps: float, tmp_path: Path) -> None:
    replace(some, fps=fps).save(tmp_path / "slow.motion")
    with pytest.raises(BadMotionFile, match=r"slow\.motion would have .* frames at 25 fps, more than 1000000"):
        Motion.load(tmp_path / "slow.motion").resampled(25.0)


def test_a_motion_survives_its_file_bit_for_bit(some: Motion, tmp_path: Path) -> None:
    Motion(some.expression, some.camera, 30000 / 1001, some.space, {"note": "größe 1"}).save(tmp_path / "a.motion")
    back = Motion.load(tmp_path / "a.motion")
    np.testing.assert_array_equal(back.expression, some.expression)
    np.testing.assert_array_equal(back.camera, some.camera)
    assert back.fps == 30000 / 1001
    assert back.meta == {"note": "größe 1", "file": str(tmp_path / "a.motion")}


def test_the_file_is_plain_safetensors_with_a_readable_header(some: Motion, tmp_path: Path) -> None:
    from safetensors import safe_open

    some.save(tmp_path / "a.motion")
    with safe_open(str(tmp_path / "a.motion"), framework="np") as file:
        assert sorted(file.keys()) == ["camera", "expression"]
        assert file.metadata() == {"format": "export3d.motion", "version": "1", "fps": "25.0", "space": "arkit52"}
        np.testing.assert_array_equal(file.get_tensor("camera"), some.camera)


@pytest.mark.slow
def test_the_same_motion_gives_the_same_bytes_in_another_process(some: Motion, tmp_path: Path) -> None:
    noted = Motion(some.expression, some.camera, 25, "arkit52", {"b": "2", "a": "1", "c": "3"})
    noted.save(tmp_path / "a.motion")
    script = "import sys; from export3d.motion.motion import Motion; Motion.load(sys.argv[1]).save(sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.motion", tmp_path / "b.motion"], check=True)
    assert (tmp_path / "a.motion").read_bytes() == (tmp_path / "b.motion").read_bytes()


def test_saving_leaves_only_the_file(some: Motion, tmp_path: Path) -> None:
    some.save(tmp_path / "a.motion")
    some[:10].save(tmp_path / "a.motion")
    assert len(Motion.load(tmp_path / "a.motion")) == 10
    assert os.listdir(tmp_path) == ["a.motion"]


def test_a_note_may_not_pose_as_the_header(some: Motion, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="space"):
        Motion(some.expression, some.camera, 25, "arkit52", {"space": "bfm64"}).save(tmp_path / "a.motion")


def test_a_motion_that_cannot_be_written_is_an_output_error(some: Motion, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="create it first"):
        some.save(tmp_path / "no" / "a.motion")


def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.motion").touch()
    for path, cause in (("none.motion", "does not exist"), ("", "is a folder"), ("empty.motion", "is empty")):
        with pytest.raises(BadMotionFile, match=cause) as caught:
            Motion.load(tmp_path / path)
        assert str(tmp_path / path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".motion", ".pkl", ".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path, suffix: str, protocol: int) -> None:
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "proof"), protocol=protocol))
    with pytest.raises(BadMotionFile, match="hostile"):
        Motion.load(path)
    with pytest.raises(BadMotionFile, match="hostile"):
        load_bfm64(path)
    assert not (tmp_path / "proof").exists()


def test_a_torch_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    import torch

    torch.save({"expression": torch.zeros(3, 52)}, tmp_path / "weights.motion")
    with pytest.raises(BadMotionFile, match="zip archive"):
        Motion.load(tmp_path / "weights.motion")


@pytest.mark.parametrize("content", [b"not a motion at all", b"\xff" * 100, b"\x00" * 100, b"{}", bytes(range(7))])
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.motion").write_bytes(content)
    with pytest.raises(BadMotionFile, match=r"not a \.motion file"):
        Motion.load(tmp_path / "a.motion")


@pytest.mark.parametrize("keep", [1, 7, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(some: Motion, tmp_path: Path, keep: float) -> None:
    some.save(tmp_path / "a.motion")
    whole = (tmp_path / "a.motion").read_bytes()
    cut = int(len(whole) * keep) if isinstance(keep, float) else keep
    (tmp_path / "a.motion").write_bytes(whole[:cut])
    with pytest.raises(BadMotionFile, match=r"not a \.motion file"):
        Motion.load(tmp_path / "a.motion")


def handmade(path: Path, header: dict[str, str] | None, **tensors: np.ndarray) -> Path:
    """A safetensors file with anything in it."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(path), header)
    return path


GOOD = {"format": "export3d.motion", "version": "1", "fps": "25", "space": "arkit52"}


TURNED = np.tile([0.0, 0.0, 1.0, 9.0, 0.0], (4, 1))
STILL = np.tile(camera.Camera.look_at().label.astype(np.float32), (4, 1))


FACE = np.zeros((4, 52), np.float32)


def spoilt(array: np.ndarray, value: float, at: tuple[int, int] = (2, 3)) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("header", "tensors", "cause"),
    [
        (None, {"expression": FACE, "camera": STILL}, "not a motion"),
        (GOOD | {"format": "pt"}, {"expression": FACE, "camera": STILL}, "not a motion"),
        (GOOD | {"version": "99"}, {"expression": FACE, "camera": STILL}, "version '99'.*update"),
        (GOOD | {"fps": "fast"}, {"expression": FACE, "camera": STILL}, "damaged"),
        (GOOD | {"fps": "nan"}, {"expression": FACE, "camera": STILL}, "fps"),
        (GOOD | {"space": "flame"}, {"expression": FACE, "camera": STILL}, "flame"),
        (GOOD | {"space": "bfm64"}, {"expression": FACE, "camera": STILL}, r"bfm64 motion must have shape \(T, 64\)"),
        (GOOD, {"expression": FACE}, "lacks 'camera'"),
        (GOOD, {"camera": STILL}, "lacks 'expression'"),
        (GOOD, {"expression": FACE[:3], "camera": STILL}, "3 expression frames but 4"),
        (GOOD, {"expression": FACE[:0], "camera": STILL[:0]}, "T > 0"),
        (GOOD, {"expression": FACE[0], "camera": STILL}, "absurd shape"),
        (GOOD, {"expression": FACE.astype(np.int32), "camera": STILL}, "type I32"),
        (GOOD, {"expression": spoilt(FACE, np.nan), "camera": STILL}, "expression holds NaN or infinity in frame 2"),
        (GOOD, {"expression": FACE, "camera": spoilt(STILL, np.nan)}, "camera holds NaN or infinity in frame 2"),
        (GOOD, {"expression": spoilt(FACE, 1e30), "camera": STILL}, "expression values above"),
        (
            GOOD,
            {"expression": FACE, "camera": spoilt(STILL, 9.0, (3, 0))},
            "frame 3 holds numbers that are not a camera",
        ),
        (
            GOOD,
            {"expression": FACE, "camera": spoilt(STILL, -4.0, (1, 16))},
            "frame 1 holds numbers that are not a cam",
        ),
        (GOOD, {"expression": FACE, "camera": spoilt(STILL, 1e30, (2, 19))}, "frame 2 .* not a camera"),
        (GOOD, {"expression": FACE, "camera": spoilt(STILL, 0.0, (2, 24))}, "frame 2 .* not a camera"),
        (GOOD, {"expression": FACE, "camera": STILL * 0}, "not a camera"),
        (GOOD, {"expression": FACE, "camera": STILL, "shot": np.ones(3, np.int32)}, "shot must be 4 whole numbers"),
        (GOOD, {"expression": FACE, "camera": STILL, "shot": np.full(4, -7, np.int32)}, "numbered from 0"),
        (GOOD, {"expression": FACE, "camera": STILL, "shot": np.ones(4, np.float32)}, "type F32"),
        (GOOD, {"expression": FACE, "camera": STILL, "shot": np.ones((4, 1), np.int32)}, "absurd shape"),
        (GOOD, {"expression": np.full((4, 52), 1e39), "camera": STILL}, "NaN or infinity"),
        (GOOD, {"expression": FACE, "camera": STILL, "shoulders": np.ones((3, 3))}, "3 shoulders frames but 4 camera"),
        (GOOD, {"expression": FACE, "camera": STILL, "shoulders": np.ones((4, 2))}, r"shape \(T, 5\)"),
        (GOOD, {"expression": FACE, "camera": STILL, "shoulders": np.full((4, 3), np.nan)}, "shoulders holds NaN"),
        (GOOD, {"expression": FACE, "camera": STILL, "shoulders": np.full((4, 3), 9.0)}, "shoulders farther than 4"),
        (
            GOOD,
            {"expression": FACE, "camera": STILL, "shoulders": np.full((4, 3), -0.5)},
            "certainty lies outside 0 to 1",
        ),
        (
            GOOD,
            {"expression": FACE, "camera": STILL, "shoulders": np.tile([0.0, 0.0, 1.0, 9.0, 0.0], (4, 1))},
            "turned or grown by more than 1.5",
        ),
    ],
)
def test_a_spoilt_motion_file_is_refused_in_one_sentence(
    tmp_path: Path, header: dict[str, str] | None, tensors: dict[str, np.ndarray], cause: str
) -> None:
    path = handmade(tmp_path / "a.motion", header, **tensors)
    with pytest.raises(BadMotionFile, match=cause) as caught:
        Motion.load(path)
    assert str(caught.value).startswith(str(path))
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_and_double_precision_files_are_read(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.motion", GOOD, expression=FACE.astype(np.float16), camera=STILL.astype(np.float64))
    assert Motion.load(path) == Motion(FACE, STILL, 25)


def test_a_motion_of_absurd_length_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motion, "MAX_FRAMES", 3)
    with pytest.raises(BadMotionFile, match=r"absurd shape \(4, 52\)"):
        Motion.load(handmade(tmp_path / "a.motion", GOOD, expression=FACE, camera=STILL))


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.motion").write_bytes((1 << 40).to_bytes(8, "little") + b"{" * 1000)
    with pytest.raises(BadMotionFile, match=r"not a \.motion file"):
        Motion.load(tmp_path / "a.motion")


def test_offsets_beyond_the_file_are_refused(tmp_path: Path) -> None:
    header = {"__metadata__": GOOD} | {
        name: {"dtype": "F32", "shape": [4, width], "data_offsets": [0, 4 * 4 * width]}
        for name, width in (("expression", 52), ("camera", 25))
    }
    text = json.dumps(header).encode()
    (tmp_path / "a.motion").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(BadMotionFile, match=r"not a \.motion file"):
        Motion.load(tmp_path / "a.motion")
