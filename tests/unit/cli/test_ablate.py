"""`export3d ablate`: what the command hands over, and how it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export3d.ablation.rows import ROWS
from export3d.ablation.table import Ablation, RowResult
from export3d.cli import ablate as module
from export3d.cli.main import main


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library was asked for by the command."""
    given: dict[str, Any] = {}

    def pretend(data: Path, out: Path, config: Any, loop: Any, rows: Any, **options: Any) -> Ablation:
        given.update(data=data, out=out, config=config, loop=loop, rows=rows, **options)
        options["progress"]("clebs, same identity", 1, 4)
        options["progress"]("clebs, same identity", 4, 4)
        options["progress"]("clebs, cross identity", 2, 2)
        return Ablation({"max_images": 8}, (), (RowResult("clebs", 8, 0.1, 10, 5, 20.0, {}),), {})

    monkeypatch.setattr(module, "ablate", pretend)
    return given


def test_the_command_hands_over_rows_settings_and_budget(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (
        f"ablate {tmp_path} -o {tmp_path}/out --set model.preset=tiny --set model.image_size=64 "
        "--rows direct_3dmm clebs --set loop.max_images=8 --set loop.batch_size=2 --set loop.betas=[0,0.9] "
        "--set loss.l2=3 --set model.expression=e.safetensors --from-pretrained w.safetensors "
        "--pseudo a b --pairs p.csv --identity dlib --identity arc.onnx --frames 7 --every 3 --cache c"
    )
    assert main(words.split()) == 0
    assert asked["rows"] == ("direct_3dmm", "clebs")
    assert (asked["config"].preset, asked["config"].image_size, asked["config"].weights.l2) == ("tiny", 64, 3.0)
    assert asked["config"].variants == (), "the recipe's own row is left out"
    assert asked["config"].expression == Path("e.safetensors")
    assert (asked["loop"].max_images, asked["loop"].batch_size, asked["loop"].betas) == (8, 2, (0.0, 0.9))
    assert (asked["from_pretrained"], asked["pairs"], asked["cache"]) == (
        Path("w.safetensors"),
        Path("p.csv"),
        Path("c"),
    )
    assert asked["pseudo"] == (Path("a"), Path("b"))
    assert asked["identity"] == ("dlib", "arc.onnx")
    assert (asked["frames"], asked["every"]) == (7, 3)
    out, err = capsys.readouterr()
    assert out.startswith("# Ablation of the expression encoding")
    assert "ablation.md" in err


def test_by_default_the_five_rows_of_the_table_are_trained(asked: dict[str, Any], tmp_path: Path) -> None:
    assert main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--set", "loop.max_images=8"]) == 0
    assert asked["rows"] == ROWS
    assert asked["identity"] == ("dlib",)


def test_a_budget_in_minutes_alone_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--set", "loop.max_minutes=5"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("export3d: the rows must see equally many images")
    assert "loop.max_images" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_row_names_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--rows", "lebs"]) == 2
    assert "e2e_lebs_n25" in "".join(capsys.readouterr())


def test_data_that_were_not_prepared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--set", "loop.max_images=8"]) == 2
    assert "export3d prepare" in capsys.readouterr().err
