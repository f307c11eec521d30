"""Signed statements in files (C2PA, https://spec.c2pa.org): what made a file, from what, and that nothing has changed.

A statement is a C2PA manifest with three assertions:

- the action `c2pa.created` with the digital source type of generated media, by this program and version, from the
  portrait and the motion as ingredients of the relation `inputTo`. An ingredient has the SHA-256 of its file as
  identifier; there are no images, names or dates of it;
- the action `c2pa.watermarked.unbound`. A watermark that is bound needs the assertion `c2pa.soft-binding`, whose
  algorithm must be one of C2PA's list of published algorithms;
- `io.github.export3d.statement`: the payload of the invisible mark, which ties the mark to the statement, and the
  SHA-256 of the weights.

Nothing here uses the network: there is no time stamp authority, statements that are stored elsewhere are not fetched,
and revoked certificates are not asked for.

The libraries, c2pa-python and cryptography, are loaded here and in `certificate`, at the first use.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from export3d import files
from export3d.errors import ConfigError, InputError, MissingExtra, OutputError
from export3d.provenance.certificate import FILE, credentials
from export3d.provenance.statement import SOURCE_TYPE, Statement

log = logging.getLogger(__name__)
Result = TypeVar("Result")

GENERATED = frozenset({"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic"})
"""Names in IPTC's vocabulary of digital source types for media that a trained model made, wholly or in part."""
ASSERTION = "io.github.export3d.statement"
_ACTIONS = "c2pa.actions"
TRUST = "trust.pem"
"""In the user's folder: certificates of authorities whose signatures are trusted; there need be none."""
_MOST_TRUSTED = 10_000_000
"""Bytes of that file that are read; the certificates of all authorities of the web take a tenth."""

_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
_SETTINGS = {
    "version": 1,
    "core": {"allowed_network_hosts": [], "backing_store_memory_threshold_in_mb": 16},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": False},
    "builder": {"thumbnail": {"enabled": False}},
}
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
"""A PNG of one pixel, in base64."""
EDGE = 4_000_000
"""Bytes at both ends of a file that are searched for metadata that no library finds."""
_BOXES = tuple(b"jumd" + kind + b"\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71" for kind in (b"c2pa", b"c2cs"))
"""How C2PA's outermost box and that of a signature begin, in every container (ISO 19566-5)."""


@dataclass(frozen=True)
class SignedStatement:
    """What the signed statement in a file says, and whether it holds.

    Attributes:
        state: "unchanged": the file is as it was signed; "changed": the file or the statement was changed since;
            "invalid": the signature or its certificate breaks the rules of C2PA; "elsewhere": the file names an address
            where its statement is stored, which is not asked.
        trusted: the certificate is of an authority in the user's `trust.pem`.
        tool: name and version of the program that signed, as it says itself.
        signer: name of the organisation in the certificate.
        source_type: IPTC's name of how the file, or a file from which it was edited, came to be, such as
            "trainedAlgorithmicMedia".
        statement: of this program's files: "payload" (8 hexadecimal digits), "weights", "portrait" and "motion"
            (SHA-256), where known.
        problems: C2PA's codes of what does not hold.
    """

    state: Literal["unchanged", "changed", "invalid", "elsewhere"]
    trusted: bool = False
    tool: str | None = None
    signer: str | None = None
    source_type: str | None = None
    statement: dict[str, str] | None = None
    problems: tuple[str, ...] = ()

    @property
    def generated(self) -> bool:
        """Whether the statement says that the file is generated."""
        return self.source_type in GENERATED

    @property
    def payload(self) -> int | None:
        """The payload that the invisible mark must have."""
        text = (self.statement or {}).get("payload", "")
        return int(text, 16) if len(text) == 8 and set(text) <= set("0123456789abcdef") else None


@cache
def available() -> bool:
    """Whether statements can be signed and read; the first call says in the log if not."""
    try:
        import c2pa
        import cryptography  # noqa: F401
    except Exception as problem:  # the package raises many kinds of errors where its native library is missing
        log.debug("c2pa: %s", problem)
        log.warning(
            "c2pa-python is not installed, so signed metadata are neither written nor read; run: "
            "pip install -c constraints.txt '.[provenance]'"
        )
        return False
    return bool(c2pa)


def check() -> None:
    """Sign a tiny image in memory, so that an unusable certificate is known before the work.

    Raises:
        MissingExtra: see `available`.  ConfigError: the certificate cannot be used.
    """
    try:
        signed(base64.b64decode(_PIXEL), ".png", Statement())
    except OutputError as problem:
        raise ConfigError(
            f"the certificate in {files.home() / FILE} cannot sign ({files.reason(problem.__cause__ or problem)}); "
            "correct it, or remove it and a new one is made"
        ) from problem


def signed(data: bytes, suffix: str, statement: Statement) -> bytes:
    """An image with a signed statement.

    Args:
        data: a whole file.
        suffix: its ending, .png, .jpg or .webp.
        statement: what is said of it.

    Raises:
        MissingExtra: see `available`.  ConfigError: see `credentials`.  OutputError: the file cannot be signed.
    """
    target = io.BytesIO()
    _sign(io.BytesIO(data), target, f"the image ({suffix})", suffix, statement)
    return target.getvalue()


def sign(source: Path, target: Path, statement: Statement) -> None:
    """Write a file with a signed statement; c2pa holds at most about 300 MB of it in memory.

    Args:
        source: a .mp4, .m4v, .mov, .png, .jpg or .webp file without a statement.
        target: where the signed file goes; it is written directly, so give a temporary file.
        statement: what is said of it.

    Raises:
        MissingExtra: see `available`.  ConfigError: see `credentials`.  OutputError: the file cannot be signed.
    """
    with files.writing_to(target), source.open("rb") as unsigned, target.open("w+b") as file:
        _sign(unsigned, file, str(target), target.suffix.lower(), statement)


def read(path: Path) -> SignedStatement | None:
    """The signed statement in a file; None if there is none.

    Raises:
        MissingExtra: see `available`.  InputError: the file cannot be opened.
    """
    if not available():
        raise MissingExtra("provenance", "c2pa-python")
    import c2pa

    context = _context(_trusted_authorities())
    with files.reading(path, InputError), path.open("rb") as file:
        stream = _Stream(file)
        try:
            store = _uninterrupted(lambda: _store(stream, context), stream)
            if store is not None:
                return _told(store)
            problem = "none"
        except (c2pa.C2paError, ValueError) as error:
            if str(error).startswith("Remote"):
                return SignedStatement("elsewhere")
            problem = files.reason(error)
        return SignedStatement("changed", problems=(f"unreadable: {problem}",)) if holds_statement(file) else None


class _Stream:
    """A file for the library, which does not pass on why a file could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.flush = file.seek, file.tell, file.flush
        self.problem: OSError | None = None
        self._read, self._write = file.read, file.write
        self._ended = False

    def read(self, size: int) -> bytes:
        self._check()
        return self._read(size)

    def write(self, data: bytes) -> int:
        self._check()
        try:
            return self._write(data)
        except OSError as problem:
            self.problem = problem
            raise

    def end(self) -> None:
        """Let every further use fail, so that the library stops."""
        self._ended = True

    def _check(self) -> None:
        if self._ended:
            raise OSError("nobody waits for the result any more")


def _uninterrupted(call: Callable[[], Result], *streams: _Stream) -> Result:
    """What the library is called for, in a thread: an exception of a signal in its callbacks ends the process."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(call)
        try:
            return waiting.result()
        finally:
            for stream in streams:
                stream.end()


def _store(stream: _Stream, context: Any) -> dict[str, Any] | None:
    """All that c2pa's reader tells of a file; None if it finds no statement."""
    import c2pa

    reader = c2pa.Reader.try_create(None, stream, context=context)
    if reader is None:
        return None
    with reader:
        store: dict[str, Any] = json.loads(reader.json())
        return store


def holds_statement(file: BinaryIO) -> bool:
    """Whether a C2PA statement, valid or not, is near the beginning or the end of a file."""
    size = file.seek(0, io.SEEK_END)
    for begin in (0, max(size - EDGE, 0)):
        file.seek(begin)
        data = file.read(EDGE)
        if any(box in data for box in _BOXES):
            return True
    return False


def _sign(source: BinaryIO, target: BinaryIO, name: str, suffix: str, statement: Statement) -> None:
    if not available():
        raise MissingExtra("provenance", "c2pa-python")
    import c2pa

    if suffix not in _TYPES:
        raise OutputError(f"{name} cannot be signed: {suffix} is not one of {', '.join(_TYPES)}")
    own = credentials()
    unsigned, written = _Stream(source), _Stream(target)

    def work() -> None:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(own.algorithm, own.certificates, own.key, None))
        with signer, c2pa.Builder(_manifest(statement), context=_context()) as builder:
            builder.sign(signer, _TYPES[suffix], unsigned, written)

    try:
        _uninterrupted(work, unsigned, written)
    except c2pa.C2paError as problem:
        if written.problem is not None:
            raise written.problem from None
        raise OutputError(
            f"{name} cannot be signed ({files.reason(problem)}); check the signing certificate"
        ) from problem


def _manifest(statement: Statement) -> dict[str, Any]:
    """The C2PA manifest of a statement."""
    tool = {"name": "export3d", "version": statement.version}
    inputs = {"portrait": statement.portrait, "motion": statement.motion}
    known = {name: digest for name, digest in inputs.items() if digest}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": tool,
        "parameters": {"ingredientIds": list(known)},
    }
    own = {"payload": f"{statement.payload:08x}", "weights": statement.weights}
    return {
        "claim_generator_info": [tool],
        "ingredients": [
            {"title": name, "label": name, "relationship": "inputTo", "instance_id": f"urn:sha256:{digest}"}
            for name, digest in known.items()
        ],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created, {"action": "c2pa.watermarked.unbound"}]}},
            {"label": ASSERTION, "data": {name: value for name, value in own.items() if value}},
        ],
    }


def _told(store: dict[str, Any]) -> SignedStatement:
    """The active manifest of what c2pa's reader gives as JSON, which leaves out a manifest that it cannot read."""
    manifest = store["manifests"].get(store["active_manifest"], {})
    failures = store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    problems = dict.fromkeys(str(failure.get("code")) for failure in failures)
    problems.pop("signingCredential.untrusted", None)
    if manifest and store.get("validation_state") != "Invalid":
        state: Literal["unchanged", "changed", "invalid"] = "unchanged"
    else:
        state = (
            "changed"
            if not manifest or any(code.endswith((".mismatch", ".missing")) for code in problems)
            else "invalid"
        )
    tool = (manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator")}])[0]
    history = _history(store)
    return SignedStatement(
        state,
        store.get("validation_state") == "Trusted",
        " ".join(filter(None, (readable(tool.get("name")), readable(tool.get("version"))))) or None,
        readable(manifest.get("signature_info", {}).get("issuer")),
        _source_type([data for each in history for label, data in _assertions(each) if label.startswith(_ACTIONS)]),
        next(filter(None, map(_own_statement, history)), None),
        tuple(problems),
    )


def _history(store: dict[str, Any]) -> list[dict[str, Any]]:
    """The active manifest, then those of the files from which this one was edited, the latest first."""
    history: list[dict[str, Any]] = []
    name = store["active_manifest"]
    while name in store["manifests"] and len(history) < len(store["manifests"]):
        history.append(store["manifests"][name])
        inputs = history[-1].get("ingredients", [])
        name = next((one.get("active_manifest") for one in inputs if one.get("relationship") == "parentOf"), None)
    return history


def _assertions(manifest: dict[str, Any]) -> list[tuple[str, Any]]:
    """Label and data of the assertions of a manifest."""
    return [(str(each.get("label")), each.get("data")) for each in manifest.get("assertions", [])]


def _source_type(assertions: list[Any]) -> str | None:
    """The digital source type of the actions: of media that a model made, if any is; otherwise the first."""
    lists = [data.get("actions") for data in assertions if isinstance(data, dict)]
    actions = [action for each in lists if isinstance(each, list) for action in each]
    urls = [str(action.get("digitalSourceType") or "") for action in actions if isinstance(action, dict)]
    names = [url.rpartition("/")[2] for url in urls if url]
    return next((name for name in names if name in GENERATED), readable(next(iter(names), None)))


def _own_statement(manifest: dict[str, Any]) -> dict[str, str] | None:
    """The values that this program's statements hold; None for a statement of another program."""
    data = next((data for label, data in _assertions(manifest) if label == ASSERTION), None)
    if not isinstance(data, dict):
        return None
    told = {name: text for name in ("payload", "weights") if (text := readable(data.get(name)))}
    for ingredient in manifest.get("ingredients", []):
        digest = str(ingredient.get("instance_id")).removeprefix("urn:sha256:")
        if ingredient.get("title") in ("portrait", "motion") and len(digest) == 64:
            told[ingredient["title"]] = digest
    return told


def readable(value: object) -> str | None:
    """A foreign text, fit for a terminal."""
    return "".join(filter(str.isprintable, value))[:100] or None if isinstance(value, str) else None


def _context(authorities: str | None = None) -> Any:
    import c2pa

    trust = {"trust": {"user_anchors": authorities}} if authorities else {}
    return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS | trust))


def _trusted_authorities() -> str | None:
    """The certificates in the user's `trust.pem`, if there is one."""
    from cryptography import x509

    try:
        path = files.home() / TRUST
        if files.kind_at(path, ConfigError) is None:
            return None
        files.check_input(path, ConfigError, "certificates of authorities in PEM")
        with files.reading(path, ConfigError):
            data = files.sniff(path, _MOST_TRUSTED)
    except ConfigError as problem:
        log.warning("no authority is trusted: %s", problem)
        return None
    try:
        x509.load_pem_x509_certificates(data)
        return data.decode("ascii")
    except ValueError:
        log.warning("no authority is trusted: %s cannot be read as certificates in PEM; correct or remove it", path)
        return None
