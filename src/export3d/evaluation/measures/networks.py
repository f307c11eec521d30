"""Networks that measure faces: packaged ones by name, others as ONNX files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.errors import CheckpointError, ConfigError, MissingExtra
from export3d.files import check_input

Packaged = TypeVar("Packaged")
FromFile = TypeVar("FromFile")


def by_name_or_file(
    given: str | Path,
    what: str,
    packaged: tuple[str, Callable[[], Packaged]],
    network: tuple[str, Callable[[Path], FromFile]],
) -> Packaged | FromFile:
    """The network that a name, or the path of an `.onnx` file, stands for.

    Args:
        given: the name or the path.
        what: its kind, in messages.
        packaged: the name, and its constructor.
        network: the kind of a file, with its article, and the constructor from a path.

    Raises:
        ConfigError: neither.
    """
    name, make = packaged
    if str(given) == name:
        return make()
    kind, read = network
    if Path(given).suffix.lower() == ".onnx":
        return read(Path(given))
    raise ConfigError(f"unknown {what} {str(given)!r}; give {name} or the path of {kind} as .onnx")


class OnnxNetwork:
    """An ONNX network on one thread: (1, 3, S, S) to its outputs.

    Args:
        path: its file.
        what: its kind, with the article, in messages.
        size: S; with `any_size`, only if the file leaves it open.

    Attributes:
        size: S.
        description: name and digest of the file, for reports.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is missing, or does not take such images.
    """

    def __init__(self, path: Path, what: str, size: int, *, any_size: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("evaluate", "onnxruntime") from error
        data = check_input(path, CheckpointError, f"{what} as an .onnx file").read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.path = path
        self.description = f"{path.name} (sha256 {hashlib.sha256(data).hexdigest()[:12]})"
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            given = self._session.get_inputs()[0]
            sides = [side for side in given.shape[2:] if isinstance(side, int) and side > 0]
            self._name, self.size = given.name, sides[0] if sides else size
            self.outputs(torch.zeros(3, self.size, self.size))
        except Exception as error:  # onnxruntime's exception classes are private
            raise CheckpointError(f"{path} cannot be run as {what} of (1, 3, {size}, {size}) RGB") from error
        if self.size != size and not any_size:
            raise CheckpointError(f"{path} takes {self.size} px, not {size}; name {what}")

    def outputs(self, image: torch.Tensor) -> list[NDArray[np.float32]]:
        """The outputs for an image (3, S, S), in the value range of its training."""
        return [np.asarray(value) for value in self._session.run(None, {self._name: image[None].numpy()})]
