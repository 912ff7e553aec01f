"""Our exchange without error feedback: what a codec leaves out is thrown away, in both directions.

fedkron has no switch for this. Here it is made from outside: what a node remembers of its uploads is deleted
before every message, and the server's adapter is set back to what the nodes have got of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid

import clients.app
from fedkron.flower import CompressedGrid, FedKron
from fedkron.flower.client_mod import RESIDUAL
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import State


def forgetful_client(message: Message, context: Context) -> Message:
    """The real ClientApp on a node that has kept nothing of what its earlier uploads left out."""
    for key in [key for key in context.state if key.startswith(RESIDUAL)]:
        del context.state[key]
    return clients.app.app(message, context)


class ForgetfulServer(FedKron):
    """FedKron whose adapter loses what a broadcast leaves out. Runs on a `CompressedGrid`."""

    _grid: CompressedGrid
    _pushed: State

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Broadcast, from the second round on, nothing but what the last evaluation's broadcast has left."""
        assert isinstance(grid, CompressedGrid)
        self._grid = grid
        if server_round > 1:
            arrays = to_arrays(self._shared())
        self._pushed = to_state(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the mean update to what the nodes had got: not, as FedKron does, to what was meant for them."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        shared = self._shared()
        kept = {name: v - (self._pushed[name] - shared[name]) for name, v in to_state(arrays).items()}
        return to_arrays(kept), metrics

    def _shared(self) -> State:
        return self._grid.shared_state(self.arrayrecord_key)
