"""engines/precision.py: which number format is chosen."""

from __future__ import annotations

import pytest
import torch

from export3d.engines.precision import _has_bf16, fast_dtype


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize("limit", ["", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_AMX"])
def test_a_processor_with_bf16_computes_in_it(feature: str, limit: str) -> None:
    assert _has_bf16({feature: True}, {"ONEDNN_MAX_CPU_ISA": limit} if limit else {})


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_on_instructions_is_respected(variable: str) -> None:
    assert not _has_bf16({"avx512_bf16": True}, {variable: "avx512_core_vnni"})


def test_a_processor_without_bf16_computes_in_float32() -> None:
    assert not _has_bf16({"avx2": True, "avx512_vnni": True, "avx512_bf16": False}, {})
    assert not _has_bf16({}, {})


def test_other_devices_compute_in_float32() -> None:
    assert fast_dtype(torch.device("meta")) == torch.float32
