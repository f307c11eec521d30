"""Makes the animations of a list, in several processes or on a cluster; a run that was stopped continues.

Every row is one job of one process. A process makes the files of a row aside, moves them to their places in OUT, and
then writes what became of the row to `OUT/.batch`. At the end all of that becomes `OUT/report.json`. A row is not made
again while its outputs are there with their sizes, and the row, the contents of its inputs, the weights and the version
are the same. The report remembers the rows of other lists that were made into OUT.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import logging
import os
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export3d.animate.batch_list import Row, read_rows
from export3d.animate.drive import Driving, bundled_motion, driving, read_motion
from export3d.animate.export import check_output, write_animation
from export3d.engines.names import EngineName
from export3d.errors import (
    CheckpointError,
    ConfigError,
    Export3DError,
    MissingExtra,
    OutputError,
    PolicyError,
    counted,
)
from export3d.files import deliver, kind_at, make_folder, paths_in
from export3d.locations import (
    Place,
    as_place,
    inside,
    local_copy,
    make_place,
    names,
    read,
    remove,
    sizes,
    upload,
    write,
)
from export3d.memory import give_back_memory
from export3d.provenance.statement import Statement
from export3d.workers.messages import caught_log
from export3d.workers.outcome import Crash
from export3d.workers.run import Workers, run_jobs

if TYPE_CHECKING:
    from export3d.animate.animator import Source

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

REPORT_JSON, REPORT_CSV = "report.json", "report.csv"
ASIDE = ".batch"
"""Folder in OUT for what an unfinished run has made."""
_MAKING = "making-"
_AT_ONCE = 16
"""Small files that are read together."""


@dataclass(frozen=True)
class Settings:
    """What all rows share: `Animator.from_pretrained`, and the frames rendered together."""

    weights: str | None = None
    device: str = "auto"
    pure: bool = False
    engine: EngineName = "auto"
    batch: int = 6


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        row: its number in the list.
        output, sheet: its files in OUT.
        state: made, in this run or an earlier one; refused, with the reason; or crashed, if its process died.
        seconds: time that it took.
        frames: of the video.
        reason: why there is no video.
        messages: what was told while it was made.
        fingerprint: see `batch_list.Row`.
        sizes: of its files in bytes; older reports have none.
    """

    row: int
    output: str
    sheet: str | None
    state: Literal["made", "refused", "crashed"]
    seconds: float = 0.0
    frames: int = 0
    reason: str = ""
    messages: Sequence[str] = ()
    fingerprint: str = ""
    sizes: Sequence[int] = ()


@dataclass(frozen=True)
class BatchReport:
    """The result of `animate_batch`.

    Attributes:
        out: the folder for the results.
        rows: what became of each row, in the order of the list.
        kept: number of rows that earlier runs had made.
        seconds: duration of this run.
    """

    out: Place
    rows: tuple[Outcome, ...]
    kept: int
    seconds: float

    @property
    def refused(self) -> tuple[Outcome, ...]:
        """The rows without a video."""
        return tuple(row for row in self.rows if row.state != "made")

    def summary(self) -> str:
        """A readable summary of two lines."""
        made = len(self.rows) - len(self.refused)
        refused = f"{len(self.refused)} refused (see {inside(self.out, REPORT_CSV)})"
        return (
            f"{made} of {counted(len(self.rows), 'video')} in {self.out}; "
            f"{refused if self.refused else 'none refused'}\n"
            f"{made - self.kept} made in {self.seconds:.0f} s, {self.kept} already there"
        )


def animate_batch(
    listed: Path | str,
    out: Path | str,
    shared: Mapping[str, str] | None = None,
    *,
    weights: Path | str | None = None,
    device: str = "auto",
    pure: bool = False,
    engine: EngineName = "auto",
    batch: int = 6,
    workers: Workers = 1,
    progress: Progress | None = None,
) -> BatchReport:
    """Make the animations of a list.

    Args:
        listed: CSV file or its URL, see `batch_list`.
        out: folder or URL for the results; receives the videos and sheets, `report.json` and `report.csv`.
        shared: cells for all rows, by column; a row's own come first.
        weights, device, pure, engine: see `Animator.from_pretrained`.
        batch: frames rendered together.
        workers: number of processes, 0 for this one, or a `Cluster`, whose machines see the same files. Processes are
            spawned, so a script that calls this function needs `if __name__ == "__main__":`.
        progress: called with (rows done, rows, output of the last), first before any.

    Returns:
        What became of each row. A row that cannot be made is refused with its reason, and the others go on.

    Raises:
        InputError: the list cannot be read, or a row cannot be used; nothing was made.
        OutputError: `out` cannot be written; finished rows are kept.
        CheckpointError, MissingExtra, PolicyError, ConfigError: what all rows need cannot be used.
    """
    began = time.monotonic()
    listed, out = as_place(listed), as_place(out)
    if (isinstance(workers, int) and workers < 0) or batch < 1:
        raise ConfigError("workers must not be negative, and the batch at least 1 frame")
    if isinstance(out, str) and out.startswith("memory:") and workers != 0:
        raise OutputError(f"{out} is the memory of this process, which others cannot reach; give a folder or a store")
    settings = Settings(_portable(weights), device, pure, engine, batch)
    rows = read_rows(listed, shared or {}, [_digest(settings.weights), pure, Statement().version])
    earlier = _earlier(out)
    with _no_empty_folders(out):
        _check_outputs(out, rows, listed)
        make_place(out)
        made = _finished(out, earlier)
        there = _there(out, rows)
        named = {name for row in rows for name in row.outputs}
        others = [row for row in made.values() if named.isdisjoint((row.output, row.sheet))]
        outcomes = {
            row.number: replace(made[row.output], row=row.number)
            for row in rows
            if row.output in made and _is_whole(made[row.output], row, there)
        }
        kept = len(outcomes)
        todo = [row for row in rows if row.number not in outcomes]
        processes = min(workers, len(todo)) if isinstance(workers, int) else 0
        place = Path(os.path.abspath(out)) if isinstance(out, Path) else out  # the current folder may be another there
        start = functools.partial(_start, settings, place, processes)
        if progress is not None:
            progress(0, len(todo), "")
        try:
            for done, (row, outcome) in enumerate(run_jobs(_dealt(todo, processes), start, workers), 1):
                if isinstance(outcome, Crash):
                    reason = f"the process that made it died (exit code {outcome.exit_code}); the next run tries again"
                    outcome = Outcome(row.number, row.output, row.sheet, "crashed", reason=reason)
                outcomes[row.number] = outcome
                for message in outcome.messages if workers != 0 else ():  # those of this process are printed already
                    logger.warning("%s: %s", row.output, message)
                if progress is not None:
                    progress(done, len(todo), row.output)
        finally:
            _clear(out)
        report = BatchReport(out, tuple(outcomes[row.number] for row in rows), kept, time.monotonic() - began)
        _write_report(report, others)
        remove(inside(out, ASIDE))
        return report


def _portable(weights: Path | str | None) -> str | None:
    """A file by its whole path, since processes elsewhere have another current folder; a name as it is."""
    if weights is None:
        return None
    return os.path.abspath(weights) if kind_at(weights, CheckpointError) else str(weights)


def _digest(weights: str | None) -> str:
    from export3d.weights.file import read_sidecar
    from export3d.weights.names import find

    return str(read_sidecar(find(weights))["file"]["sha256"])


# --- what is there already --------------------------------------------------------------------------------------------


def _earlier(out: Place) -> dict[str, Outcome]:
    """What earlier runs made, of this list or others, by output; `OutputError` if the report is another command's."""
    for name in (REPORT_JSON, REPORT_CSV):
        if isinstance(out, Path) and kind_at(out / name, OutputError) == "folder":
            raise OutputError(f"{out / name} is a folder, and the report has that name; move it away")
    data = read(inside(out, REPORT_JSON))
    if data is None:
        return {}
    try:
        report = json.loads(data)
        found = [_outcome(row) for row in (*report.get("others", ()), *report["rows"])]
    except _UNREADABLE as error:
        raise OutputError(
            f"{inside(out, REPORT_JSON)} is not a report of animations and would be replaced; choose another folder"
        ) from error
    return {row.output: row for row in found if row.state == "made"}


def _finished(out: Place, earlier: dict[str, Outcome]) -> dict[str, Outcome]:
    """Adds what an unfinished run has made."""
    aside = inside(out, ASIDE)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(lambda name: read(inside(aside, name)), [n for n in names(aside) if n.endswith(".json")]))
    found = []
    for part in parts:
        with contextlib.suppress(*_UNREADABLE):  # cut or foreign: its row is made again
            found.append(_outcome(json.loads(part or b"")))
    return earlier | {row.output: row for row in found if row.state == "made"}


_UNREADABLE = ValueError, KeyError, TypeError, AttributeError, RecursionError
"""What JSON raises that is damaged or another program's."""


def _outcome(found: Any) -> Outcome:
    """An outcome from JSON; raises one of `_UNREADABLE`."""
    row = Outcome(**found)
    texts = (row.output, "" if row.sheet is None else row.sheet, row.state, row.reason, row.fingerprint, *row.messages)
    numbers = (row.row, row.seconds, row.frames, *row.sizes)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int | float) for n in numbers):
        raise TypeError("a value has another type")
    return row


def _there(out: Place, rows: Sequence[Row]) -> dict[str, int]:
    """The files in the folders of the outputs, and their sizes."""
    folders = {posixpath.dirname(name) for row in rows for name in row.outputs}
    found = {at: sizes(inside(out, at) if at else out) for at in folders}
    return {posixpath.join(at, name): size for at, files in found.items() for name, size in files.items()}


def _is_whole(made: Outcome, row: Row, there: Mapping[str, int]) -> bool:
    """Whether a row is made as it is now, and its files are there, none cut or replaced by one of another size."""
    found = [there.get(name) for name in row.outputs]
    return made.fingerprint == row.fingerprint and None not in found and list(made.sizes or found) == found


def _check_outputs(out: Place, rows: Sequence[Row], listed: Place) -> None:
    """Refuse outputs on this machine that cannot be written, or that are inputs, before any work."""
    if isinstance(out, str):
        return
    inputs = {place for row in rows for place, _ in row.inputs()} | {listed}
    known = {os.path.realpath(place) for place in inputs if isinstance(place, Path)}
    for name in (REPORT_JSON, REPORT_CSV, *(name for row in rows for name in row.outputs)):
        if os.path.realpath(out / name) in known:
            raise OutputError(f"the output {out / name} would overwrite an input; choose another folder or name")
    if os.path.islink(out / ASIDE) or kind_at(out / ASIDE, OutputError) not in (None, "folder"):
        raise OutputError(f"{out / ASIDE} is a link or a file, and unfinished work needs a folder there; remove it")
    taken: dict[str, str] = {}
    for row in rows:
        for name in row.outputs:
            if (other := taken.setdefault(os.path.realpath(out / name), name)) != name:
                same = f"{out / name} and {other} are one file, through a link"
                raise OutputError(f"row {row.number}: {same}; choose another name")
    make_folder(out)
    for row in rows:
        try:
            for name in row.outputs:
                make_folder((out / name).parent)
                check_output(out / name)
        except OutputError as error:
            raise OutputError(f"row {row.number}: {error}") from error
    for name in (REPORT_JSON, REPORT_CSV):
        check_output(out / name)


@contextlib.contextmanager
def _no_empty_folders(out: Place) -> Iterator[None]:
    """If the block fails, remove the folders in `out` that hold nothing, and itself, where the block has made it."""
    is_new = isinstance(out, Path) and kind_at(out, OutputError) is None
    try:
        yield
    except BaseException:
        if is_new:
            for folder, _, _ in os.walk(out, topdown=False):
                with contextlib.suppress(OSError):  # it holds something
                    os.rmdir(folder)
        raise


def _clear(out: Place) -> None:
    """Remove what processes that were stopped have left aside."""
    if isinstance(out, Path) and kind_at(out / ASIDE) == "folder":
        for path in paths_in(out / ASIDE):
            if path.name.startswith(_MAKING) and kind_at(path) == "folder":
                shutil.rmtree(path, ignore_errors=True)


def _dealt(rows: Sequence[Row], processes: int) -> list[Row]:
    """The rows in the order in which they are given out: each process gets neighbours, which have inputs in common.

    Tracking a driving video takes longer than encoding a portrait, so that is shared first.
    """

    def key(row: Row) -> tuple[str, ...]:
        video = str(row.mover) if row.moves == "driving" else ""
        return video, str(row.portrait), row.face, str(row.mover), str(row.start)

    near = sorted(rows, key=key)
    each = -(-len(near) // max(1, processes))
    return [near[at] for first in range(each) for at in range(first, len(near), each)]


# --- one row, in a worker ---------------------------------------------------------------------------------------------


def _start(settings: Settings, out: Place, processes: int) -> Callable[[Row], Outcome]:
    """Load the animator of a process; returns the function that makes one row."""
    import torch

    if processes > 1:  # each would otherwise use all threads
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    return _Maker(settings, out).make


class _Maker:
    """Makes rows, one after the other; keeps the last portrait and the last motion."""

    def __init__(self, settings: Settings, out: Place) -> None:
        from export3d.animate.animator import Animator

        self._animator = Animator.from_pretrained(settings.weights, settings.device, settings.pure, settings.engine)
        self._batch, self._out = settings.batch, out
        self._sources: tuple[Any, list[Source]] = None, []
        self._driving: tuple[Any, Driving | None, Path] = None, None, Path()
        self._copies = contextlib.ExitStack()

    def make(self, row: Row) -> Outcome:
        """Make one row and note what became of it.

        A failure to write ends the run, and so does what every row needs. Any other failure is the row's.
        """
        begun = time.perf_counter()
        frames, problem = 0, ""
        written: list[int] = []
        with caught_log() as messages:
            try:
                frames, written = self._write(row)
            except (OutputError, MissingExtra, PolicyError, CheckpointError):
                raise
            except Export3DError as error:
                problem = str(error)
            except Exception as error:  # decoders and networks may raise anything on an unusual file
                logger.exception("%s", row.output)
                problem = f"{type(error).__name__}: {error}"
        outcome = Outcome(
            row.number,
            row.output,
            row.sheet,
            "refused" if problem else "made",
            round(time.perf_counter() - begun, 2),
            frames,
            problem,
            messages,
            row.fingerprint,
            written,
        )
        if not problem:
            name = sha256(row.output.encode()).hexdigest()[:32]
            write(inside(self._out, f"{ASIDE}/{name}.json"), json.dumps(asdict(outcome)).encode())
        return outcome

    def _write(self, row: Row) -> tuple[int, list[int]]:
        """Write the files of a row; returns the number of frames, and the files' sizes."""
        sources = self._encoded(row)
        moved_by, mover = self._moving(row)
        if row.scores:
            moved_by.motion.require_space("arkit52")
        image = local_copy(row.background) if row.has_image else contextlib.nullcontext(row.background)
        with image as background, _delivered(self._out, row) as paths:
            frames = write_animation(
                self._animator,
                sources if row.face == "all" else sources[0],
                moved_by,
                *paths,
                relative=row.relative,
                batch=self._batch,
                head_motion=row.head_motion,
                scores=row.scores,
                marks=row.marks(self._animator.statement(sources, mover)),
                **self._animator.framing(row.frame, row.size, str(background), row.relative),
            )
            return frames, [path.stat().st_size for path in paths]

    def _encoded(self, row: Row) -> list[Source]:
        key = row.portrait, row.face
        if key != self._sources[0]:
            for source in self._sources[1]:
                self._animator.forget(source)
            self._sources = None, []
            with local_copy(row.portrait) as path:
                animator = self._animator
                made = animator.encode_all(path) if row.face == "all" else [animator.encode(path, row.face)]
            self._sources = key, made
            give_back_memory()
        return self._sources[1]

    def _moving(self, row: Row) -> tuple[Driving, Path]:
        """The row's motion, and its file, which stays there until the next: sound and sheet are read from it."""
        key = row.mover, row.moves, row.driving_face, row.start, row.seconds
        kept, found, path = self._driving
        if key != kept or found is None:
            self._driving = None, None, Path()
            self._copies.close()
            with contextlib.ExitStack() as copies:
                path = copies.enter_context(local_copy(_file_of(row.mover)))
                if row.moves == "motion":
                    found = read_motion(path, row.start, row.seconds)
                else:
                    tracker = self._animator.tracker
                    found = driving(path, tracker, face=row.driving_face, start_s=row.start, seconds=row.seconds)
                self._copies = copies.pop_all()
            self._driving = key, found, path
        return found, path


def _file_of(mover: Place) -> Place:
    return bundled_motion(str(mover)) if isinstance(mover, Path) and not mover.is_absolute() else mover


@contextlib.contextmanager
def _delivered(out: Place, row: Row) -> Iterator[list[Path]]:
    """Paths for the files of a row, which appear at their places in `out` when the block ends."""
    if isinstance(out, Path):
        aside = Path(tempfile.mkdtemp(prefix=_MAKING, dir=make_folder(out / ASIDE)))
    else:
        aside = Path(tempfile.mkdtemp(prefix="export3d-"))
    made = [aside / Path(name).name for name in row.outputs]
    try:
        yield made
        for path, name in zip(reversed(made), reversed(row.outputs)):
            target = inside(out, name)
            if isinstance(target, Path):
                make_folder(target.parent)
                deliver(path, target)
            else:
                upload(path, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# --- report -----------------------------------------------------------------------------------------------------------


def _write_report(report: BatchReport, others: Sequence[Outcome]) -> None:
    """Write the reports; `others` are rows of other lists, which a run of those finds."""
    value = {
        "made": len(report.rows) - len(report.refused) - report.kept,
        "kept": report.kept,
        "refused": len(report.refused),
        "seconds": round(report.seconds, 1),
        "rows": [asdict(row) for row in report.rows],
        "others": [asdict(row) for row in others],
    }
    columns = ["row", "output", "state", "seconds", "reason"]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in report.rows)
    write(inside(report.out, REPORT_CSV), table.getvalue().encode(errors="backslashreplace"))
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write(inside(report.out, REPORT_JSON), text.encode(errors="backslashreplace"))
