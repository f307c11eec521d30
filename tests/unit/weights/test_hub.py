"""Weights from the Hub and to the Hub, with its real client and a small server on loopback."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from export3d.camera import Camera
from export3d.config import tiny
from export3d.errors import CheckpointError, ConfigError, MissingExtra, OutputError
from export3d.model import Export3D
from export3d.pretrained import install_weights, load_pretrained
from export3d.weights.file import load_weights, save_weights
from export3d.weights.hub import is_repo_id
from export3d.weights.names import CARD, FILE, PACKAGED, card_of, installed
from tests.fake_hub import FakeHub, serving

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, in its uploads
hub_client = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra `hub`)")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on loopback that the client takes for the real one; cache, token and our data folder are the test's."""
    from huggingface_hub import constants

    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # git-lfs's protocol, which is the simpler one
        yield server


@pytest.fixture
def folder(tmp_path: Path, tiny_weights: Path) -> Path:
    """A tiny model as `save_pretrained` leaves it."""
    return load_pretrained(tiny_weights).save_pretrained(tmp_path / "saved", card="---\nlicense: other\n---\n# Card\n")


def the_same(a: Export3D, b: Export3D) -> bool:
    theirs = b.state_dict()
    return a.config == b.config and all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def draw(model: Export3D) -> torch.Tensor:
    camera = torch.from_numpy(Camera.orbit(10.0).label[None]).float()
    with torch.no_grad():
        image = model(torch.zeros(1, 3, 64, 64), torch.full((1, 52), 0.3), camera).image
    assert image is not None
    return image


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_saved_folder_has_the_hubs_shape_and_comes_back(tmp_path: Path, tiny_weights: Path) -> None:
    model = load_pretrained(tiny_weights)
    made = model.save_pretrained(tmp_path / "deep" / "folder", info={"images_seen": 7})
    assert {path.name for path in made.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    loaded = Export3D.from_pretrained(made)
    assert the_same(model, loaded)
    assert torch.equal(draw(model), draw(loaded))
    assert loaded.info == {"images_seen": 7}
    entry = json.loads((made / "config.json").read_text("utf-8"))["file"]
    assert entry["sha256"] == hashlib.sha256((made / FILE).read_bytes()).hexdigest()


def test_a_loaded_model_can_be_trained_further_and_is_in_eval_mode(folder: Path) -> None:
    loaded = Export3D.from_pretrained(folder)
    assert not loaded.training
    assert any(parameter.requires_grad for parameter in loaded.parameters())


def test_without_an_argument_the_packaged_weights_are_meant() -> None:
    loaded = Export3D.from_pretrained()
    assert the_same(loaded, load_pretrained())
    assert "research" in (loaded.card or "")


def test_the_card_and_the_provenance_travel_with_the_weights(tmp_path: Path) -> None:
    loaded = Export3D.from_pretrained("base")
    again = Export3D.from_pretrained(loaded.save_pretrained(tmp_path / "copy", dtype=torch.float16))
    assert again.card == card_of(PACKAGED)
    assert again.info == loaded.info == load_weights(PACKAGED)[2]


def test_the_packaged_card_tells_what_the_hub_and_people_need() -> None:
    card = card_of(PACKAGED)
    assert card is not None
    front = card.split("---\n")[1]
    for line in ("license: other", "library_name: export3d", "pipeline_tag: image-to-video"):
        assert line in front
    for heading in ("## Training data", "## Intended use", "## Limits"):
        assert heading in card
    assert "weights are for research only" in card


def test_a_model_without_a_card_gets_one_that_claims_nothing(tmp_path: Path) -> None:
    made = Export3D(tiny()).save_pretrained(tmp_path, info={"images_seen": 3})
    card = (made / CARD).read_text("utf-8")
    assert card.startswith("---\nlicense: other\n")
    assert "Not stated" in card
    assert "research only" in card
    assert '"images_seen": 3' in card


def test_a_card_that_is_there_stays_unless_another_is_given(tmp_path: Path) -> None:
    model = Export3D(tiny())
    (tmp_path / CARD).write_text("by hand", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text("utf-8") == "by hand"
    model.save_pretrained(tmp_path, card="given")
    assert (tmp_path / CARD).read_text("utf-8") == "given"


def test_a_folder_in_parts_comes_back(tmp_path: Path, tiny_weights: Path) -> None:
    model = load_pretrained(tiny_weights)
    model.save_pretrained(tmp_path, part_size_mb=0.1)
    assert len(list(tmp_path.glob("model.safetensors.part*"))) > 1
    assert the_same(model, Export3D.from_pretrained(tmp_path))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "w.safetensors"):
        with pytest.raises(OutputError, match=name):
            Export3D(tiny()).save_pretrained(tmp_path / name)


def test_settings_that_make_no_model_are_one_sentence(tmp_path: Path) -> None:
    config = tiny().to_dict()
    config["generator"]["dim"] = -3
    save_weights(tmp_path / FILE, {"a": torch.zeros(1)}, {"model": config}, {})
    with pytest.raises((CheckpointError, ConfigError), match=r"dim|no model can be made"):
        Export3D.from_pretrained(tmp_path)


# ---- from the Hub ----------------------------------------------------------------------------------------------------


def test_a_repository_is_a_model(hub: FakeHub, folder: Path) -> None:
    hub.repo("owner/faces", folder)
    loaded = Export3D.from_pretrained("owner/faces")
    assert the_same(loaded, load_pretrained(folder))
    assert loaded.card == "---\nlicense: other\n---\n# Card\n"
    assert {token for _, _, token in hub.asked} == {"hf_of_the_test"}


def test_only_what_is_needed_is_downloaded(hub: FakeHub, folder: Path) -> None:
    hub.repo("owner/faces", folder).commit({"pytorch_model.bin": b"\x80\x02", "run.py": b"raise SystemExit"})
    Export3D.from_pretrained("owner/faces")
    assert sorted(hub.downloads()) == ["README.md", "config.json", "model.safetensors"]


def test_a_repository_without_a_card_is_read_too(hub: FakeHub, folder: Path) -> None:
    (folder / CARD).unlink()
    hub.repo("owner/faces", folder)
    assert Export3D.from_pretrained("owner/faces").card is None


def test_a_revision_is_taken_whole(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    repo = hub.repo("owner/faces", folder)
    first = next(iter(repo.commits))
    torch.manual_seed(99)
    other = Export3D(tiny()).save_pretrained(tmp_path / "other")
    repo.commit({path.name: path.read_bytes() for path in other.iterdir()}, "newer")
    assert the_same(Export3D.from_pretrained("owner/faces", revision=first), load_pretrained(folder))
    assert the_same(Export3D.from_pretrained("owner/faces"), load_pretrained(other))


def test_a_push_between_two_downloads_does_not_mix_versions(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit of config.json is the commit of everything."""
    repo = hub.repo("owner/faces", folder)
    other = Export3D(tiny()).save_pretrained(tmp_path / "other")
    real = hub_client.HfApi.hf_hub_download

    def push_in_between(self: object, repo_id: str, name: str, **options: object) -> str:
        path: str = real(self, repo_id, name, **options)
        if name == "config.json":
            repo.commit({path.name: path.read_bytes() for path in other.iterdir()}, "newer")
        return path

    monkeypatch.setattr(hub_client.HfApi, "hf_hub_download", push_in_between)
    assert the_same(Export3D.from_pretrained("owner/faces"), load_pretrained(folder))


def test_what_was_fetched_once_is_there_without_a_network(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.repo("owner/faces", folder)
    Export3D.from_pretrained("owner/faces")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert the_same(Export3D.from_pretrained("owner/faces"), load_pretrained(folder))
    assert len(hub.asked) == asked
    with pytest.raises(CheckpointError, match="does not answer"):
        Export3D.from_pretrained("owner/other")


def test_a_folder_goes_before_a_repository_of_the_same_name(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "owner").mkdir()
    folder.rename(folder.parent / "owner" / "faces")
    Export3D.from_pretrained("owner/faces")
    assert hub.asked == []
    with pytest.raises(ConfigError, match="on this disk"):
        Export3D.from_pretrained("owner/faces", revision="main")


def test_nothing_is_asked_of_the_hub_unless_a_repository_was_meant(hub: FakeHub, folder: Path) -> None:
    hub.repo("owner/faces", folder)
    for which in ("owner/faces", "faces", "base"):
        if which != "base":
            with pytest.raises(CheckpointError, match="export3d weights install"):
                load_pretrained(which)
    for which in ("faces", "no/such/file.safetensors", "a/b/c", "../faces"):
        with pytest.raises(CheckpointError):
            Export3D.from_pretrained(which)
    assert hub.asked == []


@pytest.mark.parametrize("lie", ["config.json", "model.safetensors"])
def test_weights_that_are_not_what_their_sha256_says_are_refused(hub: FakeHub, folder: Path, lie: str) -> None:
    data = bytearray((folder / FILE).read_bytes())
    data[-1] ^= 1
    files = {"model.safetensors": bytes(data)}
    if lie == "config.json":
        text = (folder / lie).read_text("utf-8")
        files = {lie: text.replace('"size": ', '"size": 1').encode()}
    hub.repo("owner/faces", folder).commit(files)
    with pytest.raises(CheckpointError, match=r"owner/faces"):
        install_weights("owner/faces")
    assert installed() == {}


def test_a_damaged_copy_in_the_cache_is_fetched_again(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    hub.repo("owner/faces", folder)
    Export3D.from_pretrained("owner/faces")
    (cached,) = (tmp_path / "cache").glob("models--owner--faces/snapshots/*/model.safetensors")
    data = bytearray(cached.read_bytes())
    data[-1] ^= 1
    cached.resolve().write_bytes(data)
    assert the_same(Export3D.from_pretrained("owner/faces"), load_pretrained(folder))


def test_a_pickle_in_the_place_of_weights_is_never_read(hub: FakeHub, folder: Path) -> None:
    hub.repo("owner/faces", folder).commit({FILE: b"\x80\x02cos\nsystem\n(S'true'\ntR."})
    with pytest.raises(CheckpointError, match="damaged"):
        Export3D.from_pretrained("owner/faces")
    hub.repo("owner/pickles").commit({"pytorch_model.bin": b"\x80\x02", "README.md": b"# torch.load me"})
    with pytest.raises(CheckpointError, match="holds no export3d weights"):
        Export3D.from_pretrained("owner/pickles")
    assert "pytorch_model.bin" not in hub.downloads()


@pytest.mark.parametrize("name", ["../../../x", "/etc/passwd", "a\\b", "..", "run.py", "model.safetensors.part0x"])
def test_names_of_parts_lead_nowhere_else(hub: FakeHub, folder: Path, name: str) -> None:
    from export3d.weights import blob

    content = json.loads((folder / "config.json").read_text("utf-8"))
    del content["checksum"]
    content["file"]["parts"] = [{"name": name, "size": 1}]
    hub.repo("owner/faces", folder).commit({"config.json": blob.json_bytes(content)})
    with pytest.raises(CheckpointError, match="owner/faces"):
        Export3D.from_pretrained("owner/faces")
    assert hub.downloads() == ["config.json"]


@pytest.mark.parametrize("file", [None, [], {}, {"size": "1", "sha256": "0"}, {"size": 1, "sha256": "0", "parts": [3]}])
def test_a_configuration_that_lacks_what_it_should_tell_is_one_sentence(
    hub: FakeHub, folder: Path, file: object
) -> None:
    from export3d.weights import blob

    content = json.loads((folder / "config.json").read_text("utf-8"))
    del content["checksum"]
    content["file"] = file
    hub.repo("owner/faces", folder).commit({"config.json": blob.json_bytes(content)})
    with pytest.raises(CheckpointError, match="holds no export3d weights"):
        Export3D.from_pretrained("owner/faces")


def test_parts_are_fetched_and_joined(hub: FakeHub, tmp_path: Path, tiny_weights: Path) -> None:
    model = load_pretrained(tiny_weights)
    hub.repo("owner/parts", model.save_pretrained(tmp_path / "parts", part_size_mb=0.1))
    assert the_same(Export3D.from_pretrained("owner/parts"), model)
    path = install_weights("owner/parts")
    assert sorted(other.name for other in path.parent.iterdir()) == ["README.md", "config.json", FILE]
    assert the_same(load_pretrained("parts"), model)


def test_an_installed_repository_has_a_name_and_an_origin(hub: FakeHub, folder: Path) -> None:
    commit = next(iter(hub.repo("owner/faces", folder).commits))
    install_weights("owner/faces")
    loaded = Export3D.from_pretrained("faces")
    assert the_same(loaded, load_pretrained(folder))
    assert loaded.info["installed_from"] == f"owner/faces@{commit}"
    assert loaded.card == (folder / CARD).read_text("utf-8")


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ({}, "was found neither"),
        ({"private": True}, "was found neither"),
        ({"gated": True}, "gated"),
        ({"revision": "v9"}, "no revision 'v9'"),
        ({"files": {}}, "holds no export3d weights"),
        ({"files": {"config.json": b"{}"}}, "holds no export3d weights"),
        ({"files": {"config.json": b'{"architectures": ["Bert"]}'}}, "holds no export3d weights"),
    ],
)
def test_what_can_go_wrong_is_one_sentence(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, trouble: dict, sentence: str
) -> None:
    revision, files = trouble.pop("revision", None), trouble.pop("files", {"config.json": b"{}"})
    if trouble or revision or sentence != "was found neither":
        hub.repo("owner/faces", **trouble).commit(files)
    if trouble.get("private"):
        monkeypatch.delenv("HF_TOKEN")
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        Export3D.from_pretrained("owner/faces", revision=revision)
    assert "\n" not in str(caught.value)
    assert "hf_of_the_test" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "fetched", "pushed"),
    [(400, "does not answer", "answered 400"), (401, r"refuses .* \(401\)", r"refuses .* \(401\)")],
)
def test_a_hub_that_is_broken_is_one_sentence(hub: FakeHub, status: int, fetched: str, pushed: str) -> None:
    hub.broken = status
    with pytest.raises(CheckpointError, match=fetched):
        Export3D.from_pretrained("owner/faces")
    with pytest.raises(OutputError, match=pushed) as caught:
        Export3D(tiny()).push_to_hub("owner/faces")
    assert "\n" not in str(caught.value)


def test_a_repository_that_lacks_a_file_is_one_sentence(hub: FakeHub, folder: Path) -> None:
    (folder / FILE).unlink()
    hub.repo("owner/faces", folder)
    with pytest.raises(CheckpointError, match="files are missing"):
        Export3D.from_pretrained("owner/faces")


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install -c constraints.txt '\.\[hub\]'"):
        Export3D.from_pretrained("owner/faces")
    with pytest.raises(MissingExtra, match="hub"):
        Export3D(tiny()).push_to_hub("owner/faces")
    Export3D(tiny()).save_pretrained(tmp_path)  # needs no client
    Export3D.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("owner/name", True), ("o-1/n_2.v3", True), ("name", False), ("a/b/c", False), ("../b", False), ("a/..", False),
     ("a/b--c", False), ("a/b.git", False), ("a/b.safetensors", False), ("a b/c", False), ("a/b\n", False),
     ("https://x/y", False), ("a\\b/c", False), ("", False), ("é/b", False), ("a/" + 95 * "b", False)],
)  # fmt: skip
def test_what_a_repository_is_called(text: str, is_one: bool) -> None:
    assert is_repo_id(text) is is_one


# ---- to the Hub ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lfs", [True, False])
def test_a_pushed_model_comes_back_with_its_card(hub: FakeHub, tiny_weights: Path, lfs: bool) -> None:
    hub.lfs = {FILE} if lfs else set()
    model = load_pretrained(tiny_weights)
    address = model.push_to_hub("owner/faces", card="---\nlicense: other\n---\n# Mine\n", info={"images_seen": 5})
    repo = hub.repos["owner/faces"]
    assert sorted(repo.files) == ["README.md", "config.json", "model.safetensors"]
    assert len(repo.commits) == 1
    assert address.endswith(next(iter(repo.commits)))
    loaded = Export3D.from_pretrained("owner/faces")
    assert the_same(loaded, model)
    assert loaded.info == {"images_seen": 5}
    assert loaded.card == "---\nlicense: other\n---\n# Mine\n"
    assert bool(hub.stored) is lfs
    writes = [token for method, _, token in hub.asked if method == "POST"]
    assert set(writes) <= {"hf_of_the_test", ""}


@pytest.mark.slow
def test_the_packaged_card_is_pushed_without_links_that_would_be_broken(hub: FakeHub) -> None:
    Export3D.from_pretrained().push_to_hub("owner/base", dtype=torch.float16)
    card = hub.repos["owner/base"].files["README.md"].decode()
    assert card.startswith("---\nlicense: other\n")
    for needed in ("non-commercial", "research only", "## Intended use", "## Limits"):
        assert needed in card
    assert "](docs/" not in card
    assert "docs/results.md" in card
    kept = Export3D.from_pretrained("owner/base")
    assert kept.info == load_weights(PACKAGED)[2]
    packaged = load_pretrained()
    assert the_same(kept, packaged)  # half precision as packaged


def test_links_that_lead_somewhere_stay(hub: FakeHub) -> None:
    text = "[a](https://example.org) [b](#limits) [c](docs/c.md) ![d](d.png) [e](../e.md#x)\n"
    Export3D(tiny()).push_to_hub("owner/faces", card=text)
    pushed = hub.repos["owner/faces"].files["README.md"].decode()
    assert pushed == "[a](https://example.org) [b](#limits) c d e\n"


def test_a_push_is_private_unless_told_otherwise(hub: FakeHub) -> None:
    Export3D(tiny()).push_to_hub("owner/one")
    Export3D(tiny()).push_to_hub("owner/two", private=False)
    assert (hub.repos["owner/one"].private, hub.repos["owner/two"].private) == (True, False)


def test_nothing_is_published_in_a_public_repository_by_accident(hub: FakeHub) -> None:
    repo = hub.repo("owner/faces")
    with pytest.raises(OutputError, match="is public"):
        Export3D(tiny()).push_to_hub("owner/faces")
    assert repo.commits == {}
    Export3D(tiny()).push_to_hub("owner/faces", private=False, commit_message="first")
    assert repo.messages == ["first"]


def test_a_token_can_be_given(hub: FakeHub) -> None:
    Export3D(tiny()).push_to_hub("owner/faces", token="hf_given")
    assert "hf_of_the_test" not in {token for _, _, token in hub.asked}
    assert ("POST", "/api/repos/create", "hf_given") in hub.asked


def test_a_push_without_the_right_is_one_sentence(hub: FakeHub) -> None:
    hub.may_write = False
    with pytest.raises(OutputError, match=r"refuses owner/faces \(403\).*HF_TOKEN") as caught:
        Export3D(tiny()).push_to_hub("owner/faces")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["faces", "a/b/c", "../x", "owner/faces.git"])
def test_a_push_needs_the_name_of_a_repository(hub: FakeHub, name: str) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        Export3D(tiny()).push_to_hub(name)
    assert hub.asked == []
