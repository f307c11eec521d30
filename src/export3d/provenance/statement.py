"""What generated images say about where they come from: hashes of their inputs, no names and no images.

The statement is signed into the file (C2PA), written as plain metadata, and its digest is the payload of the invisible
mark. Whoever has the portrait's file can compare its SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from export3d.errors import ConfigError, Export3DError, InputError
from export3d.files import reading

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media that were created by a trained model."""
XMP_KEYWORD = "XML:com.adobe.xmp"
"""Keyword of the text chunk that holds XMP in a PNG."""
TITLE = "AI-generated"
_HEXADECIMAL = frozenset("0123456789abcdef")


def _version() -> str:
    try:
        return importlib.metadata.version("export3d")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What an output was made from; the same inputs give the same statement.

    Attributes:
        portrait: SHA-256 of the portrait's file, or of its pixels where there was no file, hexadecimal.
        motion: SHA-256 of the file of the driving video or motion.
        weights: SHA-256 of the weights' file.
        version: of this package.

    Raises:
        ConfigError: a hash that is none.
    """

    portrait: str | None = None
    motion: str | None = None
    weights: str | None = None
    version: str = field(default_factory=_version)

    def __post_init__(self) -> None:
        for name in ("portrait", "motion", "weights"):
            value = getattr(self, name)
            if value is not None and not (len(value) == 64 and _HEXADECIMAL.issuperset(value)):
                raise ConfigError(f"{name} of a statement must be a SHA-256 in 64 hexadecimal digits, got {value!r}")

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces; what is unknown is left out."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(known, sort_keys=True, separators=(",", ":"))

    @property
    def payload(self) -> int:
        """The invisible mark's 32 bits: the first bits of the SHA-256 of `to_json`, 0 to 2^32 - 1."""
        return int.from_bytes(hashlib.sha256(self.to_json().encode()).digest()[:4], "big")

    def tags(self) -> dict[str, str]:
        """Metadata of an MP4: title, comment (readable, with the statement as JSON) and description (XMP's term)."""
        return {
            "title": TITLE,
            "comment": f"{TITLE} by export3d {self.version}: {self.to_json()}",
            "description": f"DigitalSourceType {SOURCE_TYPE}",
        }

    def xmp(self) -> str:
        """An XMP packet for PNG, JPEG and WebP, with `Iptc4xmpExt:DigitalSourceType`."""
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
            ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
            ' xmlns:export3d="urn:export3d:statement#"'
            f" xmp:CreatorTool={quoteattr(f'export3d {self.version}')}"
            f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"'
            f" export3d:statement={quoteattr(self.to_json())}/>"
            '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
        )


def digest_of_file(path: str | Path, error: type[Export3DError] = InputError) -> str:
    """SHA-256 of a file, hexadecimal; raises `error` if it cannot be read."""
    with reading(path, error), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_pixels(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's size (height, width as text) and pixels, hexadecimal."""
    return digest_of_parts([f"{image.shape[0]} {image.shape[1]}\n".encode(), np.ascontiguousarray(image).data])


def digest_of_parts(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of parts one after the other, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
