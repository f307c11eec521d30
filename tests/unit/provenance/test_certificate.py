"""The key and certificates that sign: made once, kept private, and refused in a sentence where they cannot be used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from export3d.errors import ConfigError
from export3d.provenance import certificate, signing
from export3d.provenance.certificate import FILE, credentials

LOCK = f".{FILE}.lock"
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which does not exist yet."""
    monkeypatch.setenv("EXPORT3D_HOME", str(tmp_path / "home"))
    certificate._of_this_run.cache_clear()
    return tmp_path / "home"


def issued(
    public,
    name: str = "a company",
    issuer: str = "an authority",
    days: int = 30,
    without: str = "",
    purpose=ExtendedKeyUsageOID.EMAIL_PROTECTION,
):
    """A certificate for a key, issued by a new authority, perhaps without an extension."""
    names = [x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, each)]) for each in (issuer, name)]
    others = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    usage = dict.fromkeys([*others.split(" "), "key_cert_sign", "crl_sign"], False)
    authority = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder(*names, public, x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=min(days, 0) - 1))
        .not_valid_after(NOW + timedelta(days=days))
    )
    for extension in (
        x509.BasicConstraints(ca=False, path_length=None),
        x509.KeyUsage(digital_signature=True, **usage),
        x509.ExtendedKeyUsage([purpose]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
    ):
        if type(extension).__name__ != without:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.KeyUsage))
    return builder.sign(authority, hashes.SHA256())


def pem(key, *certificates, password: bytes | None = None, form=serialization.PrivateFormat.PKCS8) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    return text + b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def keep(folder: Path, text: bytes, mode: int = 0o600) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(text)
    (folder / FILE).chmod(mode)
    return folder / FILE


# --- the made one -----------------------------------------------------------------------------------------------------


def test_the_first_use_makes_a_certificate_and_later_ones_use_it(folder: Path) -> None:
    first = credentials()
    assert credentials() == first
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, FILE], "no temporary file is left"
    if os.name == "posix":
        assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600


def test_a_forgotten_authority_issues_the_made_certificate() -> None:
    made = credentials()
    own, authority = x509.load_pem_x509_certificates(made.certificates)
    own.verify_directly_issued_by(authority)
    key = serialization.load_pem_private_key(made.key, None)
    assert own.public_key() == key.public_key()
    assert authority.public_key() != key.public_key(), "the authority's key is not kept"
    assert own.not_valid_after_utc - NOW > timedelta(days=365 * 30)


def test_processes_that_start_at_once_end_with_one_certificate(folder: Path) -> None:
    program = "from export3d.provenance.certificate import credentials; print(credentials().certificates.hex())"
    runs = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {run.communicate()[0] for run in runs}
    assert all(run.returncode == 0 for run in runs)
    assert printed == {credentials().certificates.hex() + "\n"}


def test_a_certificate_that_is_there_is_not_replaced(folder: Path) -> None:
    first = credentials()
    certificate._keep(folder / FILE)  # a process that found none, and comes second
    assert credentials() == first


def test_where_nothing_can_be_kept_a_run_signs_with_one_certificate_of_its_own(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the folder should be")
    assert credentials() == credentials()
    assert [record.message.count("of its own") for record in caplog.records] == [1]


# --- the user's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ed25519.Ed25519PrivateKey.generate, "ed25519"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), "ps256", marks=pytest.mark.slow),
    ],
)
def test_a_key_of_the_users_own_signs(folder: Path, make: Callable, algorithm: str) -> None:
    key = make()
    keep(folder, pem(key, issued(key.public_key())))
    assert credentials().algorithm == algorithm
    signing.check()


def test_the_order_in_the_file_does_not_matter(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    own, other = issued(key.public_key()), issued(ec.generate_private_key(ec.SECP256R1()).public_key())
    text = other.public_bytes(serialization.Encoding.PEM) + own.public_bytes(serialization.Encoding.PEM)
    keep(folder, b"Bag Attributes\n" + text + pem(key))
    assert x509.load_pem_x509_certificates(credentials().certificates) == [own, other]


def unusable() -> dict[str, tuple[bytes, str]]:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    whole = pem(key, issued(key.public_key()))
    damaged = bytearray(whole)
    damaged[100:110] = b"AAAAAAAAAA"
    return {
        "text": (b"hello", "0 private keys"),
        "two keys": (whole + pem(other), "2 private keys"),
        "damaged": (bytes(damaged), "damaged"),
        "cut": (whole[: len(whole) // 2], "no certificate|damaged"),
        "encrypted": (pem(key, issued(key.public_key()), password=b"secret"), "openssl pkey -in"),
        "encrypted in the old form": (
            pem(
                key,
                issued(key.public_key()),
                password=b"secret",
                form=serialization.PrivateFormat.TraditionalOpenSSL,
            ),
            "is encrypted",
        ),
        "no key usage": (pem(key, issued(key.public_key(), without="KeyUsage")), "keyUsage"),
        "no purpose": (pem(key, issued(key.public_key(), without="ExtendedKeyUsage")), "extendedKeyUsage"),
        "no issuer's key": (
            pem(key, issued(key.public_key(), without="AuthorityKeyIdentifier")),
            "authorityKeyIdentifier",
        ),
        "of another key": (pem(key, issued(other.public_key())), "belongs to its private key"),
        "expired": (pem(key, issued(key.public_key(), days=-10)), "valid from .* only"),
        "signs itself": (pem(key, issued(key.public_key(), name="me", issuer="me")), "signs itself"),
        "no key of C2PA": (
            pem(weak := ec.generate_private_key(ec.SECP256K1()), issued(weak.public_key())),
            "secp256k1",
        ),
        "long": (whole + b"\n" * 100_000, "more than"),
    }


@pytest.mark.parametrize(("text", "words"), unusable().values(), ids=unusable())
def test_what_cannot_sign_is_one_sentence(folder: Path, text: bytes, words: str) -> None:
    path = keep(folder, text)
    with pytest.raises(ConfigError, match=words) as refused:
        credentials()
    assert str(path) in str(refused.value)
    assert path.read_bytes() == text, "the user's file stays"


def test_a_folder_in_its_place_is_one_sentence(folder: Path) -> None:
    (folder / FILE).mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a folder"):
        credentials()


@pytest.mark.skipif(os.name != "posix", reason="other permissions")
def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    credentials()
    (folder / FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        credentials()


def test_a_certificate_that_c2pa_refuses_is_known_before_the_work(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    plain = issued(key.public_key(), purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    path = keep(folder, pem(key, plain))
    with pytest.raises(ConfigError, match="certificate is invalid") as refused:
        signing.check()
    assert str(path) in str(refused.value)
