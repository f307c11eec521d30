"""animate/livelink.py: recordings of Apple's face tracking, as the Live Link Face app writes them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export3d import camera
from export3d.errors import BadMotionFile
from export3d.motion import livelink
from export3d.motion.arkit import ARKIT52
from export3d.motion.livelink import load_live_link_face
from export3d.motion.motion import Motion
from tests.live_link_face import APP_COLUMNS, Row, take, write_take


def ramp(count: int) -> list[Row]:
    """The jaw opens a hundredth a row."""
    return [{"JawOpen": k / 100} for k in range(count)]


def load(folder: Path, text: str) -> Motion:
    """The motion in this text."""
    (folder / "take.csv").write_text(text, encoding="utf-8")
    return load_live_link_face(folder / "take.csv")


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_app_s_columns_are_the_52_scores_and_nine_angles() -> None:
    assert {name[0].lower() + name[1:] for name in APP_COLUMNS[:52]} == set(ARKIT52)
    assert len(APP_COLUMNS) == 61


@pytest.mark.parametrize("name", APP_COLUMNS[:52])
def test_every_column_becomes_its_score(name: str, tmp_path: Path) -> None:
    """Left stays left: in both conventions it is the person's own."""
    motion = load(tmp_path, take([{name: 0.75}]))
    expected = np.zeros((1, 52), np.float32)
    expected[0, ARKIT52.index(name[0].lower() + name[1:])] = 0.75
    np.testing.assert_array_equal(motion.expression, expected)


def test_order_and_case_of_the_columns_and_line_ends_do_not_matter(tmp_path: Path) -> None:
    text = take([{name: k / 100 for k, name in enumerate(APP_COLUMNS)}, {"HeadYaw": 0.3}])
    table = [line.split(",") for line in text.splitlines()]
    order = random.Random(4).sample(range(63), 63)
    shuffled = [",".join(row[k] for k in order) for row in table]
    shuffled[0] = shuffled[0].upper()
    assert load(tmp_path, "\ufeff" + "\r\n".join(shuffled) + "\r\n\r\n") == load(tmp_path, text)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_spreadsheets_write_the_same_take(delimiter: str, decimal: str, tmp_path: Path) -> None:
    """Decimal commas between commas come in quotes."""
    rows: list[Row] = [{"JawOpen": k / 8, "HeadYaw": -k / 16} for k in range(6)]
    out = []
    for line in take(rows).splitlines():
        cells = [cell.replace(".", decimal) for cell in line.split(",")]
        out.append(delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in cells))
    assert load(tmp_path, "\n".join(out) + "\n") == load(tmp_path, take(rows))


@pytest.mark.parametrize("form", ["{:02d}:{:03d}", "{:02d}.{:03d}", "{:02d},{:03d}", "{:02d};{:03d}"])
@pytest.mark.parametrize("fps", [25, 30, 60])
def test_timecodes_in_milliseconds_are_read(form: str, fps: int, tmp_path: Path) -> None:
    """Three digits count milliseconds, even in a take whose first ones are below 60."""
    rows: list[Row] = []
    for k in range(3 * fps):
        whole, milliseconds = divmod(58_002 + round(1000 * k / fps), 1000)
        time = f"11:{54 + whole // 60:02d}:" + form.format(whole % 60, milliseconds)
        rows.append({"Timecode": time, "JawOpen": k / (3 * fps)})
    motion = load(tmp_path, take(rows).replace(",", "\t") if "," not in form else take(rows, delimiter=";"))
    assert len(motion) == 3 * fps
    assert motion.fps == pytest.approx(fps, rel=4e-4)
    np.testing.assert_allclose(motion.scores("jawOpen"), np.arange(3 * fps) / (3 * fps), atol=1e-3)


@pytest.mark.parametrize("form", [".{:02d}", ".{}", ":{:03d}", ",{:02d}"])
def test_parts_that_never_exceed_59_are_frames(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first rows could as well be fractions of a second: the whole take decides."""
    rows: list[Row] = [{"Timecode": f"11:54:{k // 30:02d}" + form.format(k % 30)} for k in range(19, 120)]
    motion = load(tmp_path, take(rows, delimiter=";"))
    assert (len(motion), motion.fps) == (101, 30.0)
    assert "never exceeds 59" in caplog.text
    assert "taken for frames" in caplog.text


@pytest.mark.parametrize(
    ("form", "step", "fps", "meaning"),
    [
        (".{:02d}", 4, 25.0, "a fraction of a second"),
        (":{:03d}", 20, 50.0, "a fraction of a second"),
        (".{:02d}", 1, 60.0, "frames"),
        (":{:03d}", 1, 60.0, "frames"),
    ],
)
def test_within_one_second_the_rate_decides(
    form: str, step: int, fps: float, meaning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Row] = [{"Timecode": "11:54:29" + form.format(k)} for k in range(0, 60, step)]
    assert load(tmp_path, take(rows)).fps == pytest.approx(fps)
    assert f"taken for {meaning}" in caplog.text


def test_hundredths_of_a_second_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Row] = [{"Timecode": f"11:54:{k // 25:02d}.{4 * (k % 25):02d}"} for k in range(60)]
    motion = load(tmp_path, take(rows))
    assert (len(motion), motion.fps) == (60, 25.0)
    assert caplog.text == ""


@pytest.mark.parametrize("absent", [("HeadYaw",), ("TongueOut",), ("HeadYaw", "HeadPitch", "HeadRoll", "TongueOut")])
def test_without_head_or_tongue_these_rest(
    absent: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Row] = [{"JawOpen": k / 8, "HeadYaw": 0.1, "HeadPitch": 0.2, "TongueOut": 0.3} for k in range(4)]
    expected = load(tmp_path, take([{name: v for name, v in row.items() if name not in absent} for row in rows]))
    table = [line.split(",") for line in take(rows).splitlines()]
    kept = [k for k, name in enumerate(table[0]) if name not in absent]
    assert load(tmp_path, "\n".join(",".join(row[k] for k in kept) for row in table) + "\n") == expected
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'take.csv'} has no column for ")
    assert all(name in message for name in absent)


def test_columns_that_are_not_needed_may_be_absent(tmp_path: Path) -> None:
    text = take(ramp(5))
    without = "\n".join(",".join([line.split(",")[0], *line.split(",")[2:-6]]) for line in text.splitlines())
    assert load(tmp_path, without + "\n") == load(tmp_path, text)


def test_the_eyes_angles_are_left_to_the_scores(tmp_path: Path) -> None:
    assert load(tmp_path, take([{"LeftEyeYaw": 0.2, "RightEyePitch": "nan"}])) == load(tmp_path, take([{}]))


def test_small_overshoot_is_clipped(tmp_path: Path) -> None:
    motion = load(tmp_path, take([{"JawOpen": 1.02, "MouthClose": -0.03}]))
    assert motion.scores("jawOpen")[0] == 1.0
    assert motion.scores("mouthClose")[0] == 0.0


def test_the_motion_says_where_it_came_from_and_survives_its_file(tmp_path: Path) -> None:
    motion = load(tmp_path, take(ramp(30)))
    motion.save(tmp_path / "take.motion")
    again = Motion.load(tmp_path / "take.motion")
    assert again == motion
    assert "Live Link Face" in again.meta["recorded"]
    assert "take.csv" in again.meta["recorded"]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "step", "fps"),
    [(60, 1.001, 60000 / 1001), (60, 1, 60.0), (30, 1.001, 30000 / 1001), (30, 1, 30.0), (24, 1, 24.0), (25, 1, 25.0)],
)
def test_the_rate_is_read_off_the_timecodes(clock: int, step: float, fps: float, tmp_path: Path) -> None:
    motion = load(tmp_path, take(ramp(80), clock=clock, step=step, first=12.804 if step > 1 else 12))
    assert motion.fps == pytest.approx(fps, rel=1e-9)
    assert len(motion) == 80
    np.testing.assert_allclose(motion.scores("jawOpen"), np.arange(80) / 100, atol=1e-4)


def test_a_camera_faster_than_its_timecode_keeps_its_own_rate(tmp_path: Path) -> None:
    """60 frames a second under a film clock of 24: five steps of 0.4 in two frames of timecode."""
    assert load(tmp_path, take(ramp(90), clock=24, step=0.4, first=3)).fps == 60.0


def test_a_take_too_short_to_tell_has_the_app_s_own_rate(tmp_path: Path) -> None:
    assert load(tmp_path, take(ramp(6), step=1, first=0)).fps == 60.0
    assert load(tmp_path, take(ramp(6), step=1, first=40)).fps == 60.0
    assert load(tmp_path, take(ramp(1))).fps == 60.0


def test_an_odd_rate_is_kept(tmp_path: Path) -> None:
    assert load(tmp_path, take(ramp(90), step=1.6, first=0)).fps == pytest.approx(37.5)


def test_dropped_frames_are_bridged(tmp_path: Path) -> None:
    lines = take(ramp(100)).splitlines(keepends=True)
    kept = [line for k, line in enumerate(lines) if k not in (5, 41, 42, 43, 80)]
    whole, bridged = load(tmp_path, "".join(lines)), load(tmp_path, "".join(kept))
    assert (len(bridged), bridged.fps) == (100, whole.fps)
    np.testing.assert_allclose(bridged.expression, whole.expression, atol=1e-4)


def test_of_rows_with_one_timecode_the_first_counts(tmp_path: Path) -> None:
    lines = take(ramp(40)).splitlines(keepends=True)
    twice = [*lines[:11], lines[10].replace("0.0900000000", "0.9000000000"), *lines[11:]]
    assert twice[11] != twice[10]
    assert load(tmp_path, "".join(twice)) == load(tmp_path, "".join(lines))


def test_rows_without_a_face_are_bridged(tmp_path: Path) -> None:
    rows = ramp(40)
    lost = [{"BlendshapeCount": 0, "JawOpen": ""} if 10 <= k < 15 else row for k, row in enumerate(rows)]
    motion = load(tmp_path, take(lost))
    np.testing.assert_allclose(motion.expression, load(tmp_path, take(rows)).expression, atol=1e-4)


def test_a_take_may_cross_midnight(tmp_path: Path) -> None:
    late = load(tmp_path, take(ramp(90), first=10, step=1, start_s=86399))
    assert late == load(tmp_path, take(ramp(90), first=10, step=1))
    assert late.duration_s == 1.5


def test_drop_frame_timecode_loses_no_time(tmp_path: Path) -> None:
    """Frames 0 and 1 of a minute do not exist at 29.97 with a semicolon; the labels still keep real time."""
    labels = [f"10:00:59;{k:02d}" for k in range(30)] + [f"10:01:00;{k:02d}" for k in range(2, 30)]
    motion = load(tmp_path, take([{"Timecode": label} for label in labels]))
    assert (len(motion), motion.fps) == (60, 30.0)


# --- the head ---------------------------------------------------------------------------------------------------------


def test_without_head_rotation_the_default_camera_looks(tmp_path: Path) -> None:
    label = load(tmp_path, take([{}])).camera[0]
    np.testing.assert_allclose(label, camera.Camera.look_at().label, atol=1e-6)


@pytest.mark.parametrize(
    ("column", "angles", "nose"),
    [
        ("HeadYaw", [20, 0, 0], (1, 0)),  # to the person's own left: the picture's right
        ("HeadPitch", [0, -20, 0], (0, 1)),  # down
        ("HeadRoll", [0, 0, -20], (0, 0)),  # anticlockwise in the picture
    ],
)
def test_positive_angles_turn_as_documented(
    column: str, angles: list[float], nose: tuple[int, int], tmp_path: Path
) -> None:
    motion = load(tmp_path, take([{column: np.radians(20)}]))
    np.testing.assert_allclose(motion.angles_deg[0], angles, atol=1e-3)
    at = camera.project(np.array([[0.0, 0.0, -0.14]]), motion.camera[0])[0] - 0.5
    np.testing.assert_array_equal(np.sign(np.round(at, 4)), nose)


def test_the_angles_are_applied_in_arkit_s_order(tmp_path: Path) -> None:
    """Against the rotation written out: Ry(yaw) Rx(pitch) Rz(roll) in axes x right, y up, z to the viewer."""
    yaw, pitch, roll = 0.5, -0.3, 0.2

    def about(axis: int, angle: float) -> np.ndarray:
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        out = np.eye(3)
        out[i, i] = out[j, j] = np.cos(angle)
        out[i, j], out[j, i] = -np.sin(angle), np.sin(angle)
        return out

    arkit = about(1, yaw) @ about(0, pitch) @ about(2, roll)
    label = load(tmp_path, take([{"HeadYaw": yaw, "HeadPitch": pitch, "HeadRoll": roll}])).camera[0]
    flip = np.diag([1.0, -1.0, -1.0])
    points = np.random.default_rng(3).normal(0, 0.1, (8, 3))  # on the face, in ARKit's axes
    seen = (points @ arkit.T) @ flip + [0, 0, camera.RADIUS]
    expected = seen[:, :2] / seen[:, 2:] * camera.FOCAL + 0.5
    np.testing.assert_allclose(camera.project(points @ flip, label), expected, atol=1e-6)


def test_a_dropped_frame_at_half_a_circle_is_bridged_the_short_way(tmp_path: Path) -> None:
    lines = take([{"HeadRoll": angle} for angle in (3.0, 3.1, 0, -3.1, -3.0)]).splitlines(keepends=True)
    motion = load(tmp_path, "".join(lines[:3] + lines[4:]))
    assert len(motion) == 5
    assert abs(motion.angles_deg[2, 2]) == pytest.approx(180, abs=0.1)


# --- what is refused --------------------------------------------------------------------------------------------------


def without(*names: str) -> str:
    """A take that lacks columns."""
    table = [line.split(",") for line in take(ramp(3)).splitlines()]
    kept = [k for k, name in enumerate(table[0]) if name not in names]
    return "\n".join(",".join(row[k] for k in kept) for row in table) + "\n"


def with_cell(name: str, cell: str) -> str:
    """A take with this text in its second row of numbers (line 3)."""
    return take([{}, {name: cell}, {}])


BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "one column missing": (without("JawOpen"), ("lacks 1 of", "(JawOpen)")),
    "many missing": (
        without("Timecode", "JawOpen", "JawLeft", "TongueOut", "HeadRoll"),
        ("lacks 3 of", "(Timecode, JawLeft, JawOpen)"),
    ),
    "a column twice": (take(ramp(2)).replace("MouthLeft", "JawOpen"), ("lacks 1 of", "MouthLeft")),
    "a column too many": (take(ramp(2)).replace("LeftEyeYaw", "JawOpen"), ("two columns JawOpen",)),
    "another table": ("file,person,split\na.mp4,ada,train\n", ("first line should read", "Timecode,BlendShapeCount")),
    "bars": (take(ramp(3)).replace(",", "|"), ("separated by commas, semicolons or tabs",)),
    "decimal commas between commas": (
        take(ramp(3)).replace("0.", "0,"),
        ("line 2", "cells under 63 column names"),
    ),
    "thousands": (with_cell("JawOpen", '"1,234.5"'), ("line 3", "column JawOpen", "'1,234.5' is not a number")),
    "frames after milliseconds": (
        take([{"Timecode": "00:00:01:100"}, {"Timecode": "00:00:01:12.5"}]),
        ("line 3", "column Timecode", "'00:00:01:12.5'", "milliseconds (11:54:29:330), as above"),
    ),
    "no header": (take(ramp(3)).split("\n", 1)[1], ("first line should read",)),
    "no rows": (take([]), ("no rows",)),
    "no face": (take([{"BlendshapeCount": 0}]), ("no row with a face",)),
    "one line without end": ("Timecode,BlendShapeCount", ("has no lines",)),
    "NaN": (with_cell("JawOpen", "nan"), ("line 3", "column JawOpen", "'nan' is not a number")),
    "infinity": (with_cell("HeadYaw", "-inf"), ("line 3", "column HeadYaw", "'-inf' is not a number")),
    "empty cell": (with_cell("TongueOut", ""), ("line 3", "column TongueOut", "an empty cell is not a number")),
    "words": (with_cell("CheekPuff", "puffed"), ("line 3", "column CheekPuff", "'puffed' is not a number")),
    "percent": (with_cell("JawOpen", "87.5"), ("line 3", "column JawOpen", "87.5 is far outside 0 to 1")),
    "negative": (with_cell("JawOpen", "-2"), ("line 3", "column JawOpen", "-2 is far outside 0 to 1")),
    "degrees": (with_cell("HeadPitch", "12.5"), ("line 3", "column HeadPitch", "12.5 is not an angle in radians")),
    "a cut line": (take(ramp(3))[:-400], ("line 4", "cells under 63 column names")),
    "seconds": (with_cell("Timecode", "0.0333"), ("line 3", "column Timecode", "'0.0333'")),
    "milliseconds": (with_cell("Timecode", "11:54:29:967"), ("line 3", "column Timecode", "frame 967")),
    "backwards": (take([{}, {"Timecode": "11:54:29:01.000"}, {}]), ("line 3", "column Timecode", "backwards")),
    "a clock that jumps": (
        take([{"Timecode": f"00:00:00:{k:03d}"} for k in range(80)] + [{"Timecode": "00:30:00:000"}]),
        ("its timecodes jump",),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_tables_are_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    text, words = BAD[kind]
    with pytest.raises(BadMotionFile) as refusal:
        load(tmp_path, text)
    sentence = str(refusal.value)
    for word in ("take.csv", *words):
        assert word in sentence
    assert "\n" not in sentence
    assert len(sentence) < 400


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text(take(ramp(3)), encoding="utf-16"),
        lambda path: path.write_bytes(take(ramp(3)).encode() + b"\xff\xfe\x00\n"),
        lambda path: path.write_bytes(bytes(range(256)) * 40),
        lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500)),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: None,
    ],
    ids=["UTF-16", "bad end", "bytes", "video", "empty", "folder", "missing"],
)
def test_what_is_not_text_is_refused(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path / "take.csv")
    with pytest.raises(BadMotionFile, match=r"take\.csv"):
        load_live_link_face(tmp_path / "take.csv")


@pytest.mark.parametrize("last", ["23:59:59:00", "01:00:00:01"])
def test_a_gap_of_hours_is_refused_with_its_line(last: str, tmp_path: Path) -> None:
    with pytest.raises(BadMotionFile, match=r"take\.csv, line 3, column Timecode: \d+\.0 hours have passed"):
        load(tmp_path, take([{"Timecode": code} for code in ("00:00:00:00", last)]))


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livelink, "MAX_FRAMES", 5)
    write_take(tmp_path / "take.csv", ramp(6))
    with pytest.raises(BadMotionFile, match="more than 5 rows"):
        load_live_link_face(tmp_path / "take.csv")
