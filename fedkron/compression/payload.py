"""The payload: one update as one blob of bytes. Specified in docs/formats.md."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from fedkron.compression.codecs import Codec, codec_of_id
from fedkron.compression.finite import first_nonfinite
from fedkron.errors import (
    AdapterError,
    ChecksumError,
    ConfigError,
    ContractError,
    PayloadError,
    TrailingBytesError,
    TruncatedPayloadError,
    UnknownVersionError,
)
from fedkron.layout import (
    AdapterLayout,
    Sections,
    State,
    TensorLayout,
    Vector,
    elements,
    flatten,
    unflatten,
)

PAYLOAD_VERSION = 2

_MAGIC = b"FKRN"
# magic, version, codec, kind, reserved, lengths of factors and dense tensors, contract, round
_FIELDS = struct.Struct("<4sBBBBQQ32sI")
_CHECKSUM = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CHECKSUM.size
"""Bytes in front of the body."""


class Kind(IntEnum):
    """What the vector in a payload is."""

    UPDATE = 0
    """What a client learnt: trained minus received."""
    CHANGE = 1
    """New minus old shared state, from the server."""
    STATE = 2
    """A whole shared state, from the server."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload says about itself."""

    version: int
    codec: str
    kind: str
    round: int
    factor_bytes: int
    dense_bytes: int
    contract: str
    """SHA-256 (hex) of the layout it was encoded with."""
    checksum: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """A payload that has passed every check: its tensors, and how and in which round it was sent."""

    update: State
    codec: str
    kind: Kind
    round: int


class Body(NamedTuple):
    """The body of one section, of a length that its codec can make of these tensors."""

    data: memoryview
    tensors: tuple[TensorLayout, ...]


def encode(
    update: State,
    layout: AdapterLayout,
    codec: Codec,
    *,
    round: int,
    kind: Kind = Kind.UPDATE,
    rng: Generator | None = None,
) -> bytes:
    """Encode an update as a payload: same input, same bytes.

    `rng` is drawn from by codecs that round at random; without one they draw from seed 0.

    Raises `AdapterError` when the update does not have the layout's tensors or holds NaN or infinity,
    `ConfigError` when `round` does not fit 32 bits.
    """
    return encode_vector(flatten(update, layout), layout, codec, round=round, kind=kind, rng=rng)


def encode_vector(
    vector: Vector,
    layout: AdapterLayout,
    codec: Codec,
    *,
    round: int,
    kind: Kind = Kind.UPDATE,
    rng: Generator | None = None,
) -> bytes:
    """`encode` for an update that is already one flat float32 vector of `layout.size` elements."""
    if not 0 <= round < 2**32:
        raise ConfigError(f"round {round} does not fit a payload: use 0 to {2**32 - 1}")
    if found := first_nonfinite(vector, layout.tensors):
        raise AdapterError(f"{found} in this update: training diverged, lower the learning rate")
    rng = rng or np.random.default_rng(0)
    parts = _parts(vector, layout.sections)
    factors, dense = (
        codec.quantize(part, tensors, rng) if tensors else b""
        for part, tensors in zip(parts, layout.sections, strict=True)
    )
    contract = bytes.fromhex(layout.contract)
    fields = _FIELDS.pack(
        _MAGIC, PAYLOAD_VERSION, codec.id, kind, 0, len(factors), len(dense), contract, round
    )
    checksum = zlib.crc32(dense, zlib.crc32(factors, zlib.crc32(fields)))
    return b"".join((fields, _CHECKSUM.pack(checksum), factors, dense))


def decode(blob: bytes, layout: AdapterLayout) -> Decoded:
    """Check a payload against a layout and decode it.

    Nothing larger than a few times the layout is ever allocated, whatever the header says.

    Raises `ContractError` when it was made for another base or adapter, `PayloadError` (or one of its kinds,
    see `fedkron.errors`) when it is damaged or not a payload.
    """
    header, vector = decode_vector(blob, layout)
    return Decoded(unflatten(vector, layout), header.codec, Kind[header.kind], header.round)


def decode_vector(blob: bytes, layout: AdapterLayout) -> tuple[Header, Vector]:
    """`decode` to one flat float32 vector of `layout.size` elements."""
    header, codec, bodies = checked_bodies(blob, layout)
    parts = [codec.dequantize(body, tensors) for body, tensors in bodies]
    # Most adapters have factors only: no copy.
    vector = parts[0] if len(parts) == 1 else np.concatenate((np.empty(0, np.float32), *parts))
    return header, vector


def checked_bodies(blob: bytes, layout: AdapterLayout) -> tuple[Header, Codec, list[Body]]:
    """A payload's header, codec and bodies, after all checks of `decode` but those that the codec makes."""
    header = inspect_header(blob)
    if header.contract != layout.contract:
        raise ContractError(
            f"payload has contract {header.contract[:12]}…, this adapter {layout.contract[:12]}…: "
            "give both sides the same base and the same adapter settings"
        )
    codec = codec_of_id(blob[5])
    lengths = (header.factor_bytes, header.dense_bytes)
    for length, tensors, section in zip(lengths, layout.sections, Sections._fields, strict=True):
        allowed = codec.sizes(tensors) if tensors else range(1)
        if length not in allowed:
            raise PayloadError(
                f"payload's body of the {section} has {length} bytes, {codec.name} makes {allowed[0]} to "
                f"{allowed[-1]} of this adapter; ask the sender to encode again"
            )
    view = memoryview(blob)
    split = HEADER_SIZE + header.factor_bytes
    bodies = map(Body, (view[HEADER_SIZE:split], view[split:]), layout.sections)
    return header, codec, [body for body in bodies if body.tensors]


def inspect_header(blob: bytes) -> Header:
    """Read a payload's header and check all that can be checked without a layout, the checksum included.

    Raises `PayloadError` or one of its kinds when it is damaged or not a payload.
    """
    if len(blob) < HEADER_SIZE:
        raise TruncatedPayloadError(
            f"{len(blob)} bytes are too few for a payload (its header has {HEADER_SIZE}); send it again"
        )
    fields = _FIELDS.unpack_from(blob)
    magic, version, codec_id, kind, reserved, factor_bytes, dense_bytes, contract, round_ = fields
    if magic != _MAGIC:
        raise PayloadError(f"starts with {magic!r}, a payload with {_MAGIC!r}: this is another kind of file")
    if version != PAYLOAD_VERSION:
        raise UnknownVersionError(
            f"payload version {version} is not known here (known: {PAYLOAD_VERSION}); "
            "update fedkron on this machine"
        )
    codec = codec_of_id(codec_id)
    if kind not in Kind._value2member_map_ or reserved != 0:
        raise PayloadError(
            f"payload has kind {kind} and reserved bits {reserved:#04x} that this version does not know; "
            "update fedkron on this machine"
        )
    present, length = len(blob) - HEADER_SIZE, factor_bytes + dense_bytes
    said = f"its body has {present} bytes, its header says {length}; send it again"
    if present < length:
        raise TruncatedPayloadError(f"payload is truncated: {said}")
    if present > length:
        raise TrailingBytesError(f"payload has trailing bytes: {said}")
    (checksum,) = _CHECKSUM.unpack_from(blob, _FIELDS.size)
    view = memoryview(blob)
    if (actual := zlib.crc32(view[HEADER_SIZE:], zlib.crc32(view[: _FIELDS.size]))) != checksum:
        raise ChecksumError(
            f"payload's checksum is {actual:08x}, its header says {checksum:08x}: "
            "it was damaged on the way, send it again"
        )
    return Header(
        version, codec.name, Kind(kind).name, round_, factor_bytes, dense_bytes, contract.hex(), checksum
    )


def payload_sizes(layout: AdapterLayout, codec: Codec) -> range:
    """The sizes in bytes that a payload of this layout can have; one only for codecs of fixed width."""
    sizes = [codec.sizes(tensors) for tensors in layout.sections if tensors]
    return range(HEADER_SIZE + sum(s[0] for s in sizes), HEADER_SIZE + sum(s[-1] for s in sizes) + 1)


def _parts(vector: Vector, sections: Sections) -> tuple[Vector, Vector]:
    split = elements(sections.factors)
    return vector[:split], vector[split:]
