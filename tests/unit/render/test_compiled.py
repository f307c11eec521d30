"""render/compiled.py: Numba's cache may be full, damaged, or switched off."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

import export3d.render.compiled as compiled

pytest.importorskip("numba")

PASS = """
from export3d.render.compiled import compiled

@compiled
def doubled(x):
    return 2 * x

def trial():
    doubled(1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a small pass and its cache lie."""
    (tmp_path / "small_pass.py").write_text(PASS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compiled, "_cached", True)
    compiled._warn.cache_clear()
    yield tmp_path / "__pycache__"
    compiled._warn.cache_clear()
    sys.modules.pop("small_pass", None)


def doubled(x: int) -> int:
    module = compiled.compiled_pass("small_pass")
    assert module is not None
    return int(module.doubled(x))


def cached(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix in (".nbi", ".nbc"))
    assert len(found) == 2
    return found


def test_threads_that_need_it_together_wait_for_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, busy, at_most = compiled._tried, threading.Semaphore(1), []

    def alone(name: str, cached: bool) -> ModuleType:
        at_most.append(busy.acquire(blocking=False))
        try:
            time.sleep(0.05)
            return tried(name, cached)
        finally:
            busy.release()

    monkeypatch.setattr(compiled, "_tried", alone)
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(doubled, range(3))) == [0, 2, 4]
    assert at_most == [True] * 3


def test_compiling_is_told_once_and_cached_code_is_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.random.get_rng_state()
    assert doubled(3) == 6
    assert "Numba compiles the renderer for this processor" in caplog.text
    caplog.clear()
    compiled._warn.cache_clear()
    assert doubled(4) == 8
    assert not caplog.text
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["cut", "text", "folder"])
def test_a_cache_that_cannot_be_used_costs_time_alone(
    folder: Path, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in place of a file fails like a full disk, when the cache is written."""
    doubled(3)
    for path in cached(folder):
        if path.suffix == kind:
            whole = path.read_bytes()
            path.unlink()
            if damage == "folder":
                path.mkdir()
            else:
                path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"text")
    caplog.clear()
    assert [doubled(4), doubled(5)] == [8, 10]
    assert caplog.text.count("cache cannot be used") <= 1, "a damaged index may be taken for an old one"


def test_a_full_disk_is_told_with_what_to_do(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    doubled(3)
    index = next(path for path in cached(folder) if path.suffix == ".nbi")
    index.unlink()
    index.mkdir()
    caplog.clear()
    assert doubled(4) == 8
    assert "Numba's cache cannot be used (is a directory); each start takes some seconds longer; free" in caplog.text


def test_without_compilation_or_with_a_pass_that_fails_pytorch_renders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from numba import config

    assert compiled.compiled_pass("no_such_pass") is None
    (folder.parent / "small_pass.py").write_text(PASS.replace("2 * x", "x.missing"))
    assert compiled.compiled_pass("small_pass") is None
    monkeypatch.setattr(config, "DISABLE_JIT", True)
    assert compiled.compiled_pass("export3d.render.fused") is None
    assert "Numba cannot be used (NUMBA_DISABLE_JIT is set); rendering continues in PyTorch" in caplog.text


@pytest.mark.slow  # may compile
@pytest.mark.parametrize("name", ["export3d.render.fused", "export3d.warping.fused"])
def test_the_trial_compiles_what_a_frame_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import export3d.render.renderer as renderer_module
    from tests.unit.warping.test_fused import meshes

    module = compiled.compiled_pass(name)
    assert module is not None
    if name.startswith("export3d.render"):
        function = module._render
        renderer = renderer_module.VolumeRenderer(renderer_module.RenderConfig(resolution=6), 6)
        renderer.fused = True
        monkeypatch.setattr(renderer_module, "_fused", lambda: module.render)
        with torch.no_grad():
            renderer(torch.randn(2, 3, 6, 8, 11), torch.rand(2, 25))
    else:
        function = module._paint
        mesh, places, distance = meshes((20, -8, 5, 0.03, 0, 2.7), (0, 0, 0, 0, 0, 2.7))
        mesh.lookup(places, distance, 33, module.paint)
    assert len(function.signatures) == 1
