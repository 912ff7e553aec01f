"""Who published it: an Ed25519 signature (RFC 8032) over the manifest, and the publisher's key."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedkron.audit.keys import SigningKey, server_key
from fedkron.errors import AuditError, ExchangeError
from fedkron.registry.publication import LARGEST_MANIFEST, Publication, canonical, publication_of

KEY_VARIABLE = "FEDKRON_PUBLISHER_KEY"
"""Environment variable with the file of the publisher's key."""

_PURPOSE = b"fedkron publication 1\n"
"""Goes before what is signed: no signature of an audit log, or of anything else, is one of a publication."""
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True)
class Signed:
    """A publication as it travels: what it says, and the bytes that say and sign it."""

    publication: Publication
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the manifest: names this publication, and through it each of its files."""
        return hashlib.sha256(self.content).hexdigest()


def publisher_key(path: Path | None) -> SigningKey:
    """The key in a PEM file (PKCS8, not encrypted), made where there is none.

    Without a path: the file that `FEDKRON_PUBLISHER_KEY` names, else `~/.config/fedkron/publisher-key.pem`.
    Raises `ExchangeError` when others than the owner may use it, or it is no such key.
    """
    default = os.environ.get(KEY_VARIABLE) or "~/.config/fedkron/publisher-key.pem"
    try:
        return server_key(path or Path(default).expanduser())
    except (AuditError, OSError) as error:
        raise ExchangeError(str(error)) from error


def sign(publication: Publication, key: SigningKey) -> Signed:
    """Sign a publication that names this key."""
    unsigned = publication.to_bytes()
    signature = key.sign(_PURPOSE + unsigned).hex()
    signed = Signed(publication, canonical({**json.loads(unsigned), "signature": signature}))
    if len(signed.content) > LARGEST_MANIFEST:
        raise ExchangeError(
            f"the manifest has {len(signed.content)} bytes, at most {LARGEST_MANIFEST} are allowed: "
            "leave out tasks, or steps of the lineage"
        )
    return signed


def read_signed(content: bytes) -> Signed:
    """A publication from its bytes, after a look at all of them, the signature included.

    Whether its key is to be trusted is another question (`fedkron.registry.trust`). Raises `ExchangeError`
    when it is not canonical, not of a known version, signed with another key, or altered.
    """
    if len(content) > LARGEST_MANIFEST:
        raise ExchangeError(f"the manifest has more than {LARGEST_MANIFEST} bytes")
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExchangeError("the manifest is not JSON: it is damaged, or was altered") from error
    # Another spelling of the same, and keys that come twice, are seen here.
    if not isinstance(found, dict) or canonical(found) != content:
        raise ExchangeError("the manifest is not canonical JSON: it is damaged, or was altered")
    signature = found.pop("signature", None)
    publication = publication_of(dict(found))
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        raise ExchangeError("the manifest has no signature")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(publication.public_key))
    try:
        key.verify(bytes.fromhex(signature), _PURPOSE + canonical(found))
    except InvalidSignature:
        raise ExchangeError("the manifest's signature is wrong: it was altered") from None
    return Signed(publication, content)
