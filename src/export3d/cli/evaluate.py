"""`export3d evaluate`: scores of weights on held-out clips, and of pictures that other models made."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from export3d.cli.terminal import job_progress, tell
from export3d.errors import ConfigError, InputError


def command(
    data: tyro.conf.Positional[Path] = Path("data"),
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("evaluation"),
    split: str = "val",
    clips: Path | None = None,
    predictions: Path | None = None,
    protocol: Literal["same", "cross"] = "same",
    weights: Path | None = None,
    references: tuple[Literal["copy", "warp", "mesh", "oracle"], ...] = ("copy", "warp", "mesh", "oracle"),
    every: int = 1,
    backbone: Literal["auto", "alex", "squeeze", "none"] = "auto",
    backbone_file: Path | None = None,
    heads_file: Path | None = None,
    faces: bool = True,
    landmarks: str = "mediapipe",
    expression: str = "arkit52",
    identity: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    save: Path | None = None,
    workers: int = 0,
    pairs: Path | None = None,
    motion: Literal["absolute", "relative"] = "absolute",
    frames: int = 40,
    against: Path | None = None,
    max_clips: int | None = None,
    device: str = "auto",
    batch: int = 4,
) -> int:
    """Score weights on held-out clips beside simple references and an oracle, or score pictures of any other model.

    Writes report.html, report.md, report.json and sheet.png. Repeating a command goes on where it was cut.

    Args:
        data: folder that `export3d prepare` made, or one split in it.
        output: folder for the results; created if need be.
        split: which of the folder's splits.
        clips: a folder of your own videos, in the place of prepared data.
        predictions: a folder of pictures, CLIP/source.png, CLIP/target/00000.png, CLIP/prediction/00000.png and so on.
        protocol: same drives one frame of a clip by all others; cross drives a person by somebody else's clip.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default those inside the package.
        references: (same) other rows of the table; the copy is always there.
        every: (same) drive every N-th of the further frames.
        backbone: (same) of LPIPS; auto is alex where its weights are at hand, else none.
        backbone_file: (same) weights of the backbone; torchvision's where none are given.
        heads_file: (same) weights of the LPIPS heads.
        faces: (same) also measure landmarks, expression, pose, identity and flicker.
        landmarks: (same) detector behind AKD: mediapipe, or a 68-point .onnx file.
        expression: (same) what reads expression and pose: arkit52, or a Deep3DFaceRecon .onnx file.
        identity: descriptor behind CSIM: dlib, or an ArcFace .onnx file; may be repeated; dlib by default.
        save: folder to write the pictures to, in the layout of --predictions.
        workers: processes; 0 scores in this one.
        pairs: (cross) CSV file of sources and drivers; by default every clip drives the next two people.
        motion: (cross) absolute takes the driver's expression and head angles, relative their change.
        frames: (cross) drive by at most so many evenly spaced frames of a clip.
        against: (cross) report.json of another run; adds the differences pair by pair.
        max_clips: only the first clips of the split, or the first pairs.
        device: cpu, cuda, or auto.
        batch: frames driven together.
    """
    given = {name for name, value in locals().items() if value != _DEFAULTS[name]}
    if predictions is not None:
        _refuse("--predictions", given & _ONLY_OURS)
    else:
        _refuse(f"--protocol {protocol}", given & (_ONLY_SAME if protocol == "cross" else _ONLY_CROSS))

    from export3d.evaluation.protocols.scoring import Scoring

    scoring = Scoring(
        backbone=backbone,
        backbone_file=backbone_file,
        heads_file=heads_file,
        faces=faces,
        landmarks=landmarks,
        expression=expression,
        identity=identity or ("dlib",),
    )
    with job_progress("scoring", unit="frame") as progress:
        shared: dict[str, Any] = {"workers": workers, "device": device, "progress": progress}
        if predictions is not None:
            from export3d.evaluation.protocols.saved import score_predictions

            truth = protocol == "same"
            table = score_predictions(predictions, output, truth=truth, scoring=scoring, **shared).markdown()
        else:
            shared |= {"weights": weights, "save": save, "publishable_only": clips is None, "batch": batch}
            folder = _split(data, split, clips, output)
            if protocol == "cross":
                from export3d.evaluation.protocols.cross import cross_identity

                shared |= {"pairs": pairs, "motion": motion, "frames": frames, "against": against}
                table = cross_identity(
                    folder, output, identity=scoring.identity, max_pairs=max_clips, **shared
                ).markdown()
            else:
                from export3d.evaluation.protocols.same import same_identity

                shared |= {"references": references, "every": every}
                table = same_identity(folder, output, scoring=scoring, max_clips=max_clips, **shared).markdown()
    print(table)
    tell(f"wrote {output / 'report.html'}")
    return 0


_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
_ONLY_CROSS = {"pairs", "against", "motion", "frames"}
_ONLY_SAME = {
    "every", "backbone", "backbone_file", "heads_file", "faces", "landmarks", "expression", "references",
}  # fmt: skip
_ONLY_OURS = {"weights", "every", "save", "references", "max_clips", "clips", *_ONLY_CROSS}
"""Options that the other protocol, or pictures that are there already, have no use for."""


def _refuse(choice: str, foreign: set[str]) -> None:
    if foreign:
        options = ["--no-faces" if name == "faces" else f"--{name.replace('_', '-')}" for name in sorted(foreign)]
        raise ConfigError(f"{choice} does not take {', '.join(options)}; leave out one or the other")


def _split(data: Path, split: str, clips: Path | None, output: Path) -> Path:
    """The folder of shards that is meant; the user's own videos are prepared first."""
    if clips is not None:
        from export3d.evaluation.protocols.user_clips import prepare_clips

        return prepare_clips(clips, output / "prepared")
    if (data / "index.json").is_file():
        return data
    if not (data / split).is_dir():
        raise InputError(
            f"{data} holds no split {split!r}; prepare clips into it (export3d prepare), or give a folder of videos "
            "with --clips"
        )
    return data / split
