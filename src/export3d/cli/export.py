"""`export3d export`: writes a model in a format that runs without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from export3d.cli.terminal import job_progress, tell


def command(
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    format: Literal["onnx"] = "onnx",
    weights: Path | None = None,
    pure: bool = False,
    portrait: Path | None = None,
    face: str = "largest",
) -> int:
    """Write a model as ONNX files, which run without PyTorch; they are compared with PyTorch first.

    Args:
        output: folder for encoder.onnx, planes.onnx, frame.onnx and model.json; an earlier export there is replaced.
        format: onnx.
        weights: a name that `export3d weights` lists, or a .safetensors file; by default the packaged weights.
        pure: export the core alone: no pixel of the source is warped into the frame.
        portrait: an image with a face, whose crop and track are written too (portrait.npz).
        face: of several in the portrait: largest, left, right, or a number counted from the left.
    """
    from export3d.animate.onnx_export import check_export_folder
    from export3d.engines.onnx_graph import require_onnx
    from export3d.face.tracker import face_choice

    check_export_folder(output)
    face_choice(face, one=True)
    require_onnx()

    from export3d.animate.animator import Animator
    from export3d.animate.onnx_export import export_onnx
    from export3d.weights.file import read_sidecar
    from export3d.weights.names import PACKAGED, PACKAGED_CORE, find

    found = find(weights)
    stored = PACKAGED_CORE if pure and found == PACKAGED else found
    animator = Animator.from_pretrained(weights, "cpu", pure, "reference")
    source = None if portrait is None else animator.encode(portrait, face)
    name = stored.parent.name if stored.stem == "model" else stored.stem
    about = {"name": name, "sha256": read_sidecar(stored)["file"]["sha256"], "pure": pure}
    with job_progress("exporting", unit="step", stages=True) as progress:
        errors = export_onnx(animator.model, output, about, source, progress)
    print(f"difference to PyTorch: {errors['image']:.1e} in images from -1 to 1")
    tell(f"wrote {output}")
    return 0
