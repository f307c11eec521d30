"""A model as ONNX files, which run without PyTorch and without this package (`examples/onnx_animate.py`).

    encoder.onnx   once per portrait:    the face crop and its track to what is kept of it
    planes.onnx    once per expression:  to the tri-plane and the moved landmarks; eyes close as in `animate.eyelids`
    frame.onnx     once per camera:      to the image

Outputs have the names of the inputs that they are for. All inputs have the batch as their first dimension, the same
for all. `model.json` names and describes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export3d.animate.animator import Source
from export3d.animate.eyelids import closed
from export3d.engines import parts
from export3d.engines.onnx_graph import OPSET, require_onnx, run_graph, session, write_graph
from export3d.engines.parts import Chain, ExpressionMotion, Part
from export3d.errors import ConfigError, OutputError
from export3d.files import check_folder, kind_at, paths_in, writing_to
from export3d.model import Export3D

FORMAT = "export3d-onnx"
VERSION = 1
TOLERANCE = 1e-3
"""Largest difference to PyTorch, in images in [-1, 1] and in everything before them, see `difference`."""
_SETTLED = 0.998
"""Share of the values that count: rounding decides on which side of an edge, such as an iris's, a pixel falls, and
there PyTorch differs from itself."""
_CHECKED = (1, 3)
"""Batches that are checked; the graphs are written with 2."""
_GRAPHS = ("encoder", "planes", "frame")
_FILES = {*(f"{name}.onnx" for name in _GRAPHS), "model.json", "portrait.npz"}


class EyeClosing(Part):
    """`eyelids.closed`.

    Inputs: expression (B, E), shift (B, n), source_expression (B, E) and the tensors of `Encoded.view.face`.
    Outputs: expression, regions.asked, regions.own and regions.share, for `ExpressionMotion`.
    """

    outputs = ("expression", "regions.asked", "regions.own", "regions.share")

    def __init__(self, motion: ExpressionMotion) -> None:
        super().__init__()
        self.of = motion
        face = (name for name in motion.inputs if name.startswith("view.face."))
        self.inputs = ("expression", "shift", "source_expression", *face)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named, of = self.named(given), self.of
        view = parts.rebuilt(of.like, named).view
        assert of.motion is not None
        assert view is not None
        asked, regions = closed(
            of.expression, of.motion, view, named["source_expression"], named["expression"], named["shift"]
        )
        return asked, regions.asked, regions.own, regions.share


def graphs(model: Export3D) -> dict[str, Part]:
    """The parts that become files, by name."""
    planes = parts.planes_part(model)
    motion = planes.parts[0]
    assert isinstance(motion, ExpressionMotion)
    if motion.motion is not None and model.config.space == "arkit52":
        planes = Chain([EyeClosing(motion), planes], planes.outputs)
    return {"encoder": parts.SourceEncoder(model), "planes": planes, "frame": parts.frame_part(model)}


def export_onnx(
    model: Export3D,
    folder: Path,
    weights: Mapping[str, Any],
    portrait: Source | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, float]:
    """Write a model as ONNX files, once they agree with PyTorch.

    Args:
        model: on the CPU, frozen.
        folder: need not exist; an earlier export there is replaced.
        weights: what `model.json` says about them.
        portrait: whose inputs of `encoder.onnx` are written too (`portrait.npz`).
        progress: called with (steps done, their number, the name of the next).

    Returns:
        The `difference` between ONNX Runtime and PyTorch by output.

    Raises:
        ConfigError: a difference exceeds `TOLERANCE`; nothing is written.
        OutputError: see `check_export_folder`, or the folder cannot be written.
        MissingExtra: the extra `onnx` is not installed.
    """
    require_onnx()
    check_export_folder(folder)
    made, described = graphs(model), {}
    with _replaced_folder(folder) as temporary:
        known = parts.examples(model, 2)
        for step, (name, part) in enumerate(made.items()):
            progress(step, len(made) + 1, f"{name}.onnx")
            used = write_graph(part, known, temporary / f"{name}.onnx")
            with torch.no_grad():
                outputs = dict(zip(part.outputs, part(*(known[one] for one in part.inputs))))
            described[f"{name}.onnx"] = {
                "sha256": hashlib.sha256((temporary / f"{name}.onnx").read_bytes()).hexdigest(),
                "inputs": {one: _shape(known[one]) for one in used},
                "outputs": {one: _shape(value) for one, value in outputs.items()},
            }
            known |= outputs
        progress(len(made), len(made) + 1, "comparing with PyTorch")
        errors = compare(model, made, temporary)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "export3d": version("export3d"),
            "weights": dict(weights),
            "space": model.config.space,
            "image_size": model.config.image_size,
            "opset": OPSET,
            "graphs": described,
            "difference_to_pytorch": {name: float(f"{value:.1e}") for name, value in errors.items()},
            "model": model.config.to_dict(),
        }
        (temporary / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if portrait is not None:
            np.savez(temporary / "portrait.npz", **portrait_inputs(model, portrait))  # type: ignore[arg-type]
        progress(len(made) + 1, len(made) + 1, "")
    return errors


def compare(model: Export3D, made: Mapping[str, Part], folder: Path) -> dict[str, float]:
    """Run the graphs one after another, each on the outputs of those before, beside the parts in PyTorch.

    Sources, expressions and cameras are others than those that the graphs were written with.

    Returns:
        The largest `difference` by output.

    Raises:
        ConfigError: one exceeds `TOLERANCE` or is no number.
    """
    sessions = {name: session(folder / f"{name}.onnx") for name in made}
    errors: dict[str, float] = {}
    for batch in _CHECKED:
        expected = parts.examples(model, batch, seed=batch)
        found = {name: value.numpy() for name, value in expected.items()}
        for name, part in made.items():
            with torch.no_grad():
                expected |= dict(zip(part.outputs, part(*(expected[one] for one in part.inputs))))
            found |= run_graph(sessions[name], found)
            for one in part.outputs:
                error = difference(found[one], expected[one].numpy())
                errors[one] = max(errors.get(one, 0.0), error)
                if not error <= TOLERANCE:
                    raise ConfigError(
                        f"{name}.onnx differs from PyTorch by {error:.1e} in {one} at a batch of {batch}, and at most "
                        f"{TOLERANCE} is allowed; use another version of onnxruntime or onnxscript"
                    )
    return errors


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest absolute difference of `_SETTLED` of the values; NaN if one is."""
    return float(np.quantile(np.abs(found - expected), _SETTLED))


def portrait_inputs(model: Export3D, source: Source) -> dict[str, NDArray[np.float32]]:
    """The inputs for a portrait: those of `encoder.onnx`, and a `shift` of 0."""
    view = source.features.view
    values = {
        "source": np.moveaxis(source.image / 127.5 - 1.0, -1, 0),
        "source_camera": source.camera,
        "source_expression": source.expression,
        "source_landmarks": source.landmarks,
        "source_matte": None if view is None or view.matte is None else view.matte[0].cpu().numpy(),
        "shift": np.zeros(parts.examples(model, 1)["shift"].shape[1]),
    }
    return {name: np.asarray(x, dtype=np.float32)[None] for name, x in values.items() if x is not None}


def check_export_folder(folder: Path) -> None:
    """Raise `OutputError` unless a folder does not exist, is empty, or holds nothing but an earlier export.

    A mount point is refused too, since no other folder can take its place.
    """
    check_folder(folder)
    if kind_at(folder, OutputError) is None:
        return
    if os.path.ismount(os.path.realpath(folder)):
        raise OutputError(f"{folder} is a mount point, which cannot be replaced; choose a folder inside it")
    found = {path.name for path in paths_in(folder, OutputError)}
    if foreign := sorted(found - _FILES):
        raise OutputError(f"{folder} holds {foreign[0]}, which is not of an export; choose a new or an empty folder")
    if found and not _is_export(folder / "model.json"):
        raise OutputError(f"{folder} holds files of another origin; choose a new or an empty folder")


def _is_export(path: Path) -> bool:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("format") == FORMAT


@contextmanager
def _replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends, and is removed when it fails."""
    target = Path(os.path.realpath(folder))
    with writing_to(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent))
    try:
        temporary = outer / "new"
        temporary.mkdir()
        with writing_to(folder):
            yield temporary
            try:
                if kind_at(target, OutputError) is not None:
                    target.rename(outer / "old")
                temporary.rename(target)
            except BaseException:  # Ctrl-C between the two
                with suppress(OSError):
                    (outer / "old").rename(target)
                raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _shape(value: Tensor) -> list[str | int]:
    return ["batch", *value.shape[1:]]
