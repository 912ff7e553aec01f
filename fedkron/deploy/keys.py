"""Keys and certificates of a federation: an authority, the SuperLink's certificate, one key per SuperNode.

    FOLDER/
        authority/ca.key            signs certificates; stays with whoever runs the federation
        superlink/ca.crt            the authority's certificate, for everybody
        superlink/server.crt, server.key
        superlink/superexec.secret  shared by SuperLink and SuperExec: who may fetch the server's program
        node0/ca.crt                what the first SuperNode's machine gets
        node0/node.key, node.pub    its key pair; the SuperLink is told the public one

Elliptic curve P-384 throughout. Private files are created with mode 0600 in folders of mode 0700.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkron.errors import ConfigError

LOCAL_HOSTS = ("localhost", "127.0.0.1")
AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
SKEW = timedelta(hours=1)
"""Certificates are valid from so long ago: not all clocks agree."""

AUTHORITY = "authority"
SUPERLINK = "superlink"
CA_KEY, CA = "ca.key", "ca.crt"
SERVER_KEY, SERVER = "server.key", "server.crt"
SECRET = "superexec.secret"
NODE_KEY, NODE_PUBLIC = "node.key", "node.pub"


@dataclass(frozen=True)
class Issued:
    """What has been made: for which hosts, and until when."""

    folder: Path
    hosts: tuple[str, ...]
    nodes: tuple[str, ...]
    server_expires: datetime
    authority_expires: datetime


def issue(folder: Path, *, hosts: Sequence[str], nodes: int, days: int = SERVER_DAYS) -> Issued:
    """Make everything that a new federation needs; `days` is how long the server's certificate is valid.

    Raises `ConfigError` when the folder exists, for a host that is neither a DNS name nor an IP address, a
    negative number of nodes, or fewer days than one.
    """
    if nodes < 0:
        raise ConfigError(f"--nodes is {nodes}: it must be at least 0")
    names = _alternative_names(hosts)
    ca_key = ec.generate_private_key(ec.SECP384R1())
    ca = _authority_certificate(ca_key)
    server_key, server = _server_certificate(ca, ca_key, names, days)
    _make_folder(folder)
    for part in (AUTHORITY, SUPERLINK):
        _make_folder(folder / part)
    _write_secret(folder / AUTHORITY / CA_KEY, _pem(ca_key))
    _write_public(folder / AUTHORITY / CA, ca.public_bytes(Encoding.PEM))
    _write_public(folder / SUPERLINK / CA, ca.public_bytes(Encoding.PEM))
    _write_secret(folder / SUPERLINK / SERVER_KEY, _pem(server_key))
    _write_public(folder / SUPERLINK / SERVER, server.public_bytes(Encoding.PEM))
    _write_secret(folder / SUPERLINK / SECRET, secrets.token_bytes(32))
    made = tuple(f"node{number}" for number in range(nodes))
    for name in made:
        issue_node(folder / name)
        _write_public(folder / name / CA, ca.public_bytes(Encoding.PEM))
    return Issued(folder, tuple(hosts), made, server.not_valid_after_utc, ca.not_valid_after_utc)


def issue_node(folder: Path) -> Path:
    """Make the key pair of one SuperNode; returns its public key's file.

    Done on the node's own machine the private key never travels. Raises `ConfigError` when the folder exists.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _make_folder(folder)
    # OpenSSH's format is the one that Flower reads.
    _write_secret(folder / NODE_KEY, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write_public(folder / NODE_PUBLIC, public + b"\n")
    return folder / NODE_PUBLIC


def renew(folder: Path, *, hosts: Sequence[str], days: int = SERVER_DAYS) -> Issued:
    """Replace the server's key and certificate by new ones of the same authority; nodes keep what they have.

    Without `hosts` the new certificate is for those of the old one. Raises `ConfigError` as `issue` does, and
    when the folder has no authority.
    """
    try:
        ca = x509.load_pem_x509_certificate((folder / AUTHORITY / CA).read_bytes())
        ca_key = load_pem_private_key((folder / AUTHORITY / CA_KEY).read_bytes(), None)
        old = x509.load_pem_x509_certificate((folder / SUPERLINK / SERVER).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is not a folder of `fedkron keys new`: {error}") from None
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / AUTHORITY / CA_KEY} is not a key of `fedkron keys new`")
    hosts = tuple(hosts) or certificate_hosts(old)
    key, certificate = _server_certificate(ca, ca_key, _alternative_names(hosts), days)
    # Both are whole before either takes the old one's place.
    pairs = ((SERVER_KEY, _pem(key)), (SERVER, certificate.public_bytes(Encoding.PEM)))
    for name, content in pairs:
        (folder / SUPERLINK / f"{name}.new").unlink(missing_ok=True)
        _write_secret(folder / SUPERLINK / f"{name}.new", content)
    for name, _ in pairs:
        (folder / SUPERLINK / f"{name}.new").replace(folder / SUPERLINK / name)
    return Issued(folder, hosts, (), certificate.not_valid_after_utc, ca.not_valid_after_utc)


def certificate_hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and IP addresses that a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkron federation authority")])
    return (
        _certificate(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: x509.SubjectAlternativeName,
    days: int,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    if days < 1:
        raise ConfigError(f"--days is {days}: it must be at least 1")
    left = (ca.not_valid_after_utc - datetime.now(UTC)).days
    if days > left:
        raise ConfigError(f"--days is {days}, but the authority's own certificate ends in {left} days")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkron SuperLink")])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _certificate(subject, ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    return key, certificate


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    if not hosts:
        raise ConfigError("a certificate needs a host: give the name under which nodes reach the SuperLink")
    return x509.SubjectAlternativeName([_alternative_name(host) for host in hosts])


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if not all(label and label.replace("-", "").isalnum() and label.isascii() for label in labels):
        raise ConfigError(f"{host!r} is neither a DNS name nor an IP address (write names as ASCII, no port)")
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ConfigError(f"{folder} exists: keys are never overwritten; choose another folder") from None


def _write_secret(path: Path, content: bytes) -> None:
    _write_new(path, content, 0o600)


def _write_public(path: Path, content: bytes) -> None:
    _write_new(path, content, 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
