"""Packaged networks of this room: reading their tensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from export3d.errors import CheckpointError
from export3d.files import kind_at

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def packaged_tensors(file: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a packaged `.safetensors` file by name.

    Args:
        file: in `ASSETS`.
        what: what it is, for the message.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors.torch import load_file

    if kind_at(file, CheckpointError) != "file":
        raise CheckpointError(f"there is no {what} at {file}; install export3d again")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except Exception as error:  # safetensors raises its own
        raise CheckpointError(f"the {what} {file} is damaged; install export3d again") from error
    return tensors


class PackagedNetwork(nn.Module):
    """A packaged network in float32; nothing in it is trained or saved.

    Args:
        file, what: see `packaged_tensors`, whose errors it raises.
    """

    def __init__(self, file: Path, what: str) -> None:
        super().__init__()
        tensors = packaged_tensors(file, what)
        self._names = tuple(tensors)
        for name, value in tensors.items():
            self.register_buffer(name.replace(".", "_"), value.float(), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        """Its tensors by their names in the file, on its device."""
        return dict(zip(self._names, self.buffers(), strict=True))
