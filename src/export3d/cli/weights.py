"""`export3d weights`: lists, verifies, installs, removes, calibrates and averages weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from export3d.cli.terminal import tell
from export3d.errors import CheckpointError, ConfigError


def command(
    action: tyro.conf.Positional[Literal["list", "verify", "install", "remove", "calibrate", "average"]] = "list",
    what: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    name: str | None = None,
    revision: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    part: tuple[str, ...] = (),
) -> int:
    """List the named weights, verify, calibrate or average weights, or install or remove named weights.

    Installed weights are kept in the user's folder for application data, or in EXPORT3D_HOME. Calibrated weights are
    faster with the engine openvino on processors without bf16 instructions.

    Args:
        action: list (the default); verify (SHA-256, and that this release can load them); install; remove; calibrate
            (measure the ranges that 8-bit integers need, in a minute, and write them to the weights' JSON); average
            (write the mean of weights that were trained from the same ones).
        what: (verify) names, files or folders, by default all listed weights; (install) one name, file, folder or
            Hugging Face repository owner/name; (remove) names; (calibrate) names, files or folders, also inside the
            installed package; (average) two or more names, files or folders, of which one may be named twice.
        name: (install) name of the installed weights; by default that of the repository, folder or file.
        revision: (install) branch, tag or commit of the repository.
        output: (average) the new weights, a .safetensors file.
        part: (average) average only tensors whose names begin so, such as warp.dense; the others are the first
            weights' own.
    """
    if action != "average" and (output or part):
        raise ConfigError(f"{action} does not take {'--output' if output else '--part'}; leave it out")
    if action != "install" and (name or revision):
        raise ConfigError(f"{action} does not take {'--name' if name else '--revision'}; leave it out")
    if action == "list":
        if what:
            raise ConfigError(f"list shows all weights and takes no {what[0]!r}; to check some, use verify")
        return _list()
    if action == "verify":
        return _verify(what)
    if action == "install":
        if len(what) != 1:
            raise ConfigError(
                f"install takes one name, file, folder or repository owner/name, but {len(what)} were given"
            )
        return _install(what[0], name, revision)
    if action == "average":
        return _average(what, output, part)
    if not what:
        wanted = "names of installed weights" if action == "remove" else "names, files or folders"
        raise ConfigError(f"{action} takes {wanted}; export3d weights lists those with a name")
    return _remove(what) if action == "remove" else _calibrate(what)


def _list() -> int:
    from export3d.files import home
    from export3d.weights.file import read_sidecar
    from export3d.weights.names import PACKAGED_NAMES, known

    rows: list[tuple[str, ...]] = [("name", "what", "MB", "images, last run", "sha256", "from")]
    for name, path in known().items():
        try:
            origin = "the package" if name in PACKAGED_NAMES else ""
            rows.append((name, *_row(read_sidecar(path), origin)))
        except CheckpointError as error:
            rows.append((name, "damaged", "", "", "", ""))
            tell(f"{name}: {error}")
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    tell(f"installed weights are kept in {home() / 'weights'}")
    return 0


def _row(sidecar: dict[str, Any], origin: str) -> tuple[str, ...]:
    config, info, file = sidecar["config"], sidecar["info"], sidecar["file"]
    what = "model" if "model" in config else "encoder" if "expression" in config else "other"
    return (
        what,
        f"{file['size'] / 1e6:.1f}",
        str(info.get("images_seen", "")),
        file["sha256"][:12],
        origin or str(info.get("installed_from", "")),
    )


def _verify(what: tuple[str, ...]) -> int:
    from export3d.errors import Export3DError
    from export3d.pretrained import verify
    from export3d.weights.names import known

    damaged = 0
    for which in what or tuple(known()):
        try:
            print(f"{which}: whole, sha256 {verify(which)['file']['sha256']}")
        except Export3DError as error:
            damaged += 1
            tell(f"{which}: {error}")
    return 1 if damaged else 0


def _install(source: str, name: str | None, revision: str | None) -> int:
    from export3d.pretrained import install_weights
    from export3d.weights.file import read_sidecar
    from export3d.weights.names import PACKAGED_NAMES

    path = install_weights(source, name, revision=revision)
    if path in PACKAGED_NAMES.values():
        tell(f"{source} is already inside the package, and intact")
    else:
        use = f"; use it with --weights {path.parent.name}" if "model" in read_sidecar(path)["config"] else ""
        tell(f"installed {path.parent.name} in {path.parent}{use}")
    return 0


def _remove(names: tuple[str, ...]) -> int:
    from export3d.weights.names import remove

    for name in names:
        folder: Path = remove(name)
        tell(f"removed {folder}")
    return 0


def _calibrate(what: tuple[str, ...]) -> int:
    from export3d.animate.ranges import measured_ranges
    from export3d.pretrained import load_pretrained
    from export3d.weights.blob import sidecar_of
    from export3d.weights.file import read_sidecar
    from export3d.weights.names import find
    from export3d.weights.ranges import ranges_in, write_ranges

    for which in what:
        path = find(which)
        config = read_sidecar(path)["config"]
        try:
            ranges_in(config, path)
        except CheckpointError:
            write_ranges(path, {})  # or the weights would not load
        ranges = measured_ranges(load_pretrained(path))
        write_ranges(path, ranges)
        tell(f"{which}: wrote the ranges of {len(ranges)} layers to {sidecar_of(path)}")
    return 0


def _average(what: tuple[str, ...], output: Path | None, parts: tuple[str, ...]) -> int:
    from export3d.weights.mean import save_mean
    from export3d.weights.names import find

    if output is None:
        raise ConfigError("average needs --output, the .safetensors file to write")
    path = save_mean([find(which) for which in what], output, parts)
    rest = f" in {', '.join(parts)}, and {what[0]} in the rest," if parts else ""
    tell(f"wrote the mean of {len(what)} weights{rest} to {path}")
    return 0
