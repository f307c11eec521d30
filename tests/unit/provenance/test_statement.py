"""provenance/statement.py: hashes and a payload that depend on the inputs and on nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from export3d.errors import ConfigError, InputError
from export3d.provenance.statement import SOURCE_TYPE, Statement, digest_of_file, digest_of_pixels

A, B = "a" * 64, "b" * 64


def test_the_same_inputs_give_the_same_payload() -> None:
    one = Statement(portrait=A, motion=B, version="1")
    assert one.payload == Statement(motion=B, portrait=A, version="1").payload
    others = [Statement(portrait=B, motion=B, version="1"), Statement(portrait=A, version="1"), Statement(version="1")]
    assert len({one.payload, *(other.payload for other in others)}) == 4


def test_the_payload_is_the_beginning_of_the_hash_of_the_canonical_json() -> None:
    statement = Statement(weights=A, version="1")
    assert statement.to_json() == f'{{"version":"1","weights":"{A}"}}'
    assert f"{statement.payload:08x}" == hashlib.sha256(statement.to_json().encode()).hexdigest()[:8]


@pytest.mark.parametrize("wrong", ["", "abc", "A" * 64, "../portrait.png", "g" * 64])
def test_only_hashes_are_stated(wrong: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        Statement(portrait=wrong)


def test_the_xmp_packet_is_xml_that_names_the_source_type() -> None:
    statement = Statement(portrait=A, version='1 "<&')
    found = {k.rpartition("}")[2]: v for e in ElementTree.fromstring(statement.xmp()).iter() for k, v in e.items()}
    assert found["DigitalSourceType"] == SOURCE_TYPE
    assert json.loads(found["statement"]) == {"portrait": A, "version": '1 "<&'}
    assert SOURCE_TYPE in statement.tags()["description"]


def test_hashes_of_files_and_pixels(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert digest_of_file(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(InputError, match="cannot be opened"):
        digest_of_file(tmp_path / "b")
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert digest_of_pixels(image) == digest_of_pixels(np.asfortranarray(image))
    assert digest_of_pixels(image) != digest_of_pixels(image.reshape(2, 8, 3)), "the size counts"
