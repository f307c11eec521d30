"""The command line: finds and runs a command, and turns failures into messages and exit codes.

Exit codes:

- 0: success.
- 1: a check failed (`compare-motion --min`, `sheet basis --check`, `weights verify`), or `animate --batch` refused
  rows.
- 2: a bad input, setting or output, or a path that the system refuses, reported in one sentence on standard error.
- 3: the answer is no (`verify`: a file is not marked; `consent check`: the face matches nobody).
- 129: ended by SIGHUP, as by a terminal that is closed.
- 130: interrupted.
- 141: the reader of the output closed the pipe (as `| head` does).
- 143: ended by SIGTERM.

After a signal, as after an interruption, no partial output is left.

Any other exception is a bug and keeps its traceback.

Nothing heavy is imported here, so `export3d --help` is fast: the module of a command is loaded when the command runs.
"""

from __future__ import annotations

import _thread
import errno
import importlib
import inspect
import io
import logging
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import FrameType
from typing import Annotated, TypeVar, get_type_hints

from export3d.cli.working import with_address
from export3d.errors import Export3DError
from export3d.files import reason
from export3d.memory import seldom_look_for_cycles, spare_memory

_Options = TypeVar("_Options", bound=Callable[..., object])

COMMANDS: dict[str, tuple[str, str]] = {
    "animate": ("export3d.cli.animate", "animate a portrait with a driving video or a motion file"),
    "live": ("export3d.cli.live", "animate a portrait by a camera, in real time"),
    "studio": ("export3d.cli.studio", "open the studio: a web page that turns, edits and animates a portrait"),
    "serve": ("export3d.cli.serve", "serve the studio's page and API to many users, with renderers on Ray"),
    "edit": ("export3d.cli.edit", "edit a portrait by sliders, ARKit scores and head angles"),
    "orbit": ("export3d.cli.orbit", "show a portrait from a camera that travels around its head"),
    "sheet basis": ("export3d.cli.sheet_basis", "render the effect of every direction of the expression basis"),
    "sheet views": ("export3d.cli.sheet_views", "render expressions from several cameras, with depth"),
    "verify": ("export3d.cli.verify", "search images and videos for marks of generated media"),
    "track": ("export3d.cli.track", "track a video's face into a motion file"),
    "compare-motion": ("export3d.cli.compare_motion", "correlate two motions (motion files or videos)"),
    "prepare": ("export3d.cli.prepare", "turn videos and portraits into training shards"),
    "pseudo-clips": ("export3d.cli.pseudo_clips", "turn the still portraits of a split into training clips"),
    "pack": ("export3d.cli.pack", "pack prepared shards as JPEG frames, for a machine without a video decoder"),
    "teach": ("export3d.cli.teach", "render a split's people under each other's expressions, for training"),
    "pretrain": ("export3d.cli.pretrain", "pre-train the expression encoder to ignore appearance"),
    "train": ("export3d.cli.train", "train the generator on prepared shards"),
    "refine": ("export3d.cli.refine", "train weights further with a discriminator, for sharper images"),
    "ablate": ("export3d.cli.ablate", "train and score the variants of Table 3 with equal budgets"),
    "evaluate same": ("export3d.cli.evaluate_same", "score weights on people driven by their own clips"),
    "evaluate cross": ("export3d.cli.evaluate_cross", "score weights on people driven by other people's clips"),
    "evaluate predictions": ("export3d.cli.evaluate_predictions", "score images that another model saved"),
    "evaluate-expression": ("export3d.cli.evaluate_expression", "measure the appearance left in expressions"),
    "consent add": ("export3d.cli.consent:add", "add a photo of a person who agreed to be animated"),
    "consent list": ("export3d.cli.consent:list_", "list the people who agreed to be animated"),
    "consent remove": ("export3d.cli.consent:remove", "remove a person from those who agreed to be animated"),
    "consent check": ("export3d.cli.consent:check", "tell whom of those who agreed a photo shows"),
    "weights": ("export3d.cli.weights", "list, verify, install and remove weights"),
    "bench": ("export3d.cli.bench", "measure how fast each stage runs on this machine"),
    "export": ("export3d.cli.export", "write a model as ONNX files, which run without PyTorch"),
    "demo": ("export3d.cli.demo", "animate the bundled portrait with a bundled motion"),
}
"""Command name, of one or two words, to (module, one line of help).

The function of a command is the module's `command`, or the one named after a colon.
"""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why standard output takes no more."""
_REPEATED = ("--set", "--basis", "--min")
"""Options of the form NAME=VALUE, which are repeated for more of them."""
_NARROWEST = 40
"""Columns of a terminal, for help pages."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` excludes the program name (default: this process's)."""
    # PyTorch's idle threads would spin, on cores that decoding, tracking, encoding and OpenVINO need
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _without_gaps()
    spare_memory()
    seldom_look_for_cycles()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of people and files that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 141
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        _discard_output()
        print(f"export3d: standard output: {reason(error)}; write it to a place with space", file=sys.stderr)
        return 2


def _without_gaps() -> None:
    """Give a program that was started with closed standard streams empty ones: a file opened later would take their
    numbers, and messages of libraries would land in it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the whole run


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"export3d {version('export3d')}")
        return 0
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    name, rest = " ".join(argv[:words]), argv[words:]
    if name not in COMMANDS:
        return _without_subcommand(name, rest)
    handler = _report_warnings()
    try:
        with _ending_on_signals():
            return _run(name, rest)
    except Export3DError as error:
        print(f"export3d: {_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:  # not about a path of the user
            raise
        print(f"export3d: {error.filename}: {reason(error)}; check its name and permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("export3d: interrupted", file=sys.stderr)
        return 130
    finally:
        logging.getLogger("export3d").removeHandler(handler)


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, as Ctrl-C does, unwind the program as an exception, so that temporary files are removed.

    Python drops an exception that a destructor or a callback raises; the signal is then sent again.
    """

    def asked(number: int, frame: FrameType | None) -> None:
        asked_for.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def lost(what: sys.UnraisableHookArgs) -> None:
        if asked_for and isinstance(what.exc_value, (KeyboardInterrupt, SystemExit)):
            again = threading.Timer(0.05, ask_again, [len(asked_for)])
            again.daemon = True
            again.start()
        else:
            shown(what)

    def ask_again(asked_times: int) -> None:
        number = asked_for[-1]
        if len(asked_for) > asked_times or signal.getsignal(number) is not asked:  # asked again, or ended
            return
        if sys.platform == "win32":
            _thread.interrupt_main(number)
        else:  # also ends a system call in which the main thread waits
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_for: list[int] = []
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background of a shell
        numbers.append(signal.SIGINT)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, asked) for number in numbers}
    shown, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = shown
        for number, handler in previous.items():
            signal.signal(number, handler)


def entry(name: str) -> Callable[..., int | None]:
    """The function of a command; importing its module is fast."""
    module, _, named = COMMANDS[name][0].partition(":")
    function: Callable[..., int | None] = getattr(importlib.import_module(module), named or "command")
    return function


def overview(group: str = "") -> str:
    """The text of `export3d --help`, or of `export3d GROUP --help` for the commands that start with a word."""
    chosen = {name: summary for name, (_, summary) in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, chosen))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in chosen.items()]
    return "\n".join(
        [
            f"usage: export3d {group}COMMAND [OPTIONS]",
            "",
            *([] if group else ["Animate one portrait photo in 3D.", ""]),
            "commands:",
            *lines,
            "",
            f"`export3d {group}COMMAND --help` lists the options of a command"
            + ("." if group else "; `export3d --version` prints the version."),
        ]
    )


def _without_subcommand(name: str, argv: list[str]) -> int:
    """Handle a first word that is not a command: print the overview of its group, or an error."""
    group = f"{name} "
    if not any(command.startswith(group) for command in COMMANDS):
        print(f"export3d: there is no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(overview(group))
        return 0
    known = ", ".join(command.removeprefix(group) for command in COMMANDS if command.startswith(group))
    subcommand = importlib.import_module(f"export3d.cli.{name}").subcommand_for(argv)
    sentence = f"{name} needs a subcommand ({known}); for these options, use `{name} {subcommand}`"
    print(f"export3d: {sentence}", file=sys.stderr)
    return 2


def _run(name: str, argv: list[str]) -> int:
    if name == "animate" and len(argv) > 1 and not any(word.startswith("-") for word in argv[:2]):
        sentence = f"animate takes one portrait; for {argv[1]!r} write --driving or --motion before it"
        print(f"export3d: {sentence}", file=sys.stderr)
        return 2
    for option, value, word in zip(argv, argv[1:], argv[2:]):
        if option in _REPEATED and "=" in value and "=" in word and not word.startswith("-"):
            sentence = f"{option} takes one value; for {word!r} write {option} again: {option} {value} {option} {word}"
            print(f"export3d: {sentence}", file=sys.stderr)
            return 2
    import tyro

    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)  # in very few, tyro never finishes its wrapping
    function = _quiet(entry(name))
    try:
        result = tyro.cli(
            function,
            args=with_address(argv),
            prog=f"export3d {name}",
            description=(inspect.getdoc(function) or "").split("\n\nArgs:")[0],
            config=(
                tyro.conf.OmitArgPrefixes,
                tyro.conf.DisallowNone,
                tyro.conf.FlagCreatePairsOff,
                tyro.conf.PositionalMetavarFromFieldName,
            ),
        )
    except SystemExit as stop:  # tyro exits after --help (0) and after invalid options (2)
        return stop.code if isinstance(stop.code, int) else 2
    return int(result or 0)


def _quiet(options: _Options) -> _Options:
    """A command, or a group of its options, whose help does not end in "(default: None)" or "(default: False)"."""
    import tyro

    hints = get_type_hints(options, include_extras=True)
    for name, parameter in inspect.signature(options).parameters.items():
        if parameter.default is None or parameter.default is False:
            hints[name] = Annotated[hints[name], tyro.conf.arg(help_behavior_hint="")]
        elif is_dataclass(hints[name]):
            _quiet(hints[name])
    options.__annotations__ = hints
    return options


def _reader_left() -> bool:
    """Whether the reader of standard output has closed it; if so, further output is discarded."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not poll.poll(0):
        return False
    _discard_output()
    return True


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_warnings() -> logging.Handler:
    """Print the library's warnings on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("export3d: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("export3d").addHandler(handler)
    return handler


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
