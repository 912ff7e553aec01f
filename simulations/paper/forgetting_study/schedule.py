"""A federation in which other nodes take part in each round: tasks that come one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedkron.flower import FedKron
from fedkron.flower.grid_wrapper import GridWrapper
from fedkron.layout import AdapterLayout

NodesOf = Callable[[int], Sequence[int]]
"""From a round (from 1) to the ids of nodes."""


class Present(GridWrapper):
    """A Grid of which only some nodes are seen."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        super().__init__(grid)
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        """Ids of those that are seen."""
        return self._nodes


class ScheduledFedKron(FedKron):
    """FedKron that chooses all of the nodes that a schedule gives for a round, to train and to evaluate."""

    def __init__(
        self, layout: AdapterLayout, *, trains: NodesOf, evaluates: NodesOf, **options: object
    ) -> None:
        super().__init__(layout, min_train_nodes=1, min_evaluate_nodes=1, **options)  # type: ignore[arg-type]
        self.min_available_nodes = 1
        self._trains, self._evaluates = trains, evaluates

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the nodes that train in this round."""
        return super().configure_train(
            server_round, arrays, config, Present(grid, self._trains(server_round))
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the nodes that evaluate after this round, if there are any."""
        nodes = self._evaluates(server_round)
        if not nodes:
            return self._addressed([], server_round, arrays, grid)
        return super().configure_evaluate(server_round, arrays, config, Present(grid, nodes))
