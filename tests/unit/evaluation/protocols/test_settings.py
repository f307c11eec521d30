"""Settings that the protocols share."""

from __future__ import annotations

import pytest

from export3d.errors import ConfigError
from export3d.evaluation.protocols.settings import RunSettings


@pytest.mark.parametrize("setting", [{"batch": 0}, {"workers": -1}])
def test_settings_that_cannot_work_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least"):
        RunSettings(**setting)
