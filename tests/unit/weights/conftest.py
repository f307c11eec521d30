"""What the tests of weights share: tensors of every kind, and a file of them."""

from pathlib import Path

import pytest
import torch

from export3d.weights.file import save_weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    return {
        "matrix": base,
        "transposed": base.t(),  # a view of the same memory
        "tied": base,
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor([1, 2**40]),
        "mask": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "kernel": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


@pytest.fixture
def weights(tmp_path, tensors) -> Path:
    return save_weights(tmp_path / "w.safetensors", tensors, {"width": 8}, {"images_seen": 12})
