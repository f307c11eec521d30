"""Gives the studio's intake 500 hostile files, and prints how it answers: the table in docs/studio.md.

    python benchmarks/hostile_uploads.py

Each file must be taken in, or refused in one sentence that names it as its user does, within 10 s; nothing may stay
behind. What its children opened can be checked too:

    strace -f --seccomp-bpf -s 8192 -e trace=%file,%network,%process -o trace \\
        python benchmarks/hostile_uploads.py --unwatched
    python benchmarks/hostile_uploads.py --trace trace
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile_files import Case, cases

from export3d.errors import Export3DError
from export3d.studio.intake import AT_ONCE, Intake, shown_name
from export3d.studio.sandbox import SYSTEM

LONGEST_S = 10.0
LONGEST_SENTENCE = 500


@dataclass
class Row:
    """What one group of files met."""

    taken: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    peak: int = 0
    faults: list[str] = field(default_factory=list)


class Memory:
    """The resident memory of all child processes, sampled in a thread; bytes."""

    def __init__(self, watched: bool) -> None:
        self.peak = 0
        if watched:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, sum(map(_resident, _descendants(os.getpid()))))
            time.sleep(0.02)


def _descendants(pid: int) -> Iterator[int]:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))
    except OSError:
        return


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Bugs(logging.Handler):
    """Keeps what the intake logs as failures of our own code."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


async def answered(intake: Intake, case: Case, folder: Path, row: Row) -> None:
    """Give one file to the intake, and note what is wrong with its answer."""
    path = folder / "original"
    await asyncio.to_thread(case.make, path)
    begun = time.monotonic()
    sentence = None
    try:
        if case.verb == "verify":
            await intake.verify(path, case.name)
        else:
            await getattr(intake, case.verb)(path, folder, case.name)
        row.taken += 1
    except Export3DError as problem:
        sentence = str(problem)
        row.refused += 1
    except Exception as problem:
        row.faults.append(f"{case.name!r}: {problem!r}")
    took = time.monotonic() - begun
    row.slowest_s = max(row.slowest_s, took)
    left = sorted(each.name for each in folder.iterdir())
    good = {"original", "photo.png", "filmstrip.webp", "motion.motion"}
    limit = LONGEST_S if case.verb != "verify" else 60.0
    for wrong, what in (
        (took > limit, f"took {took:.1f} s"),
        (sentence is not None and str(folder) in sentence, f"names a path: {sentence}"),
        (sentence is not None and shown_name(case.name) not in sentence, f"does not name the file: {sentence}"),
        (sentence is not None and not 20 < len(sentence) < LONGEST_SENTENCE, f"is no sentence: {sentence}"),
        (sentence is not None and not sentence.isprintable(), f"has control characters: {sentence!r}"),
        (not set(left) <= good or (sentence is not None and left != ["original"]), f"left {left}"),
    ):
        if wrong:
            row.faults.append(f"{case.name[:50]!r} ({case.verb}): {what}")
    path.unlink()


async def run(seed: int, groups: list[str], watched: bool) -> dict[str, Row]:
    """All cases, two at a time, one group after the other."""
    intake, memory, rows = Intake(), Memory(watched), defaultdict[str, Row](Row)
    waiting: dict[str, list[Case]] = defaultdict(list)
    for case in cases(seed):
        if not groups or any(name in case.group for name in groups):
            waiting[case.group].append(case)
    with tempfile.TemporaryDirectory(prefix="hostile-") as workspace:

        async def worker(number: int, group: str) -> None:
            while waiting[group]:
                case = waiting[group].pop(0)
                folder = Path(tempfile.mkdtemp(dir=workspace))
                faults = len(rows[group].faults)
                await answered(intake, case, folder, rows[group])
                for fault in rows[group].faults[faults:]:
                    print(f"{group}: {fault}", file=sys.stderr, flush=True)

        for group in list(waiting):
            memory.peak = 0
            await asyncio.gather(*(worker(number, group) for number in range(AT_ONCE)))
            rows[group].peak = memory.peak
    return rows


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    lines = ["| kind | files | taken in | refused | slowest | peak memory |", "|---|---|---|---|---|---|"]
    for group, row in rows.items():
        lines.append(
            f"| {group} | {row.taken + row.refused} | {row.taken} | {row.refused} | {row.slowest_s:.1f} s "
            f"| {row.peak / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


# --- what the children opened -----------------------------------------------------------------------------------------

_CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)$")
_CHANGING = ("rename", "unlink", "mkdir", "rmdir", "link", "symlink", "truncate", "creat", "mknod", "chmod", "chown")
_FILE = re.compile(r'"((?:[^"\\]|\\.)*)"')


def check_trace(path: Path) -> int:
    """Prints which files the children of a trace opened outside of what they may, and their sockets; their number."""
    jobs: dict[int, dict[str, Any]] = {}
    opened: dict[str, int] = defaultdict(int)
    offences: list[str] = []
    denied = sockets = 0
    for pid, call, arguments, result in _calls(path):
        if call == "execve" and "export3d.studio.intake_process" in arguments and result >= 0:
            text = next(each for each in _FILE.findall(arguments) if each.startswith("{"))
            job = json.loads(json.loads(f'"{text}"'))
            jobs[pid] = job
            continue
        if call in ("clone", "clone3", "fork", "vfork") and pid in jobs and result > 0:
            jobs[result] = jobs[pid]
        job = jobs.get(pid, {})
        if not job:
            continue
        names = [name for name in _FILE.findall(arguments) if name]
        if result < 0:
            denied += "EACCES" in arguments
            continue
        if call in ("connect", "bind", "listen", "sendto", "sendmsg", "accept", "execve"):
            offences.append(f"{call}({arguments[:100]})")
        elif call == "socket" and "AF_UNIX" not in arguments:
            sockets += 1
        elif call.startswith(_CHANGING) or (call == "openat" and re.search("O_WRONLY|O_RDWR|O_CREAT", arguments)):
            for name in names:
                if not _inside(name, [job["folder"], "/dev/null"]):
                    offences.append(f"{call}({arguments[:100]})")
        elif call in ("open", "openat") and "O_PATH" not in arguments:
            for name in names:
                opened[name] += 1
                if not _inside(name, [job["folder"], job["path"], *job["readable"], *sys.path, *map(str, SYSTEM)]):
                    offences.append(f"{call}({arguments[:100]})")
    print(
        f"{len({id(job) for job in jobs.values()})} children opened {sum(opened.values())} files, {len(opened)} names"
    )
    print(f"{denied} attempts were denied; {sockets} sockets of other families than Unix were created, none connected")
    print("\n".join(offences) or "none outside of what is allowed")
    return len(offences)


def _calls(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Process, name, arguments (with the error's name) and result of each traced call; split lines are joined."""
    begun: dict[str, str] = {}
    for line in path.open(errors="replace"):
        pid, _, rest = line.rstrip("\n").partition(" ")
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>").strip()
            continue
        if resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest):
            rest = begun.pop(pid, "") + resumed[1]
        if found := _CALL.match(f"{pid} {rest.strip()}"):
            result = int(found[4]) if found[4] != "?" else 0
            yield int(found[1]), found[2], found[3] + (found[5] if result < 0 else ""), result


def _inside(name: str, folders: list[str]) -> bool:
    where = os.path.normpath(os.path.realpath(name)) if name.startswith("/") else name
    return not name.startswith("/") or any(
        f"{where}/".startswith(f"{os.path.realpath(folder)}/") or f"{name}/".startswith(f"{folder}/")
        for folder in folders
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="groups by a part of their name")
    parser.add_argument("--unwatched", action="store_true", help="do not measure memory, which a trace slows down")
    parser.add_argument("--trace", type=Path, help="check what strace wrote, see above")
    given = parser.parse_args()
    if given.trace:
        return 1 if check_trace(given.trace) else 0
    bugs = Bugs()
    logging.getLogger("export3d").addHandler(bugs)
    rows = asyncio.run(run(given.seed, given.only, not given.unwatched))
    print(table(rows))
    faults = [fault for row in rows.values() for fault in row.faults] + bugs.seen
    print(f"\n{sum(row.taken + row.refused for row in rows.values())} files, {len(faults)} faults")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
