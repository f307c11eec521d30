"""Who works: the options --workers and --ray."""

from __future__ import annotations

from collections.abc import Sequence

from export3d.errors import ConfigError
from export3d.files import kind_at
from export3d.workers.cluster import LOCAL, Cluster, is_address


def who_works(workers: int | None, ray: str | None, ray_gpus: float = 0.0) -> int | Cluster | None:
    """The processes or the cluster that was asked for; None: neither.

    Raises:
        ConfigError: both were, or the cluster's address is none.
    """
    if ray is None:
        if ray_gpus:
            raise ConfigError("--ray-gpus is for the workers of a cluster; add --ray")
        return workers
    if workers is not None:
        raise ConfigError("--workers and --ray both say who works; leave one of them out")
    return Cluster(ray, ray_gpus)


def with_address(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which every `--ray` has an address: this machine, where none follows.

    What follows is no address if it is an option, a file or folder, or the URL of one.

    >>> with_address(["videos", "--ray", "-o", "data"])
    ['videos', '--ray', 'local', '-o', 'data']
    """
    full: list[str] = []
    for word, following in zip(arguments, [*arguments[1:], "-"]):
        none = word == "--ray" and not is_address(following) and _is_other(following)
        full += [word, LOCAL] if none else [word]
    return full


def _is_other(word: str) -> bool:
    is_url = "://" in word and not word.startswith("ray://")
    return word.startswith("-") or is_url or (word != "" and kind_at(word) is not None)
