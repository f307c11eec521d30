import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from export3d import camera
from export3d.errors import BadMotionFile, ConfigError, InputError, OutputError, ShapeError
from export3d.motion import bfm64, motion
from export3d.motion.arkit import ARKIT52, ARKIT52_MIRRORED, with_scores
from export3d.motion.bfm64 import load_bfm64
from export3d.motion.compare import compare, pearson
from export3d.motion.motion import SPACES, Motion


class Bomb:
    """Unpickling this writes a file: the proof that something was unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, (self.proof, "w"))


def walk(rng: np.random.Generator, frames: int = 50, space: str = "arkit52", fps: float = 25.0) -> Motion:
    """A motion that wanders smoothly."""
    angles = np.cumsum(rng.normal(0, 1, (frames, 3)), axis=0)
    position = np.array([0, 0, 2.7]) + np.cumsum(rng.normal(0, 0.01, (frames, 3)), axis=0)
    return Motion(rng.random((frames, SPACES[space])), camera.from_pose(angles, position), fps, space)


@pytest.fixture
def some(rng: np.random.Generator) -> Motion:
    return walk(rng)


# --- the value ---


def test_there_are_52_different_arkit_scores() -> None:
    assert len(ARKIT52) == len(set(ARKIT52)) == SPACES["arkit52"] == 52
    assert {"jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookInLeft", "tongueOut"} <= set(ARKIT52)
    assert "_neutral" not in ARKIT52


def test_mirroring_scores_swaps_left_and_right_and_is_its_own_inverse() -> None:
    for source, name in zip(ARKIT52_MIRRORED, ARKIT52):
        other = ARKIT52[source]
        assert ("Left" in name) == ("Right" in other)
        assert name.replace("Left", "").replace("Right", "") == other.replace("Left", "").replace("Right", "")
    assert [ARKIT52_MIRRORED[k] for k in ARKIT52_MIRRORED] == list(range(52))


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


@pytest.mark.parametrize("name", ARKIT52)
def test_every_score_can_be_set_alone(name: str, rng: np.random.Generator) -> None:
    before = rng.random(52).astype(np.float32)
    after = with_scores(before, {name.upper(): 0.25})
    assert after.dtype == np.float32
    expected = before.copy()
    expected[ARKIT52.index(name)] = 0.25
    np.testing.assert_array_equal(after, expected)


def test_a_pair_sets_both_sides_and_the_later_of_two_counts() -> None:
    face = with_scores([0] * 52, {"eyeBlink": 1, "eyeBlinkLeft": 0.5})
    assert face[ARKIT52.index("eyeBlinkLeft")] == 0.5
    assert face[ARKIT52.index("eyeBlinkRight")] == 1.0
    assert np.count_nonzero(face) == 2


def test_scores_are_set_in_every_frame_and_the_argument_stays_as_it_is(rng: np.random.Generator) -> None:
    before = rng.random((3, 4, 52))
    copy = before.copy()
    assert (with_scores(before, {"mouthClose": 0})[..., ARKIT52.index("mouthClose")] == 0).all()
    np.testing.assert_array_equal(before, copy)


@pytest.mark.parametrize(
    ("name", "nearest"), [("jawOpne", "jawOpen"), ("smileLeft", "mouthSmileLeft"), ("jaw", "jawOpen"), ("", "")]
)
def test_an_unknown_score_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    """`jaw` is none: jawLeft and jawRight are opposites, not two sides."""
    with pytest.raises(ConfigError, match=f"{name}.*{nearest}"):
        with_scores(np.zeros(52), {name: 0.5})


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="jawOpen must be between 0 and 1"):
        with_scores(np.zeros(52), {"jawOpen": value})


def test_scores_cannot_be_set_in_another_space() -> None:
    with pytest.raises(ShapeError, match="52"):
        with_scores(np.zeros(64), {"jawOpen": 0.5})


def test_another_space_is_refused_by_naming_both(rng: np.random.Generator) -> None:
    paper = walk(rng, space="bfm64")
    paper.require_space("bfm64")
    with pytest.raises(BadMotionFile, match=r"bfm64.*arkit52"):
        paper.require_space("arkit52")
    with pytest.raises(BadMotionFile, match="bfm64"):
        paper.scores("jawOpen")


# --- resampling ---


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


# --- the file ---


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
        (GOOD, {"expression": FACE, "camera": STILL * 0}, "not a camera"),
        (GOOD, {"expression": np.full((4, 52), 1e39), "camera": STILL}, "NaN or infinity"),
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


# --- comparing ---


def test_a_motion_is_like_itself(some: Motion) -> None:
    same = compare(some, some)
    assert same["frames"] == 50
    assert list(same["correlation"]) == ["yaw", "pitch", "roll", "jawOpen", "eyeBlink"]
    assert all(value == pytest.approx(1.0) for value in same["correlation"].values())
    assert all(value == 0 for value in same["mean_abs_difference"].values())


def test_correlation_agrees_with_numpy(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 200))
    y += 0.5 * x
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pearson(x, -3 * x + 2) == pytest.approx(-1.0)


def test_what_does_not_move_has_no_correlation(some: Motion) -> None:
    still = Motion(np.tile(some.expression[:1], (50, 1)), np.tile(some.camera[:1], (50, 1)), 25)
    report = compare(some, still)
    assert all(np.isnan(value) for value in report["correlation"].values())
    assert all(value > 0 for value in report["mean_abs_difference"].values())


def test_an_opposite_head_turn_is_seen(rng: np.random.Generator) -> None:
    yaw = np.stack([np.linspace(-20, 20, 40), np.zeros(40), np.zeros(40)], axis=1)
    scores = rng.random((40, 52))
    a = Motion(scores, camera.from_pose(yaw, np.tile([0, 0, 2.7], (40, 1))), 25)
    b = Motion(scores, camera.from_pose(-yaw, np.tile([0, 0, 2.7], (40, 1))), 25)
    report = compare(a, b)
    assert report["correlation"]["yaw"] == pytest.approx(-1.0)
    assert report["mean_abs_difference"]["yaw"] == pytest.approx(np.abs(2 * yaw[:, 0]).mean(), rel=1e-4)


def test_motions_of_other_rates_and_lengths_are_compared_where_they_overlap(some: Motion) -> None:
    report = compare(some, some.resampled(50.0)[:60])
    assert report["frames"] == 30
    assert min(report["correlation"].values()) > 0.999


def test_motions_of_two_spaces_cannot_be_compared(rng: np.random.Generator, some: Motion) -> None:
    with pytest.raises(BadMotionFile, match="bfm64"):
        compare(some, walk(rng, space="bfm64"))
    assert list(compare(walk(rng, space="bfm64"), walk(rng, space="bfm64"))["correlation"]) == ["yaw", "pitch", "roll"]


# --- the paper's own space ---


def coefficients(rng: np.random.Generator, frames: int = 30) -> np.ndarray:
    """(T, 257) coefficients as Deep3DFaceRecon gives them for a head that turns a little."""
    out = rng.normal(0, 0.5, (frames, 257))
    out[:, 224:227] = rng.normal(0, 0.15, (frames, 3))
    out[:, 254:257] = rng.normal(0, 0.05, (frames, 3))
    return out


def mat(path: Path, **arrays: np.ndarray) -> Path:
    scipy_io = pytest.importorskip("scipy.io", reason="needs export3d[bfm]")
    scipy_io.savemat(path, arrays)
    return path


def test_all_layouts_give_the_same_motion(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = coefficients(rng)
    parts = {"exp": whole[:, 80:144], "angle": whole[:, 224:227], "trans": whole[:, 254:257], "id": whole[:, :80]}
    np.savez(tmp_path / "whole.npz", coeff=whole)
    np.savez_compressed(tmp_path / "parts.npz", **parts)
    np.savez(tmp_path / "unlike.npz", anything=whole, lm68=np.zeros((30, 68, 2)))
    expected = load_bfm64(tmp_path / "whole.npz")
    assert (len(expected), expected.space, expected.fps) == (30, "bfm64", 25.0)
    np.testing.assert_array_equal(expected.expression, whole[:, 80:144].astype(np.float32))
    for path in (tmp_path / "parts.npz", tmp_path / "unlike.npz", mat(tmp_path / "a.mat", **parts),
                 mat(tmp_path / "b.mat", coeff=whole)):  # fmt: skip
        assert load_bfm64(path) == expected


def test_a_folder_of_single_frames_is_read_in_order(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = coefficients(rng, 12)
    np.savez(tmp_path / "whole.npz", coeff=whole)
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, row in enumerate(whole):
        np.savez(folder / f"frame{k}.npz", exp=row[None, 80:144], angle=row[None, 224:227], trans=row[None, 254:257])
    assert load_bfm64(folder) == load_bfm64(tmp_path / "whole.npz")


def project_with_the_model(row: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Deep3DFaceRecon's own way from model points (N, 3) to image points, widths of its 224 crop, y down."""
    x, y, z = row[224:227]
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    moved = points @ (rz @ ry @ rx).T + row[254:257]
    depth = 10.0 - moved[:, 2]
    return np.stack([moved[:, 0] / depth, -moved[:, 1] / depth], axis=-1) * 1015 / 224 + 0.5


FIVE_POINTS = np.array(
    [
        [-0.311, 0.290, 0.134],
        [0.310, 0.290, 0.132],
        [0.003, -0.046, 0.552],
        [-0.252, -0.381, 0.224],
        [0.248, -0.381, 0.222],
    ]
)
"""Eyes, nose tip and mouth corners of the model's mean face."""


def test_model_points_land_where_the_model_puts_them_up_to_crop_and_lens(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """One scale and one shift for the whole clip explain the difference, to a longer lens' parallax."""
    whole = coefficients(rng)
    np.savez(tmp_path / "a.npz", coeff=whole)
    ours = load_bfm64(tmp_path / "a.npz")
    world = (FIVE_POINTS * 10 + [0, 0, 2.07]) * [1, -1, -1] * camera.UNITS_PER_CM
    mine = camera.project(np.tile(world, (30, 1, 1)), ours.camera)
    theirs = np.stack([project_with_the_model(row, FIVE_POINTS) for row in whole])
    a, b = mine - mine.mean(axis=(0, 1)), theirs - theirs.mean(axis=(0, 1))
    scale = (a * b).sum() / (b * b).sum()
    assert 0.5 < scale < 0.8
    assert np.abs(a - scale * b).max() < 0.012


def test_the_model_s_angles_have_our_signs(tmp_path: Path) -> None:
    """In the model's axes a positive y angle turns to the image's right, a positive x angle looks down."""
    whole = np.zeros((3, 257))
    whole[1, 225] = whole[2, 224] = np.radians(10)
    np.savez(tmp_path / "a.npz", coeff=whole)
    np.testing.assert_allclose(
        load_bfm64(tmp_path / "a.npz").angles_deg, [[0, 0, 0], [10, 0, 0], [0, -10, 0]], atol=1e-4
    )


def test_the_median_nose_is_centred_at_the_usual_distance(rng: np.random.Generator, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", coeff=coefficients(rng))
    ours = load_bfm64(tmp_path / "a.npz", fps=30)
    nose = np.array([[0.0, -0.4632, 7.5866]]) * [1, -1, -1] * camera.UNITS_PER_CM
    seen = camera.project(np.tile(nose, (30, 1, 1)), ours.camera)
    np.testing.assert_allclose(np.median(seen[:, 0], axis=0), [0.5, 0.5], atol=1e-3)
    assert np.median(camera.head_position(ours.camera)[:, 2]) == pytest.approx(camera.RADIUS, rel=1e-5)
    assert ours.fps == 30


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"coeff": np.zeros((5, 256))}, "257 layout"),
        ({"exp": np.zeros((5, 64))}, "257 layout"),
        ({"exp": np.zeros((5, 64)), "angle": np.zeros((4, 3)), "trans": np.zeros((5, 3))}, "with one T"),
        ({"exp": np.zeros((5, 63)), "angle": np.zeros((5, 3)), "trans": np.zeros((5, 3))}, "with one T"),
        ({"coeff": np.zeros((0, 257))}, "with one T"),
        ({"coeff": np.full((5, 257), np.nan)}, "NaN"),
        ({"coeff": np.full((5, 257), 11.0)}, "behind the camera"),
        ({"text": np.array(["a", "b"])}, "found no arrays"),
        ({}, "found no arrays"),
    ],
)
def test_other_coefficients_are_refused_with_the_cause(
    tmp_path: Path, arrays: dict[str, np.ndarray], cause: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadMotionFile, match=cause) as caught:
        load_bfm64(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)


def test_pickled_objects_inside_an_npz_are_not_loaded(tmp_path: Path) -> None:
    hostile = np.empty(1, dtype=object)
    hostile[0] = Bomb(tmp_path / "proof")
    np.savez(tmp_path / "a.npz", coeff=hostile)
    with pytest.raises(BadMotionFile, match=r"a\.npz"):
        load_bfm64(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("coeff.npy", pickle.dumps(Bomb(tmp_path / "proof")))
    with pytest.raises(BadMotionFile, match=r"b\.npz"):
        load_bfm64(tmp_path / "b.npz")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["a.npz", "a.mat"])
def test_damaged_coefficient_files_are_refused(rng: np.random.Generator, tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", coeff=coefficients(rng))
    if name == "a.mat":
        mat(tmp_path / name, coeff=coefficients(rng))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadMotionFile, match="cannot be read"):
        load_bfm64(tmp_path / name)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfm64, "MAX_FRAMES", 1)
    np.savez_compressed(tmp_path / "bomb.npz", coeff=np.zeros((100, 257)))
    with pytest.raises(BadMotionFile, match="would unpack"):
        load_bfm64(tmp_path / "bomb.npz")


def test_other_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 257)))
    (tmp_path / "a.mat").write_bytes(buffer.getvalue())
    (tmp_path / "b.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600))
    (tmp_path / "empty").mkdir()
    for name, cause in (
        ("a.mat", "bare NumPy array"),
        ("b.mat", "-v7"),
        ("empty", "no .mat or .npz"),
        ("c.mat", "not exist"),
    ):
        with pytest.raises(BadMotionFile, match=cause):
            load_bfm64(tmp_path / name)
