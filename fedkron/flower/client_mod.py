"""The client half of the seam: a Flower mod that decodes the broadcast and encodes the upload.

Put it first in the list, so that it is the outermost: `ClientApp(mods=[compressed_exchange])`. The app
and all other mods (local DP, clipping, …) see plain arrays. Only `explained_errors` may stand before it.
"""

from __future__ import annotations

from logging import ERROR

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import log

from fedkron.compression import encode_with_feedback
from fedkron.errors import FedKronError, PayloadError
from fedkron.flower.wire import (
    EXPLAINED_ERROR,
    PAYLOAD,
    Broadcast,
    is_packed,
    replace_records,
    to_arrays,
    to_state,
    unpack_broadcast,
)
from fedkron.layout import Vector, flatten, unflatten

RESIDUAL = "fedkron.residual"
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

    What quantization left out is kept in `context.state` and added to this node's next upload (error
    feedback). Raises `PayloadError` or `ContractError` for a broadcast that cannot be decoded.
    """
    received: dict[str, Broadcast] = {}

    def decode_record(key: str, record: object) -> ArrayRecord:
        assert isinstance(record, ConfigRecord)
        received[key] = unpack_broadcast(record)
        return to_arrays(received[key].state)

    def encode_record(key: str, record: object) -> ConfigRecord:
        assert isinstance(record, ArrayRecord)
        if key not in received:
            raise PayloadError(
                f"the app answered with the ArrayRecord {key!r}, but the server sent "
                f"{sorted(received) or 'none'}: answer under the key you received"
            )
        return _encode_update(key, received[key], record, context)

    message.content = replace_records(message.content, is_packed, decode_record)
    reply = call_next(message, context)
    if received and not reply.has_error():
        reply.content = replace_records(
            reply.content, lambda record: isinstance(record, ArrayRecord), encode_record
        )
    return reply


def _encode_update(key: str, broadcast: Broadcast, trained: ArrayRecord, context: Context) -> ConfigRecord:
    layout = broadcast.layout
    # Flattened first, because that refuses tensors that are missing, unknown or of another shape.
    update = flatten(to_state(trained), layout) - flatten(broadcast.state, layout)
    residual_key = f"{RESIDUAL}.{key}"
    blob, residual = encode_with_feedback(
        unflatten(update, layout),
        _kept_residual(context, residual_key, layout.contract),
        layout,
        broadcast.upload_codec,
        broadcast.round,
    )
    context.state[residual_key] = ConfigRecord({CONTRACT: layout.contract, "residual": residual.tobytes()})
    return ConfigRecord({PAYLOAD: blob})


def _kept_residual(context: Context, key: str, contract: str) -> Vector | None:
    record = context.state.get(key)
    # A residual of another adapter must not leak into this one.
    if not isinstance(record, ConfigRecord) or record[CONTRACT] != contract:
        return None
    kept = record["residual"]
    assert isinstance(kept, bytes)
    return np.frombuffer(kept, np.float32)
