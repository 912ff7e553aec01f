"""A masked upload: the codes of an update and the magnitudes of its tensors, packed into words and masked.

Header: "FKM1", the round (4 bytes, big-endian), the binding (32), CRC-32 of the whole upload with these four
bytes 0. Body: the words of the codes, then those of the magnitudes, little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedkron.errors import ChecksumError, ContractError, PayloadError
from fedkron.secure.codes import SCALE_LEVELS, Codes, Sizes
from fedkron.secure.keys import digest
from fedkron.secure.packing import Packing, Words, packing
from fedkron.secure.roster import Roster

MAGIC = b"FKM1"
_HEADER = struct.Struct(">4sI32sI")
HEADER_SIZE = _HEADER.size

Sums = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Form:
    """How many codes and magnitudes there are, and how they lie in words."""

    codes: Packing
    magnitudes: Packing
    count: int
    tensors: int

    @property
    def words(self) -> int:
        """Number of words."""
        return self.codes.words(self.count) + self.magnitudes.words(self.tensors)

    @property
    def body_size(self) -> int:
        """Bytes without the header."""
        return self.codes.size(self.count) + self.magnitudes.size(self.tensors)

    def pack(self, codes: Codes, magnitudes: Codes) -> Words:
        """Words to be masked."""
        return np.concatenate([self.codes.pack(codes), self.magnitudes.pack(magnitudes)])

    def unpack(self, words: Words) -> tuple[Sums, Sums]:
        """Sums of codes and of magnitudes; raises `SecurityError` for words that are no sums."""
        parts = self._parts(words)
        return self.codes.unpack(parts[0], self.count), self.magnitudes.unpack(parts[1], self.tensors)

    def to_bytes(self, words: Words, round_: int, binding: bytes) -> bytes:
        """An upload of masked words."""
        parts = self._parts(words)
        body = self.codes.to_bytes(parts[0]) + self.magnitudes.to_bytes(parts[1])
        return _HEADER.pack(MAGIC, round_, binding, _checksum(round_, binding, body)) + body

    def from_bytes(self, data: bytes, round_: int) -> tuple[Words, bytes]:
        """The words and the binding of an upload, whose norm nobody can check.

        Raises `PayloadError` for another format, size or round, `ChecksumError` for a damaged one.
        """
        if len(data) != HEADER_SIZE + self.body_size:
            raise PayloadError(
                f"masked upload has {len(data)} bytes, expected {HEADER_SIZE + self.body_size}"
            )
        magic, found, binding, checksum = _HEADER.unpack_from(data)
        body = data[HEADER_SIZE:]
        if magic != MAGIC:
            raise PayloadError(f"masked upload begins with {magic!r}, expected {MAGIC!r}")
        if checksum != _checksum(found, binding, body):
            raise ChecksumError("masked upload was damaged on the way: its checksum is wrong")
        if found != round_:
            raise PayloadError(f"masked upload is of round {found}, expected round {round_}")
        split = self.codes.size(self.count)
        words = [self.codes.from_bytes(body[:split]), self.magnitudes.from_bytes(body[split:])]
        return np.concatenate(words), binding

    def _parts(self, words: Words) -> tuple[Words, Words]:
        split = self.codes.words(self.count)
        return words[:split], words[split:]


def form_of(roster: Roster, sizes: Sizes) -> Form:
    """The form of the uploads of a session, for tensors of these sizes."""
    nodes = len(roster.nodes)
    levels = roster.session.levels
    return Form(packing(levels, nodes), packing(SCALE_LEVELS, nodes), int(sizes.sum()), sizes.size)


def contract_of(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> bytes:
    """A hash of names and shapes, 32 bytes."""
    return digest(b"tensors", repr([(name, tuple(map(int, shape))) for name, shape in tensors]).encode())


def check_contract(roster: Roster, contract: bytes) -> None:
    """Raise `ContractError` where a session is about other tensors."""
    if contract != roster.session.contract:
        raise ContractError("the tensors that were sent are not those that the round was announced for")


def binding_of(roster: Roster, sharing: Sequence[int], *sent: bytes) -> bytes:
    """A hash of all that the nodes of a round have to have been sent alike, 32 bytes.

    A server that sends one node another adapter, other steps or other settings, so that the sum tells that
    node's part (Pasquini et al. 2022, CCS, "Eluding Secure Aggregation"), gets noise.
    """
    nodes = b"".join(node.to_bytes(8) for node in sharing)
    return digest(b"binding", roster.transcript, *(digest(b"part", part) for part in (nodes, *sent)))


def _checksum(round_: int, binding: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_HEADER.pack(MAGIC, round_, binding, 0)))
