"""Keys: the identity of a node, keys that are agreed on for one round, and what is derived from them.

All primitives are those of `cryptography`: Ed25519 (RFC 8032), X25519 (RFC 7748), HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedkron.errors import ConfigError, SecurityError

KEY_SIZE = 32
"""Bytes of every key here, private, public or derived."""

SIGNATURE_SIZE = 64

LABEL = b"fedkron secure aggregation 1: "
"""What is signed, hashed or derived here begins with this: it means nothing anywhere else."""


def new_identity() -> Ed25519PrivateKey:
    """An identity that nobody knows yet."""
    return Ed25519PrivateKey.generate()


def load_identity(path: Path) -> Ed25519PrivateKey:
    """The private key of a node, as `ssh-keygen -t ed25519 -N ""` writes it, or PEM.

    Raises `ConfigError` when it is missing, of another kind, has a password, or others can read it.
    """
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"no identity key at {path}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"identity key {path} can be read by others: chmod 600 {path}")
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"identity key {path} cannot be read (has it a password?): {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f'identity key {path} is no Ed25519 key: make one with ssh-keygen -t ed25519 -N ""')
    return key


def load_peers(path: Path) -> frozenset[bytes]:
    """The identities that a node accepts: public keys, one a line, as in the `.pub` files of `ssh-keygen`.

    Empty lines and those that begin with # are left out. Raises `ConfigError` for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"list of nodes' keys {path} cannot be read: {error}") from None
    peers = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            key = load_ssh_public_key(line.strip().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path}, line {number}: not a public key: {error}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{path}, line {number}: not an Ed25519 key (ssh-ed25519 …)")
        peers.add(key.public_bytes_raw())
    if not peers:
        raise ConfigError(f"{path} names no key: list the public keys of all nodes, one a line")
    return frozenset(peers)


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed_key(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """What two nodes derive alike for a purpose, each from its own private key and the other's public one.

    Raises `SecurityError` for a public key of small order, with which everybody could derive it.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        raise SecurityError(f"public key {public.hex()} is not fit for a key agreement") from None
    return derived_key(shared, purpose)


def derived_key(secret: bytes, purpose: bytes) -> bytes:
    """A key for a purpose from a secret."""
    return HKDF(SHA256(), KEY_SIZE, salt=None, info=LABEL + purpose).derive(secret)


def digest(purpose: bytes, *parts: bytes) -> bytes:
    """SHA-256 over a purpose and parts of fixed size."""
    hasher = Hash(SHA256())
    for part in (LABEL, purpose, *parts):
        hasher.update(part)
    return hasher.finalize()


def check_signature(identity: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of an identity has signed a message."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
