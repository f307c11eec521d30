"""The number format in which convolutions and matrix products are fast on a device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA that keep oneDNN, and so PyTorch and OpenVINO, from using bf16 instructions."""


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, float32 elsewhere: emulated bfloat16 is slower than float32.

    The choice follows from what the device has, never from a measurement: the same machine gives the same pixels.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _has_bf16(_capabilities(), os.environ)
    return torch.bfloat16 if native else torch.float32


def _has_bf16(capabilities: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether a processor has bf16 instructions that oneDNN may use."""
    limit = environment.get("ONEDNN_MAX_CPU_ISA", environment.get("DNNL_MAX_CPU_ISA", "")).upper()
    has = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return bool(has) and limit not in _WITHOUT_BF16


def _capabilities() -> Mapping[str, Any]:
    found: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return found
