"""Files on their way to renderers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from export3d.errors import OutputError
from export3d.serve import parcels
from export3d.serve.parcels import Parcel, Receiver, Sender, contents, deliver


async def fetched(ref: Any) -> bytes:
    return bytes(ref)


def test_a_request_arrives_with_its_files_and_the_users_names(tmp_path: Path) -> None:
    for name in ("portrait.png", "behind.png", "face.png", "sound.wav"):
        (tmp_path / name).write_bytes(name.encode())
    request = {
        "verb": "animate",
        "motion": "speech",
        "portrait": {"id": "7", "path": str(tmp_path / "portrait.png"), "digest": None, "name": "me.jpg"},
        "background": str(tmp_path / "behind.png"),
        "sound": str(tmp_path / "sound.wav"),
        "faces": [str(tmp_path / "face.png")],
        "names": {str(tmp_path / "behind.png"): "beach.jpg"},
        "out": str(tmp_path),
    }
    (tmp_path / "there").mkdir()
    receiver = Receiver(tmp_path / "there", fetched)
    told, held = asyncio.run(receiver.unpacked(Sender(lambda data: data).packed(request)))
    assert Path(told["portrait"]["path"]).read_bytes() == b"portrait.png"
    assert Path(told["background"]).read_bytes() == b"behind.png"
    assert Path(told["faces"][0]).read_bytes() == b"face.png"
    assert told["names"][told["background"]] == "beach.jpg"
    assert (told["motion"], told["portrait"]["name"]) == ("speech", "me.jpg")
    assert "out" not in told, "a folder of another machine"
    assert len(held) == 4


def test_a_file_is_sent_and_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"same")
    (tmp_path / "b.png").write_bytes(b"same")
    sent: list[bytes] = []
    sender = Sender(lambda data: sent.append(data) or data)
    assert sender.parcel(tmp_path / "a.png") == sender.parcel(tmp_path / "b.png") == sender.parcel(tmp_path / "a.png")
    assert sent == [b"same"]


def test_files_that_no_request_holds_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "_MOST_BYTES", 10)
    receiver = Receiver(tmp_path, fetched)

    async def unpacked(name: str) -> list[str]:
        return (await receiver.unpacked({"background": Parcel(name, 6, b"123456")}))[1]

    first, second = asyncio.run(unpacked("1.png")), asyncio.run(unpacked("2.png"))
    receiver.release(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png"], "the first is held"
    receiver.release(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png"], "and fits alone"


def test_results_are_delivered_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver({"video.mp4": b"1", "poster.png": b"2"}, tmp_path)
    assert contents(tmp_path) == {"video.mp4": b"1", "poster.png": b"2"}
    (tmp_path / "next").mkdir()
    monkeypatch.setattr(parcels.files, "write_bytes", full_after_one(parcels.files.write_bytes))
    with pytest.raises(OutputError):
        deliver({"video.mp4": b"1", "poster.png": b"2"}, tmp_path / "next")
    assert list((tmp_path / "next").iterdir()) == []


def full_after_one(write: Any) -> Any:
    """A disk that is full after one file."""
    written: list[Path] = []

    def writes(path: Path, data: bytes) -> None:
        if written:
            raise OutputError("the disk is full; free some space")
        written.append(path)
        write(path, data)

    return writes
