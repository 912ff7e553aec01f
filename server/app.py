"""The program on the server: run the rounds, write down what happened. It never sees data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkron.errors import ContractError
from fedkron.flower import CompressedGrid, RoundReport
from fedkron.flower.global_adapter import FOR_ALL, GlobalAdapter, Sent, is_adapter
from fedkron.flower.ordered_grid import OrderedGrid
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.uploads import plain_uploads
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import Ledger
from fedkron.rundir import LEDGER, run_directory
from fedkron.settings import EQUAL_SIZES, ONE_GROUP, Settings
from server.audit_trail import AuditTrail
from server.checkpoint import Checkpoint, load_checkpoint, restored, save_checkpoint
from server.record import Held, RunRecord
from server.scalar_log import ScalarLog
from server.secure import secured
from server.strategy import strategy_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Federate for `num-server-rounds` rounds; an exception here is what Flower reports as failed."""
    settings = Settings.from_run_config(context.run_config)
    folder = run_directory(settings, context.run_id)
    checkpoint = load_checkpoint(folder) if settings.resume else None
    done = 0 if checkpoint is None else checkpoint.round
    if settings.resume:
        record, trail = RunRecord.resume(folder, settings, done), AuditTrail.resume(folder, done)
    else:
        record, trail = RunRecord.start(folder, settings), AuditTrail.begin(folder)
    outcome = {"status": "completed"}
    try:
        _federate(grid, settings, Place(folder, record, trail), checkpoint, str(context.run_id))
    except BaseException as error:
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        _end(record, trail, outcome)


@dataclass(frozen=True)
class Place:
    """Where a run is written down."""

    folder: Path
    record: RunRecord
    trail: AuditTrail


def _end(record: RunRecord, trail: AuditTrail, outcome: dict[str, str]) -> None:
    try:
        trail.ended(outcome)
    finally:
        # Whoever waits for the run must learn how it ended, even where the log cannot be written.
        record.end(outcome)
        trail.close()


def _federate(grid: Grid, settings: Settings, place: Place, checkpoint: Checkpoint | None, run: str) -> None:
    """All rounds, or those that are left."""
    layout, initial = _initial_adapter(settings)
    if checkpoint is not None and checkpoint.contract != layout.contract:
        raise ContractError(
            f"the run in {place.folder} has an adapter of contract {checkpoint.contract[:12]}…, base "
            f"{settings.base!r} needs {layout.contract[:12]}…: it is not the base that the run began with"
        )
    there = _wait_for_nodes(grid, 1 if checkpoint is None else checkpoint.nodes)
    nodes = there if checkpoint is None else checkpoint.nodes
    ledger = Ledger(place.folder / LEDGER)
    scalar_log = ScalarLog(place.folder, ledger, 0 if checkpoint is None else checkpoint.round)
    compressed = UnopenedGrid(
        grid,
        layout=layout,
        upload=settings.codec.upload,
        broadcast=settings.codec.broadcast,
        ledger=ledger,
        on_upload=place.trail.arrived,
    )
    began = run if checkpoint is None else checkpoint.run

    def on_round(report: RoundReport, adapters: GlobalAdapter) -> None:
        # What the nodes have evaluated, or will get with the next broadcast.
        agreed = {name: _agreed(sent, compressed) for name, sent in adapters.held().items()}
        terms = _terms(adapters.held()[FOR_ALL], compressed)
        place.trail.aggregated(report.round, place.record.save_adapters(report, agreed, terms))
        scalar_log.write(place.record.finish_round(report))
        steps = {} if secure is None else secure.snapshot()
        state = strategy.snapshot(), compressed.snapshot(), steps
        save_checkpoint(place.folder, Checkpoint(began, layout.contract, nodes, *state))

    secure = secured(compressed, settings) if settings.secure.aggregation else None
    strategy = strategy_of(
        settings,
        layout,
        nodes,
        uploads=compressed.uploads if secure is None else plain_uploads,
        on_verdict=place.trail.judged,
        on_round=on_round,
    )
    # Where it matters which node is which, they are to come in the same order in every run.
    all_the_same = (
        {settings.fraction_train, settings.fraction_evaluate} <= {0.0, 1.0}
        and settings.groups.by == ONE_GROUP
        and settings.adapter.sizes == EQUAL_SIZES
    )
    seen = secure or compressed
    done = 0 if checkpoint is None else checkpoint.round
    ordered = OrderedGrid(seen, timeout=settings.round_timeout, round_=done + 1)
    if checkpoint is None:
        strategy.adapters.adopt(0, to_arrays(initial))
        arrays = to_arrays(_agreed(strategy.adapters.held()[FOR_ALL], compressed).state)
    else:
        arrays = restored(checkpoint, strategy, compressed, ordered.origins())
        if secure is not None:
            secure.restore(checkpoint.steps)
    strategy.start(
        seen if all_the_same else ordered,
        arrays,
        num_rounds=settings.num_server_rounds - done,
        timeout=settings.round_timeout,
    )


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


def _wait_for_nodes(grid: Grid, wanted: int) -> int:
    """Number of nodes once some are there and no more have come for a moment.

    For so many as are wanted it waits a minute: as long as it takes a node that was killed to come back.
    """
    deadline = time.monotonic() + 60
    count = 0
    while (
        count == 0
        or count != len(list(grid.get_node_ids()))
        or (count < wanted and time.monotonic() < deadline)
    ):
        count = len(list(grid.get_node_ids()))
        time.sleep(0.5)
    return count
