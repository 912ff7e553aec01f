"""The program on the server: run the rounds, write down what happened. It never sees data."""

from __future__ import annotations

import random
import time

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkron.flower import CompressedGrid, RoundReport
from fedkron.flower.global_adapter import FOR_ALL, GlobalAdapter, Sent, is_adapter
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.uploads import plain_uploads
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import Ledger
from fedkron.rundir import LEDGER, run_directory
from fedkron.settings import Settings
from server.record import Held, RunRecord
from server.secure import secured
from server.strategy import strategy_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Federate for `num-server-rounds` rounds; an exception here is what Flower reports as failed."""
    settings = Settings.from_run_config(context.run_config)
    folder = run_directory(settings, context.run_id)
    record = RunRecord.start(folder, settings)
    try:
        layout, initial = _initial_adapter(settings)
        nodes = _wait_for_nodes(grid)

        compressed = UnopenedGrid(
            grid,
            layout=layout,
            upload=settings.codec.upload,
            broadcast=settings.codec.broadcast,
            ledger=Ledger(folder / LEDGER),
        )

        def on_round(report: RoundReport, adapters: GlobalAdapter) -> None:
            # What the nodes have evaluated, or will get with the next broadcast.
            agreed = {name: _agreed(sent, compressed) for name, sent in adapters.held().items()}
            record.finish_round(report, agreed, _terms(adapters.held()[FOR_ALL], compressed))

        secure = settings.secure.aggregation
        uploads = plain_uploads if secure else compressed.uploads
        strategy = strategy_of(settings, layout, nodes, on_round, uploads)
        strategy.adapters.adopt(0, to_arrays(initial))
        random.seed(settings.seed)  # Flower's strategies choose their clients with it
        strategy.start(
            secured(compressed, settings) if secure else compressed,
            to_arrays(_agreed(strategy.adapters.held()[FOR_ALL], compressed).state),
            num_rounds=settings.num_server_rounds,
            timeout=settings.round_timeout,
        )
    except BaseException as error:
        record.fail(error)
        raise
    record.complete()


def _initial_adapter(settings: Settings) -> tuple[AdapterLayout, State]:
    """The adapter of round 0: random factors from the seed, with ΔW = 0."""
    import torch

    from fedkron.adapters import adapter_layout, adapter_state, attach
    from fedkron.base import load_base

    base = load_base(settings.base)
    torch.manual_seed(settings.seed)
    model = attach(base.backbone, settings.adapter.spec())
    layout, state = adapter_layout(model, base.fingerprint), adapter_state(model)
    if outputs := settings.shared_head_outputs:
        layout = layout.with_head(outputs, base.hidden_size)
        zeros = {t.name: np.zeros(t.shape, np.float32) for t in layout.dense if t.name not in state}
        state |= zeros
    return layout, state


def _agreed(sent: Sent, grid: CompressedGrid) -> Held:
    """An adapter as the nodes that are sent it have it."""
    parts = [grid.agreed(record, key) for key, record in sent.records.items() if is_adapter(key)]
    state = {name: values for part in parts for name, values in to_state(part).items()}
    return Held({tensor.name: state[tensor.name] for tensor in sent.layout.tensors}, sent.layout)


def _terms(sent: Sent, grid: CompressedGrid) -> list[State]:
    """What the nodes have folded into their base."""
    return [to_state(grid.agreed(record, key)) for key, record in sent.records.items() if not is_adapter(key)]


def _wait_for_nodes(grid: Grid) -> int:
    """Number of nodes once the first ones are there and no more have come for a moment."""
    count = 0
    while count == 0 or count != len(list(grid.get_node_ids())):
        count = len(list(grid.get_node_ids()))
        time.sleep(0.5)
    return count
