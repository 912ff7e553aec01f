"""The server half of the seam: a Grid that encodes broadcasts and decodes uploads.

`CompressedGrid(grid)` goes where the grid went: any Flower strategy runs on it unchanged and sees plain
arrays. Every message with content is entered in the ledger. An upload that cannot be accepted reaches the
strategy as an error reply: it is counted as a failure and never touches the global adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common import log
from flwr.serverapp import Grid

from fedkron.compression import codec
from fedkron.errors import FedKronError, PayloadError, RunError
from fedkron.exchange import Tree
from fedkron.flower.awaited import Arrival, Awaited, Reference, asks_for_state, packed, transfer_of
from fedkron.flower.downlink import Downlink, Target
from fedkron.flower.grid_wrapper import GridWrapper
from fedkron.flower.wire import (
    MADE_BY_THE_SUPERLINK,
    REJECTED_UPLOAD,
    UNKNOWN_STATE,
    Broadcast,
    carries_upload,
    is_packed,
    pack_broadcast,
    payload_of,
    replace_records,
    round_of,
    to_arrays,
    to_state,
)
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import Direction, Ledger


class CompressedGrid(GridWrapper):
    """Wraps a Grid; `upload` and `broadcast` are codec names.

    Arrays that are parts of `layout`, in whatever sizes, travel as such; all others as they are.

    A node that is known to have an earlier state gets the change since then, any other the whole state.
    `on_upload` is called with each upload as it arrives, whether it is admitted or not.

    Clients need `compressed_exchange` as their first mod. Raises `ConfigError` for an unknown codec.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        layout: AdapterLayout | None = None,
        upload: str = "ecsq",
        broadcast: str = "ecsq",
        ledger: Ledger | None = None,
        on_upload: Callable[[Arrival], object] = id,
        poll_interval: float = 0.2,
    ) -> None:
        super().__init__(grid, poll_interval=poll_interval)
        self._layout = layout
        self._upload, self._broadcast = codec(upload), codec(broadcast)
        self._on_upload = on_upload
        self._sent: dict[str, Awaited] = {}
        self._downlinks: dict[str, Downlink] = {}
        self._layouts: dict[tuple[tuple[str, tuple[int, ...]], ...], AdapterLayout] = {}
        self.ledger = ledger or Ledger()

    def agreed(self, arrays: ArrayRecord, key: str = "arrays") -> ArrayRecord:
        """Arrays as the clients will get them, to start a strategy from.

        The first broadcast is quantized, too. Where the initial arrays are random anyway, it is better to
        begin with what all have than to send the difference later.
        """
        state = to_state(arrays)
        self._downlink(key).publish([Target(state, self._layout_of(state), ())], round_=0)
        return to_arrays(self.shared_state(key))

    def shared_state(self, key: str = "arrays") -> State:
        """What the nodes that got the last broadcast have. Raises `LookupError` when there was none."""
        return self._downlink(key).latest

    def snapshot(self) -> dict[str, Tree]:
        """What it knows between two rounds: for `restore`."""
        return {key: downlink.snapshot() for key, downlink in self._downlinks.items()}

    def restore(self, snapshot: Mapping[str, Tree], renamed: Mapping[int, int]) -> None:
        """Go on where a snapshot was made; `renamed` has today's ids of the nodes that are still there."""
        self._downlinks = {
            key: Downlink.restored(downlink, self._broadcast, renamed) for key, downlink in snapshot.items()
        }

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode the arrays of each message, then push it; equal arrays are encoded once.

        Raises `AdapterError` for arrays that cannot be encoded (not floating point, not finite, not of the
        layout), `RunError` when Flower does not take the messages.
        """
        sent = [Awaited(message, round_of(message)) for message in messages]
        self._publish(sent)
        for memory in sent:
            memory.message.content = self._encoded(memory)
        return self._pushed(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies and decode their arrays; a refused upload becomes an error reply.

        A node that lacks the state which has changed is sent the whole state; its answer to that comes as
        the reply to the first message.
        """
        in_place = {memory.asked_for: new for new, memory in self._sent.items() if memory.asked_for}
        replies = []
        for reply in self._grid.pull_messages([in_place.get(i, i) for i in message_ids]):
            memory = self._sent.pop(reply.metadata.reply_to_message_id, None)
            if memory is None:
                replies.append(reply)
                continue
            if reply.has_error() and reply.error.code in MADE_BY_THE_SUPERLINK:
                # It signs with its own id; a report has to name the node that did not answer.
                reply.metadata.__dict__["_src_node_id"] = memory.message.metadata.dst_node_id
            else:
                self._enter(reply, "up", memory, node=reply.metadata.src_node_id)
            if not asks_for_state(reply, memory):
                replies.append(self._decoded(reply, memory))
            elif not self._sent_whole_state(memory, reply):
                replies.append(reply)
        return replies

    def give_up(self, message_ids: Iterable[str]) -> None:
        """Forget messages whose replies nobody waits for any longer."""
        given_up = set(message_ids)
        self._sent = {
            new: memory
            for new, memory in self._sent.items()
            if new not in given_up and memory.asked_for not in given_up
        }

    def _layout_of(self, state: State) -> AdapterLayout:
        """The layout of a record: made once, because a contract takes milliseconds to compute."""
        shapes = tuple((name, values.shape) for name, values in state.items())
        if shapes not in self._layouts:
            layout = self._layout or AdapterLayout("", ())
            known = {tensor.name for tensor in layout.tensors}
            ours = not known.isdisjoint(state)
            self._layouts[shapes] = layout.of_state(state) if ours else AdapterLayout.of_arrays(state)
        return self._layouts[shapes]

    def _downlink(self, key: str) -> Downlink:
        return self._downlinks.setdefault(key, Downlink(self._broadcast))

    def _publish(self, sent: Sequence[Awaited]) -> None:
        """Publish all arrays of some messages; the same record is looked at once."""
        for key in dict.fromkeys(key for memory in sent for key in memory.message.content.array_records):
            lots: dict[int, list[Awaited]] = {}
            for memory in sent:
                if (record := memory.message.content.array_records.get(key)) is not None:
                    lots.setdefault(id(record), []).append(memory)
            targets = []
            for lot in lots.values():
                state = to_state(lot[0].message.content.array_records[key])
                nodes = tuple(memory.message.metadata.dst_node_id for memory in lot)
                targets.append(Target(state, self._layout_of(state), nodes))
            published = self._downlink(key).publish(targets, sent[0].round)
            for lot, target, shared in zip(lots.values(), targets, published, strict=True):
                for memory in lot:
                    memory.references[key] = Reference(
                        target.state, target.layout, shared, shared.held.digest
                    )

    def _encoded(self, memory: Awaited) -> RecordDict:
        """The message's content with payloads in the place of arrays, or of earlier payloads."""
        node = memory.message.metadata.dst_node_id

        def encode_record(key: str, record: object) -> ConfigRecord:  # noqa: ARG001
            way = self._downlink(key).delivery(node, memory.references[key].shared)
            return pack_broadcast(Broadcast(way.chain, way.layout, memory.round, self._upload))

        return replace_records(
            memory.message.content, lambda r: isinstance(r, ArrayRecord) or is_packed(r), encode_record
        )

    def _pushed(self, sent: Sequence[Awaited]) -> list[str]:
        ids = list(self._grid.push_messages([memory.message for memory in sent]))
        if len(ids) != len(sent):
            raise RunError(
                f"Flower pushed {len(ids)} of {len(sent)} messages; its log says why: "
                "one may be too large for the SuperLink"
            )
        for message_id, memory in zip(ids, sent, strict=True):
            if message_id is not None:  # Flower's mark for a message that it could not push
                self._sent[message_id] = memory
                self._enter(memory.message, "down", memory, node=memory.message.metadata.dst_node_id)
        return ids

    def _sent_whole_state(self, memory: Awaited, reply: Message) -> bool:
        """Send the whole state in place of a change; False when Flower does not take it."""
        old = memory.message
        node = old.metadata.dst_node_id
        log(INFO, "node %s asks for the whole state: %s", node, reply.error.reason)
        for key in memory.references:
            self._downlink(key).forget(node)
        again = Message(
            self._encoded(memory),
            node,
            old.metadata.message_type,
            ttl=old.metadata.ttl,
            group_id=old.metadata.group_id,
        )
        first_id = reply.metadata.reply_to_message_id
        return self._pushed([Awaited(again, memory.round, memory.references, first_id)]) != [None]

    def _decoded(self, reply: Message, memory: Awaited) -> Message:
        node = reply.metadata.src_node_id
        if memory.asked_for is not None:
            reply.metadata.__dict__["_reply_to_message_id"] = memory.asked_for
        if reply.has_error():
            if reply.error.code == UNKNOWN_STATE:
                for key in memory.references:
                    self._downlink(key).forget(node)
            return reply
        for key, reference in memory.references.items():
            self._downlink(key).confirm(node, reference.shared, reference.digest)

        payloads = {k: payload_of(r) for k, r in reply.content.config_records.items() if carries_upload(r)}
        if payloads:
            found = {k: (hashlib.sha256(p).hexdigest(), len(p)) for k, p in payloads.items()}
            self._on_upload(Arrival(memory.round, node, found))
        try:
            if memory.references and reply.content.array_records:
                raise PayloadError(
                    "it came uncompressed: the ClientApp needs compressed_exchange as first mod"
                )
            self._take(reply, memory)
        except FedKronError as error:
            reason = f"upload of node {node} in round {memory.round} refused: {error}"
            log(WARNING, reason)
            return make_message(reply.metadata, error=Error(REJECTED_UPLOAD, reason))
        return reply

    def _take(self, reply: Message, memory: Awaited) -> None:
        """Decode the uploads in a reply."""

        def open_record(key: str, record: object) -> ArrayRecord:
            return to_arrays(packed(key, record, memory).opened())

        reply.content = replace_records(reply.content, is_packed, open_record)

    def _enter(self, message: Message, direction: Direction, sent: Awaited, *, node: int) -> None:
        self.ledger.record(transfer_of(message, direction, sent, node))
