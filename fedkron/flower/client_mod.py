"""The client half of the seam: a Flower mod that decodes the broadcast and encodes the upload.

Put it first in the list, so that it is the outermost: `ClientApp(mods=[compressed_exchange])`. The app
and all other mods (local DP, clipping, …) see plain arrays. Only `explained_errors` may stand before it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from logging import ERROR

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from fedkron.compression import Codec, encode_with_feedback
from fedkron.compression.shared_state import Held, follow
from fedkron.errors import FedKronError, PayloadError, UnknownStateError
from fedkron.flower.wire import (
    EXPLAINED_ERROR,
    LAYOUT,
    PAYLOAD,
    UNKNOWN_STATE,
    Broadcast,
    deflated,
    inflated,
    is_packed,
    replace_records,
    to_arrays,
    to_state,
    unpack_broadcast,
)
from fedkron.layout import AdapterLayout, Vector, flatten, unflatten

RESIDUAL = "fedkron.residual"
SHARED = "fedkron.shared"
CONTRACT = "contract"


def explained_errors(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer with the message of a `FedKronError`, where Flower would send the server a traceback."""
    try:
        return call_next(message, context)
    except FedKronError as error:
        reason = f"{type(error).__name__}: {error}"
        log(ERROR, reason)
        return Message(Error(EXPLAINED_ERROR, reason), reply_to=message)


def compressed_exchange(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Decode what comes in, run the app, and send back only the quantized change of its arrays.

    Kept in `context.state`, for each record key: the state that this node shares with the server, of which
    the next broadcast may be a change; and what quantization left out, which is added to this node's next
    upload (error feedback). A node that lacks the state it should have (new, restarted, long away) asks for
    the whole one. Raises `PayloadError` or `ContractError` for a broadcast that cannot be decoded.
    """
    received: dict[str, _Received] = {}

    def decode_record(key: str, record: object) -> ArrayRecord:
        assert isinstance(record, ConfigRecord)
        received[key] = _receive(key, unpack_broadcast(record), context)
        return to_arrays(unflatten(received[key].held.vector, received[key].layout))

    def encode_record(key: str, record: object) -> ConfigRecord:
        assert isinstance(record, ArrayRecord)
        if key not in received:
            raise PayloadError(
                f"the app answered with the ArrayRecord {key!r}, but the server sent "
                f"{sorted(received) or 'none'}: answer under the key you received"
            )
        return _encode_update(key, received[key], record, context)

    try:
        message.content = replace_records(message.content, is_packed, decode_record)
    except UnknownStateError as error:
        return Message(Error(UNKNOWN_STATE, str(error)), reply_to=message)
    reply = call_next(message, context)
    if received and not reply.has_error():
        reply.content = replace_records(
            reply.content, lambda record: isinstance(record, ArrayRecord), encode_record
        )
    return reply


@dataclass(frozen=True)
class _Received:
    """A decoded broadcast."""

    held: Held
    layout: AdapterLayout
    round: int
    upload_codec: Codec


def _receive(key: str, broadcast: Broadcast, context: Context) -> _Received:
    kept = context.state.get(f"{SHARED}.{key}")
    layout, held = broadcast.layout, None
    if isinstance(kept, ConfigRecord):
        # Only for a client that is known to have it the layout is left out.
        layout = layout or inflated(_bytes(kept, LAYOUT))
        if kept[CONTRACT] == layout.contract:
            held = Held(np.frombuffer(_bytes(kept, "vector"), np.float32), _bytes(kept, "digest"))
    if layout is None:
        raise UnknownStateError("this node has no layout yet; send it the whole state")
    followed = follow(held, broadcast.chain, layout)
    if held is None or followed.digest != held.digest:
        context.state[f"{SHARED}.{key}"] = ConfigRecord(
            {
                CONTRACT: layout.contract,
                LAYOUT: deflated(layout),
                "digest": followed.digest,
                "vector": followed.vector.tobytes(),
            }
        )
    return _Received(followed, layout, broadcast.round, broadcast.upload_codec)


def _encode_update(key: str, received: _Received, trained: ArrayRecord, context: Context) -> ConfigRecord:
    layout = received.layout
    # Flattened first, because that refuses tensors that are missing, unknown or of another shape.
    update = flatten(to_state(trained), layout) - received.held.vector
    residual_key = f"{RESIDUAL}.{key}"
    blob, residual = encode_with_feedback(
        unflatten(update, layout),
        _kept_residual(context, residual_key, layout.contract),
        layout,
        received.upload_codec,
        round=received.round,
        # Other draws for each update, and the same in every run.
        rng=np.random.default_rng([received.round, zlib.crc32(update.data)]),
    )
    context.state[residual_key] = ConfigRecord({CONTRACT: layout.contract, "residual": residual.tobytes()})
    return ConfigRecord({PAYLOAD: blob})


def _kept_residual(context: Context, key: str, contract: str) -> Vector | None:
    record = context.state.get(key)
    # A residual of another adapter must not leak into this one.
    if not isinstance(record, ConfigRecord) or record[CONTRACT] != contract:
        return None
    return np.frombuffer(_bytes(record, "residual"), np.float32)


def _bytes(record: ConfigRecord, key: str) -> bytes:
    kept = record[key]
    assert isinstance(kept, bytes)
    return kept
