import json
import logging
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from export3d.errors import OutputError
from export3d.training.record import Recorder, drop_lines_after, read_log


def test_every_line_can_be_read_during_the_run(tmp_path):
    with Recorder(tmp_path, {}, command=["x"], tensorboard=False) as record:
        record.line("train", 4, 0.5, lr=0.1, losses={"total": 1.0})
        assert read_log(tmp_path / "log.jsonl") == [
            {"kind": "train", "images_seen": 4, "minutes": 0.5, "lr": 0.1, "losses": {"total": 1.0}}
        ]


def test_the_command_of_every_start_can_be_pasted_into_a_shell(tmp_path):
    for command in (["train", "a folder/x", "--note", "it's"], ["train", "--resume"]):
        Recorder(tmp_path, {"a": 1}, command=command, tensorboard=False).close()
    lines = (tmp_path / "command.txt").read_text().splitlines()
    assert [shlex.split(line) for line in lines] == [["train", "a folder/x", "--note", "it's"], ["train", "--resume"]]
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}


def test_a_torn_last_line_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"images_seen": 4}\n{"images_s')
    assert read_log(tmp_path / "log.jsonl") == [{"images_seen": 4}]


def test_lines_beyond_the_resumed_state_are_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"images_seen": n}) + "\n" for n in (4, 8, 12)) + '{"im')
    drop_lines_after(tmp_path / "log.jsonl", 8)
    assert [line["images_seen"] for line in read_log(tmp_path / "log.jsonl")] == [4, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_sheet_is_a_png_named_after_the_images_seen(tmp_path):
    image = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    with Recorder(tmp_path, {}, tensorboard=False) as record:
        path = record.sheet(1234, image)
    assert path == tmp_path / "sheets" / "00001234.png"
    assert np.array_equal(np.asarray(Image.open(path)), image)


def test_figures_reach_tensorboard_under_their_names(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Recorder(tmp_path, {}, tensorboard=True) as record:
        record.line("train", 4, 0.5, lr=0.25, losses={"total": 1.5})
        record.line("validation", 4, 0.5, figures={"psnr": 20.0})
    board = events.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert found == {"train/lr": [(4, 0.25)], "train/losses/total": [(4, 1.5)], "validation/figures/psnr": [(4, 20.0)]}


def test_without_tensorboard_the_log_is_written_and_the_remedy_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    caplog.set_level(logging.INFO)
    with Recorder(tmp_path, {}, tensorboard=True) as record:
        record.line("train", 4, 0.5, lr=0.25)
    assert len(read_log(tmp_path / "log.jsonl")) == 1
    assert "pip install -c constraints.txt '.[train]'" in caplog.text
    assert not (tmp_path / "tensorboard").exists()


def test_a_run_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        Recorder(tmp_path / "file" / "run", {}, tensorboard=False)
