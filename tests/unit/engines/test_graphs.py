"""engines/graphs.py: what is read again, and what is made anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from export3d.engines import graphs
from export3d.engines.graphs import MOST, graph_key, kept_graph


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "graphs"


def asked(key: str, made: str = "graph") -> tuple[str, bool]:
    """The graph of a key, and whether it was compiled."""
    compiled: list[str] = []

    def compile_it() -> str:
        compiled.append(made)
        return made

    return kept_graph(key, compile_it, str.encode, bytes.decode), bool(compiled)


def test_the_second_time_it_is_read(folder: Path) -> None:
    assert asked("a") == ("graph", True)
    assert asked("a", "another") == ("graph", False)
    assert asked("b", "another") == ("another", True)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:5] + b"?" + data[6:]])
def test_a_damaged_file_is_written_anew(folder: Path, damage: object) -> None:
    asked("a")
    path = folder / "a.graph"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert asked("a", "other") == ("other", True)
    assert asked("a") == ("other", False)


def test_what_cannot_be_read_is_compiled(folder: Path) -> None:
    asked("a")

    def refuse(data: bytes) -> str:
        raise RuntimeError("of another version")

    assert kept_graph("a", lambda: "new", str.encode, refuse) == "new"
    assert asked("a") == ("new", False)


def test_the_graph_of_another_key_is_not_taken(folder: Path) -> None:
    asked("a", "one")
    asked("b", "two")
    (folder / "a.graph").replace(folder / "b.graph")
    assert asked("b", "two") == ("two", True)


def test_without_a_folder_it_is_compiled_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "file"))
    assert asked("a") == asked("a") == ("graph", True)


def test_the_last_used_are_kept(folder: Path) -> None:
    for number in range(MOST):
        asked(str(number))
        os.utime(folder / f"{number}.graph", (number, number))
    assert asked("0") == ("graph", False)  # and used again
    (folder / "folder.graph").mkdir()
    os.utime(folder / "folder.graph", (0, 0))
    asked("new")
    (folder / "folder.graph").rmdir()
    assert {path.stem for path in folder.iterdir()} == {"0", "new", *map(str, range(2, MOST))}


def test_a_key_tells_weights_code_and_words_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    keys = {graph_key(part, ["a"]), graph_key(part, ["b"]), graph_key(part, ["a", "b"])}
    assert graph_key(part, ["a"]) in keys
    with torch.no_grad():
        part[0].weight[0, 0] += 1e-3
    keys.add(graph_key(part, ["a"]))
    part[1].running_mean += 1e-3
    keys.add(graph_key(part, ["a"]))
    monkeypatch.setattr(graphs, "_code", lambda: b"another release")
    keys.add(graph_key(part, ["a"]))
    assert len(keys) == 6
