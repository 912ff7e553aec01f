"""How secure aggregation rides in Flower messages: three queries, and records around training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedkron.errors import PayloadError, UnknownVersionError
from fedkron.flower.wire import PackedBytes
from fedkron.layout import AdapterLayout, State, Vector, elements

KEYS, SHARES, UNMASK = "query.secure_keys", "query.secure_shares", "query.secure_unmask"
"""Message types of the queries: advertise keys, share secrets, reveal shares."""

SECURE = "fedkron.secure"
"""Key of the record of each of these messages, and of the one that goes with a training message."""

MASKED = "fedkron.masked"
"""Field of the record that takes the place of an ArrayRecord in an upload."""

CONFIG, ROUND = "config", "server-round"
SESSION, ROSTER, NODES, BOXES, STEPS = "session", "roster", "nodes", "boxes", "steps"
ADVERTISEMENT, COMMITMENTS, REVEALED = "advertisement", "commitments", "shares"

OURS = "protocol"
"""Field of every record of this protocol but uploads: its version."""

VERSION = 1

_NODE_SIZE = 8


def is_masked(record: object) -> bool:
    """Whether a record is a masked upload."""
    return isinstance(record, ConfigRecord) and MASKED in record


def secure_record(message: Message) -> ConfigRecord | None:
    """The record of secure aggregation in a message."""
    return message.content.config_records.get(SECURE)


def record_of(fields: Mapping[str, bytes]) -> ConfigRecord:
    """A record of this protocol."""
    return ConfigRecord({OURS: VERSION, **fields})


def answer(message: Message, fields: Mapping[str, bytes]) -> Message:
    """A reply to one of the queries."""
    return Message(RecordDict({SECURE: record_of(fields)}), reply_to=message)


def field(record: ConfigRecord | None, key: str) -> bytes:
    """Bytes in a record; raises `PayloadError` where there are none, `UnknownVersionError` for another
    protocol.
    """
    if record is not None and (version := record.get(OURS, VERSION)) != VERSION:
        raise UnknownVersionError(
            f"secure aggregation of version {version!r} is not known here: update fedkron"
        )
    value = None if record is None else record.get(key)
    if not isinstance(value, bytes):
        raise PayloadError(f"record {SECURE!r} has no bytes under {key!r}")
    return value


def secure_bytes(records: Iterable[ConfigRecord], layouts: Sequence[AdapterLayout]) -> list[PackedBytes]:
    """What the records of this protocol in a message take, where the answer is of these layouts.

    Codes of factors and of dense tensors lie in the same words: they share the bytes by their number.
    """
    found = []
    whole = sum(layout.size for layout in layouts)
    for record in records:
        size = sum(len(value) for value in record.values() if isinstance(value, bytes))
        if is_masked(record) and whole:
            dense = size * sum(elements(layout.dense) for layout in layouts) // whole
            found.append(PackedBytes(factors=size - dense, dense=dense))
        elif OURS in record:
            found.append(PackedBytes(headers=size))
    return found


def nodes_to_bytes(nodes: Sequence[int]) -> bytes:
    """Node ids, 8 bytes each."""
    return b"".join(node.to_bytes(_NODE_SIZE) for node in nodes)


def nodes_from_bytes(data: bytes) -> list[int]:
    """Inverse of `nodes_to_bytes`."""
    return [int.from_bytes(part) for part in parts(data, _NODE_SIZE)]


def parts(data: bytes, size: int) -> list[bytes]:
    """Bytes cut into pieces of a size; raises `PayloadError` when they do not come out even."""
    if len(data) % size:
        raise PayloadError(f"{len(data)} bytes are not pieces of {size}")
    return [data[start : start + size] for start in range(0, len(data), size)]


def settings_in(message: Message) -> bytes:
    """All that a training message says besides arrays and this protocol's record, the same for the same."""
    content = message.content
    records: dict[str, ConfigRecord | MetricRecord] = {**content.config_records, **content.metric_records}
    said = [(key, sorted(records[key].items())) for key in sorted(records) if key != SECURE]
    return repr(said).encode()


def in_order(state: State) -> list[str]:
    """The order of tensors in a masked upload: by name, which both sides know."""
    return sorted(state)


def flat(state: State) -> Vector:
    """All tensors one after the other."""
    return np.concatenate([state[name].reshape(-1) for name in in_order(state)]).astype(
        np.float32, copy=False
    )


def unflat(vector: Vector, like: State) -> State:
    """Inverse of `flat`, for tensors of the shapes of `like`, in its order."""
    names = in_order(like)
    ends = np.cumsum([like[name].size for name in names])
    pieces = dict(zip(names, np.split(vector, ends[:-1]), strict=True))
    return {name: pieces[name].reshape(values.shape) for name, values in like.items()}


def shapes(state: State) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in order."""
    return [(name, state[name].shape) for name in in_order(state)]


def sizes(state: State) -> np.ndarray:
    """Number of elements of each tensor, in order."""
    return np.array([state[name].size for name in in_order(state)], np.int64)
