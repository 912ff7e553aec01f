"""How a payload rides in a Flower message.

An `ArrayRecord` is replaced, under the same key, by a `ConfigRecord` with one opaque blob (Flower's
cheapest carrier: one record per tensor would cost more than the tensors). Downwards the record also
says which layout and round it is and how to answer, so a client needs to know nothing beforehand.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from fedkron.compression import Codec, codec, decode, encode
from fedkron.errors import AdapterError, PayloadError
from fedkron.layout import AdapterLayout, State

PAYLOAD = "fedkron.payload"
LAYOUT = "fedkron.layout"
UPLOAD_CODEC = "fedkron.upload-codec"

REJECTED_UPLOAD = 100
"""Error code of a reply whose upload was not admitted (Flower's own codes are below 100)."""

EXPLAINED_ERROR = 101
"""Error code of a reply whose reason is a message of ours, for people, and not a traceback."""

T = TypeVar("T")

MAX_LAYOUT_BYTES = 16 * 2**20
"""Largest layout (as JSON) that a client unpacks: ten thousand times that of a small encoder."""


@dataclass(frozen=True)
class Broadcast:
    """A decoded broadcast: the global adapter, its layout, the round, and the codec for the answer."""

    state: State
    layout: AdapterLayout
    round: int
    upload_codec: Codec


def pack_broadcast(state: State, layout: AdapterLayout, round_: int, codecs: tuple[str, str]) -> ConfigRecord:
    """Encode a global adapter for the way down; `codecs` are those of broadcast and upload."""
    broadcast, upload = codecs
    return ConfigRecord(
        {
            PAYLOAD: encode(state, layout, codec(broadcast), round=round_),
            LAYOUT: zlib.compress(layout.to_json().encode(), 9),
            UPLOAD_CODEC: upload,
        }
    )


def unpack_broadcast(record: ConfigRecord) -> Broadcast:
    """Inverse of `pack_broadcast`.

    Raises `PayloadError` or `ContractError` for anything else, `ConfigError` for an unknown upload codec.
    """
    upload_codec = codec(_field(record, UPLOAD_CODEC, str))
    layout = AdapterLayout.from_json(_inflate(_field(record, LAYOUT, bytes)))
    decoded = decode(_field(record, PAYLOAD, bytes), layout)
    return Broadcast(decoded.update, layout, decoded.round, upload_codec)


def is_packed(record: object) -> bool:
    """Whether a record carries a payload."""
    return isinstance(record, ConfigRecord) and PAYLOAD in record


def payload_of(record: ConfigRecord) -> bytes:
    """The payload in a record; raises `PayloadError` when it holds something else."""
    return _field(record, PAYLOAD, bytes)


def payload_size(record: ConfigRecord) -> int:
    """Length of the payload in bytes; 0 when the record holds something else (decoding refuses that)."""
    blob = record.get(PAYLOAD)
    return len(blob) if isinstance(blob, bytes) else 0


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


def _field(record: ConfigRecord, key: str, kind: type[T]) -> T:
    value = record.get(key)
    if not isinstance(value, kind):
        raise PayloadError(f"record field {key!r} should be {kind.__name__}, it is {type(value).__name__}")
    return value


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_LAYOUT_BYTES)
    except zlib.error as error:
        raise PayloadError(f"the layout in the message is damaged: {error}") from error
    if not inflater.eof:
        raise PayloadError(f"the layout in the message is cut off, or larger than {MAX_LAYOUT_BYTES} bytes")
    return text
