"""The packaged model on a GPU and in bf16 gives what it gives on a CPU in float32, up to rounding."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from export3d.data.pairs import PairSampler
from export3d.model import Export3D
from export3d.pretrained import load_pretrained
from tests.tiny_models import landmarks, matte

NAMES = ("source", "expression", "camera", "source_camera", "source_expression", "source_landmarks", "source_matte")
LIMITS = {torch.float32: 3e-3, torch.bfloat16: 2e-2}
"""Of the norm of the difference over the norm. On a CPU in bf16 it is 0.0006 (points) to 0.0033 (planes)."""
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@torch.no_grad()
def results(model: Export3D, batch: dict[str, Tensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    model.to(device)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        out = model(*(batch[name].to(device) for name in NAMES), jitter=torch.arange(2, device=device))
    assert out.image is not None
    assert out.warped is not None
    assert out.planes.motion is not None
    assert out.planes.motion.points is not None
    found = {
        "points": out.planes.motion.points,
        "planes": out.generated,
        "raw": out.rendered.raw,
        "warped": out.warped,
        "image": out.image,
    }
    return {name: value.float().cpu() for name, value in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.float32, marks=gpu),
        pytest.param("cuda", torch.bfloat16, marks=gpu),
    ],
)
def test_results_depend_little_on_device_and_precision(device: str, dtype: torch.dtype, golden: ModuleType) -> None:
    batch = PairSampler(golden.made_up_clips(size=256), seed=3, still_fraction=0.0, augment=False).batch(0, 2)
    batch["source_landmarks"] = landmarks(batch["source_camera"])
    batch["source_matte"] = matte(batch["source"])
    model = load_pretrained(None)
    wanted = results(model, batch, "cpu", torch.float32)
    for name, value in results(model, batch, device, dtype).items():
        assert float((value - wanted[name]).norm() / wanted[name].norm()) < LIMITS[dtype], name
