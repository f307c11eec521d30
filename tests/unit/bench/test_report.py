"""Reports of `export3d bench`: written, read, compared, and refused where they are something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export3d.bench.report import SCHEMA, Report, Row, load_report
from export3d.errors import InputError

ROW = Row(
    unit="frame",
    precision="float32",
    flop=2e9,
    traffic=3e6,
    p50=0.02,
    p95=0.03,
    processor=0.04,
    of_matmul=0.5,
    of_copy=0.01,
)


def report(**rows: Row) -> Report:
    return Report(
        machine={
            "processor": "P",
            "cores": 2,
            "instructions": ["avx2"],
            "device": "cpu",
            "torch": "2.13",
            "load": 0.1,
            "onednn_max_cpu_isa": "AVX2",
        },
        settings={
            "weights": "packaged",
            "engine": "reference",
            "image_size": 256,
            "batch": 4,
            "threads": 2,
            "rounds": 3,
            "warm_up": 1,
        },
        matmul={"float32": 1e11, "bfloat16": 2e11},
        copy=1e10,
        stages=rows or {"planes": ROW},
    )


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    made = report(decode=replace(ROW, precision="", flop=None, of_matmul=None), planes=ROW)
    made.save(tmp_path / "a.json")
    assert load_report(tmp_path / "a.json") == made


def test_the_table_has_a_line_per_stage_with_its_units() -> None:
    lines = report(planes=ROW).table().splitlines()
    assert "100 GFLOP/s" in lines[2]
    assert "10.0 GB/s" in lines[2]
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in lines[0]
    assert lines[-1] == "| planes | float32 | 2.00 | 3.0 | 20.0 | 30.0 | 40.0 | 50% | 1% |"


def test_a_stage_twice_as_fast_as_before_has_the_ratio_two() -> None:
    slow = report(planes=replace(ROW, p50=0.04, processor=0.12))
    lines = report(planes=ROW, render=ROW).table(slow).splitlines()
    assert lines[-2].endswith("| 2.00 | 3.00 |")
    assert lines[-1].endswith("| – | – |")


def changed(**changes: Any) -> bytes:
    values = {"schema": SCHEMA} | json.loads(json.dumps(_plain()))
    for path, value in changes.items():
        at = values
        *outer, last = path.split("__")
        for name in outer:
            at = at[name]
        at[last] = value
    return json.dumps(values).encode()


def _plain() -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report())


@pytest.mark.parametrize(
    "content",
    [
        b"text",
        b"[1, 2]",
        b"{}",
        b"null",
        b"\x89PNG\r\n\x1a\n",
        b"[" * 100_000,
        changed()[:200],
        changed(schema="something else 1"),
        changed(stages=[]),
        changed(stages__planes={}),
        changed(stages__planes__p50=float("nan")),
        changed(stages__planes__p50=0),
        changed(stages__planes__processor="fast"),
        changed(copy=True),
        changed(matmul=None),
        changed(settings={}),
        changed(settings__image_size="wide"),
        changed(settings__image_size=float("inf")),
        changed(settings__image_size=10**400),
        changed(stages__planes__p50=float("inf")),
        changed(stages__planes__p50=10**400),
        changed(copy=10**400),
    ],
)
def test_any_other_file_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is not a report that export3d bench --json wrote"):
        load_report(path)


def test_a_report_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "later.json").write_bytes(changed(schema="export3d bench 99"))
    with pytest.raises(InputError, match="has the schema 'export3d bench 99', not 'export3d bench 1'"):
        load_report(tmp_path / "later.json")


def test_a_long_schema_is_cut(tmp_path: Path) -> None:
    (tmp_path / "long.json").write_bytes(changed(schema="export3d bench " + "9" * 1000))
    with pytest.raises(InputError, match="has the schema 'export3d bench 9") as refused:
        load_report(tmp_path / "long.json")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_report(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        load_report(tmp_path)


def test_frames_of_another_size_are_not_compared(tmp_path: Path) -> None:
    report().check_size(256, tmp_path)
    with pytest.raises(InputError, match="measured frames of 256 pixels, these weights have 128"):
        report().check_size(128, tmp_path)
