"""The key and the certificates that sign generated files: the user's own, or ones made at first use.

Both are in one file, `signing.pem` in the user's folder (`files.home`): a private key, then the certificate for it and
the certificates that issued that one, in PEM. One file cannot hold half of a pair. It is made under a lock, so several
processes that start at once end with the same certificate.

Where the file is missing, a certificate authority is made, issues one certificate and is forgotten: C2PA accepts no
certificate that signs itself. Such a certificate names nobody. It proves that a file is unchanged, not who made it. It
is valid for decades, since a signature without a trusted time ends with its certificate.

Where the folder cannot be written, each run signs with a certificate of its own, which proves as much.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from export3d.errors import ConfigError, OutputError
from export3d.files import check_input, home, kind_at, locked, make_folder, reading, reason, replacing

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

log = logging.getLogger(__name__)

FILE = "signing.pem"
_LIMIT = 100_000
"""Bytes; a key and a chain of certificates have a few thousand."""
_VALID = timedelta(days=365 * 40)
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----(?:-?[^-])+-----END \1-----")
_REMEDY = "correct it, or remove it and a new one is made"


@dataclass(frozen=True)
class Credentials:
    """What a signature is made with.

    Attributes:
        algorithm: C2PA's name of the signature algorithm, such as "es256".
        certificates: PEM; the certificate of the key first, then its issuers.
        key: PEM (PKCS #8), not encrypted.
    """

    algorithm: str
    certificates: bytes
    key: bytes


def credentials() -> Credentials:
    """The key and certificates in the user's folder, made there if there are none.

    Raises:
        ConfigError: the file is damaged, expired, encrypted, readable by others, the certificate lacks an extension
            that C2PA asks for, or key and certificate do not match.
    """
    try:
        path = home() / FILE
        if kind_at(path, ConfigError) is None:
            _keep(path)
    except (ConfigError, OutputError) as problem:
        return _parsed(_of_this_run(str(problem).partition(";")[0]), FILE)
    check_input(path, ConfigError, "a signing key and its certificates")
    with reading(path, ConfigError), path.open("rb") as file:
        others = os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o007
        text = file.read(_LIMIT + 1)
    if others:
        raise ConfigError(f"other users may read the signing key {path}; run: chmod 600 {path}")
    if len(text) > _LIMIT:
        raise ConfigError(f"{path} holds more than a signing key and its certificates; {_REMEDY}")
    return _parsed(text, path)


@cache
def _of_this_run(problem: str) -> bytes:
    log.warning("no signing certificate can be kept (%s); this run signs with a certificate of its own", problem)
    return _made()


def _keep(path: Path) -> None:
    """Make a file that only its owner may read, unless another process was first."""
    make_folder(path.parent)
    with locked(path):
        if kind_at(path, ConfigError) is None:
            with replacing(path, mode=0o600) as temporary:
                temporary.write_bytes(_made())


def _parsed(text: bytes, path: Path | str) -> Credentials:
    """The contents of a file, checked."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    blocks = [(match[1].decode(), match[0] + b"\n") for match in _BLOCK.finditer(text)]
    keys = [block for label, block in blocks if label.endswith("PRIVATE KEY")]
    if len(keys) != 1:
        raise ConfigError(f"{path} holds {len(keys)} private keys in PEM, not one; {_REMEDY}")
    if b"ENCRYPTED" in keys[0]:
        raise ConfigError(
            f"the signing key in {path} is encrypted; decrypt it (openssl pkey -in KEY.pem -out PLAIN.pem), put it "
            "there in place of the encrypted one, and run chmod 600"
        )
    try:
        key = serialization.load_pem_private_key(keys[0], None)
        chain = [x509.load_pem_x509_certificate(block) for label, block in blocks if label == "CERTIFICATE"]
        own = [certificate for certificate in chain if certificate.public_key() == key.public_key()]
        missing = next(map(_missing, own), None)
        algorithm = _algorithm(key)
    except Exception as problem:  # parsers fail on damaged bytes in many ways
        raise ConfigError(
            f"the signing key in {path} is damaged or unsuitable ({reason(problem)}); {_REMEDY}"
        ) from problem
    if not own:
        raise ConfigError(f"no certificate in {path} belongs to its private key; {_REMEDY}")
    _check(own[0], path)
    if missing:
        raise ConfigError(
            f"the signing certificate in {path} has no {missing}, which C2PA asks for; use one that has it, or remove "
            "the file and a new one is made"
        )
    ordered = [own[0], *(certificate for certificate in chain if certificate is not own[0])]
    return Credentials(
        algorithm,
        b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in ordered),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _check(certificate: x509.Certificate, path: Path | str) -> None:
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        first, last = certificate.not_valid_before_utc.date(), certificate.not_valid_after_utc.date()
        raise ConfigError(f"the signing certificate in {path} is valid from {first} to {last} only; {_REMEDY}")
    if certificate.issuer == certificate.subject:
        raise ConfigError(
            f"the signing certificate in {path} signs itself, which C2PA refuses; use one that an authority issued, "
            "or remove the file and a new one is made"
        )


def _missing(certificate: x509.Certificate) -> str | None:
    """The first extension that C2PA asks for and the certificate lacks."""
    from cryptography import x509

    found = {type(extension.value): extension.value for extension in certificate.extensions}
    usage = found.get(x509.KeyUsage)
    if not (isinstance(usage, x509.KeyUsage) and usage.digital_signature):
        return "key usage (keyUsage) for digital signatures"
    if x509.ExtendedKeyUsage not in found:
        return "extended key usage (extendedKeyUsage), such as e-mail protection"
    return None if x509.AuthorityKeyIdentifier in found else "authority key identifier (authorityKeyIdentifier)"


def _algorithm(key: PrivateKeyTypes) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    kind = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
    raise ValueError(f"C2PA does not sign with {kind}")


def _made() -> bytes:
    """A new key with a certificate for it, and that of its authority, whose own key is lost on return."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(what: str) -> x509.Name:
        pairs = (NameOID.ORGANIZATION_NAME, "export3d"), (NameOID.COMMON_NAME, what)
        return x509.Name([x509.NameAttribute(kind, text) for kind, text in pairs])

    begin = datetime.now(UTC) - timedelta(days=1)  # clocks differ
    issuer, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def issued(what: str, public: ec.EllipticCurvePublicKey, authority: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder(named("export3d local authority"), named(what), public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + _VALID)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(_usage(authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        )
        if not authority:  # C2PA's certificate profile asks for one of a few purposes; this one is the most usual
            purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purposes, critical=False)
        return builder.sign(issuer, hashes.SHA256())

    certificates = (
        issued("export3d local certificate", own.public_key(), authority=False),
        issued("export3d local authority", issuer.public_key(), authority=True),
    )
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key + b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _usage(authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
