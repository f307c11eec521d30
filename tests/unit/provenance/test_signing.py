"""Signed statements: what they say, that a changed byte breaks them, and that c2pa's own reader agrees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import c2pa
import pytest

from export3d import files
from export3d.errors import InputError, MissingExtra, OutputError
from export3d.image import read_image
from export3d.provenance import signing
from export3d.provenance.certificate import credentials
from export3d.provenance.statement import SOURCE_TYPE, Statement
from export3d.provenance.writing import write_image

FORMATS = ("mp4", "png", "jpg", "webp")
BEGIN = b"-----BEGIN CERTIFICATE-----"
CAMERA = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"


def reference(path: Path) -> dict | None:
    """What c2pa's reader says with its own settings; None if it cannot read a statement."""
    try:
        with c2pa.Reader(str(path)) as reader:
            return json.loads(reader.json())
    except c2pa.C2paError:
        return None


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_signed_is_read(kind: str, signed_file: Callable[[str], Path], statement: Statement) -> None:
    told = signing.read(signed_file(kind))
    assert told == signing.SignedStatement(
        "unchanged",
        trusted=False,
        tool=f"export3d {statement.version}",
        signer="export3d",
        source_type="trainedAlgorithmicMedia",
        statement={
            "payload": f"{statement.payload:08x}",
            "weights": "c3" * 32,
            "portrait": "a1" * 32,
            "motion": "b2" * 32,
        },
    )
    assert told.generated
    assert told.payload == statement.payload


def test_unknown_inputs_are_left_out(unsigned: Path, tmp_path: Path) -> None:
    signing.sign(unsigned / "plain.png", tmp_path / "o.png", Statement())
    told = signing.read(tmp_path / "o.png")
    assert told is not None
    assert told.statement == {"payload": f"{Statement().payload:08x}"}


def test_images_in_memory_are_signed_too(unsigned: Path, tmp_path: Path, statement: Statement) -> None:
    (tmp_path / "o.webp").write_bytes(signing.signed((unsigned / "plain.webp").read_bytes(), ".webp", statement))
    told = signing.read(tmp_path / "o.webp")
    assert told is not None
    assert told.payload == statement.payload


@pytest.mark.parametrize("kind", FORMATS)
def test_the_reference_reader_agrees(kind: str, signed_file: Callable[[str], Path]) -> None:
    store = reference(path := signed_file(kind))
    told = signing.read(path)
    assert store is not None
    assert told is not None
    assert (store["validation_state"], told.state, told.trusted) == ("Valid", "unchanged", False)
    manifest = store["manifests"][store["active_manifest"]]
    actions = next(each["data"]["actions"] for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2")
    assert [action["action"] for action in actions] == ["c2pa.created", "c2pa.watermarked.unbound"]
    assert actions[0]["digitalSourceType"] == SOURCE_TYPE
    assert len(actions[0]["parameters"]["ingredients"]) == 2
    assert [each["relationship"] for each in manifest["ingredients"]] == ["inputTo", "inputTo"]


def test_a_statement_has_no_image_and_no_name_of_the_inputs(signed_file: Callable[[str], Path]) -> None:
    data = signed_file("png").read_bytes()
    assert b"thumbnail" not in data
    assert b"plain" not in data


def places(path: Path, plain: Path) -> dict[str, int]:
    """Offsets in the file's content, its plain metadata, and in several parts of the statement."""
    data = path.read_bytes()
    samples = plain.read_bytes()[-60:-40]  # of the last frame, or of the pixels
    found = {
        "pixels": data.find(samples) + 5,
        "metadata": data.find(b"AI-generated" if path.suffix == ".mp4" else b"CreatorTool") + 3,
        "action": data.find(b"c2pa.created") + 7,
        "own assertion": data.find(b"payload") + 10,
        "ingredient": data.find(b"urn:sha256") + 20,
        "certificate": data.find(b"export3d local certificate") + 4,
        "signature": data.find(b"c2pa.signature") + 60,
    }
    assert min(found.values()) > 60
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_a_changed_byte_anywhere_is_told(kind: str, signed_file: Callable[[str], Path], unsigned: Path) -> None:
    path = signed_file(kind)
    whole = path.read_bytes()
    for place, at in places(path, unsigned / f"plain.{kind}").items():
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        told, store = signing.read(path), reference(path)
        assert told is not None, place
        assert told.state == "changed", (place, told)
        assert store is None or store["validation_state"] == "Invalid", place


@pytest.mark.parametrize("kind", FORMATS)
def test_a_manifest_that_the_reader_leaves_out_is_told(kind: str, signed_file: Callable[[str], Path]) -> None:
    path = signed_file(kind)
    data = bytearray(path.read_bytes())
    data[data.find(b"gweights") + 20] = 0xFF  # no text any more
    path.write_bytes(data)
    told = signing.read(path)
    assert told is not None
    assert (told.state, told.tool) == ("changed", None)
    assert any(code.endswith(".mismatch") for code in told.problems)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_changed_byte_hides_a_statement(kind: str, signed_file: Callable[[str], Path]) -> None:
    path = signed_file(kind)
    whole = path.read_bytes()
    begin = whole.find(b"jumdc2pa")
    for at in range(begin, begin + 20, 4):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert signing.read(path) is not None, at - begin


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_statement_is_not_taken_for_none(kind: str, signed_file: Callable[[str], Path]) -> None:
    path = signed_file(kind)
    data = path.read_bytes()
    at = data.find(b"jumdc2pa") + 40  # within the lengths and labels of the boxes
    path.write_bytes(data[:at] + bytes(200) + data[at + 200 :])
    told = signing.read(path)
    assert told is not None
    assert (told.state, told.tool) == ("changed", None)


def test_files_without_a_statement_have_none(unsigned: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"hello" * 100)
    assert [signing.read(unsigned / f"plain.{kind}") for kind in FORMATS] == [None] * 4
    assert signing.read(tmp_path / "text.png") is None
    with pytest.raises(InputError):
        signing.read(tmp_path / "missing.png")


def test_the_statement_of_another_program_is_told_as_its_own(sign_as: Callable[..., Path]) -> None:
    camera = signing.read(sign_as("ACME Camera", CAMERA))
    assert camera == signing.SignedStatement(
        "unchanged", tool="ACME Camera 7", signer="export3d", source_type="digitalCapture"
    )
    assert not camera.generated
    other = signing.read(sign_as("Another\x1b[31m generator", SOURCE_TYPE.replace("trained", "compositeWithTrained")))
    assert other is not None
    assert other.generated
    assert other.tool == "Another[31m generator 7", "no control characters reach a terminal"


def test_what_was_edited_from_a_generated_file_stays_generated(
    sign_as: Callable[..., Path], signed_file: Callable[[str], Path], tmp_path: Path, statement: Statement
) -> None:
    once = sign_as("Editor", None, parent=signed_file("png")).rename(tmp_path / "once.png")
    for path in (once, sign_as("Another editor", None, parent=once)):
        told = signing.read(path)
        assert told is not None
        assert (told.state, told.source_type, told.payload) == (
            "unchanged",
            "trainedAlgorithmicMedia",
            statement.payload,
        )
    assert told.tool == "Another editor 7"


@pytest.mark.parametrize("data", [5, [1], "text", {"payload": 5, "weights": None}, {"payload": "xyz"}])
def test_an_assertion_like_ours_with_other_contents_is_no_error(data: object, sign_as: Callable[..., Path]) -> None:
    more = [{"label": signing.ASSERTION, "data": data}]
    told = signing.read(sign_as("Another program", SOURCE_TYPE, more=more))
    assert told is not None
    assert (told.state, told.generated, told.payload) == ("unchanged", True, None)


def test_a_signature_that_breaks_the_rules_is_not_called_a_change() -> None:
    store = {
        "active_manifest": "a",
        "manifests": {"a": {"claim_generator": "an old program", "signature_info": {}}},
        "validation_state": "Invalid",
        "validation_results": {"activeManifest": {"failure": [{"code": "signingCredential.expired"}]}},
    }
    assert signing._told(store) == signing.SignedStatement(
        "invalid", tool="an old program", problems=("signingCredential.expired",)
    )


def test_a_trusted_authority_makes_a_signature_trusted(signed_file: Callable[[str], Path]) -> None:
    path = signed_file("png")
    authority = BEGIN + credentials().certificates.split(BEGIN)[-1]
    (files.home() / signing.TRUST).write_bytes(authority)
    told = signing.read(path)
    assert told is not None
    assert (told.state, told.trusted) == ("unchanged", True)


@pytest.mark.skipif(None in map(shutil.which, ("bash", "openssl")), reason="the recipe needs bash and OpenSSL")
def test_the_pages_recipe_makes_a_trusted_certificate(signed_file: Callable[[str], Path], tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "verify.md").read_text("utf-8")
    (recipe,) = [code for code in page.split("```")[1::2] if "openssl req" in code]
    before = credentials()
    subprocess.run(["bash", "-e", "-c", recipe], cwd=tmp_path, capture_output=True, check=True)
    assert credentials() != before
    (kept,) = files.home().glob("signing-*.pem")
    assert before.key in kept.read_bytes()
    told = signing.read(signed_file("png"))
    assert told is not None
    assert (told.state, told.trusted, told.signer) == ("unchanged", True, "My studio")


@pytest.mark.parametrize("text", [b"", b"hello", b"\xff\xfe", BEGIN + b"\nAA\n-----END CERTIFICATE-----"])
def test_a_damaged_list_of_authorities_trusts_nobody(
    text: bytes, signed_file: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = signed_file("png")
    (files.home() / signing.TRUST).write_bytes(text)
    told = signing.read(path)
    assert told is not None
    assert (told.state, told.trusted) == ("unchanged", False)
    (record,) = caplog.records
    assert str(files.home() / signing.TRUST) in record.message
    assert "http" not in record.message


@pytest.mark.skipif(os.name != "posix", reason="pipes with a name")
def test_a_pipe_in_place_of_the_authorities_is_not_waited_for(
    signed_file: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = signed_file("png")
    os.mkfifo(files.home() / signing.TRUST)
    writer = Thread(target=(files.home() / signing.TRUST).write_bytes, args=[b"\n"], daemon=True)
    writer.start()  # lets a reader that waits go on, so that the test ends
    told = signing.read(path)
    assert told is not None
    assert not told.trusted
    assert "not a regular file" in caplog.text


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and the requests that reach it."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/statement.c2pa", seen
        server.shutdown()


def test_a_statement_that_is_stored_elsewhere_is_not_fetched(
    requests: tuple[str, list[str]], sign_as: Callable[..., Path]
) -> None:
    address, seen = requests
    path = sign_as("ACME Camera", CAMERA, address)
    assert signing.read(path) == signing.SignedStatement("elsewhere")
    assert seen == []
    assert reference(path) is None
    assert seen, "with its own settings, the library would have asked"


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_signed_is_one_sentence(kind: str, tmp_path: Path, statement: Statement) -> None:
    (tmp_path / f"in.{kind}").write_bytes(b"hello")
    with pytest.raises(OutputError, match="cannot be signed"):
        signing.sign(tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", statement)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_is_told_as_such(unsigned: Path, tmp_path: Path, statement: Statement) -> None:
    (tmp_path / "full.mp4").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="no space left"):
        signing.sign(unsigned / "plain.mp4", tmp_path / "full.mp4", statement)


def test_another_format_is_refused(unsigned: Path, tmp_path: Path, statement: Statement) -> None:
    with pytest.raises(OutputError, match=r"\.gif is not one of"):
        signing.sign(unsigned / "plain.png", tmp_path / "out.gif", statement)


def test_without_the_library_one_line_says_so_and_images_are_written_unsigned(
    unsigned: Path,
    tmp_path: Path,
    statement: Statement,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    signing.available.cache_clear()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    try:
        assert not signing.available()
        assert not signing.available()
        assert [record.message.count("'.[provenance]'") for record in caplog.records] == [1]
        with pytest.raises(MissingExtra):
            signing.signed((unsigned / "plain.png").read_bytes(), ".png", statement)
        with pytest.raises(MissingExtra):
            signing.read(unsigned / "plain.png")
        write_image(tmp_path / "made.png", read_image(unsigned / "plain.png"))
    finally:
        signing.available.cache_clear()
    monkeypatch.undo()
    assert signing.read(tmp_path / "made.png") is None


def test_the_libraries_are_loaded_at_the_first_use_only() -> None:
    program = (
        "import sys, export3d.provenance.signing, export3d.provenance.certificate\n"
        "print(sorted({'c2pa', 'cryptography'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_signing_and_reading_print_nothing(
    signed_file: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = signed_file("mp4")
    signing.read(path)
    path.write_bytes(path.read_bytes()[:-1000])
    signing.read(path)
    assert tuple(capfd.readouterr()) == ("", "")


INTERRUPTED = """
import io, os, signal, sys
from pathlib import Path
from export3d.provenance import signing
from export3d.provenance.statement import Statement

class Interrupting(io.BytesIO):
    sent = False

    def send(self):
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), number)

    def readinto(self, buffer):
        self.send()
        return super().readinto(buffer)

    def read(self, size=-1):
        self.send()
        return super().read(size)

class Opened(type(Path())):
    def open(self, *_, **__):
        return Interrupting(Path(self).read_bytes())

def end(*_):
    raise SystemExit(143)

signal.signal(signal.SIGTERM, end)
plain, signed = sys.argv[1:]
for number in (signal.SIGINT, signal.SIGTERM):
    for work in (
        lambda: signing._sign(Interrupting(Path(plain).read_bytes()), io.BytesIO(), "it", ".png", Statement()),
        lambda: signing.read(Opened(signed)),
    ):
        try:
            work()
        except (KeyboardInterrupt, SystemExit) as stop:
            print(type(stop).__name__)
"""


@pytest.mark.skipif(os.name != "posix", reason="os.kill delivers no signals elsewhere")
def test_a_signal_while_signing_or_reading_is_an_exception(unsigned: Path, signed_file: Callable[[str], Path]) -> None:
    words = [sys.executable, "-c", INTERRUPTED, str(unsigned / "plain.png"), str(signed_file("png"))]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["KeyboardInterrupt"] * 2 + ["SystemExit"] * 2
    assert run.stderr == ""
