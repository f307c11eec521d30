"""Generated images leave through provenance/writing.py: nothing else in the package encodes images or videos.

The source is read, not run: every call and every import that can encode is either below (the encoders themselves), in
`provenance/`, or one of the exceptions that are listed here with their reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from export3d.provenance.writing import UNMARKED

PACKAGE = Path(__file__).parents[2] / "src" / "export3d"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}

OURS = {"VideoWriter", "write_png", "encode_png"}
"""The package's own encoders."""
FOREIGN = {
    "add_stream", "imwrite", "imsave", "imencode", "mimsave", "mimwrite", "savefig", "save_image", "write_jpeg",
    "encode_jpeg", "save_all", "add_image", "add_images", "add_figure", "add_video",
}  # fmt: skip
"""Functions of PyAV, OpenCV, imageio, matplotlib, torchvision, scikit-image and TensorBoard that write images."""
WRITERS = ("imageio", "torchvision.io", "torchvision.utils", "skimage.io", "matplotlib.image", "ffmpeg")
"""Packages that write images by other names."""

MAY = {
    "image.py": {".save()"},  # the PNG encoder
    "video/writing.py": {"add_stream"},  # the MP4 encoder
    "video/sound.py": {"add_stream"},  # a track of sound
    "video/__init__.py": {"VideoWriter"},  # passes the name on
    "provenance/writing.py": {"VideoWriter", "encode_png", ".save()"},  # the one place
    "data/clips.py": {"VideoWriter", ".save()"},  # training data: crops of the user's clips and portraits, into shards
    "data/frames.py": {".save()"},  # training data: the same, decoded
    "data/packing.py": {".save()"},  # calls data/frames.py
    "cli/track.py": {".save()"},  # a .motion file, numbers
    "cli/bench.py": {".save()"},  # a report, JSON
    "engines/onnx_graph.py": {".save()"},  # a network
    "weights/blob.py": {".save()"},  # weights
    "studio/work.py": {".save()"},  # a .motion file
    "studio/intake_process.py": {"write_png", ".save()"},  # the user's own images and frames, decoded; a .motion file
    "training/record.py": {"add_image"},  # shows in TensorBoard what provenance/writing.py has painted
}
"""File to what it may call, and why."""


def encoders(tree: ast.AST) -> set[str]:
    """What a file uses that encodes an image or a video, under whatever name; and every call of a method `save`."""
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)} | imported
    methods = {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    return (used & OURS - defined) | (used & FOREIGN) | ({".save()"} & {f".{name}()" for name in methods})


def test_nothing_but_provenance_encodes() -> None:
    found = {file: encoders(tree) for file, tree in TREES.items()}
    offenders = {file: names - MAY.get(file, set()) for file, names in found.items()}
    assert {file: names for file, names in offenders.items() if names} == {}, "write through provenance/writing.py"
    unused = {file: names - found[file] for file, names in MAY.items() if names - found[file]}
    assert unused == {}, "these exceptions are no longer needed"


def test_no_package_that_writes_images_is_imported() -> None:
    nodes = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)]
    names = [(file, alias.name) for file, node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [
        (file, f"{node.module}.{alias.name}")
        for file, node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert [(file, name) for file, name in names if f"{name}.".startswith(tuple(f"{w}." for w in WRITERS))] == []


@pytest.mark.parametrize(
    "source",
    [
        "from PIL import Image\nImage.fromarray(x).save('a.png')",
        "from export3d.video import VideoWriter as Clip\nClip('a.mp4', 25, 64)",
        "import export3d.image as im\nim.write_png('a.png', x)",
        "import av\nav.open('a.mp4', 'w').add_stream('libx264')",
        "import cv2\nwrite = cv2.imwrite\nwrite('a.png', x)",
        "from torchvision.utils import save_image as put\nput(x, 'a.png')",
        "figure.savefig('a.png')",
    ],
)
def test_an_encoder_is_seen_under_any_name(source: str) -> None:
    assert encoders(ast.parse(source))


def test_what_is_written_unmarked_has_a_listed_reason() -> None:
    """`write_unmarked` is called with a reason in plain text, from these files; `NO_MARKS` only by `no_mark`."""
    calls = [
        (file, *(ast.literal_eval(word.value) for word in node.keywords if word.arg == "reason"))
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("write_unmarked")
    ]
    assert sorted(set(calls)) == [
        ("evaluation/appearance/expression_report.py", "chart"),
        ("evaluation/protocols/prediction_writer.py", "predictions"),
    ]
    assert {reason for _, reason in calls} == set(UNMARKED)
    nodes = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)]
    users = {file for file, node in nodes if isinstance(node, ast.Name) and node.id == "NO_MARKS"}
    users |= {file for file, node in nodes if isinstance(node, ast.keyword) and node.arg == "wanted"}
    assert users == {"provenance/writing.py", "cli/marking.py", "animate/batch_list.py"}
