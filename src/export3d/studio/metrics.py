"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Callable, Iterable

SECONDS = (0.02, 0.04, 0.08, 0.12, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Upper limits of the buckets of the head's answers."""


class Metrics:
    """Counters, one histogram, and gauges that are asked when the text is made."""

    def __init__(self) -> None:
        self.uploads: Counter[str] = Counter()
        """By outcome: done, refused."""
        self.jobs: Counter[str] = Counter()
        """By state at their end."""
        self.head_errors = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "resident_bytes": ("Memory of the server's own process.", resident_bytes)
        }
        self.refusals: Callable[[], Iterable[tuple[int, int]]] = lambda: ()
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0

    def head(self, seconds: float) -> None:
        """Count one answer of the head."""
        self._buckets[bisect.bisect_left(SECONDS, seconds)] += 1
        self._seconds += seconds

    def text(self) -> str:
        """Everything in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []

        def family(name: str, kind: str, what: str, values: Iterable[tuple[str, float]]) -> None:
            lines.extend([f"# HELP export3d_{name} {what}", f"# TYPE export3d_{name} {kind}"])
            lines.extend(f"export3d_{name}{labels} {value:g}" for labels, value in values)

        def by(label: str, counted: Iterable[tuple[object, int]]) -> list[tuple[str, float]]:
            return [(f'{{{label}="{key}"}}', number) for key, number in sorted(counted, key=str)]

        family("uploads_total", "counter", "Uploads by outcome.", by("outcome", self.uploads.items()))
        family("jobs_total", "counter", "Jobs that ended, by state.", by("state", self.jobs.items()))
        family("refusals_total", "counter", "Requests refused, by HTTP status.", by("status", self.refusals()))
        family("head_errors_total", "counter", "Head requests answered by an error.", [("", self.head_errors)])
        counted = 0
        steps: list[tuple[str, float]] = []
        for limit, number in zip((*map(str, SECONDS), "+Inf"), self._buckets):
            counted += number
            steps.append((f'_bucket{{le="{limit}"}}', counted))
        steps += [("_sum", self._seconds), ("_count", counted)]
        family("head_seconds", "histogram", "Time from a head request to its answer.", steps)
        for name, (what, value) in self.gauges.items():
            family(name, "gauge", what, [("", value())])
        return "\n".join(lines) + "\n"


def resident_bytes(pid: int | None = None) -> float:
    """Resident memory of a process (by default this one), bytes; 0 where the system does not tell."""
    try:
        with open(f"/proc/{os.getpid() if pid is None else pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0.0
