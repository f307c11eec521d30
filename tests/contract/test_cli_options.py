"""The command line is a promise: commands, options and their defaults, frozen here."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export3d.cli.evaluate import ScoringOptions
from export3d.cli.framing import Framing
from export3d.cli.main import COMMANDS, entry, main
from export3d.cli.marking import Marking
from export3d.evaluation.protocols.settings import RunSettings

OPTIONS: dict[str, list[str]] = {
    "animate": [
        "source=None", "framing=...", "marking=...", "output", "driving=None", "motion=None", "driving_face='largest'",
        "relative=False", "absolute=False", "start=0.0", "seconds=None", "head_motion='steady'", "scores=()",
        "sheet=None", "weights=None", "pure=False", "device='auto'", "batch_size=6", "engine='auto'",
        "batch=None", "workers=None", "ray=None", "ray_gpus=0.0",
    ],
    "live": [
        "source", "marking=...", "camera='0'", "sink='window'", "face='largest'", "frame='crop'", "size=None",
        "background='keep'", "head_motion='steady'", "seconds=None", "weights=None", "pure=False", "device='auto'",
        "engine='auto'",
    ],
    "studio": [
        "port=7860", "share_on=None", "no_browser=False", "folder=None", "backend=None", "weights=None", "pure=False",
        "device='auto'", "engine='auto'",
    ],
    "serve": [
        "replicas='1'", "gpus_per_replica=None", "ray=None", "port=7860", "share_on=None", "folder=None",
        "weights=None", "pure=False", "device='auto'", "engine='auto'",
    ],
    "edit": [
        "source", "framing=...", "marking=...", "output", "basis=()", "scores=()", "yaw=0.0", "pitch=0.0", "roll=0.0",
        "weights=None", "pure=False", "device='auto'", "engine='auto'",
    ],
    "orbit": [
        "source", "framing=...", "marking=...", "output", "motion=None", "scores=()", "path='circle'", "yaw=30.0",
        "pitch=15.0", "seconds=4.0", "weights=None", "pure=False", "device='auto'", "engine='auto'",
    ],
    "sheet basis": [
        "portraits=()", "marking=...", "output", "limits=None", "check=False", "size=None", "weights=None",
        "pure=False", "device='auto'",
    ],
    "sheet views": [
        "portraits=()", "marking=...", "output", "motion=None", "scores=()", "size=None", "weights=None", "pure=False",
        "device='auto'",
    ],
    "verify": ["files", "as_json=False"],
    "track": ["video", "output", "start=0.0", "seconds=None", "face='largest'", "note=''", "summary=False"],
    "compare-motion": ["a", "b", "minimum=()"],
    "prepare": [
        "clips=()", "output", "manifest=None", "coefficients=None", "workers=None", "ray=None",
        "val_fraction=None", "resume=True", "pseudo_clips=False", "face_model=None", "landmark_map=None",
    ],
    "pseudo-clips": [
        "split", "output", "face_model", "landmark_map", "frames=13", "seed=0", "limit=None", "workers=None",
        "ray=None", "exclude=None",
    ],
    "pack": ["data", "output", "size=256", "every=1", "quality=92"],
    "teach": [
        "data", "output", "split='train'", "weights=None", "expressions=8", "cameras=1", "seed=0", "limit=None",
        "device='auto'",
    ],
    "pretrain": [
        "data=None", "output=None", "recipe='base'", "config=None", "changes=()", "pseudo=()", "cache=None",
        "resume=True", "print_config=False",
    ],
    "train": [
        "data=None", "output=None", "recipe=None", "config=None", "changes=()", "from_pretrained=None", "pseudo=()",
        "cache=None", "resume=True", "print_config=False",
    ],
    "refine": [
        "data=None", "output=None", "from_pretrained=None", "recipe='base'", "config=None", "changes=()", "pseudo=()",
        "cache=None", "resume=True", "print_config=False",
    ],
    "ablate": [
        "data=None", "output=None", "rows=('direct_3dmm', 'e2e_lebs_n25', 'e2e_lebs_n10', 'e2e_lebs_n5', 'clebs')",
        "recipe='base'", "config=None", "changes=()", "from_pretrained=None", "pseudo=()", "cache=None", "pairs=None",
        "identity=()", "frames=40", "every=5", "print_config=False",
    ],
    "evaluate same": [
        "data=None", "scoring=...", "run=...", "output='evaluation'", "split='val'", "clips=None", "weights=None",
        "references=('copy', 'warp', 'mesh', 'oracle')", "every=1", "max_clips=None",
        "size=None",
    ],
    "evaluate cross": [
        "data=None", "run=...", "output='evaluation'", "split='val'", "clips=None", "weights=None", "pairs=None",
        "identity=()", "expression='arkit52'", "motion='absolute'", "frames=40", "against=None", "max_pairs=None",
        "size=None",
    ],
    "evaluate predictions": [
        "folder", "scoring=...", "output='evaluation'", "truth=True", "workers=0", "device='auto'",
    ],
    "evaluate-expression": ["data", "output", "encoder=()", "pairs=None", "people=()"],
    "export": ["output", "format='onnx'", "weights=None", "pure=False", "portrait=None", "face='largest'"],
    "consent add": ["photo", "name", "note=''", "expires=None", "face='only'"],
    "consent list": ["as_json=False"],
    "consent remove": ["who"],
    "consent check": ["photo", "face='largest'"],
    "weights": ["action='list'", "what=()", "name=None", "revision=None", "output=None", "part=()"],
    "bench": [
        "weights=None", "device='auto'", "engine='auto'", "batch=6", "threads=None", "output=None", "against=None",
    ],
    "demo": [
        "marking=...", "output='out'", "motion='speech'", "absolute=False", "weights=None", "pure=False",
        "device='auto'",
    ],
}  # fmt: skip


def test_the_commands_are_these() -> None:
    assert list(COMMANDS) == [
        "animate",
        "live",
        "studio",
        "serve",
        "edit",
        "orbit",
        "sheet basis",
        "sheet views",
        "verify",
        "track",
        "compare-motion",
        "prepare",
        "pseudo-clips",
        "pack",
        "teach",
        "pretrain",
        "train",
        "refine",
        "ablate",
        "evaluate same",
        "evaluate cross",
        "evaluate predictions",
        "evaluate-expression",
        "consent add",
        "consent list",
        "consent remove",
        "consent check",
        "weights",
        "bench",
        "export",
        "demo",
    ]


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command_are_these(command: str) -> None:
    found = []
    for parameter in inspect.signature(entry(command)).parameters.values():
        default = parameter.default
        plain = repr(str(default) if isinstance(default, Path) else default)
        if dataclasses.is_dataclass(default):
            plain = "..."
        found.append(parameter.name + ("" if default is parameter.empty else f"={plain}"))
    assert found == OPTIONS[command]


def test_the_settings_of_evaluate_are_these() -> None:
    fields = {
        kind.__name__: [f"{f.name}={f.default!r}" for f in dataclasses.fields(kind)]
        for kind in (Framing, Marking, ScoringOptions, RunSettings)
    }
    assert fields == {
        "Framing": ["face='largest'", "frame=None", "size=None", "background='keep'"],
        "Marking": ["label=False", "no_mark=False"],
        "ScoringOptions": [
            "backbone='auto'", "backbone_file=None", "heads_file=None", "faces=True", "landmarks='mediapipe'",
            "expression='arkit52'", "identity=()",
        ],
        "RunSettings": [
            "save=None", "workers=0", "ray=None", "ray_gpus=0.0", "device='auto'", "batch=4", "engine='reference'",
        ],
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    doc = inspect.getdoc(entry(command)) or ""
    assert doc.splitlines()[0] in " ".join(out.split())
    assert not re.search(r"default:\W*(None|False)", out)
    for name in inspect.signature(entry(command)).parameters:
        assert f"\n    {name}: " in doc, f"{command}: {name} is not explained"


@pytest.mark.parametrize("command", ["pretrain", "train", "refine", "ablate"])
def test_the_help_of_a_training_fits_on_one_screen(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert sum(line.startswith(f"  export3d {command} ") for line in lines) == 2, "two examples"


@pytest.mark.parametrize(("alias", "command"), [("-o", "animate"), ("-o", "track"), ("-o", "prepare"), ("-o", "demo")])
def test_outputs_are_given_with_minus_o(alias: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert f"{alias}" in capsys.readouterr().out


def test_help_is_fast_and_loads_no_torch() -> None:
    code = (
        "import sys; from export3d.cli.main import main; main(['--help']); main(['animate', '--help']);"
        "main(['track', '--help']); main(['compare-motion', '--help']); main(['demo', '--help']);"
        "main(['studio', '--help']); main(['prepare', '--help']);"
        "main(['evaluate', 'same', '--help']); main(['evaluate-expression', '--help']);"
        "main(['edit', '--help']); main(['sheet', 'views', '--help']);"
        "main(['sheet', 'basis', '--help']); main(['orbit', '--help']); main(['weights', '--help']);"
        "main(['consent', 'add', '--help']); main(['consent', 'list']);"
        "main(['pretrain', '--help']); main(['train', '--help']); main(['refine', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'mediapipe', 'cv2', 'av', 'c2pa', 'cryptography',"
        "'fastapi', 'gradio')))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 10.0, "these help pages take well under a second on an idle machine"
    for name in COMMANDS:
        assert name in done.stdout


def test_animate_begins_to_track_before_it_imports_pytorch(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a video")
    code = (
        "import sys; import export3d.animate.drive as drive; from export3d.cli.main import main\n"
        "drive.driving_meanwhile = lambda *_, **__: sys.exit(20 + ('torch' in sys.modules))\n"
        "sys.exit(main('animate a.png --driving a.mp4 -o out.mp4 --size 256 --background #ffffff'.split()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 20, done.stderr


def test_the_module_runs_like_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "export3d", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("export3d 0.")


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: export3d" in capsys.readouterr().out


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anime"]) == 2
    assert "animate" in capsys.readouterr().err


def test_an_unknown_option_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--no-such-option"]) == 2
    assert capsys.readouterr().err
