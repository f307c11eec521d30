"""One run measures every stage."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export3d.animate.animator import Animator
from export3d.bench import run as bench_run
from export3d.bench import stages as bench_stages
from export3d.bench.machine import Ceilings
from export3d.bench.report import Row, load_report
from export3d.bench.run import bench, shares
from export3d.bench.stages import stages
from export3d.cli.main import main
from export3d.engines.names import EngineName
from export3d.errors import ConfigError
from export3d.pretrained import load_pretrained

NETWORK = ["encode", "planes", "render", "views", "super-resolve"]
ALL = ["decode", "track", *NETWORK, "encode video", "driven frame", "orbit frame"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small clip of four frames, one round, no repeats."""
    pytest.importorskip("mediapipe")
    monkeypatch.setattr(bench_stages, "CLIP_S", 0.16)
    monkeypatch.setattr(bench_stages, "CLIP_SIZE", (640, 360))
    monkeypatch.setattr(bench_run, "ROUNDS", 1)
    monkeypatch.setattr(bench_run, "WARM_UP", 1)
    monkeypatch.setattr(bench_run, "ceilings", lambda device: Ceilings({"float32": 1e11, "bfloat16": 2e11}, 1e10))


@pytest.mark.slow
def test_every_stage_is_measured_and_its_shares_follow_from_its_figures(short: None, rigid_weights: Path) -> None:
    said: list[tuple[int, int, str]] = []
    animator = Animator.from_pretrained(rigid_weights, "cpu")
    found = bench(animator, "rigid", 2, 1, 1, lambda *at: said.append(at))
    assert list(found.stages) == ALL
    assert [done for done, *_ in said] == [0, 0, 0, 1, 2]
    assert [name for *_, name in said][2:4] == ["warm-up", "1 rounds of all stages"]
    for name, row in found.stages.items():
        assert 0.0 < row.p50 <= row.p95
        assert row.processor > 0.0
        assert (row.flop is not None) == (name in [*NETWORK, "driven frame", "orbit frame"])
        assert (row.of_matmul is not None) == (name in NETWORK)
        if row.of_matmul is not None and row.flop is not None:
            assert math.isclose(row.of_matmul or 0.0, row.flop / row.processor / found.matmul[row.precision])
    driven, orbit, planes = (found.stages[name].flop or 0.0 for name in ("driven frame", "orbit frame", "planes"))
    assert math.isclose(driven, orbit + planes)
    assert driven > orbit > 0.0
    sizes = found.stages["decode"].traffic
    assert sizes is not None
    assert 640 * 360 * 3 < sizes < 640 * 360 * 4


@pytest.mark.slow
def test_no_frame_is_made_while_another_stage_is_measured(short: None, rigid_weights: Path, tmp_path: Path) -> None:
    """Two threads make frames ahead, and an animation that is left half-way keeps them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = stages(Animator.from_pretrained(rigid_weights, "cpu"), 2, tmp_path)
        for name in ("driven frame", "orbit frame"):
            assert len(made[name].run()) == made[name].units  # type: ignore[arg-type]
            assert not [at.name for at in threading.enumerate() if at.name.startswith("render")], name
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_flop_per_frame_do_not_depend_on_the_batch(short: None, rigid_weights: Path, tmp_path: Path) -> None:
    animator = Animator.from_pretrained(rigid_weights, "cpu")
    one, three = (stages(animator, batch, tmp_path) for batch in (1, 3))
    for name in NETWORK:
        assert one[name].flop == pytest.approx(three[name].flop), name
    assert one["planes"].traffic > three["planes"].traffic, "weights are read once per batch"  # type: ignore[operator]


@pytest.mark.slow
def test_flop_do_not_depend_on_the_engine(short: None, rigid_weights: Path, tmp_path: Path) -> None:
    """OpenVINO and the compiled renderer, which PyTorch cannot look into, are told in FLOP of the PyTorch model."""
    pytest.importorskip("openvino")
    pytest.importorskip("numba")
    model = load_pretrained(rigid_weights)
    engines: tuple[EngineName, ...] = ("reference", "openvino")
    plain, fast = (stages(Animator(model, "cpu", name), 1, tmp_path) for name in engines)
    for name in NETWORK:
        assert plain[name].flop == fast[name].flop, name


@pytest.mark.slow
def test_the_command_prints_a_table_writes_json_and_compares(
    short: None, rigid_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    given = ["bench", "--weights", str(rigid_weights), "--device", "cpu", "--batch", "2", "--threads", "1"]
    assert main([*given, "--json", str(first)]) == 0
    out, err = capsys.readouterr()
    assert "times as fast" not in out
    assert "export3d: measuring: warm-up\n" in err, "no terminal: a line per stage"
    report = load_report(first)
    report.stages["planes"] = replace(report.stages["planes"], p50=1e6)
    report.save(first)
    assert main([*given, "--against", str(first), "--json", str(second)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| planes"))
    assert float(line.split("|")[-3]) > 1000.0
    assert load_report(second).settings["weights"] == rigid_weights.name


def test_idle_threads_do_not_lower_the_shares_on_a_processor() -> None:
    row = Row(
        unit="frame", precision="float32", flop=1e9, traffic=1e8, p50=0.05, p95=0.05, processor=0.02,
        of_matmul=None, of_copy=None,
    )  # fmt: skip
    limits = Ceilings({"float32": 1e11}, 2e10)
    assert shares(row, limits, threads=2) == pytest.approx((1.0, 0.5))
    assert shares(row, limits, threads=0) == pytest.approx((0.2, 0.1))
    assert shares(replace(row, precision="int8"), limits, threads=2) == (None, pytest.approx(0.5))


def test_threads_are_as_before_after_a_failure(rigid_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(device: torch.device) -> Ceilings:
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "ceilings", failing)
    with pytest.raises(KeyboardInterrupt):
        bench(Animator.from_pretrained(rigid_weights, "cpu"), "rigid", 1, 2)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_a_batch_that_the_motion_does_not_have_is_refused(rigid_weights: Path, tmp_path: Path) -> None:
    animator = Animator.from_pretrained(rigid_weights, "cpu")
    for batch in (0, 200):
        with pytest.raises(ConfigError, match=f"the batch must be 1 to 199 frames .*, got {batch}"):
            stages(animator, batch, tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--threads", "0"], "--threads must be 1 to"),
        (["--threads", "100000"], "--threads must be 1 to"),
        (["--json", "figures.txt"], "must end in .json"),
        (["--against", "nothing.json"], "nothing.json does not exist"),
    ],
)
def test_bad_options_end_before_anything_is_measured(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    out = capsys.readouterr()
    assert sentence in out.err
    assert out.out == ""
