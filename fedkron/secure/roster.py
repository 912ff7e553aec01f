"""Who takes part in a round, with which keys: the list that all nodes have to see alike."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedkron.errors import SecurityError
from fedkron.secure.keys import KEY_SIZE, SIGNATURE_SIZE, check_signature, digest

CONTRACT_SIZE = 32


@dataclass(frozen=True)
class Session:
    """What one sum is about: Flower's run, the round, the values of a code, and what travels (32 bytes)."""

    run: int
    round: int
    levels: int
    contract: bytes

    def to_bytes(self) -> bytes:
        """Fixed size: two sessions are the same when their bytes are."""
        return _SESSION.pack(self.run, self.round, self.levels, self.contract)

    @staticmethod
    def from_bytes(data: bytes) -> Session:
        """Inverse of `to_bytes`; raises `SecurityError` for anything else."""
        if len(data) != _SESSION.size:
            raise SecurityError(f"a session has {_SESSION.size} bytes, here are {len(data)}")
        return Session(*_SESSION.unpack(data))


_SESSION = struct.Struct(f">QIH{CONTRACT_SIZE}s")


@dataclass(frozen=True)
class Advertisement:
    """The public keys of a node for one session, signed with its identity.

    `seal` is for what nodes send each other, `mask` for what they mask with; `seed` is the hash of the seed
    of the node's own mask, so that a false one is found out.
    """

    node: int
    identity: bytes
    seal: bytes
    mask: bytes
    seed: bytes
    signature: bytes = b""

    def signed(self, session: Session, identity: Ed25519PrivateKey) -> Advertisement:
        """The same with the node's signature."""
        return Advertisement(*self._keys(), identity.sign(self._message(session)))

    def is_signed(self, session: Session) -> bool:
        """Whether the signature is that of the identity, for this session."""
        return check_signature(self.identity, self.signature, self._message(session))

    def to_bytes(self) -> bytes:
        """Fixed size."""
        return _ADVERTISEMENT.pack(*self._keys(), self.signature)

    def _keys(self) -> tuple[int, bytes, bytes, bytes, bytes]:
        return self.node, self.identity, self.seal, self.mask, self.seed

    def _message(self, session: Session) -> bytes:
        keys = _ADVERTISEMENT.pack(*self._keys(), bytes(SIGNATURE_SIZE))
        return digest(b"advertisement", session.to_bytes(), keys)


_ADVERTISEMENT = struct.Struct(f">Q{KEY_SIZE}s{KEY_SIZE}s{KEY_SIZE}s{KEY_SIZE}s{SIGNATURE_SIZE}s")


def read_advertisements(data: bytes) -> tuple[Advertisement, ...]:
    """Advertisements that follow each other; raises `SecurityError` where one is cut off."""
    if len(data) % _ADVERTISEMENT.size:
        raise SecurityError(f"{len(data)} bytes are not advertisements of {_ADVERTISEMENT.size} bytes each")
    return tuple(Advertisement(*fields) for fields in _ADVERTISEMENT.iter_unpack(data))


@dataclass(frozen=True)
class Policy:
    """What a node asks of a round before it takes part, whatever the server says.

    `threshold` is the share of the nodes that it takes to unmask; `peers` are the identities that are known,
    None where any will do.
    """

    threshold: float = 0.6
    min_nodes: int = 3
    peers: frozenset[bytes] | None = None


def shares_needed(threshold: float, nodes: int) -> int:
    """How many of a round's nodes it takes to unmask anything: more than half of them in any case.

    Two sets of so many nodes always have a node in common, and no honest node gives away both secrets of
    another: with k nodes on the server's side this holds as long as k < 2 · shares_needed − nodes.
    """
    return max(math.ceil(round(threshold * nodes, 9)), nodes // 2 + 1)


@dataclass(frozen=True)
class Roster:
    """The nodes of a session in the order of their ids, and how many of them it takes to unmask."""

    session: Session
    advertisements: tuple[Advertisement, ...]
    threshold: int

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """Ids, ascending."""
        return tuple(advertisement.node for advertisement in self.advertisements)

    @cached_property
    def by_node(self) -> dict[int, Advertisement]:
        """Advertisements by node."""
        return {advertisement.node: advertisement for advertisement in self.advertisements}

    @cached_property
    def transcript(self) -> bytes:
        """A hash of all of it: keys that are derived with it are of no use in any other session or list."""
        return digest(b"roster", self.session.to_bytes(), struct.pack(">I", self.threshold), self.to_bytes())

    def share_number(self, node: int) -> int:
        """The number of a node's shares, from 1."""
        return self.nodes.index(node) + 1

    def to_bytes(self) -> bytes:
        """The advertisements."""
        return b"".join(advertisement.to_bytes() for advertisement in self.advertisements)

    def checked(self, nodes: Sequence[int], what: str) -> tuple[int, ...]:
        """Nodes of this list, of whom there are enough to unmask; raises `SecurityError` for others."""
        if list(nodes) != sorted(set(nodes)) or not set(nodes) <= set(self.nodes):
            raise SecurityError(f"{what}: {list(nodes)} are not nodes of this round in ascending order")
        if len(nodes) < self.threshold:
            raise SecurityError(f"{what}: {len(nodes)} of {len(self.nodes)} nodes, it takes {self.threshold}")
        return tuple(nodes)


def roster(session: Session, advertisements: Sequence[Advertisement], policy: Policy) -> Roster:
    """The list of a session, if a node may trust it.

    Raises `SecurityError` for fewer nodes than the policy asks for, nodes out of order or twice, keys that
    two nodes share, identities that are not known, and signatures that are not theirs.
    """
    if len(advertisements) < policy.min_nodes:
        raise SecurityError(
            f"round {session.round} has {len(advertisements)} nodes, fewer than {policy.min_nodes}"
        )
    nodes = [advertisement.node for advertisement in advertisements]
    if nodes != sorted(set(nodes)):
        raise SecurityError(f"the list of nodes {nodes} is not in ascending order, or has one twice")
    for name in ("identity", "seal", "mask", "seed"):
        if len({getattr(one, name) for one in advertisements}) < len(advertisements):
            raise SecurityError(f"two nodes of round {session.round} have the same {name} key")
    for one in advertisements:
        _check(one, session, policy.peers)
    needed = shares_needed(policy.threshold, len(advertisements))
    return Roster(session, tuple(advertisements), needed)


def _check(one: Advertisement, session: Session, peers: Set[bytes] | None) -> None:
    if peers is not None and one.identity not in peers:
        raise SecurityError(
            f"node {one.node} has the identity {one.identity.hex()}, which is not in the list of nodes' keys"
        )
    if not one.is_signed(session):
        raise SecurityError(f"the keys of node {one.node} are not signed by its identity for this round")
