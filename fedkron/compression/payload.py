"""The payload: one update as one blob of bytes. Specified in docs/formats.md."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from fedkron.compression.codecs import CODECS, Codec, codec_of_id
from fedkron.compression.finite import first_nonfinite
from fedkron.errors import AdapterError, ConfigError, ContractError, PayloadError
from fedkron.layout import AdapterLayout, State, Vector, flatten, unflatten

PAYLOAD_VERSION = 1

_MAGIC = b"FKRN"
_FIELDS = struct.Struct("<4sBBHQQ32sI")  # magic, version, codec, reserved, elements, length, contract, round
_CHECKSUM = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CHECKSUM.size
"""Bytes in front of the body."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload says about itself."""

    version: int
    codec: str
    round: int
    elements: int
    body_length: int
    contract: str
    """SHA-256 (hex) of the layout it was encoded with."""
    checksum: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """A payload that has passed every check: the update, and how and in which round it was sent."""

    update: State
    codec: str
    round: int


def encode(update: State, layout: AdapterLayout, codec: Codec, *, round: int) -> bytes:
    """Encode an update as a payload: same input, same bytes.

    Raises `AdapterError` when the update does not have the layout's tensors or holds NaN or infinity,
    `ConfigError` when `round` does not fit 32 bits.
    """
    return encode_vector(flatten(update, layout), layout, codec, round=round)


def encode_vector(vector: Vector, layout: AdapterLayout, codec: Codec, *, round: int) -> bytes:
    """`encode` for an update that is already one flat float32 vector of `layout.size` elements."""
    if not 0 <= round < 2**32:
        raise ConfigError(f"round {round} does not fit a payload: use 0 to {2**32 - 1}")
    if found := first_nonfinite(vector, layout):
        raise AdapterError(f"{found} in this update: training diverged, lower the learning rate")
    body = codec.quantize(vector, layout)
    contract = bytes.fromhex(layout.contract)
    fields = _FIELDS.pack(_MAGIC, PAYLOAD_VERSION, codec.id, 0, layout.size, len(body), contract, round)
    return b"".join((fields, _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(fields))), body))


def decode(blob: bytes, layout: AdapterLayout) -> Decoded:
    """Check a payload against a layout and decode it. Nothing larger than the layout is ever allocated.

    Raises `ContractError` when it was made for another base or adapter, `PayloadError` when it is damaged
    or not a payload.
    """
    header = inspect_header(blob)
    if header.contract != layout.contract:
        raise ContractError(
            f"payload has contract {header.contract[:12]}…, this adapter {layout.contract[:12]}…: "
            "give both sides the same base and the same adapter settings"
        )
    if header.elements != layout.size:
        raise PayloadError(
            f"payload says {header.elements} elements, its contract has {layout.size}; "
            "ask the sender to encode again"
        )
    codec = CODECS[header.codec]
    if header.body_length != (expected := codec.size(layout)):
        raise PayloadError(
            f"payload's body has {header.body_length} bytes, {codec.name} makes {expected} of this adapter; "
            "ask the sender to encode again"
        )
    vector = codec.dequantize(memoryview(blob)[HEADER_SIZE:], layout)
    return Decoded(unflatten(vector, layout), codec.name, header.round)


def inspect_header(blob: bytes) -> Header:
    """Read a payload's header and check all that can be checked without a layout, the checksum included.

    Raises `PayloadError` when it is damaged or not a payload.
    """
    if len(blob) < HEADER_SIZE:
        raise PayloadError(
            f"{len(blob)} bytes are too few for a payload (its header has {HEADER_SIZE}); send it again"
        )
    magic, version, codec_id, reserved, elements, length, contract, round_ = _FIELDS.unpack_from(blob)
    if magic != _MAGIC:
        raise PayloadError(f"starts with {magic!r}, a payload with {_MAGIC!r}: this is another kind of file")
    if version != PAYLOAD_VERSION:
        raise PayloadError(
            f"payload version {version} is not known here (known: {PAYLOAD_VERSION}); "
            "update fedkron on this machine"
        )
    codec = codec_of_id(codec_id)
    if reserved != 0:
        raise PayloadError(
            f"payload sets reserved bits {reserved:#06x} that this version does not know; "
            "update fedkron on this machine"
        )
    if (present := len(blob) - HEADER_SIZE) != length:
        trouble = "is truncated" if present < length else "has trailing bytes"
        raise PayloadError(
            f"payload {trouble}: its body has {present} bytes, its header says {length}; send it again"
        )
    (checksum,) = _CHECKSUM.unpack_from(blob, _FIELDS.size)
    view = memoryview(blob)
    if (actual := zlib.crc32(view[HEADER_SIZE:], zlib.crc32(view[: _FIELDS.size]))) != checksum:
        raise PayloadError(
            f"payload's checksum is {actual:08x}, its header says {checksum:08x}: "
            "it was damaged on the way, send it again"
        )
    return Header(version, codec.name, round_, elements, length, contract.hex(), checksum)


def payload_size(layout: AdapterLayout, codec: Codec) -> int:
    """Exact bytes of a payload, without encoding one: the content never changes its length."""
    return HEADER_SIZE + codec.size(layout)
