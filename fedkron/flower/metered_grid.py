"""The ledger for anybody's Flower app: a Grid that counts and changes nothing.

    strategy.start(MeteredGrid(grid, "ledger.jsonl"), initial_arrays, num_rounds=3)

Afterwards `fedkron report ledger.jsonl` shows where the bytes went.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.serverapp import Grid

from fedkron.flower.grid_wrapper import GridWrapper
from fedkron.flower.wire import MADE_BY_THE_SUPERLINK, message_bytes, round_of
from fedkron.ledger import Direction, Ledger, Transfer

HEAD_PREFIX = "head."
"""Arrays whose names begin so are the head, as in `fedkron.layout.HEAD_WEIGHT`."""


class MeteredGrid(GridWrapper):
    """Counts every message both ways in `ledger`, and writes it to `path` as it grows (none: memory only).

    A message down is counted when Flower has taken it for delivery. A reply is counted when it is pulled,
    in the round of the message that it answers; an error reply counts as what it is, a message without
    arrays, unless the SuperLink itself made it (node gone, message expired): that one crossed no wire.
    An existing file at `path` is overwritten.

    What is counted: `factor_bytes` is the data of the arrays as Flower carries it (for numpy arrays with
    the 128 bytes of .npy header), `head_bytes` that of arrays named `head.…`, `header_bytes` 0. Data that
    occurs twice in a message is counted once, because it travels once. `baseline_bytes` is the number of
    array elements times 4.
    """

    def __init__(self, grid: Grid, path: str | Path | None = None, *, poll_interval: float = 0.2) -> None:
        super().__init__(grid, poll_interval=poll_interval)
        self.ledger = Ledger(None if path is None else Path(path))
        self._rounds: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages, and count those that Flower took."""
        messages = list(messages)
        ids = list(self._grid.push_messages(messages))
        # Not by position: Flower's simulation leaves out what it refused, a deployment says None there.
        taken = set(ids)
        for message in messages:
            if message.metadata.message_id in taken:
                round_ = self._rounds[message.metadata.message_id] = round_of(message)
                self._count(message, "down", round_, message.metadata.dst_node_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies, and count them."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            round_ = self._rounds.pop(reply.metadata.reply_to_message_id, 0)
            if not (reply.has_error() and reply.error.code in MADE_BY_THE_SUPERLINK):
                self._count(reply, "up", round_, reply.metadata.src_node_id)
        return replies

    def _count(self, message: Message, direction: Direction, round_: int, node: int) -> None:
        factors, head, elements = (0, 0, 0) if message.has_error() else _arrays_in(message)
        self.ledger.record(
            Transfer(
                round=round_,
                node=str(node),
                phase=message.metadata.message_type,
                direction=direction,
                factor_bytes=factors,
                head_bytes=head,
                header_bytes=0,
                message_bytes=message_bytes(message),
                baseline_bytes=4 * elements,
            )
        )


def _arrays_in(message: Message) -> tuple[int, int, int]:
    """Bytes of factors and of head that travel, and the number of elements in all arrays."""
    factors = head = elements = 0
    seen: set[str] = set()
    for record in message.content.array_records.values():
        for name, array in record.items():
            chunks = {key: item for key, item in array.children.items() if key not in seen}
            size = sum(len(item.data) for item in chunks.values() if isinstance(item, ArrayChunk))
            seen |= chunks.keys()
            elements += math.prod(array.shape)
            if name.startswith(HEAD_PREFIX):
                head += size
            else:
                factors += size
    return factors, head, elements
