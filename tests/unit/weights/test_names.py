"""Weights by name: the user's folder, what is installed, and how a name becomes a file."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from export3d.animate.animator import Animator
from export3d.config import tiny
from export3d.errors import CheckpointError, ConfigError, Export3DError, OutputError
from export3d.expression.encoder import ExpressionConfig, ExpressionEncoder
from export3d.files import home
from export3d.model import Export3D
from export3d.pretrained import install_weights, load_encoder, load_pretrained, save_encoder, save_pretrained, verify
from export3d.weights import names
from export3d.weights.file import load_weights, save_weights
from export3d.weights.names import CARD, FILE, PACKAGED, PACKAGED_ENCODER, find, installed, known, look_up, remove


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder of the user; it need not exist."""
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def same(a: Path, b: Path) -> bool:
    mine, theirs = load_weights(a)[0], load_weights(b)[0]
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


# ---- where ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "settings", "expected"),
    [
        ("linux", {}, "~/.local/share/export3d"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/export3d"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "~/.local/share/export3d"),  # the standard says: ignore
        ("linux", {"XDG_DATA_HOME": "/data", "EXPORT3D_HOME": "~/mine"}, "~/mine"),
        ("darwin", {"XDG_DATA_HOME": "/data"}, "~/Library/Application Support/export3d"),
    ],
)
def test_the_users_folder_follows_the_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, settings: dict[str, str], expected: str
) -> None:
    for name in ("EXPORT3D_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert home() == Path(expected).expanduser()


def test_without_any_home_folder_the_sentence_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPORT3D_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(ConfigError, match="EXPORT3D_HOME"):
        home()
    assert find(None) == PACKAGED  # needs no folder


def test_looking_makes_no_folder(user_folder: Path) -> None:
    assert list(known()) == ["base", "core", "clebs"]
    with pytest.raises(CheckpointError):
        find("nothing")
    assert not user_folder.exists()


# ---- from a name to a file ------------------------------------------------------------------------------------------


def test_names_paths_and_folders_are_found(tiny_weights: Path, tmp_path: Path) -> None:
    mine = install_weights(tiny_weights, "mine")
    folder = load_pretrained(tiny_weights).save_pretrained(tmp_path / "folder")
    assert find(None) == find("base") == PACKAGED
    assert find("clebs") == PACKAGED_ENCODER
    assert find("mine") == find(Path("mine")) == mine
    assert find(tiny_weights) == find(str(tiny_weights)) == tiny_weights
    assert find(folder) == folder / FILE


def test_what_is_here_goes_before_a_name(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_weights(tiny_weights, "mine")
    (tmp_path / "cwd" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    assert find("mine").is_relative_to(home())  # a folder without weights is none
    load_pretrained(tiny_weights).save_pretrained("mine")
    assert find("mine") == Path("mine") / FILE


def test_unknown_weights_are_told_with_the_names_that_there_are(tiny_weights: Path) -> None:
    install_weights(tiny_weights, "mine")
    for load in (load_pretrained, load_encoder, find, verify, Animator.from_pretrained, Export3D.from_pretrained):
        with pytest.raises(CheckpointError, match=r"'yours'.*\(base, core, clebs, mine\)") as caught:
            load("yours")
        assert "\n" not in str(caught.value)
    assert look_up("yours") is None


def test_a_folder_without_weights_and_a_pickle_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder without"):
        load_pretrained(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"does not end in \.safetensors"):
        load_pretrained(tmp_path / "model.pt")


def test_a_name_loads_what_was_installed(tiny_weights: Path, tmp_path: Path) -> None:
    install_weights(tiny_weights, "mine")
    assert same(find("mine"), tiny_weights)
    assert load_pretrained("mine").config == tiny()
    encoder = ExpressionEncoder(ExpressionConfig(hidden=16, n=4, d=12))
    install_weights(save_encoder(encoder, tmp_path / "e.safetensors", {}), "encoder")
    assert load_encoder("encoder").config == encoder.config
    with pytest.raises(CheckpointError, match="not hold an export3d model"):
        load_pretrained("encoder")


# ---- installing -----------------------------------------------------------------------------------------------------


def test_installed_weights_are_a_whole_folder_and_nothing_else(tiny_weights: Path, user_folder: Path) -> None:
    path = install_weights(tiny_weights, "mine")
    assert path == user_folder / "weights" / "mine" / FILE
    assert {other.name for other in path.parent.iterdir()} == {FILE, "config.json"}
    assert [other.name for other in path.parent.parent.iterdir()] == ["mine"]
    assert path.read_bytes() == tiny_weights.read_bytes()
    assert load_weights(path)[1:] == load_weights(tiny_weights)[1:]


def test_parts_are_installed_as_one_file_of_the_same_sha256(tiny_weights: Path, tmp_path: Path) -> None:
    model = load_pretrained(tiny_weights)
    whole = save_pretrained(model, tmp_path / "whole.safetensors", {})
    cut = save_pretrained(model, tmp_path / "cut.safetensors", {}, part_size_mb=0.1)
    assert not cut.exists()
    path = install_weights(cut)
    assert find("cut") == path
    assert path.read_bytes() == whole.read_bytes()
    assert verify("cut")["file"] == verify(whole)["file"]


@pytest.mark.parametrize("damage", ["byte", "part", "sidecar", "pickle"])
def test_damaged_weights_are_not_installed(tiny_weights: Path, tmp_path: Path, damage: str) -> None:
    path = save_pretrained(load_pretrained(tiny_weights), tmp_path / "w.safetensors", {}, part_size_mb=0.3)
    part = tmp_path / "w.safetensors.part01"
    if damage == "byte":
        data = bytearray(part.read_bytes())
        data[100] ^= 4
        part.write_bytes(data)
    elif damage == "part":
        part.unlink()
    elif damage == "sidecar":
        path.with_suffix(".json").unlink()
    else:
        path.write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(CheckpointError):
        install_weights(path, "mine")
    assert installed() == {}


def test_weights_that_this_version_cannot_use_are_not_installed(tmp_path: Path) -> None:
    config = tiny().to_dict()
    config["render"]["fog"] = 1.0
    newer = save_weights(tmp_path / "newer.safetensors", Export3D(tiny()).state_dict(), {"model": config}, {})
    with pytest.raises(ConfigError, match=r"render\.fog"):
        install_weights(newer)
    other = save_weights(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {"network": "other"}, {})
    with pytest.raises(CheckpointError, match="neither an export3d model nor an expression encoder"):
        install_weights(other)
    assert installed() == {}


@pytest.mark.parametrize("failing", ["copy_weights", "write_bytes"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_install_that_is_cut_leaves_nothing(
    tiny_weights: Path, tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: object
) -> None:
    folder = load_pretrained(tiny_weights).save_pretrained(tmp_path / "folder", card="card")

    def cut(path: Path, *_: object) -> None:
        Path(path).with_name("half").write_bytes(b"half")
        raise error  # type: ignore[misc]

    monkeypatch.setattr(names, failing, cut)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        install_weights(folder)
    assert installed() == {}
    assert list((user_folder / "weights").iterdir()) == []


def test_what_a_killed_process_left_is_no_weights_and_goes(tiny_weights: Path, user_folder: Path) -> None:
    (user_folder / "weights" / ".mine.tmp-1").mkdir(parents=True)
    (user_folder / "weights" / ".mine.tmp-1" / FILE).write_bytes(b"half")
    assert installed() == {}
    install_weights(tiny_weights, "mine")
    assert [path.name for path in (user_folder / "weights").iterdir()] == ["mine"]


def test_a_taken_name_is_refused_and_what_is_there_stays(tiny_weights: Path, tmp_path: Path) -> None:
    path = install_weights(tiny_weights, "mine")
    before = path.read_bytes()
    torch.manual_seed(3)
    other = save_pretrained(Export3D(tiny()), tmp_path / "mine.safetensors", {})
    with pytest.raises(ConfigError, match="installed already"):
        install_weights(other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "a\\b", "../../x", "/x", ".hidden", "a b", "x.safetensors", "x.json", "x.", "-x", "é",
     "a\n", "a\x00", "n" * 65],
)  # fmt: skip
def test_names_are_plain(tiny_weights: Path, user_folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        install_weights(tiny_weights, name)
    assert not user_folder.exists()


@pytest.mark.parametrize("name", ["base", "core", "clebs", "Base"])
def test_the_packages_names_cannot_be_taken_or_removed(tiny_weights: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="packaged weights"):
        install_weights(tiny_weights, name)
    with pytest.raises(ConfigError):
        remove(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [("runs/wide/weights.safetensors", "wide"), ("faces.safetensors", "faces"), ("x/model.safetensors", "x")],
)
def test_weights_are_called_as_their_file_or_their_folder(
    tiny_weights: Path, tmp_path: Path, path: str, name: str
) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    install_weights(save_pretrained(load_pretrained(tiny_weights), tmp_path / path, {}))
    assert list(installed()) == [name]
    assert names.title(find(name)) == name


def test_the_packaged_weights_can_be_installed_under_another_name_with_their_card() -> None:
    assert install_weights("base") == PACKAGED
    assert installed() == {}
    path = install_weights("base", "mine")
    assert path.read_bytes() == PACKAGED.read_bytes()
    assert (path.parent / CARD).read_text("utf-8") == names.card_of(PACKAGED)


def test_a_readme_beside_a_file_of_another_name_is_no_card(tiny_weights: Path, tmp_path: Path) -> None:
    path = save_pretrained(load_pretrained(tiny_weights), tmp_path / "w.safetensors", {})
    (tmp_path / CARD).write_text("# Some project", encoding="utf-8")
    assert names.card_of(path) is None
    assert not (install_weights(path).parent / CARD).exists()


@pytest.mark.parametrize("card", [b"\xff\xfe\x00", b"x" * 1_000_001])
def test_a_card_that_is_no_text_or_endless_is_left_out(tiny_weights: Path, tmp_path: Path, card: bytes) -> None:
    folder = load_pretrained(tiny_weights).save_pretrained(tmp_path / "folder")
    (folder / CARD).write_bytes(card)
    assert Export3D.from_pretrained(folder).card is None


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(tiny_weights: Path, user_folder: Path) -> None:
    user_folder.mkdir()
    user_folder.chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(OutputError, match="cannot write"):
        install_weights(tiny_weights, "mine")


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tiny_weights: Path, user_folder: Path) -> None:
    user_folder.write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        install_weights(tiny_weights, "mine")


# ---- removing -------------------------------------------------------------------------------------------------------


def test_removed_weights_are_gone_and_others_stay(tiny_weights: Path, user_folder: Path) -> None:
    install_weights(tiny_weights, "mine")
    install_weights(tiny_weights, "yours")
    remove("mine")
    assert list(installed()) == ["yours"]
    assert [path.name for path in (user_folder / "weights").iterdir()] == ["yours"]
    with pytest.raises(ConfigError, match=r"no installed weights 'mine'.*yours"):
        remove("mine")


@pytest.mark.parametrize("name", ["../weights", "..", ".", "", "/", "yours/../mine"])
def test_nothing_outside_is_ever_removed(tiny_weights: Path, name: str) -> None:
    path = install_weights(tiny_weights, "mine")
    with pytest.raises(Export3DError):
        remove(name)
    assert path.is_file()


# ---- verifying ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "core", "clebs"])
def test_the_packaged_weights_are_whole(which: str) -> None:
    assert len(verify(which)["file"]["sha256"]) == 64


def test_a_flipped_bit_in_installed_weights_is_noticed(tiny_weights: Path) -> None:
    path = install_weights(tiny_weights, "mine")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        verify("mine")
