import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _module(name: str, path: Path) -> ModuleType:
    """A file of tests as a module (tests are not a package)."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny.py` beside this file."""
    return _module("tiny_training", Path(__file__).with_name("tiny.py"))


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """The module `tests/golden/losses.py`."""
    return _module("golden_losses", Path(__file__).parents[2] / "golden" / "losses.py")
