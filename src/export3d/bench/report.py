"""The result of a run: as a table, as JSON, and against an earlier one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from export3d.errors import InputError
from export3d.files import check_input, reading, write_bytes

SCHEMA = "export3d bench 1"
"""Kind and version of the JSON file; the number changes when a field changes its meaning."""
_LARGEST = 1 << 20
"""Bytes of a report at most."""
_LARGEST_IMAGE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage, per unit.

    Attributes:
        unit: "frame" or "portrait".
        precision: of its convolutions and matrix products; empty where there are none, or several.
        flop: FLOP; None where they are not counted.
        traffic: smallest memory traffic, bytes; None where it is not counted.
        p50, p95: seconds by the wall clock, percentiles over the rounds.
        processor: seconds of the processor, all threads together, median.
        of_matmul, of_copy: shares 0..1 of the machine's fastest matrix product in that precision and of its fastest
            copy, see `bench.run.shares`; None where it is not known.
    """

    unit: str
    precision: str
    flop: float | None
    traffic: float | None
    p50: float
    p95: float
    processor: float
    of_matmul: float | None
    of_copy: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run.

    Attributes:
        machine, settings: what was measured where.
        matmul: precision to FLOP per second of the fastest matrix product.
        copy: bytes per second of the fastest copy, read and written.
        stages: by name, in their order.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    matmul: dict[str, float]
    copy: float
    stages: dict[str, Row]

    def save(self, path: Path) -> None:
        """Write JSON; raises `OutputError`."""
        write_bytes(path, (json.dumps({"schema": SCHEMA} | asdict(self), indent=1) + "\n").encode())

    def table(self, against: Report | None = None) -> str:
        """Markdown. With an earlier report the last columns are its times divided by this one's."""
        told, did = self.settings, self.machine
        isa = did.get("onednn_max_cpu_isa")
        matmul = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in self.matmul.items())
        head = ["stage", "precision", "GFLOP", "MB", "p50 ms", "p95 ms", "processor ms", "of matmul", "of copy"]
        if against is not None:
            head += ["times as fast, p50", "processor"]
        lines = [
            f"{did['processor']}, {did['cores']} cores, {', '.join(did['instructions'])}; device {did['device']}; "
            f"PyTorch {did['torch']}; load {did['load']}" + (f"; ONEDNN_MAX_CPU_ISA={isa}" if isa else ""),
            f"weights {told['weights']}, engine {told['engine']}, {told['image_size']} px, batch {told['batch']}, "
            f"{told['threads']} threads, {told['rounds']} rounds after {told['warm_up']} of warm-up",
            f"ceilings: matrix product {matmul}; copy {self.copy / 1e9:.1f} GB/s",
            "",
            f"| {' | '.join(head)} |",
            "|" + " --- |" * len(head),
        ]
        for name, row in self.stages.items():
            cells = [
                f"{name} (per {row.unit})" if row.unit != "frame" else name,
                row.precision or "–",
                _number(row.flop, 1e9, ".2f"),
                _number(row.traffic, 1e6, ".1f"),
                f"{1e3 * row.p50:.1f}",
                f"{1e3 * row.p95:.1f}",
                f"{1e3 * row.processor:.1f}",
                _number(row.of_matmul, 0.01, ".0f", "%"),
                _number(row.of_copy, 0.01, ".0f", "%"),
            ]
            if against is not None:
                former = against.stages.get(name)
                cells += (
                    ["–", "–"]
                    if former is None
                    else [f"{former.p50 / row.p50:.2f}", f"{former.processor / row.processor:.2f}"]
                )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def check_size(self, size: int, path: Path) -> None:
        """Raise `InputError` if this report, read from `path`, is of frames of another size than `size` pixels."""
        if self.settings["image_size"] != size:
            raise InputError(
                f"{path} measured frames of {self.settings['image_size']} pixels, these weights have {size}; "
                "compare weights of one size"
            )


def load_report(path: Path) -> Report:
    """Read a report that `Report.save` wrote; raises `InputError` for anything else."""
    path = check_input(path, InputError, "a report that export3d bench --json wrote")
    with reading(path):
        text = path.read_bytes()[: _LARGEST + 1]
    refusal = InputError(f"{path} is not a report that export3d bench --json wrote; measure again with --json")
    try:
        found = json.loads(text) if len(text) <= _LARGEST else None
    except (ValueError, RecursionError):
        raise refusal from None
    if not isinstance(found, dict) or not str(found.get("schema", "")).startswith("export3d bench "):
        raise refusal
    if found["schema"] != SCHEMA:
        raise InputError(
            f"{path} has the schema {str(found['schema'])[:40]!r}, not {SCHEMA!r}; measure again with --json"
        )
    try:
        stages = {str(name): _row(values) for name, values in found["stages"].items()}
        settings = {"image_size": int(_positive(found["settings"]["image_size"], _LARGEST_IMAGE))}
        return Report(
            machine=dict(found["machine"]),
            settings=dict(found["settings"]) | settings,
            matmul={str(name): _positive(rate) for name, rate in found["matmul"].items()},
            copy=_positive(found["copy"]),
            stages=stages,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise refusal from None


def _row(values: dict[str, Any]) -> Row:
    row = Row(**{field.name: values[field.name] for field in fields(Row)})
    for value in (row.p50, row.p95, row.processor):
        _positive(value)
    return row


def _positive(value: Any, largest: float = sys.float_info.max) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= largest:
        raise ValueError(value)
    return float(value)


def _number(value: float | None, unit: float, form: str, sign: str = "") -> str:
    return "–" if value is None else f"{value / unit:{form}}{sign}"
