"""What a node does in a session, step by step. Nothing is kept here: what has to be kept is returned.

`advertise` gives the public keys that the server puts on the list of all; `share` seals shares of the node's
secrets for all others, to be passed on by the server; `opened` reads theirs; `total_mask` hides the upload;
`revealed` names one share of each node: of its mask key if its upload is not in the sum, else of its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedkron.errors import SecurityError
from fedkron.secure import shamir
from fedkron.secure.keys import KEY_SIZE, agreed_key, derived_key, digest, public_key
from fedkron.secure.masks import own_stream, pair_stream
from fedkron.secure.packing import Words
from fedkron.secure.roster import Advertisement, Roster, Session

SEALED_SIZE = 2 * shamir.SIZE + 16
COMMITMENT_SIZE = 16
"""Of the hash of a share: enough against a second share with the same hash."""

_NONCE = bytes(12)
"""A sealing key is for one message: it is derived from keys and a transcript of one round, sender and
receiver.
"""


@dataclass(frozen=True)
class Secrets:
    """What a node draws for one session, from the operating system's randomness."""

    seal: bytes
    mask: bytes
    seed: bytes

    def to_bytes(self) -> bytes:
        """Fixed size. Not for the wire."""
        return self.seal + self.mask + self.seed

    @staticmethod
    def from_bytes(data: bytes) -> Secrets:
        """Inverse of `to_bytes`."""
        return Secrets(*(data[start : start + KEY_SIZE] for start in range(0, 3 * KEY_SIZE, KEY_SIZE)))


@dataclass(frozen=True)
class Shares:
    """One node's shares of another's two secrets. Who has `threshold` of one kind has that secret."""

    mask: bytes
    seed: bytes

    def commitments(self, transcript: bytes, owner: int, holder: int) -> bytes:
        """Hashes of both: the server finds out who gives it a false share."""
        return b"".join(
            commitment(share, kind, transcript, owner, holder)
            for share, kind in ((self.mask, b"mask"), (self.seed, b"seed"))
        )


@dataclass(frozen=True)
class Sealed:
    """Shares for another node, which the server passes on, and hashes of the two for the server."""

    box: bytes
    commitments: bytes


def advertise(session: Session, node: int, identity: Ed25519PrivateKey) -> tuple[Secrets, Advertisement]:
    """Draw the secrets of a session, and make its public keys known."""
    secrets = Secrets(*(shamir.random_secret() for _ in range(3)))
    keys = Advertisement(
        node,
        identity.public_key().public_bytes_raw(),
        public_key(_private(secrets.seal)),
        public_key(_private(secrets.mask)),
        seed_hash(secrets.seed),
    )
    return secrets, keys.signed(session, identity)


def check_own(secrets: Secrets, node: int, roster: Roster) -> None:
    """Raise `SecurityError` unless the list has this node with the keys that it has advertised."""
    own = roster.by_node.get(node)
    if own is None or (own.seal, own.mask, own.seed) != (
        public_key(_private(secrets.seal)),
        public_key(_private(secrets.mask)),
        seed_hash(secrets.seed),
    ):
        raise SecurityError(f"the list of nodes does not have the keys that node {node} has advertised")


def share(secrets: Secrets, node: int, roster: Roster) -> list[Sealed]:
    """Shares of this node's secrets for every node of the list, itself included, in the list's order."""
    check_own(secrets, node, roster)
    count = len(roster.nodes)
    parts = zip(
        shamir.split(secrets.mask, roster.threshold, count),
        shamir.split(secrets.seed, roster.threshold, count),
        strict=True,
    )
    result = []
    for other, (mask, seed) in zip(roster.nodes, parts, strict=True):
        shares = Shares(mask, seed)
        box = _sealing(secrets, roster, node, other, other).encrypt(_NONCE, mask + seed, roster.transcript)
        result.append(Sealed(box, shares.commitments(roster.transcript, node, other)))
    return result


def opened(secrets: Secrets, node: int, roster: Roster, boxes: Mapping[int, bytes]) -> dict[int, Shares]:
    """The shares that others have sent to this node, by who sent them.

    Raises `SecurityError` for a box that was changed, or not made by this sender, for this node and this
    list.
    """
    found = {}
    for sender, box in boxes.items():
        try:
            sealing = _sealing(secrets, roster, sender, node, sender)
            plain = sealing.decrypt(_NONCE, box, roster.transcript)
        except InvalidTag:
            raise SecurityError(
                f"the shares of node {sender} cannot be opened: they were changed on the way, or "
                "made for another list of nodes"
            ) from None
        found[sender] = Shares(plain[: shamir.SIZE], plain[shamir.SIZE :])
    return found


def total_mask(
    secrets: Secrets, node: int, roster: Roster, sharing: Sequence[int], *, binding: bytes, words: int
) -> Words:
    """All that this node adds to its upload: its own mask, and one for each other node in `sharing`.

    Masks cancel only among nodes with the same `binding`: a hash of all that they have to have been sent
    alike.
    """
    total = own_stream(secrets.seed, binding, words).copy()
    for other in sharing:
        if other != node:
            key = mask_key(secrets.mask, roster.by_node[other].mask, binding)
            np.add(total, pair_stream(key, node, other, words), out=total)
    return total


def revealed(
    node: int, roster: Roster, held: Mapping[int, Shares], survivors: Sequence[int]
) -> dict[int, bytes]:
    """One share of each node in `held`: of its seed if its upload is in the sum, else of its mask key.

    To be called once in a session: both shares of a node together would unmask its upload. Raises
    `SecurityError` where the survivors are not nodes whose shares are held, too few, or not this node.
    """
    roster.checked(survivors, "nodes whose uploads are to be added up")
    if node not in survivors or not set(survivors) <= held.keys():
        raise SecurityError(
            f"the uploads of {list(survivors)} cannot be added up: node {node} knows {sorted(held)}"
        )
    return {other: shares.seed if other in survivors else shares.mask for other, shares in held.items()}


def mask_key(secret: bytes, public: bytes, binding: bytes) -> bytes:
    """The key of the mask that the owner of a secret has together with the owner of a public key."""
    return agreed_key(_private(secret), public, b"pair mask" + binding)


def mask_public_key(secret: bytes) -> bytes:
    """The public key that belongs to a secret mask key."""
    return public_key(_private(secret))


def seed_hash(seed: bytes) -> bytes:
    """What a node publishes of its seed."""
    return digest(b"seed", seed)


def commitment(share: bytes, kind: bytes, transcript: bytes, owner: int, holder: int) -> bytes:
    """The hash of a share that its owner publishes to the server."""
    who = owner.to_bytes(8) + holder.to_bytes(8)
    return digest(kind + b" share", transcript, who, share)[:COMMITMENT_SIZE]


def _private(secret: bytes) -> bytes:
    """The X25519 key of a secret: what is shared is an element of the field, which not every key is."""
    return derived_key(secret, b"private key")


def _sealing(secrets: Secrets, roster: Roster, sender: int, receiver: int, other: int) -> ChaCha20Poly1305:
    who = sender.to_bytes(8) + receiver.to_bytes(8)
    purpose = b"seal" + who + roster.transcript
    return ChaCha20Poly1305(agreed_key(_private(secrets.seal), roster.by_node[other].seal, purpose))
