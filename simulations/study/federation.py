"""What all federations of a study have in common: no node may fail, and nothing is measured twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from flwr.app import Message, MetricRecord

from clients.app import HEAD_ONLY
from fedkron.errors import RunError
from simulations.in_process import InProcessGrid


class StrictGrid(InProcessGrid):
    """One failure of one node ends the run: a mean over the others could not be compared."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out replies; raises `RunError` for one that is an error."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if reply.has_error():
                raise RunError(f"node {reply.metadata.src_node_id} failed: {reply.error.reason}")
        return replies


# A node measures once, at its first evaluation, what a head alone reaches. That takes as long as a round, and
# is the same whatever travels.
_head_only: dict[Hashable, dict[int, MetricRecord]] = {}


def recall_head_only(data: Hashable, nodes: InProcessGrid) -> None:
    """Spare nodes what nodes with the same data, number of rounds and seed (the key) have measured."""
    for node, record in _head_only.get(data, {}).items():
        nodes.contexts[node].state[HEAD_ONLY] = record


def remember_head_only(data: Hashable, nodes: InProcessGrid) -> None:
    """Keep, for this process, what the nodes have measured."""
    known = _head_only.setdefault(data, {})
    for node, context in nodes.contexts.items():
        if HEAD_ONLY in context.state:
            known[node] = context.state.metric_records[HEAD_ONLY]
