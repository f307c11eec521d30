from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export3d.cli.working import who_works, with_address
from export3d.errors import ConfigError
from export3d.evaluation.protocols.settings import RunSettings
from export3d.workers.cluster import Cluster
from export3d.workers.run import run_jobs


def start() -> Callable[[int], str]:
    return lambda job: os.environ.get("CUDA_VISIBLE_DEVICES", "every")


@pytest.mark.parametrize("gpus", [-0.5, 1.5])
def test_a_share_that_ray_cannot_give_is_refused(gpus: float) -> None:
    with pytest.raises(ConfigError, match="cannot hold"):
        Cluster(gpus=gpus)


def test_a_share_of_a_gpu_needs_a_cluster() -> None:
    with pytest.raises(ConfigError, match="add --ray"):
        who_works(None, None, 0.5)
    with pytest.raises(ConfigError, match="add --ray"):
        RunSettings(ray_gpus=0.5)


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["--ray"], "local"),
        (["--ray", "-o", "out"], "local"),
        (["--ray", "videos"], "local"),
        (["--ray", "s3://bucket/videos"], "local"),
        (["--ray", "10.0.0.7:6379"], "10.0.0.7:6379"),
        (["--ray", "head-node"], "head-node"),
        (["--ray", "ray://10.0.0.7:10001"], "ray://10.0.0.7:10001"),
        (["--ray", ""], ""),
    ],
)
def test_what_follows_ray_is_its_address_unless_it_is_an_input(
    words: list[str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_address(words)[1] == address


def test_workers_without_a_share_score_on_processors() -> None:
    assert RunSettings(ray="local").device_of_crew == "cpu"
    assert RunSettings(ray="local", ray_gpus=0.5).device_of_crew == "auto"
    assert RunSettings().device_of_crew == "auto"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning:ray")
def test_workers_share_a_gpu_and_a_cluster_without_one_is_named() -> None:
    """A GPU is a number that Ray counts: none is needed to see who is given which."""
    import ray

    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert dict(run_jobs([1, 2, 3], start, Cluster(gpus=0.5))) == {1: "0", 2: "0", 3: "0"}
        with pytest.raises(ConfigError, match="has not 2 of a GPU"):
            list(run_jobs([1], start, Cluster(gpus=2)))
    finally:
        ray.shutdown()
