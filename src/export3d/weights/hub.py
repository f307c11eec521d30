"""Loads weights from the Hugging Face Hub and pushes weights to it (extra `hub`).

A repository has the layout of the folders that `save_pretrained` writes: `model.safetensors`; its sidecar
`config.json`, which includes the SHA-256; and the model card `README.md`. Only these files are downloaded.

As usual, the client takes the address of the Hub, the token and the location of its cache from the environment
(`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from export3d.errors import CheckpointError, ConfigError, Export3DError, MissingExtra, OutputError
from export3d.files import kind_at, make_folder, reason, write_bytes
from export3d.weights.blob import files_of
from export3d.weights.file import load_into, load_weights, read_sidecar, save_weights
from export3d.weights.names import CARD, FILE, card_of, find, look_up
from export3d.weights.ranges import Ranges, ranges_in

_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RELATIVE_LINK = re.compile(r"!?\[([^\]\n]*)\]\((?!https?://|#|mailto:)[^)\s]*\)")
_FRONT_MATTER = """---
license: other
license_name: not-stated
library_name: export3d
pipeline_tag: image-to-video
tags:
- portrait-animation
- arxiv:2404.00636
---
"""


class HubModel(nn.Module):
    """A model that can be loaded from a file, a folder, a name or a Hub repository, and saved or pushed.

    Attributes:
        config: settings that rebuild the model; `to_dict` gives them as JSON-able values.
        info: counters and provenance from the weights file; empty for a new model.
        card: the model card of the weights, Markdown; None if there is none.
        digest: SHA-256 of the weights file; None for a new model.
        ranges: smallest and largest input of layers, see `weights.ranges`; empty where they were not measured.
    """

    config: Any
    info: Mapping[str, Any] = MappingProxyType({})
    card: str | None = None
    digest: str | None = None
    ranges: Ranges = MappingProxyType({})

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> Self:
        """A new model with the given settings; `values` is the result of `config.to_dict`.

        Raises:
            ConfigError: invalid settings.
        """
        raise NotImplementedError

    @classmethod
    def migrated(
        cls, values: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of a file from any release, converted to the names of this release."""
        return values, dict(tensors)

    @classmethod
    def from_pretrained(
        cls, which: Path | str | None = None, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Load a trained model on the CPU, in eval mode.

        Args:
            which: a `.safetensors` file, a folder that `save_pretrained` wrote, a name that `export3d weights` lists,
                or a repository `owner/name` of the Hugging Face Hub; None for the packaged weights. Local weights take
                precedence, and the network is used only for a repository.
            revision: branch, tag or commit of the repository.
            token: access token; by default `HF_TOKEN` or the token that `hf auth login` stored.

        Raises:
            CheckpointError: the weights are missing, damaged or of another kind.
            ConfigError: `revision` is given for local weights.
            MissingExtra: huggingface_hub is not installed.
        """
        return cls.from_file(locate(which, revision, token)[0])

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Load the model of one `.safetensors` file with its sidecar, in eval mode.

        Raises:
            CheckpointError: the file is missing, damaged or of another kind.
        """
        tensors, config, info = load_weights(path)
        if not isinstance(config.get("model"), dict):
            raise CheckpointError(f"{path} does not hold an export3d model; its sidecar has no model configuration")
        try:
            settings, tensors = cls.migrated(config["model"], tensors)
            model = cls.from_config(settings)
        except Export3DError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the settings in the sidecar of {path} give no model ({reason(error)})") from error
        load_into(model, {name: value.float() for name, value in tensors.items()}, what=str(path))
        model.info, model.card = info, card_of(path)
        model.digest = read_sidecar(path)["file"]["sha256"]
        model.ranges = ranges_in(config, path)
        return model.eval()

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        card: str | None = None,
        info: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        part_size_mb: float | None = None,
    ) -> Path:
        """Write a folder in the Hub's layout: `model.safetensors`, `config.json` and the model card `README.md`.

        Args:
            folder: output folder; created if missing.
            card: the model card, Markdown with YAML front matter. By default an existing `README.md` is kept;
                otherwise the model's own card is written, or a short one that names what is unknown.
            info: counters and provenance; by default those of the model.
            dtype, part_size_mb: see `weights.file.save_weights`. By default tensors keep the model's float32; packaged
                weights are float16, so `dtype=torch.float16` gives a folder half as large.

        Returns:
            The folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        if folder.suffix == ".safetensors":
            raise OutputError(f"save_pretrained writes a folder, but {folder} has the name of a file; give a folder")
        make_folder(folder)
        words = dict(self.info if info is None else info)
        config = {"model": self.config.to_dict()} | ({"ranges": dict(self.ranges)} if self.ranges else {})
        save_weights(folder / FILE, self.state_dict(), config, words, dtype=dtype, part_size_mb=part_size_mb)
        if card is not None or kind_at(folder / CARD, OutputError) is None:
            write_bytes(folder / CARD, (card or self.card or self._bare_card(words)).encode())
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload export3d weights",
        card: str | None = None,
        info: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> str:
        """Push the model with its card to a repository of the Hugging Face Hub, as one commit.

        Relative links in the card are replaced by their text, since the files that they point to are not pushed.

        Args:
            repo_id: `owner/name`; the repository is created if missing.
            private: create a private repository, and refuse to push to a public one.
            token: access token with write permission; by default `HF_TOKEN` or the token that `hf auth login` stored.
            revision: an existing branch; by default main.
            commit_message: message of the commit.
            card, info, dtype: see `save_pretrained`.

        Returns:
            The URL of the commit.

        Raises:
            ConfigError: `repo_id` is not of the form `owner/name`.
            OutputError: no write permission, a public repository, or the Hub cannot be reached.
            MissingExtra: huggingface_hub is not installed.
        """
        check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            made = self.save_pretrained(folder, card=card, info=info, dtype=dtype)
            text = (made / CARD).read_text(encoding="utf-8")
            write_bytes(made / CARD, _RELATIVE_LINK.sub(r"\1", text).encode())
            return _push(made, repo_id, private, token, revision, commit_message)

    def _bare_card(self, info: Mapping[str, Any]) -> str:
        count = sum(value.numel() for value in self.parameters())
        known = json.dumps(dict(info), indent=1, default=str)
        return (
            f"{_FRONT_MATTER}\n# Weights for export3d\n\n{count:,} parameters. Load them with "
            "`Export3D.from_pretrained`.\n\n"
            f"## Training data\n\nNot stated by the authors of these weights. The terms of the data are unknown, so "
            "use the weights for research only unless the authors state otherwise.\n\n"
            "## Intended use\n\nResearch on portrait animation, with portraits of people who consented. Not intended: "
            "making people appear to say or do what they did not, without their consent; identification.\n\n"
            "## Limits\n\nNot stated by the authors of these weights.\n\n"
            f"## Metadata\n\n```json\n{known}\n```\n"
        )


def is_repo_id(text: str) -> bool:
    """Whether `text` has the form `owner/name` of a Hub repository.

    >>> is_repo_id("owner/name"), is_repo_id("../name"), is_repo_id("a/b/c")
    (True, False, False)
    """
    return bool(_REPO_ID.fullmatch(text)) and len(text) <= 96 and not re.search(r"--|\.\.|\.git$|\.safetensors$", text)


def check_repo_id(text: str) -> None:
    """Raise `ConfigError` unless `text` has the form `owner/name`."""
    if not is_repo_id(text):
        raise ConfigError(f"{text!r} is not the name of a Hugging Face repository; write it as owner/name")


def locate(
    which: Path | str | None, revision: str | None = None, token: str | None = None
) -> tuple[Path, dict[str, str]]:
    """The weights file that `which` refers to, downloaded if it is a repository, and its origin.

    Args:
        which, revision, token: see `HubModel.from_pretrained`.

    Returns:
        The `.safetensors` file; and for a repository `{"installed_from": "owner/name@commit"}`, to be kept in `info`.
    """
    found = look_up(which)
    if found is None and is_repo_id(str(which)):
        return _fetch(str(which), revision, token)
    path = find(which)
    if revision is not None:
        raise ConfigError(f"a revision belongs to a Hugging Face repository, but {which or path.name} is on this disk")
    return path, {}


def _fetch(repo_id: str, revision: str | None, token: str | None) -> tuple[Path, dict[str, str]]:
    """Download the weights of one commit into the Hub's own cache and verify them."""
    api = _client(token)
    from huggingface_hub.errors import EntryNotFoundError

    def download(name: str, version: str | None, again: bool = False) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=version, force_download=again))

    with _telling(CheckpointError, repo_id, revision):
        sidecar = download("config.json", revision)
        commit = sidecar.parent.name if _COMMIT.fullmatch(sidecar.parent.name) else revision
        path = sidecar.with_name(FILE)
        try:
            names = files_of(path, read_sidecar(path))
        except CheckpointError as error:
            raise CheckpointError(
                f"the repository {repo_id} holds no export3d weights: its config.json is damaged or of another kind"
            ) from error
        with suppress(EntryNotFoundError):
            download(CARD, commit)
        for again in (False, True):  # download once more if the cached files are damaged
            for name in names:
                download(name, commit, again)
            try:
                load_weights(path)
                break
            except CheckpointError as error:
                if again:
                    raise CheckpointError(
                        f"the weights of {repo_id} are damaged: they do not match the SHA-256 in config.json; they "
                        "were not loaded, tell their owner"
                    ) from error
    return path, {"installed_from": f"{repo_id}@{commit or 'main'}"}


def _push(folder: Path, repo_id: str, private: bool, token: str | None, revision: str | None, message: str) -> str:
    api = _client(token)
    from huggingface_hub import CommitOperationAdd

    with _telling(OutputError, repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise OutputError(
                f"the repository {repo_id} is public; to publish there, use push_to_hub(..., private=False)"
            )
        operations = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        done = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return str(done.commit_url)


def _client(token: str | None) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra("hub", "huggingface_hub") from error
    return HfApi(token=token, library_name="export3d")


@contextmanager
def _telling(failure: type[Export3DError], repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn each failure of the client into an error of one sentence."""
    from huggingface_hub import errors

    def tell(sentence: str, error: BaseException) -> None:
        raise failure(sentence) from error

    try:
        yield
    except Export3DError:
        raise
    except errors.GatedRepoError as error:
        tell(f"{repo_id} is gated: accept its terms on its page, then set HF_TOKEN to your token", error)
    except errors.RepositoryNotFoundError as error:
        tell(
            f"{repo_id} was found neither on this disk nor on the Hugging Face Hub; check the name, or, for a private "
            "repository, set HF_TOKEN to a token that can read it",
            error,
        )
    except errors.RevisionNotFoundError as error:
        tell(f"the repository {repo_id} has no revision {revision!r}; give a branch, tag or commit of it", error)
    except errors.LocalEntryNotFoundError as error:
        tell(
            f"{repo_id} was found neither on this disk nor in the cache, and the Hugging Face Hub does not answer; "
            "check the name and the connection, or use a file",
            error,
        )
    except errors.EntryNotFoundError as error:
        tell(f"the repository {repo_id} holds no export3d weights: files are missing; choose another one", error)
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            tell(f"the Hugging Face Hub refuses {repo_id} ({status}); set HF_TOKEN to a token with access", error)
        tell(f"the Hugging Face Hub answered {status} for {repo_id} ({reason(error)}); try again later", error)
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        tell(f"the Hugging Face Hub cannot be used for {repo_id} ({reason(error)}); check the connection", error)
