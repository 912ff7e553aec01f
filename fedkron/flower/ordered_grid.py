"""A Grid whose nodes come in the same order in every run, by what they say of themselves.

Flower gives nodes other ids in every run. Whoever chooses some of them by chance would choose others, with
the same seed: so they are asked once which task and partition they have, and sorted by it.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedkron.flower.admission import Origin, origin_of
from fedkron.flower.grid_wrapper import GridWrapper


class OrderedGrid(GridWrapper):
    """Wraps the grid that a strategy is started with.

    `timeout` in seconds is for introductions; what they cost is entered in the ledger for `round_`.
    """

    def __init__(self, grid: Grid, *, timeout: float, round_: int = 1) -> None:
        super().__init__(grid)
        self._timeout = timeout
        self._round = round_
        self._origins: dict[int, Origin] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the wrapped grid does it."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the connected nodes, by task and partition; those that do not say come last."""
        return [origin.node for origin in self.origins()]

    def origins(self) -> list[Origin]:
        """The connected nodes in order. Those that have come since are asked who they are."""
        nodes = list(self._grid.get_node_ids())
        self._ask([node for node in nodes if node not in self._origins])
        known = sorted(self._origins[node] for node in nodes if node in self._origins)
        return known + [Origin("", 0, node) for node in sorted(nodes) if node not in self._origins]

    def _ask(self, strangers: list[int]) -> None:
        config = ConfigRecord({"server-round": self._round})
        questions = [Message(RecordDict({"config": config}), node, MessageType.QUERY) for node in strangers]
        if not questions:
            return
        for reply in self._grid.send_and_receive(questions, timeout=self._timeout):
            if not reply.has_error() and _is_told(origin := origin_of(reply)):
                self._origins[origin.node] = origin


def _is_told(origin: Origin) -> bool:
    return isinstance(origin.task, str) and isinstance(origin.partition, int)
