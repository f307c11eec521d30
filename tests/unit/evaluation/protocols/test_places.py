"""Results at a URL are those of a folder."""

from __future__ import annotations

from pathlib import Path

from export3d.evaluation.protocols.same import same_identity
from export3d.evaluation.protocols.settings import Scoring
from export3d.locations import exists, names, read, remove, upload, write


def test_an_evaluation_at_a_url_is_that_of_a_folder(split: Path, tiny_weights: Path, tmp_path: Path) -> None:
    base = f"memory://{tmp_path.name}"
    for path in split.iterdir():
        upload(path, f"{base}/data/val/{path.name}")
    options = {"weights": tiny_weights, "scoring": Scoring(backbone="none", faces=False)}
    here, there = tmp_path / "scores", f"{base}/scores"
    told = [same_identity(split, here, **options), same_identity(f"{base}/data/val", there, **options)]
    assert told[0] == told[1]
    assert set(names(there, 9)) == set(names(here, 9))
    for name in ("report.json", "report.html", "report.md"):
        assert read(f"{there}/{name}") == (here / name).read_bytes()
    write(f"{there}/clips/walks/kept", b"")  # scoring the clip again would remove it
    remove(f"{there}/report.json")
    same_identity(f"{base}/data/val", there, **options)
    assert exists(f"{there}/clips/walks/kept")
    assert read(f"{there}/report.json") == (here / "report.json").read_bytes()
