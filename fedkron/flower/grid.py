"""The server half of the seam: a Grid that encodes broadcasts and decodes uploads.

`CompressedGrid(grid)` goes where the grid went: any Flower strategy runs on it unchanged and sees plain
arrays. Every message with content is entered in the ledger. An upload that cannot be accepted reaches the
strategy as an error reply: it is counted as a failure and never touches the global adapter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common import log
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedkron.compression import codec, decode
from fedkron.errors import FedKronError, PayloadError, RunError
from fedkron.flower.wire import (
    REJECTED_UPLOAD,
    is_packed,
    message_bytes,
    pack_broadcast,
    payload_of,
    payload_size,
    replace_records,
    round_of,
    to_arrays,
    to_state,
)
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import BASELINE_RANK, Direction, Ledger, Transfer


@dataclass
class _Sent:
    """What the server remembers of a message until its reply comes."""

    round: int
    arrays: dict[str, tuple[State, AdapterLayout]] = field(default_factory=dict)


class CompressedGrid(Grid):
    """Wraps a Grid; `upload` and `broadcast` are codec names, `layout` defaults to that of the arrays.

    Clients need `compressed_exchange` as their first mod. Raises `ConfigError` for an unknown codec.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        layout: AdapterLayout | None = None,
        upload: str = "int4",
        broadcast: str = "int4",
        ledger: Ledger | None = None,
        poll_interval: float = 0.2,
    ) -> None:
        self._grid = grid
        self._layout = layout
        self._codecs = (codec(broadcast).name, codec(upload).name)
        self._poll_interval = poll_interval
        self._sent: dict[str, _Sent] = {}
        self.ledger = ledger or Ledger()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode the arrays of each message, then push it; the same arrays are encoded once.

        Raises `AdapterError` for arrays that cannot be encoded (not floating point, not finite, not of the
        layout), `RunError` when Flower does not take the messages.
        """
        messages = list(messages)
        packed: dict[int, tuple[ConfigRecord, State, AdapterLayout]] = {}
        sent: list[_Sent] = []
        for message in messages:
            sent.append(_Sent(round_of(message)))
            message.content = self._encode_content(message, sent[-1], packed)
        ids = list(self._grid.push_messages(messages))
        if len(ids) != len(messages):
            raise RunError(
                f"Flower pushed {len(ids)} of {len(messages)} messages; its log says why: "
                "one may be too large for the SuperLink"
            )
        for message_id, message, memory in zip(ids, messages, sent, strict=True):
            if message_id is not None:  # Flower's mark for a message that it could not push
                self._sent[message_id] = memory
                self._enter(message, "down", memory, node=message.metadata.dst_node_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies and decode their arrays; a refused upload becomes an error reply."""
        return [self._decode_reply(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies, at most `timeout` seconds; later ones are ignored."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id is not None}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            replies.extend(arrived)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if waiting and not arrived:
                time.sleep(self._poll_interval)
        for message_id in waiting:
            self._sent.pop(message_id, None)
        return replies

    def _encode_content(
        self, message: Message, sent: _Sent, packed: dict[int, tuple[ConfigRecord, State, AdapterLayout]]
    ) -> RecordDict:
        def encode_record(key: str, record: object) -> ConfigRecord:
            assert isinstance(record, ArrayRecord)
            if id(record) not in packed:
                state = to_state(record)
                layout = self._layout or AdapterLayout.of_arrays(state)
                packed[id(record)] = (
                    pack_broadcast(state, layout, sent.round, self._codecs),
                    state,
                    layout,
                )
            encoded, state, layout = packed[id(record)]
            sent.arrays[key] = (state, layout)
            return encoded

        return replace_records(message.content, lambda r: isinstance(r, ArrayRecord), encode_record)

    def _decode_reply(self, reply: Message) -> Message:
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None or reply.has_error():
            return reply
        self._enter(reply, "up", sent, node=reply.metadata.src_node_id)

        def decode_record(key: str, record: object) -> ArrayRecord:
            assert isinstance(record, ConfigRecord)
            return to_arrays(_accepted(key, record, sent))

        try:
            if sent.arrays and reply.content.array_records:
                raise PayloadError(
                    "it came uncompressed: the ClientApp needs compressed_exchange as first mod"
                )
            reply.content = replace_records(reply.content, is_packed, decode_record)
        except FedKronError as error:
            reason = f"upload of node {reply.metadata.src_node_id} in round {sent.round} refused: {error}"
            log(WARNING, reason)
            return make_message(reply.metadata, error=Error(REJECTED_UPLOAD, reason))
        return reply

    def _enter(self, message: Message, direction: Direction, sent: _Sent, *, node: int) -> None:
        packed = [record for record in message.content.config_records.values() if is_packed(record)]
        carries = [layout for _, layout in sent.arrays.values()] if packed else []
        self.ledger.record(
            Transfer(
                round=sent.round,
                node=str(node),
                phase=message.metadata.message_type,
                direction=direction,
                payload_bytes=sum(payload_size(record) for record in packed),
                message_bytes=message_bytes(message),
                baseline_bytes=sum(4 * layout.lora_size(BASELINE_RANK) for layout in carries),
            )
        )

    # The rest is the wrapped grid's business.

    def set_run(self, run: Run) -> None:
        """Set the run this grid operates in."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Run information."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message (deprecated in Flower: use `Message`)."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the connected nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The connected nodes."""
        return self._grid.get_nodes()


def _accepted(key: str, record: ConfigRecord, sent: _Sent) -> State:
    """The client's arrays: what was sent plus the decoded update; raises when it must be refused."""
    if key not in sent.arrays:
        raise PayloadError(f"payload {key!r} answers nothing that was sent ({sorted(sent.arrays)})")
    state, layout = sent.arrays[key]
    decoded = decode(payload_of(record), layout)
    if decoded.round != sent.round:
        raise PayloadError(f"payload is of round {decoded.round}, expected round {sent.round}")
    # The reference is the server's full-precision state, not the quantized broadcast: what the
    # broadcast's quantization left out is thus not lost, but sent again with the next one.
    with np.errstate(over="ignore"):
        trained = {name: state[name] + update for name, update in decoded.update.items()}
    if overflown := [name for name, values in trained.items() if not np.isfinite(values).all()]:
        raise PayloadError(f"it takes tensor {overflown[0]!r} beyond the largest float32")
    return trained
