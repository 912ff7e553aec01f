"""How a payload rides in a Flower message.

An `ArrayRecord` is replaced, under the same key, by a `ConfigRecord` with opaque blobs (Flower's cheapest
carrier: one record per tensor would cost more than the tensors). Downwards the record also says which state
the payloads lead to, which round it is and how to answer, and, to a client that has not seen it yet, the
layout: a client needs to know nothing beforehand.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from fedkron.compression import HEADER_SIZE, Codec, codec, inspect_header
from fedkron.compression.shared_state import DIGEST_SIZE, NOTHING, Chain
from fedkron.errors import AdapterError, FedKronError, PayloadError
from fedkron.layout import AdapterLayout, State

PAYLOAD = "fedkron.payload"
STATES = "fedkron.states"
LAYOUT = "fedkron.layout"
UPLOAD_CODEC = "fedkron.upload-codec"
ROUND = "fedkron.round"

REJECTED_UPLOAD = 100
"""Error code of a reply whose upload was not admitted (Flower's own codes are below 100)."""

EXPLAINED_ERROR = 101
"""Error code of a reply whose reason is a message of ours, for people, and not a traceback."""

UNKNOWN_STATE = 102
"""Error code of a reply that asks for the whole state, because the node lacks the one that has changed."""

MADE_BY_THE_SUPERLINK = frozenset(
    {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
)
"""Codes of error replies in the name of a node that sent nothing: they crossed no wire."""

T = TypeVar("T")

MAX_LAYOUT_BYTES = 2 * 2**20
"""Largest layout (as JSON) that a client unpacks: thirty times that of a 7B model."""


@dataclass(frozen=True)
class Broadcast:
    """What a broadcast says; `layout` is None when the client is known to have it."""

    chain: Chain
    layout: AdapterLayout | None
    round: int
    upload_codec: Codec


@dataclass(frozen=True)
class PackedBytes:
    """Bytes of ours in one record, by what they are for."""

    factors: int = 0
    dense: int = 0
    headers: int = 0


def pack_broadcast(broadcast: Broadcast) -> ConfigRecord:
    """A broadcast as a record for the way down."""
    record = ConfigRecord(
        {
            PAYLOAD: list(broadcast.chain.payloads),
            STATES: b"".join(digest for digest in broadcast.chain.digests),
            ROUND: broadcast.round,
            UPLOAD_CODEC: broadcast.upload_codec.name,
        }
    )
    if broadcast.layout is not None:
        record[LAYOUT] = deflated(broadcast.layout)
    return record


def unpack_broadcast(record: ConfigRecord) -> Broadcast:
    """Inverse of `pack_broadcast`; payloads are not decoded yet.

    Raises `PayloadError` or `ContractError` for anything else, `ConfigError` for an unknown upload codec.
    """
    upload_codec = codec(_field(record, UPLOAD_CODEC, str))
    layout = inflated(_field(record, LAYOUT, bytes)) if LAYOUT in record else None
    payloads = _field(record, PAYLOAD, list)
    if not all(isinstance(payload, bytes) for payload in payloads):
        raise PayloadError(f"record field {PAYLOAD!r} should be a list of bytes")
    states = _field(record, STATES, bytes)
    digests = tuple(states[i : i + DIGEST_SIZE] for i in range(0, len(states), DIGEST_SIZE))
    if len(digests) == len(payloads):  # a whole state comes from nothing, which takes no bytes
        digests = (NOTHING, *digests)
    if len(digests) != len(payloads) + 1 or len(states) % DIGEST_SIZE or digests == (NOTHING,):
        raise PayloadError(
            f"record field {STATES!r} has {len(states)} bytes, which is not a digest for each of "
            f"{len(payloads)} payloads"
        )
    return Broadcast(Chain(digests, tuple(payloads)), layout, _field(record, ROUND, int), upload_codec)


@lru_cache(maxsize=16)  # a run has one, or one per size, and it takes longer than to decode a payload
def deflated(layout: AdapterLayout) -> bytes:
    """A layout as it travels."""
    return zlib.compress(layout.to_json().encode(), 9)


@lru_cache(maxsize=16)
def inflated(data: bytes) -> AdapterLayout:
    """Inverse of `deflated`. Raises `PayloadError` or `ContractError` for anything else."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_LAYOUT_BYTES)
    except zlib.error as error:
        raise PayloadError(f"the layout in the message is damaged: {error}") from error
    if not inflater.eof:
        raise PayloadError(f"the layout in the message is cut off, or larger than {MAX_LAYOUT_BYTES} bytes")
    if inflater.unused_data:
        raise PayloadError(f"{len(inflater.unused_data)} bytes follow the layout in the message")
    return AdapterLayout.from_json(text)


def is_packed(record: object) -> bool:
    """Whether a record carries payloads."""
    return isinstance(record, ConfigRecord) and PAYLOAD in record


def carries_upload(record: ConfigRecord) -> bool:
    """Whether a record carries the payload of an upload, which is one."""
    return isinstance(record.get(PAYLOAD), bytes)


def payload_of(record: ConfigRecord) -> bytes:
    """The payload of an upload; raises `PayloadError` when it holds something else."""
    return _field(record, PAYLOAD, bytes)


def packed_bytes(record: ConfigRecord) -> PackedBytes:
    """What a record of ours takes; a payload that cannot be read (decoding refuses it) counts as header."""
    value = record[PAYLOAD]
    payloads = [p for p in (value if isinstance(value, list) else [value]) if isinstance(p, bytes)]
    rest = sum(len(v) for k in (STATES, LAYOUT) if isinstance(v := record.get(k), bytes))
    sections = [_sections_of(payload) for payload in payloads]
    return PackedBytes(
        sum(s.factors for s in sections),
        sum(s.dense for s in sections),
        rest + sum(s.headers for s in sections),
    )


def replace_records(
    content: RecordDict, wanted: Callable[[object], bool], change: Callable[[str, object], object]
) -> RecordDict:
    """A copy of a message's content in which the wanted records are changed; order is kept."""
    return RecordDict(
        {key: change(key, record) if wanted(record) else record for key, record in content.items()}  # type: ignore[misc]
    )


def to_state(record: ArrayRecord) -> State:
    """The arrays of a record as float32 numpy arrays.

    Raises `AdapterError` for arrays that are not floating point: they cannot be quantized.
    """
    state: State = {}
    for name, array in record.items():
        values = array.numpy()
        if not np.issubdtype(values.dtype, np.floating):
            raise AdapterError(
                f"array {name!r} is {values.dtype}: only floating-point arrays can be compressed; "
                "leave counters and indices out of the ArrayRecord"
            )
        state[name] = np.asarray(values, np.float32)
    return state


def to_arrays(state: State) -> ArrayRecord:
    """The inverse of `to_state`."""
    return ArrayRecord({name: Array(np.asarray(values, order="C")) for name, values in state.items()})


def round_of(message: Message) -> int:
    """The round that Flower's strategies write into the message's config; 0 when there is none."""
    for record in message.content.config_records.values():
        if isinstance(number := record.get("server-round"), int):
            return number
    return 0


def message_bytes(message: Message) -> int:
    """Serialized size of a Flower message in bytes: every object that travels, deflated."""
    with no_object_id_recompute():
        return sum(len(item.deflate()) for item in get_all_nested_objects(message).values())


def _sections_of(payload: bytes) -> PackedBytes:
    try:
        header = inspect_header(payload)
    except FedKronError:
        return PackedBytes(headers=len(payload))
    return PackedBytes(header.factor_bytes, header.dense_bytes, HEADER_SIZE)


def _field(record: ConfigRecord, key: str, kind: type[T]) -> T:
    value = record.get(key)
    if not isinstance(value, kind):
        raise PayloadError(f"record field {key!r} should be {kind.__name__}, it is {type(value).__name__}")
    return value
