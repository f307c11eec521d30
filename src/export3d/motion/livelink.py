"""Reads recordings of Apple's face tracking: the CSV files of the Live Link Face app (Epic Games, ARKit mode).

Each row is one frame: a timecode, a count, the 52 ARKit scores and nine angles in radians. The file does not state its
frame rate, which is estimated from the timecodes. docs/conventions.md describes the layout, the axes and the signs. The
angles of the eyes are ignored, since the scores `eyeLook...` already encode the gaze. Spreadsheets and other programs
write the same table with semicolons or tabs, decimal commas and milliseconds; these are read too.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export3d import camera as cameras
from export3d import files
from export3d.errors import BadMotionFile
from export3d.motion.arkit import ARKIT52
from export3d.motion.motion import MAX_FPS, MAX_FRAMES, Motion

logger = logging.getLogger(__name__)

Array = NDArray[np.floating]

HEAD = ("HeadYaw", "HeadPitch", "HeadRoll")
"""Columns of the head angles: radians about ARKit's y, x and z axes."""
CLOCKS = (24, 25, 30, 60)
"""Possible numbers of timecode frames per second; the smallest that fits is used."""
APP_CLOCK = 60
"""The app's default, used for takes within one timecode second, which do not show the number."""
RATES = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 48.0, 50.0, 60000 / 1001, 60.0)
"""Standard frame rates; a measured rate within the relative `RATE_TOLERANCE` of one is rounded to it."""
RATE_TOLERANCE = 4e-4
LONGEST_GAP_S = 3600.0
"""A longer gap between two rows is refused, since bridging it would take hours of made-up frames."""
OVERSHOOT = 0.5
"""Scores may exceed 0..1 by up to this much and are clipped; larger values are refused as not being scores."""

_COUNT = "blendshapecount"
_SCORES = tuple(name[0].upper() + name[1:] for name in ARKIT52)
_OPTIONAL = ("TongueOut", *HEAD)
"""Columns that some programs leave out."""
_DELIMITERS = (",", ";", "\t")
_HMS = r"\s*(\d{1,2}):(\d{1,2}):(\d{1,2})"
_FRAME_CODE = re.compile(_HMS + r"[:;](\d{1,3}(?:[.,]\d*)?)\s*")
"""Hours, minutes, seconds, and frames with a fraction."""
_MILLISECOND_CODE = re.compile(_HMS + r"(?:[:;](\d{3})|[.,](\d{1,6}))\s*")
"""Hours, minutes, seconds, and three digits or a decimal fraction of a second."""
_DAY_S = 24 * 3600.0
_REMEDY = "export the take's .csv from the Live Link Face app, recorded in its Live Link (ARKit) mode"


def load_live_link_face(path: str | os.PathLike[str]) -> Motion:
    """Read a recording of the Live Link Face app.

    Dropped frames and rows without a face (a count of 0) are interpolated linearly. If rows share a timecode, the first
    one is used. Columns are found by name, in any order and letter case; `TongueOut` and the head angles may be missing
    and are then 0, which the log says.

    Args:
        path: the take's `.csv`.

    Returns:
        `arkit52` motion at the recording's own frame rate. The head rotates about its origin, at the distance of the
        default camera (`camera.RADIUS`). In a take without head rotation (its columns are 0), the head faces forward.

    Raises:
        BadMotionFile: the file is not a valid recording; the message names the line and the column.
    """
    path = files.check_input(path, BadMotionFile, "a Live Link Face .csv file")
    head = files.sniff(path, 1 << 16)
    foreign = files.foreign_kind(head)
    if foreign or b"\n" not in head:
        raise BadMotionFile(f"{path} is not a Live Link Face .csv file but {foreign or 'has no lines'}; {_REMEDY}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            clocks, values = _read(path, csv.reader(text, delimiter=max(_DELIMITERS, key=header.count)))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise BadMotionFile(f"{path} is not a table in UTF-8 text ({files.reason(problem)}); {_REMEDY}") from problem
    times = _seconds(path, clocks)
    kept = np.diff(times, prepend=-1.0) > 0.0
    times, values = times[kept], values[kept]
    fps, grid = _grid(path, times)
    scores, angles = values[:, : len(ARKIT52)], np.unwrap(values[:, len(ARKIT52) :], axis=0)
    columns = [np.interp(grid, times, column) for column in (*scores.T.clip(0.0, 1.0), *angles.T)]
    expression, head_rad = np.stack(columns[: len(ARKIT52)], axis=-1), np.stack(columns[len(ARKIT52) :], axis=-1)
    meta = {"recorded": f"with Live Link Face, {path.name}", "file": str(path)}
    return Motion(expression, _cameras(head_rad), fps, "arkit52", meta)


def _read(path: Path, rows: Iterator[list[str]]) -> tuple[Array, Array]:
    """(T, 5) line number, hours, minutes, seconds and frame; and (T, 55) scores and head angles."""
    header = [name.strip().lower() for name in next(rows, [])]
    places, count = _columns(path, header)
    timecodes: list[tuple[int, str]] = []
    values: list[Array] = []
    rows_seen = 0
    for line, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue
        rows_seen += 1
        if len(row) != len(header):
            raise BadMotionFile(
                f"{path}, line {line}: {len(row)} cells under {len(header)} column names, "
                "so the line is cut off or damaged; copy the file again"
            )
        if count is not None and row[count].strip() == "0":
            continue
        if len(values) == MAX_FRAMES:
            raise BadMotionFile(f"{path} holds more than {MAX_FRAMES} rows; split it")
        timecodes.append((line, row[places["Timecode"]]))
        cells = {name: row[place] for name, place in places.items() if name != "Timecode"}
        values.append(_numbers(f"{path}, line {line}", cells))
    if not values:
        raise BadMotionFile(f"{path} has {'no row with a face' if rows_seen else 'a header and no rows'}; {_REMEDY}")
    return _clocks(path, timecodes), np.stack(values)


def _columns(path: Path, header: list[str]) -> tuple[dict[str, int], int | None]:
    """Places of the timecode, the scores and the head angles in a row, by name; and of the count, if there is one."""
    wanted = ("Timecode", *_SCORES, *HEAD)
    absent = [name for name in wanted if name.lower() not in header]
    missing = [name for name in absent if name not in _OPTIONAL]
    if len(absent) > len(wanted) // 2:
        raise BadMotionFile(
            f"{path} is not a Live Link Face recording: its first line should read "
            f"Timecode,BlendShapeCount,EyeBlinkLeft and so on, separated by commas, semicolons or tabs; {_REMEDY}"
        )
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise BadMotionFile(
            f"{path} lacks {len(missing)} of the columns of a Live Link Face recording ({names}); {_REMEDY}"
        )
    for name in wanted:
        if header.count(name.lower()) > 1:
            raise BadMotionFile(f"{path} has two columns {name}; {_REMEDY}")
    if absent:
        logger.warning("%s has no column for %s, taken as 0", path, ", ".join(absent))
    places = {name: header.index(name.lower()) for name in wanted if name not in absent}
    return places, header.index(_COUNT) if _COUNT in header else None


def _clocks(path: Path, timecodes: list[tuple[int, str]]) -> Array:
    """(T, 5) line number, hours, minutes, seconds and frame; of milliseconds the frame is 0.

    The form is that of the first row. Parts such as `:019` and `.19` are frames if none in the take exceeds 59 and the
    take reaches another second, or would otherwise be faster than any camera of the app.
    """
    pattern = _MILLISECOND_CODE if _MILLISECOND_CODE.fullmatch(timecodes[0][1]) else _FRAME_CODE
    times = [_clock(f"{path}, line {line}", pattern, cell) for line, cell in timecodes]
    parts = [next(part for part in time.groups()[3:] if part) for time in times]
    in_frames = pattern is _FRAME_CODE
    if not in_frames and len(times) > 1 and all(_may_be_frame(time) for time in times):
        step = float(np.median(np.diff([float(f"0.{part}") for part in parts])))
        in_frames = len({time[3] for time in times}) > 1 or step < 0.9 / APP_CLOCK
        logger.warning(
            "%s: the last part of its timecodes never exceeds 59 (%s), and is taken for %s",
            path,
            timecodes[0][1].strip(),
            "frames" if in_frames else "a fraction of a second",
        )
    rows = []
    for (line, _), time, part in zip(timecodes, times, parts):
        hours, minutes, seconds = (float(number) for number in time.groups()[:3])
        frame = float(part.replace(",", ".")) if in_frames else 0.0
        rows.append([line, hours, minutes, seconds if in_frames else seconds + float(f"0.{part}"), frame])
    return np.array(rows, dtype=np.float64)


def _may_be_frame(time: re.Match[str]) -> bool:
    """Whether the last part of a timecode in milliseconds may be a frame: `:019` or `.19`."""
    return int(time[4]) < CLOCKS[-1] if time[4] else len(time[5]) <= 2 and int(time[5]) < CLOCKS[-1]


def _clock(where: str, pattern: re.Pattern[str], cell: str) -> re.Match[str]:
    """The parts of a timecode."""
    time = pattern.fullmatch(cell)
    if time is None:
        form = "frame (11:54:29:19.804)" if pattern is _FRAME_CODE else "milliseconds (11:54:29:330), as above"
        raise BadMotionFile(
            f"{where}, column Timecode: {_shown(cell)} is not of the form hours:minutes:seconds:{form}; {_REMEDY}"
        )
    return time


def _numbers(where: str, cells: Mapping[str, str]) -> Array:
    """(55,) the scores and head angles of a row, after checking each; 0 where the file has no such column."""
    numbers = np.zeros(len(_SCORES) + len(HEAD))
    for k, name in enumerate((*_SCORES, *HEAD)):
        cell = cells.get(name, "0")
        try:
            number = float(cell.replace(",", "."))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadMotionFile(f"{where}, column {name}: {_shown(cell)} is not a number; repair or remove the line")
        if name in HEAD and abs(number) > math.pi:
            raise BadMotionFile(
                f"{where}, column {name}: {number:g} is not an angle in radians (at most pi); convert degrees first"
            )
        if name not in HEAD and not -OVERSHOOT <= number <= 1.0 + OVERSHOOT:
            raise BadMotionFile(f"{where}, column {name}: {number:g} is far outside 0 to 1; divide percentages by 100")
        numbers[k] = number
    return numbers


def _shown(cell: str) -> str:
    return repr(cell.strip()[:20]) if cell.strip() else "an empty cell"


def _seconds(path: Path, clocks: Array) -> Array:
    """(T,) seconds since the first row.

    The frame field counts timecode frames within a second; its fraction is a fraction of a frame. A take may cross
    midnight.
    """
    line, hours, minutes, seconds, frame = clocks.T
    whole = hours * 3600.0 + minutes * 60.0 + seconds
    highest = float(np.floor(frame).max())
    if highest >= CLOCKS[-1]:
        raise BadMotionFile(
            f"{path}, line {line[np.argmax(frame)]:.0f}, column Timecode: frame {highest:.0f} does not exist at up to "
            f"{CLOCKS[-1]} frames per second; record with a timecode of 24 to 60 frames per second"
        )
    started_again = bool((whole != whole[0]).any())
    clock = next(rate for rate in CLOCKS if rate > highest) if started_again else APP_CLOCK
    times = whole + frame / clock
    times = times + _DAY_S * np.cumsum(np.diff(times, prepend=times[0]) < -_DAY_S / 2)
    backwards = np.flatnonzero(np.diff(times) < 0.0)
    if len(backwards):
        raise BadMotionFile(
            f"{path}, line {line[backwards[0] + 1]:.0f}, column Timecode: the time goes backwards; "
            "sort the lines, or cut the file there into two takes"
        )
    gaps = np.diff(times)
    if (gaps > LONGEST_GAP_S).any():
        at = int(np.argmax(gaps))
        raise BadMotionFile(
            f"{path}, line {line[at + 1]:.0f}, column Timecode: {gaps[at] / 3600.0:.1f} hours have passed since the "
            "row before; cut the file there into two takes"
        )
    elapsed: Array = times - times[0]
    return elapsed


def _grid(path: Path, times: Array) -> tuple[float, Array]:
    """The frame rate of ascending times (T,), and a regular grid (T',) from the first time to the last."""
    if len(times) == 1:
        return float(APP_CLOCK), times
    step = float(np.median(np.diff(times)))
    frames = round(float(np.rint(np.diff(times) / step).sum()))
    fps = frames / float(times[-1])
    if fps > MAX_FPS or frames >= MAX_FRAMES:
        raise BadMotionFile(
            f"{path} would give {frames + 1} frames at {fps:.0f} fps, since its timecodes jump; cut it into takes"
        )
    fps = next((rate for rate in RATES if abs(fps / rate - 1.0) < RATE_TOLERANCE), fps)
    return fps, np.arange(frames + 1) / fps


def _cameras(head_rad: Array) -> Array:
    """Head angles (T, 3) in radians to camera labels (T, 25) at the default distance.

    ARKit's face axes are x to the viewer's right, y up and z towards the viewer; it is rotated by
    Ry(yaw) Rx(pitch) Rz(roll).
    """
    yaw, pitch, roll = np.degrees(head_rad).T
    zero = np.zeros_like(yaw)
    rotation = np.broadcast_to(np.eye(3), (len(yaw), 3, 3))
    for angles in ((yaw, zero, zero), (zero, -pitch, zero), (zero, zero, -roll)):  # one axis at a time, our signs
        rotation = rotation @ cameras.head_rotation(np.stack(angles, axis=-1))
    cam2world = np.tile(np.eye(4), (len(yaw), 1, 1))
    cam2world[:, :3, :3] = np.swapaxes(rotation, -1, -2)
    cam2world[:, :3, 3] = -cameras.RADIUS * rotation[:, 2]
    return cameras.pack(cam2world, np.tile(cameras.default_intrinsics(), (len(yaw), 1, 1)))
