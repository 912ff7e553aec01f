"""A Grid around another Grid: the base of those that watch or change what passes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class GridWrapper(Grid):
    """Hands everything on to the wrapped grid.

    `send_and_receive` goes through this object's own `push_messages` and `pull_messages` (that of the
    wrapped grid would go through the wrapped grid's): a subclass that overrides these two sees every
    message. It asks for replies every `poll_interval` seconds.
    """

    def __init__(self, grid: Grid, *, poll_interval: float = 0.2) -> None:
        self._grid = grid
        self._poll_interval = poll_interval

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages; ids of those that Flower took."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull the replies to these messages that have arrived."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies, at most `timeout` seconds."""
        # None is Flower's mark for a message that it could not push: it has no reply. The order is kept,
        # so that the same replies are added up in the same order.
        waiting = [message_id for message_id in self.push_messages(messages) if message_id is not None]
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            replies.extend(arrived)
            answered = {reply.metadata.reply_to_message_id for reply in arrived}
            waiting = [message_id for message_id in waiting if message_id not in answered]
            if waiting and not arrived:
                time.sleep(self._poll_interval)
        self.give_up(waiting)
        return replies

    def give_up(self, message_ids: Iterable[str]) -> None:
        """Called by `send_and_receive` with the messages for whose replies it waits no longer."""

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
