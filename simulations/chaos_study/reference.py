"""What a run should have come to: the same programs inside this process, with the faults told to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict

import clients.app
import server.app
from fedkron.exchange import load_adapter
from fedkron.layout import State
from fedkron.rundir import ADAPTER, run_directory
from fedkron.settings import Settings, run_config
from simulations.in_process import InProcessGrid

FIRST_NODE = 1000
TRAIN = "train"


class Fate(Enum):
    """What becomes of a message to a node."""

    ANSWERED = "the reply arrives"
    LATE = "the node does its work, the server does not hear of it"
    LOST = "the node never gets it"


Fates = Callable[[int, int, str], Fate]
"""By node (0, 1, …), round and phase."""


class FatedGrid(InProcessGrid):
    """Nodes 0, 1, … answer as it was decided for them."""

    def __init__(self, nodes: int, config: Mapping[str, object], fates: Fates) -> None:
        super().__init__(clients.app.app, nodes, config)
        self._fates = fates

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, each to its fate."""
        ids = []
        for message in messages:
            node, phase, round_ = (
                message.metadata.dst_node_id,
                message.metadata.message_type,
                round_of(message),
            )
            ids += self._deliver(message, self._fates(node - FIRST_NODE, round_, phase))
        return ids

    def _deliver(self, message: Message, fate: Fate) -> list[str]:
        if fate is Fate.LOST:
            message.metadata.__dict__["_message_id"] = f"lost-{id(message)}"
            return [message.metadata.message_id]
        ids = list(super().push_messages([message]))
        if fate is Fate.LATE:
            list(super().pull_messages(ids))
        return ids


def round_of(message: Message) -> int:
    """The round that a message of a strategy belongs to."""
    return int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]


def reference_state(settings: Settings, nodes: int, fates: Fates) -> State:
    """The adapter after the last round."""
    config = {**run_config(settings), "round-timeout": 0.01, "max-failure-fraction": 1.0}
    grid = FatedGrid(nodes, config, fates)
    server.app.app(grid, Context(1, 1, {}, RecordDict(), config))  # type: ignore[arg-type]
    return saved_state(run_directory(settings, 1))


def saved_state(folder: Path) -> State:
    """The adapter of a run folder."""
    return load_adapter(folder / ADAPTER).state


def same_bits(one: State, other: State) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(
        np.array_equal(one[name].view(np.uint32), other[name].view(np.uint32)) for name in one
    )
