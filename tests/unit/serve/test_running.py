"""How many renderers, and where."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra studio is not installed")

from export3d.errors import ConfigError
from export3d.serve.running import Replicas, deployed


def test_replicas_are_a_number_or_a_range() -> None:
    assert Replicas.parse("3") == Replicas(least=3, most=3)
    assert Replicas.parse("1:8", 0.25) == Replicas(least=1, most=8, gpus=0.25)


@pytest.mark.parametrize("text", ["", "0", "4:1", "a", "1:2:3", "1:", "-1"])
def test_what_is_no_number_of_replicas_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="; give"):
        Replicas.parse(text)


@pytest.mark.parametrize("gpus", [-1.0, 1.5])
def test_a_share_that_no_gpu_has_is_refused(gpus: float) -> None:
    with pytest.raises(ConfigError, match=r"0\.25"):
        Replicas.parse("1", gpus)


@pytest.mark.parametrize("address", ["videos", "127.0.0.1:9", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_named_at_once(address: str) -> None:
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    with pytest.raises(ConfigError, match=address), deployed(Replicas(), {"device": "cpu"}, address):
        pass
