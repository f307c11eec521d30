"""What a report was made from: weights, split and saved images, identified by digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from export3d.data.shards import read_index
from export3d.engines.choice import pick_engine
from export3d.errors import counted
from export3d.evaluation.protocols.predictions import SavedClip
from export3d.evaluation.protocols.settings import RunSettings
from export3d.files import reading
from export3d.locations import Place, name_of
from export3d.model import Export3D
from export3d.weights.file import load_weights
from export3d.weights.names import PACKAGED, find, title


def inputs_of_run(model: Export3D, weights: Path | str | None, split: Place) -> dict[str, Any]:
    """The settings that every protocol reports: weights, their training, version, split and image size."""
    file, records = find(weights), counted(len(read_index(split).entries), "record")
    return {
        "weights": f"{'packaged' if file == PACKAGED else title(file)}, tensors {_tensors_digest(model)}",
        "trained": load_weights(file)[2],
        "export3d": package_version(),
        "split": f"{name_of_split(split)}, {records}, {_shards_digest(split)}",
        "image_size": model.config.image_size,
    }


def name_of_split(split: Place) -> str:
    """The name of a split's folder."""
    return name_of(split.resolve() if isinstance(split, Path) else split)


def engine_of_run(model: Export3D, run: RunSettings) -> dict[str, Any]:
    """The engine that runs a model on its device, where it is not the reference; empty for the reference."""
    return {} if run.engine == "reference" else {"engine": pick_engine(model, run.engine).description}


def sizes_of_run(size: int | None) -> dict[str, Any]:
    """The settings of a run at another size than the model's, pixels; empty for the model's."""
    if size is None:
        return {}
    return {"size": f"{size} px across the face crop, pixels of the original files; the model gets its own image size"}


def origin_of(info: dict[str, Any]) -> str:
    """The data set or repository that a record's provenance names; empty if it names none."""
    origin = info.get("origin", {})
    return str(origin.get("source", "")) if isinstance(origin, dict) else ""


def package_version() -> str:
    """The installed version of export3d; "unknown" if it is not installed."""
    try:
        return metadata.version("export3d")
    except metadata.PackageNotFoundError:
        return "unknown"


def predictions_digest(clips: Iterable[SavedClip]) -> str:
    """Identifies saved images by name, size and modification time, without reading them again."""
    digest = hashlib.sha256()
    for clip in clips:
        for path in sorted(clip.folder.rglob("*.png")):
            with reading(path):
                stat = path.stat()
            digest.update(f"{clip.name} {path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"files sha256 {digest.hexdigest()[:12]}"


def _tensors_digest(model: Export3D) -> str:
    """Identifies weights by their tensors, however the file was written."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"sha256 {digest.hexdigest()[:12]}"


def _shards_digest(split: Place) -> str:
    together = "".join(shard.sha256 for shard in read_index(split).shards)
    return f"shards sha256 {hashlib.sha256(together.encode()).hexdigest()[:12]}"
