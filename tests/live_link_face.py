"""Live Link Face recordings, written by the app's layout: for tests only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

HEADER = (
    "Timecode,BlendshapeCount,EyeBlinkLeft,EyeLookDownLeft,EyeLookInLeft,EyeLookOutLeft,EyeLookUpLeft,"
    "EyeSquintLeft,EyeWideLeft,EyeBlinkRight,EyeLookDownRight,EyeLookInRight,EyeLookOutRight,EyeLookUpRight,"
    "EyeSquintRight,EyeWideRight,JawForward,JawRight,JawLeft,JawOpen,MouthClose,MouthFunnel,MouthPucker,"
    "MouthRight,MouthLeft,MouthSmileLeft,MouthSmileRight,MouthFrownLeft,MouthFrownRight,MouthDimpleLeft,"
    "MouthDimpleRight,MouthStretchLeft,MouthStretchRight,MouthRollLower,MouthRollUpper,MouthShrugLower,"
    "MouthShrugUpper,MouthPressLeft,MouthPressRight,MouthLowerDownLeft,MouthLowerDownRight,MouthUpperUpLeft,"
    "MouthUpperUpRight,BrowDownLeft,BrowDownRight,BrowInnerUp,BrowOuterUpLeft,BrowOuterUpRight,CheekPuff,"
    "CheekSquintLeft,CheekSquintRight,NoseSneerLeft,NoseSneerRight,TongueOut,HeadYaw,HeadPitch,HeadRoll,"
    "LeftEyeYaw,LeftEyePitch,LeftEyeRoll,RightEyeYaw,RightEyePitch,RightEyeRoll"
)
"""The first line as the app writes it."""
APP_COLUMNS = HEADER.split(",")[2:]
"""52 scores and nine angles, in the app's order."""

Row = Mapping[str, float | str]


def timecode(frames: float, clock: float = 60, start_s: int = 11 * 3600 + 54 * 60 + 29) -> str:
    """`HH:MM:SS:FF.mmm` so many frames of the clock after `start_s`."""
    second, frame = divmod(round(frames, 3), clock)
    whole = (start_s + int(second)) % 86400
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}:{frame:06.3f}"


def take(
    rows: Sequence[Row],
    clock: float = 60,
    step: float = 1.001,
    first: float = 19.804,
    delimiter: str = ",",
    **options: int,
) -> str:
    """The text of a take: `rows` name what is not 0 (also Timecode and BlendshapeCount, to override them)."""
    lines = [HEADER.replace(",", delimiter)]
    for k, row in enumerate(rows):
        time = row.get("Timecode", timecode(first + k * step, clock, **options))
        cells = [str(time), str(row.get("BlendshapeCount", 61))]
        for name in APP_COLUMNS:
            value = row.get(name, 0.0)
            cells.append(value if isinstance(value, str) else f"{value:.10f}")
        lines.append(delimiter.join(cells))
    return "\n".join(lines) + "\n"


def write_take(path: Path, rows: Sequence[Row], **options: float) -> Path:
    """`take` as a file; returns its path."""
    path.write_text(take(rows, **options), encoding="utf-8")  # type: ignore[arg-type]
    return path
