"""The server's key: Ed25519 (RFC 8032), kept in a file that only its owner can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedkron.errors import AuditError

SigningKey: TypeAlias = Ed25519PrivateKey
"""The server's private key."""

PublicKey: TypeAlias = Ed25519PublicKey


def server_key(path: Path) -> SigningKey:
    """The key in a PEM file (PKCS8, not encrypted); where there is no file, a new key is made and written.

    Raises `AuditError` when others than the owner may read or write the file, or when it holds no such key.
    """
    if not path.exists():
        _create(path)
    return _load(path)


def public_key_of(key: SigningKey) -> str:
    """The 32 bytes of the public key in hex, as they stand in a log's first entry."""
    return key.public_key().public_bytes_raw().hex()


def read_public_key(path: Path) -> PublicKey:
    """A public key in a PEM file; raises `AuditError` when there is none."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise AuditError(f"{path} is not a public key in PEM ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AuditError(f"{path} holds a key of another sort: the key of an audit log is Ed25519")
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Unlike renaming, this fails where another process has made a key meanwhile: that one stays.
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> SigningKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        raise AuditError(f"the key in {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AuditError(
            f"others may use the key in {path} (its mode is {stat.S_IMODE(mode):04o}): if nobody has, "
            f"chmod 600 {path}; otherwise delete it, a new one is made"
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise AuditError(f"{path} is not a private key in PEM without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise AuditError(f"{path} holds a key of another sort: the key of an audit log is Ed25519")
    return key
