"""`export3d evaluate`: scores of weights on held-out clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.terminal import progress_bar, tell
from export3d.errors import ConfigError


def command(
    split: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    protocol: Literal["same", "cross"] = "same",
    weights: Path | None = None,
    every: int = 1,
    backbone: Literal["alex", "squeeze", "none"] = "alex",
    backbone_file: Path | None = None,
    heads_file: Path | None = None,
    retrack: bool = False,
    pairs: Path | None = None,
    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    motion: Literal["absolute", "relative"] = "absolute",
    frames: int = 40,
    against: Path | None = None,
    max_clips: int | None = None,
    device: str = "auto",
    batch: int = 4,
) -> int:
    """Score weights on a prepared split, driven by the same person's frames or by another's.

    Args:
        split: a folder of shards, such as DIR/val made by `export3d prepare ... -o DIR`.
        output: folder for report.json, report.md and sheet.png; created if need be.
        protocol: same drives one frame of a clip by all others; cross drives a person by somebody else's clip.
        weights: a .safetensors file of weights; by default those inside the package.
        every: (same) drive every N-th of the further frames.
        backbone: (same) of LPIPS; none leaves it out.
        backbone_file: (same) weights of the backbone; torchvision's where none are given.
        heads_file: (same) weights of the LPIPS heads.
        retrack: (same) also track the result and correlate it with the driving motion; cross always does.
        pairs: (cross) CSV file of sources and drivers; by default every clip drives the next two people.
        identity: (cross) descriptor behind CSIM: dlib, or an ArcFace .onnx file; may be repeated; dlib by default.
        motion: (cross) absolute takes the driver's expression and head angles, relative their change.
        frames: (cross) drive by at most so many evenly spaced frames of a clip.
        against: (cross) report.json of another run; adds the differences pair by pair.
        max_clips: only the first clips of the split, or the first pairs.
        device: cpu, cuda, or auto.
        batch: frames driven together.
    """
    from export3d.evaluation.cross import cross_identity
    from export3d.evaluation.protocol import same_identity

    foreign: dict[str, object] = {"--pairs": pairs, "--identity": identity, "--against": against,
                                  "--motion": motion != "absolute", "--frames": frames != 40}  # fmt: skip
    if protocol == "cross":
        foreign = {"--every": every > 1, "--backbone-file": backbone_file, "--heads-file": heads_file,
                   "--retrack": retrack, "--backbone": backbone != "alex"}  # fmt: skip
    given = [name for name, value in foreign.items() if value]
    if given:
        raise ConfigError(f"--protocol {protocol} does not take {', '.join(given)}; leave out one or the other")

    with progress_bar("driving") as bar:

        def progress(done: int, frames: int) -> None:
            bar.total = frames
            bar.update(done - bar.n)

        if protocol == "cross":
            print(
                cross_identity(
                    split,
                    output,
                    weights=weights,
                    pairs=pairs,
                    identity=identity or ("dlib",),
                    motion=motion,
                    frames=frames,
                    against=against,
                    max_pairs=max_clips,
                    device=device,
                    batch=batch,
                    progress=progress,
                ).markdown()
            )
        else:
            print(
                same_identity(
                    split,
                    output,
                    weights=weights,
                    every=every,
                    backbone=backbone,
                    backbone_file=backbone_file,
                    heads_file=heads_file,
                    retrack=retrack,
                    max_clips=max_clips,
                    device=device,
                    batch=batch,
                    progress=progress,
                ).markdown()
            )
    tell(f"wrote {output / 'report.json'}")
    return 0
