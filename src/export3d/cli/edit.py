"""`export3d edit`: edits the face of a portrait and writes one image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from export3d.camera import checked_turn
from export3d.cli.framing import Framing
from export3d.cli.marking import Marking
from export3d.cli.terminal import arkit_scores, pairs, tell
from export3d.engines.names import EngineName
from export3d.errors import OutputError

_Pairs = tyro.conf.UseAppendAction[tuple[str, ...]]


def command(
    source: tyro.conf.Positional[Path],
    framing: Framing = Framing(),  # noqa: B008 - frozen
    marking: Marking = Marking(),  # noqa: B008 - frozen
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    basis: Annotated[_Pairs, tyro.conf.arg(metavar="NUMBER=AMOUNT")] = (),
    scores: Annotated[_Pairs, tyro.conf.arg(name="set", metavar="NAME=VALUE")] = (),
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    weights: Path | None = None,
    pure: bool = False,
    device: str = "auto",
    engine: EngineName = "auto",
) -> int:
    """Edit the expression and head pose of a portrait and write one image; everything else stays unchanged.

    Args:
        source: the portrait, an image with a face.
        framing: which face, and what the image shows.
        marking: whether the output is marked as AI-generated, and how.
        output: the image to write (.png).
        basis: move along a direction of the expression basis, 1 to 10, such as 4=+1; may be repeated.
        scores: set an ARKit score, 0 to 1, such as jawOpen=0.8; may be repeated (the names:
            docs/sliders.md).
        yaw: turn the head to the right of the image by this angle, degrees, below 90.
        pitch: tilt the face up by this angle, degrees, below 90.
        roll: tilt the head clockwise by this angle, degrees.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: render with the core alone: no pixel of the source is warped into the frame.
        device: cpu, cuda, or auto.
        engine: how the network is run: reference (float32), torch (the processor's or GPU's fast number format),
            openvino (extra fast), or auto: openvino on x86 processors where it is installed, else torch; for one
            image always torch, because OpenVINO takes a second or two to start.
    """
    values = arkit_scores(scores)
    amounts = pairs("--basis NUMBER=AMOUNT, such as 4=+1", int, basis)
    checked_turn(yaw, pitch, roll)

    from export3d.animate.export import STILL_SUFFIXES, VIDEO_SUFFIXES, check_output, write_still

    if output.suffix.lower() in VIDEO_SUFFIXES:
        raise OutputError(f"edit writes one image, not the video {output}; name a .png, or use export3d animate")
    marking.check()
    inputs = [path for path in (source, weights, *framing.check()) if path is not None]
    check_output(output, STILL_SUFFIXES, inputs)
    from export3d.animate.animator import Animator

    animator = Animator.from_pretrained(weights, device, pure, "torch" if engine == "auto" else engine)
    portrait = framing.sources(animator, source)
    made = animator.edit(
        portrait, values, amounts, yaw_deg=yaw, pitch_deg=pitch, roll_deg=roll, **framing.options(animator)
    )
    write_still(output, made, marking.marks(animator.statement(portrait)))
    tell(f"wrote {output}{marking.remark}")
    return 0
