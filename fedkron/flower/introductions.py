"""Waiting for nodes, and asking them who they are before they are sent an adapter of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedkron.aggregation import Size
from fedkron.errors import FedKronError, PayloadError, RunError
from fedkron.flower.admission import ORIGIN, origin_of
from fedkron.flower.global_adapter import GlobalAdapter, Introduction

NODES_POLL_SECONDS = 0.5

SIZE = "size"
"""Key of the ConfigRecord in which a node names the `rank` and `d-a2` of its adapter; 0 is the global
one's.
"""


def introduction_of(task: str, partition: int, size: Size) -> RecordDict:
    """What a client answers to a query."""
    return RecordDict(
        {
            ORIGIN: ConfigRecord({"task": task, "partition": partition}),
            SIZE: ConfigRecord({"rank": size.rank, "d-a2": size.d_a2 or 0}),
        }
    )


def introduce(
    nodes: Sequence[int], adapters: GlobalAdapter, grid: Grid, *, round_: int, timeout: float
) -> dict[int, str]:
    """Query nodes and let `adapters` meet them; returns why some could not be met, by node.

    Waits for them at most `timeout` seconds.
    """
    config = ConfigRecord({"server-round": round_})
    messages = [Message(RecordDict({"config": config}), node, MessageType.QUERY) for node in nodes]
    if not messages:
        return {}
    failures = {node: f"node {node}: no introduction in time" for node in nodes}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = reply.metadata.src_node_id
        if reply.has_error():
            failures[node] = f"node {node}: no introduction: {reply.error.reason}"
            continue
        try:
            adapters.meet(node, _introduction(reply))
            del failures[node]
        except FedKronError as error:
            failures[node] = f"node {node}: {error}"
    return failures


def _introduction(reply: Message) -> Introduction:
    record = reply.content.config_records.get(SIZE, ConfigRecord())
    rank, d_a2 = record.get("rank"), record.get("d-a2")
    task = origin_of(reply).task
    if not (isinstance(task, str) and isinstance(rank, int) and isinstance(d_a2, int)):
        raise PayloadError(f"its introduction has task {task!r}, rank {rank!r} and d-a2 {d_a2!r}")
    return Introduction(task, Size(rank, d_a2 or None))


def await_nodes(grid: Grid, count: int, round_: int, timeout: float) -> None:
    """Wait until so many nodes are there. Flower would wait for ever; after `timeout` seconds this raises
    `RunError`.
    """
    deadline = time.monotonic() + timeout
    while (there := len(list(grid.get_node_ids()))) < count:
        if time.monotonic() > deadline:
            raise RunError(
                f"round {round_}: {there} nodes are online, {count} are needed, and no more came in "
                f"{timeout:g} seconds"
            )
        time.sleep(NODES_POLL_SECONDS)
