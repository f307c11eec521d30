"""S3 in and out, against a real server on loopback: the same files as on disk, and the same resume."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export3d.cli.main import main
from export3d.config import preset
from export3d.data.clips import Limits
from export3d.data.manifest import find_files, make_jobs
from export3d.data.shard_writer import verify
from export3d.data.shards import read_index
from export3d.locations import Place, as_place, exists, inside, names, read, remove, upload, write
from export3d.video import VideoWriter
from tests.s3_server import s3_server

VARYING = {"report.json"}
"""Files that hold the seconds of a run."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server("studio") as address:
        yield address


@pytest.fixture(scope="module")
def videos(astronaut_turns: list[np.ndarray], astronaut_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of a face, one that is none, and a portrait."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(5):
        with VideoWriter(folder / f"clip{k}.mp4", 25.0, 256) as writer:
            for frame in astronaut_turns[4 * k :] + astronaut_turns[: 4 * k]:
                writer.write(frame)
    (folder / "broken.mp4").write_text("no video at all")
    (folder / "portrait.png").write_bytes(astronaut_path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def clips(videos: Path, server: str) -> str:
    """The same files in the store."""
    pytest.importorskip("mediapipe", exc_type=ImportError)
    for path in videos.iterdir():
        upload(path, f"s3://studio/clips/{path.name}")
    return "s3://studio/clips"


@pytest.fixture(scope="module")
def on_disk(clips: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare` makes of the store's clips in a folder."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    assert run("prepare", clips, "-o", out, "--workers", 0) == 0
    return out


@pytest.fixture(scope="module")
def in_store(clips: str) -> str:
    """The same in the store, by a run that was killed when it had written something, and by one that went on."""
    out = "s3://studio/data"
    command = [sys.executable, "-m", "export3d", "prepare", clips, "-o", out, "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(name.endswith(".json") for name in names(out, 3)):
            time.sleep(0.05)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not any(name.startswith("train/train-") for name in names(out, 3))
    assert run("prepare", clips, "-o", out, "--workers", 0) == 0
    report = json.loads(read(f"{out}/report.json") or b"")
    assert report["files_skipped"] >= 1
    assert report["files_done"] + report["files_skipped"] == 7
    return out


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def files(folder: Place) -> dict[str, bytes | None]:
    """The contents of the files in a folder that do not vary."""
    return {name: read(inside(folder, name)) for name in names(folder, 9) if name not in VARYING}


def test_shards_in_the_store_are_those_of_a_folder_even_after_a_kill(in_store: str, on_disk: Path) -> None:
    assert files(in_store) == files(on_disk)
    assert verify(f"{in_store}/train") == verify(f"{in_store}/val") == []
    assert [reject.file for reject in read_index(f"{in_store}/train").rejects] == ["broken.mp4"]


def test_a_second_run_has_nothing_to_do_and_a_changed_file_is_prepared_again(
    in_store: str, clips: str, videos: Path
) -> None:
    before = files(in_store)
    assert run("prepare", clips, "-o", in_store, "--workers", 0) == 0
    assert json.loads(read(f"{in_store}/report.json") or b"")["files_done"] == 0
    assert files(in_store) == before
    try:
        write(f"{clips}/broken.mp4", b"still no video")
        assert run("prepare", clips, "-o", in_store, "--workers", 0) == 0
        assert json.loads(read(f"{in_store}/report.json") or b"")["files_done"] == 1
    finally:
        upload(videos / "broken.mp4", f"{clips}/broken.mp4")
        assert run("prepare", clips, "-o", in_store, "--workers", 0) == 0
    assert files(in_store) == before


def test_files_count_as_the_same_wherever_they_lie(clips: str, videos: Path, tmp_path: Path) -> None:
    jobs = [
        make_jobs(find_files([as_place(place)], None)[0], None, tmp_path, Limits(), None)[0]
        for place in (clips, str(videos))
    ]
    here, there = [[(job.file, job.size, job.split, job.key, job.fingerprint) for job in some] for some in jobs]
    assert here == there
    assert len(here) == 7


def test_a_manifest_in_the_store_names_files_beside_it(clips: str, tmp_path: Path) -> None:
    rows = ["file,person,split,terms", "clips/clip0.mp4,anna,train,open", "clips/gone.mp4,bob,train,open"]
    write("s3://studio/people.csv", "\n".join(rows).encode())
    assert run("prepare", "--manifest", "s3://studio/people.csv", "-o", tmp_path / "out", "--workers", 0) == 0
    assert [entry.person for entry in read_index(tmp_path / "out" / "train").entries] == ["anna"]
    rejects = json.loads((tmp_path / "out" / "report.json").read_text())["rejects"]
    assert [reject["detail"] for reject in rejects] == ["clips/gone.mp4 does not exist; check the address"]


def test_an_evaluation_in_the_store_is_that_of_a_folder(
    in_store: str, on_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from export3d.model import Export3D
    from export3d.pretrained import save_pretrained

    torch.manual_seed(0)
    weights = save_pretrained(Export3D(preset("tiny")), tmp_path / "tiny.safetensors", {"images_seen": 0})
    same = ["--split", "train", "--weights", weights, "--max-clips", 2, "--every", 8, "--references", "copy"]
    same += ["--backbone", "none", "--no-faces"]
    cross = ["--split", "train", "--max-pairs", 1, "--frames", 2]
    for protocol, options in (("same", same), ("cross", cross)):
        there, here = f"s3://studio/{protocol}", tmp_path / protocol
        assert run("evaluate", protocol, in_store, "-o", there, *options) == 0
        assert run("evaluate", protocol, on_disk, "-o", here, *options) == 0
        assert set(names(there, 9)) == set(names(here, 9))
        for name in ("report.json", "report.html"):
            assert read(f"{there}/{name}") == (here / name).read_bytes()
        scored = next(name for name in names(there, 9) if name.endswith("scores.json"))
        kept = f"{there}/{scored.removesuffix('scores.json')}kept"
        write(kept, b"")  # scoring the clip again would remove it
        remove(f"{there}/report.json")
        assert run("evaluate", protocol, in_store, "-o", there, *options) == 0
        assert exists(kept)
        assert read(f"{there}/report.json") == (here / "report.json").read_bytes()
    assert "wrote s3://studio/same/report.html" in capsys.readouterr().err


def test_pseudo_clips_in_the_store_are_those_of_a_folder(
    in_store: str, on_disk: Path, shared_models: Path, tmp_path: Path
) -> None:
    pytest.importorskip("scipy")
    models = shared_models / "face3d"
    given = ["--face-model", models / "ict_face.npz", "--landmark-map", models / "mediapipe_to_ict.npz"]
    given += ["--frames", 3, "--workers", 0]
    for _ in range(2):
        assert run("pseudo-clips", f"{in_store}/train", "-o", "s3://studio/pseudo/train", *given) == 0
    assert run("pseudo-clips", on_disk / "train", "-o", tmp_path / "pseudo" / "train", *given) == 0
    assert files("s3://studio/pseudo/train") == files(tmp_path / "pseudo" / "train")
    assert len(read_index("s3://studio/pseudo/train").entries) == 1


def test_a_list_in_the_store_makes_the_videos_of_a_folder(
    server: str, astronaut_path: Path, motion_file: Path, rigid_weights: Path, tmp_path: Path
) -> None:
    upload(astronaut_path, "s3://studio/faces/a.png")
    upload(motion_file, "s3://studio/faces/talk.motion")
    rows = [
        "portrait,motion,output,seconds",
        "faces/a.png,faces/talk.motion,a/talk.mp4,0.2",
        "faces/bad.png,speech,b.mp4,1",
    ]
    write("s3://studio/faces/bad.png", b"no picture")
    write("s3://studio/list.csv", "\n".join(rows).encode())
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.png").write_bytes(astronaut_path.read_bytes())
    (tmp_path / "faces" / "talk.motion").write_bytes(motion_file.read_bytes())
    (tmp_path / "faces" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    options = (
        f"--weights {rigid_weights} --device cpu --engine torch --frame crop --size 256 --no-mark --workers 0".split()
    )
    for _ in range(2):
        assert run("animate", "--batch", "s3://studio/list.csv", "-o", "s3://studio/videos", *options) == 1
    assert run("animate", "--batch", tmp_path / "list.csv", "-o", tmp_path / "videos", *options) == 1
    assert read("s3://studio/videos/a/talk.mp4") == (tmp_path / "videos" / "a" / "talk.mp4").read_bytes()
    there, here = [
        json.loads(read(f"{out}/report.json") or b"") for out in ("s3://studio/videos", str(tmp_path / "videos"))
    ]
    assert (there["kept"], here["kept"]) == (1, 0), "the second run made the row again that had failed, and no other"
    assert there["rows"][1]["reason"].startswith("s3://studio/faces/bad.png is not an image that can be read")


def test_what_the_store_refuses_is_told_in_one_sentence(
    server: str, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sentence(*arguments: Any) -> str:
        assert run(*arguments, "--workers", 0) == 2
        return capsys.readouterr().err.splitlines()[-1]

    clip = videos / "clip0.mp4"
    assert "s3://nowhere/out/.export3d-probe cannot be written: " in sentence("prepare", clip, "-o", "s3://nowhere/out")
    assert "s3://studio/none does not exist" in sentence("prepare", "s3://studio/none", "-o", "s3://studio/refused")
    assert "web servers are only read" in sentence("prepare", clip, "-o", f"{server}/studio/refused")
    try:
        _enforce_rights(server, "0")
        told = sentence("prepare", clip, "-o", "s3://studio/refused")
    finally:
        _enforce_rights(server, "inf")
    assert "s3://studio/refused/.export3d-probe cannot be written (The AWS Access Key Id you provided does not" in told
    assert told.endswith("check the address, your access and the connection")
    assert names("s3://studio/refused", 9) == []


def _enforce_rights(server: str, after: str) -> None:
    """Let the server check credentials, which it does not by default, after so many requests."""
    text = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", data=after.encode(), headers=text)
    with urllib.request.urlopen(request, timeout=30):
        pass
