from __future__ import annotations

from pathlib import Path

import pytest

from export3d.animate.batch_list import Row, read_rows
from export3d.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, astronaut_path: Path, motion_file: Path) -> Path:
    """A folder with inputs: face.png, take.motion, clip.mp4."""
    (tmp_path / "face.png").write_bytes(astronaut_path.read_bytes())
    (tmp_path / "take.motion").write_bytes(motion_file.read_bytes())
    (tmp_path / "clip.mp4").write_bytes(b"a video")
    return tmp_path


def rows(folder: Path, *lines: str, **shared: str) -> list[Row]:
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return read_rows(folder / "list.csv", shared)


def test_a_row_has_the_options_of_animate(folder: Path) -> None:
    header = "portrait,driving,output,face,frame,size,background,driving-face,start,seconds,head_motion,set,sheet,label"
    values = "face.png,clip.mp4,a/b.mp4,2,crop,512,#20c040,left,1.5,2,full,jawOpen=0.8 eyeBlinkLeft=1,b.png,yes"
    (row,) = rows(folder, header, values)
    assert (row.number, row.portrait, row.mover, row.moves) == (2, folder / "face.png", folder / "clip.mp4", "driving")
    assert row.outputs == ["a/b.mp4", "b.png"]
    assert (row.face, row.frame, row.size, row.background) == ("2", "crop", "512", "#20c040")
    assert (row.driving_face, row.start, row.seconds, row.head_motion) == ("left", 1.5, 2.0, "full")
    assert (row.scores, row.relative, row.label) == ({"jawOpen": 0.8, "eyeBlinkLeft": 1.0}, True, True)


def test_an_empty_cell_takes_what_holds_for_all_rows(folder: Path) -> None:
    lines = ("portrait,motion,driving,output,size", "face.png,,,a.mp4,", "face.png,speech,,b.mp4,512")
    first, second = rows(folder, *lines, driving=str(folder / "clip.mp4"), size="256", absolute="yes")
    assert (first.mover, first.size, first.relative) == (folder / "clip.mp4", "256", False)
    assert (second.mover, second.size, second.moves) == (Path("speech"), "512", "motion")


def test_a_file_beside_the_list_comes_before_a_bundled_motion(folder: Path, motion_file: Path) -> None:
    lines = ("portrait,motion,output", "face.png,speech,a.mp4")
    assert rows(folder, *lines)[0].mover == Path("speech")
    (folder / "speech").write_bytes(motion_file.read_bytes())
    assert rows(folder, *lines)[0].mover == folder / "speech"


def test_rows_are_counted_as_a_spreadsheet_counts_them(folder: Path) -> None:
    made = rows(folder, "portrait,motion,output", "face.png,speech,a.mp4", ",,", "face.png,turns,b.mp4")
    assert [row.number for row in made] == [2, 4]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("portrait", "", "the portrait is missing"),
        ("portrait", "none.png", "none.png does not exist"),
        ("motion", "", "the driving motion is missing"),
        ("motion", "none.motion", "none.motion does not exist"),
        ("driving", "clip.mp4", "driving and motion exclude each other"),
        ("output", "", "the output is missing"),
        ("output", "a.avi", "must end in .mp4"),
        ("output", "../a.mp4", "a path inside the folder for the results"),
        ("output", "/tmp/a.mp4", "a path inside the folder for the results"),
        ("output", "s3://bucket/a.mp4", "a path inside the folder for the results"),
        ("output", ".batch/a.mp4", "no name in it may begin with a dot"),
        ("output", "other.mp4", "other.mp4 is an output of row 2 too"),
        ("output", "x/../other.mp4", "other.mp4 is an output of row 2 too"),
        ("output", "Other.mp4", "Other.mp4 is an output of row 2 too, written other.mp4"),
        ("output", "other.mp4/a.mp4", "needs a folder other.mp4, which is an output of row 2"),
        ("output", "a\x00.mp4", r"'a\x00.mp4' has a control character"),
        ("output", "a\x07.mp4", r"'a\x07.mp4' has a control character"),
        ("sheet", "a.jpg", "must end in .png"),
        ("sheet", "other.png", "other.png is an output of row 2 too"),
        ("face", "middle", "there is no face 'middle'"),
        ("frame", "film", "the frame 'film' is not possible"),
        ("size", "100", "the size '100' is not possible"),
        ("background", "#123", "no colour"),
        ("background", "none.png", "none.png does not exist"),
        ("background", "green", "neither keep nor blur"),
        ("driving_face", "left", "chooses a face of a driving video"),
        ("absolute", "perhaps", "absolute is 'perhaps'; give yes or no"),
        ("start", "soon", "start is 'soon'; give a number of seconds"),
        ("start", "-1", "a start of -1 s is not possible"),
        ("seconds", "0", "holds no frame"),
        ("head_motion", "wild", "there is no head motion 'wild'"),
        ("set", "jawOpen", "'jawOpen' cannot be read"),
        ("set", "jawOpen=2", "jawOpen"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(folder: Path, column: str, value: str, words: str) -> None:
    good = {"portrait": "face.png", "motion": "take.motion", "output": "other.mp4", "sheet": "other.png"}
    bad = good | {"output": "a.mp4", "sheet": "a.png"} | {column: value}
    names = list(bad)
    lines = (",".join(names), *(",".join(row.get(name, "") for name in names) for row in (good, bad)))
    with pytest.raises(InputError, match="row 3: ") as raised:
        rows(folder, *lines)
    assert words in str(raised.value)


def test_options_that_exclude_each_other_do_so_in_a_row(folder: Path) -> None:
    for header, cells, words in (
        ("label,no_mark", "yes,yes", "exclude"),
        ("absolute,head_motion", "yes,full", "head_motion"),
        ("absolute,frame", "yes,photo", "use frame crop"),
    ):
        with pytest.raises(InputError, match=words):
            rows(folder, f"portrait,motion,output,{header}", f"face.png,speech,a.mp4,{cells}")


def test_the_first_of_several_bad_rows_is_told_and_the_others_are_numbered(folder: Path) -> None:
    lines = ("portrait,motion,output", *(f"face.png,none.motion,{number}.mp4" for number in range(3)))
    with pytest.raises(InputError, match=r"row 2: .*none\.motion does not exist.*; rows 3, 4 cannot be used either$"):
        rows(folder, *lines)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["portrait,motion,output,colour"], "a column 'colour', which is not known"),
        (["portrait,motion,output,weights"], "a column weights, which is the same for all rows"),
        (["portrait,motion,motion,output"], "the column motion twice"),
        (["portrait,motion,output", "a.png,speech,b.mp4,c"], "row 2 has 4 cells"),
        (["portrait,motion,output"], "has no rows"),
        (["portrait,motion,output", "a,b,c", 'a.png,"speech,b.mp4', "a,b,c"], "row 3: a quote is not closed"),
        (["portrait,motion,output", 'a.png,"speech"s,b.mp4'], "row 2: .*; correct the row"),
        (["portrait;motion;output", "a.png;speech;b.mp4"], "semicolons between its columns; save it with commas"),
        (["portrait,,motion,output"], "a column without a name"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(folder: Path, lines: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows(folder, *lines)


def test_empty_columns_at_the_end_do_not_matter(folder: Path) -> None:
    assert [row.output for row in rows(folder, "portrait,motion,output,,", "face.png,speech,a.mp4,,")] == ["a.mp4"]


def test_the_policy_speaks_for_every_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "policy.toml").write_text('marks = "required"\n')
    lines = ("portrait,motion,output,no_mark", "face.png,speech,a.mp4,", "face.png,speech,b.mp4,yes")
    rows(folder, *lines)
    monkeypatch.setenv("EXPORT3D_POLICY", str(folder / "policy.toml"))
    with pytest.raises(InputError, match="row 3: the policy of this machine requires marks"):
        rows(folder, *lines)


def test_a_fingerprint_follows_the_row_and_the_contents_of_its_inputs(folder: Path) -> None:
    def fingerprint(cells: str = "face.png,take.motion,a.mp4,", **shared: str) -> str:
        return rows(folder, "portrait,motion,output,size", cells, **shared)[0].fingerprint

    first = fingerprint()
    (folder / "copy.png").write_bytes((folder / "face.png").read_bytes())
    assert fingerprint("copy.png,take.motion,a.mp4,") == first, "the name of an input does not matter"
    others = [fingerprint("face.png,take.motion,b.mp4,"), fingerprint(size="512"), fingerprint(label="yes")]
    (folder / "take.motion").write_bytes((folder / "take.motion").read_bytes() + b" ")
    others.append(fingerprint())
    assert len({first, *others}) == 5
