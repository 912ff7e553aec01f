"""What the server remembers of a message until its reply comes, and what the reply is read by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message

from fedkron.compression.shared_state import SharedState
from fedkron.errors import PayloadError
from fedkron.flower.secure_wire import secure_bytes
from fedkron.flower.uploads import Packed
from fedkron.flower.wire import UNKNOWN_STATE, is_packed, message_bytes, packed_bytes, payload_of
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import BASELINE_RANK, Direction, Transfer


@dataclass(frozen=True)
class Arrival:
    """What a node has sent: the SHA-256 and size in bytes of each of its payloads, by record key."""

    round: int
    node: int
    payloads: Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class Reference:
    """What an upload is a change of, and the shared state that its message led to."""

    state: State
    layout: AdapterLayout
    shared: SharedState
    digest: bytes


@dataclass
class Awaited:
    """What the server remembers of a message until its reply comes."""

    message: Message
    round: int
    references: dict[str, Reference] = field(default_factory=dict)
    asked_for: str | None = None
    """Id of the message that the strategy waits for, where this one was sent in its place."""


def asks_for_state(reply: Message, memory: Awaited) -> bool:
    """Whether to send the whole state: not twice, and not when the shared state has moved on since."""
    return (
        reply.has_error()
        and reply.error.code == UNKNOWN_STATE
        and memory.asked_for is None
        and all(r.digest == r.shared.held.digest for r in memory.references.values())
    )


def packed(key: str, record: object, sent: Awaited) -> Packed:
    """An upload with what it is a change of; raises `PayloadError` for one that answers nothing."""
    if key not in sent.references:
        raise PayloadError(f"payload {key!r} answers nothing that was sent ({sorted(sent.references)})")
    assert isinstance(record, ConfigRecord)
    reference = sent.references[key]
    return Packed(payload_of(record), reference.state, reference.layout, sent.round)


def transfer_of(message: Message, direction: Direction, sent: Awaited, node: int) -> Transfer:
    """What a message costs: the message as it travels, or the reply to it."""
    records = [] if message.has_error() else message.content.config_records.values()
    packed = [packed_bytes(record) for record in records if is_packed(record)]
    packed += secure_bytes(records, [reference.layout for reference in sent.references.values()])
    layouts = [reference.layout for reference in sent.references.values()] if packed else []
    dense = sum(part.dense for part in packed)
    # Arrays of an app without adapters are all dense; there they are what matters, not a head.
    head = dense if any(layout.modules for layout in layouts) else 0
    return Transfer(
        round=sent.round,
        node=str(node),
        phase=message.metadata.message_type,
        direction=direction,
        factor_bytes=sum(part.factors for part in packed) + dense - head,
        head_bytes=head,
        header_bytes=sum(part.headers for part in packed),
        message_bytes=message_bytes(message),
        baseline_bytes=sum(4 * layout.lora_size(BASELINE_RANK) for layout in layouts),
    )
