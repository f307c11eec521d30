"""`export3d compare-motion`: correlates two motions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from export3d.cli.terminal import frame_counter, tell
from export3d.errors import ConfigError

if TYPE_CHECKING:
    from export3d.motion.motion import Motion

NAMES = ("yaw", "pitch", "roll", "jawOpen", "eyeBlink")


def command(
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    *,
    minimum: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="min", metavar="NAME=VALUE")
    ] = (),
) -> int:
    """Print the correlations of two motions; videos are tracked first.

    Args:
        a: a motion file or a video.
        b: a motion file or a video.
        minimum: exit with code 1 if this correlation (yaw, pitch, roll, jawOpen or eyeBlink) is lower; may be repeated.
    """
    bounds = dict(_bound(text) for text in minimum)
    from export3d.motion.compare import compare

    result = compare(_motion(a), _motion(b))
    print(table(result))
    failed = [
        f"{name} {result['correlation'].get(name, math.nan):.2f} < {bound:g}"
        for name, bound in bounds.items()
        if not result["correlation"].get(name, math.nan) >= bound
    ]
    if failed:
        tell(f"the motions differ: {', '.join(failed)}")
    return 1 if failed else 0


def table(result: dict[str, Any]) -> str:
    """The result of `export3d.motion.compare.compare` as text, one row per measure."""
    lines = [f"{result['frames']} frames   correlation   mean difference"]
    for name, correlation in result["correlation"].items():
        unit = " degrees" if name in NAMES[:3] else ""
        lines.append(f"{name:<12} {correlation:>11.3f}   {result['mean_abs_difference'][name]:.3f}{unit}")
    return "\n".join(lines)


def _motion(path: Path) -> Motion:
    from export3d.animate.drive import driving

    with frame_counter("tracking", path) as count:
        return driving(path, progress=count).motion


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        bound = float(value)
        if name not in NAMES or not math.isfinite(bound):
            raise ValueError
        return name, bound
    except ValueError:
        raise ConfigError(f"--min takes NAME=VALUE with one of {', '.join(NAMES)} and a number, got {text!r}") from None
