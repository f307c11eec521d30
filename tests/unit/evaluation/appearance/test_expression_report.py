"""The report of evaluate-expression, by the command and by the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export3d.cli.main import main
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import InputError
from export3d.evaluation.appearance.expression_report import evaluate_expression, read_portrait_pairs
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.pretrained import save_encoder

LONDON = Path(__file__).parents[4] / "benchmarks" / "london_pairs.csv"


def test_the_london_pairs_are_94_of_distinct_records() -> None:
    pairs = read_portrait_pairs(LONDON)
    assert len(pairs) == 94
    assert len({key for pair in pairs for key in pair}) == 188


def test_a_csv_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("person,neutral\na,b\n")
    with pytest.raises(InputError, match="person, neutral, smiling"):
        read_portrait_pairs(tmp_path / "pairs.csv")


Make = Callable[..., Record]


@pytest.fixture
def prepared(tmp_path: Path, make_clip: Make) -> Path:
    """Six people in train and three in val, 60 frames each; their looks outweigh their expressions."""
    rng = np.random.default_rng(5)
    template = make_clip("template", yaws=(0.0,) * 60, step=0)

    def clip(key: str, split: str) -> Record:
        look, gestures = rng.random(52), 0.2 * rng.random((60, 52))
        info = {**template.info, "person": f"person-{key}", "fingerprint": key}
        arrays = (template.camera, template.landmarks, template.found)
        return Record(key, template.media, "mp4", (look + gestures).astype(np.float32), *arrays, info)

    for split, count in (("train", 6), ("val", 3)):
        update(tmp_path / "data" / split, [clip(f"{split}{number}", split) for number in range(count)])
    return tmp_path / "data"


@pytest.mark.slow
def test_the_command_writes_the_same_table_and_figure_twice(
    prepared: Path, tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("person,neutral,smiling\na,val0,val1\nb,train0,train1\nc,val2,train2\n")
    command = ["evaluate-expression", str(prepared), "--encoder", str(tiny_weights), "--pairs", str(pairs)]
    assert main([*command, "-o", str(tmp_path / "one")]) == 0
    assert "| untrained LeBS |" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "two")]) == 0
    for name in ("expression.json", "expression.md", "tsne.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    value = json.loads((tmp_path / "one" / "expression.json").read_text())
    assert list(value["rows"])[-1] == "tiny"
    assert value["settings"]["probed_people"] == 3
    assert value["settings"]["people_neutral_and_smiling"] == 3
    for row in value["rows"].values():
        assert row["linear"]["low"] <= row["linear"]["value"] <= row["linear"]["high"]
        assert row["held"]["value"] > 0.0
        assert "held_val" not in row
    assert value["rows"]["raw beta"]["linear"]["value"] == 1.0
    assert value["rows"]["untrained LeBS"]["linear"]["deviation"] is not None
    assert value["rows"]["tiny"]["linear"]["deviation"] is None


def test_people_of_both_splits_can_be_asked_about_and_are_not_fitted_on(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    people = ["person-train1", "person-train4", "person-val0"]
    report = evaluate_expression(prepared, tmp_path / "out", people=people)
    assert report.settings["probed_people"] == 3
    assert "of 4 training videos" in report.settings["baselines_fitted_on"]
    assert "held" not in report.rows["raw beta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--people", "nobody", "person-val0"], "no clip shows nobody"),
        (["--people", "person-val0"], "at least two people"),
        (["--encoder", "absent.safetensors"], "absent.safetensors"),
        (["--pairs", "absent.csv"], "absent.csv"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    prepared: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate-expression", str(prepared), "-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_portraits_that_are_not_there_are_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lack 188"):
        evaluate_expression(prepared, tmp_path / "out", pairs=LONDON)


def test_encoders_of_another_expression_space_are_refused(prepared: Path, tmp_path: Path) -> None:
    path = save_encoder(ExpressionEncoder(ExpressionConfig(inputs=64, hidden=8)), tmp_path / "bfm.safetensors", {})
    with pytest.raises(InputError, match="holds 52 expression values, but the encoder bfm takes 64"):
        evaluate_expression(prepared, tmp_path / "out", encoders=[path])
