"""A federation by the programs of a real run, of server and nodes, and what the server has written down."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable
from pathlib import Path

from flwr.app import Context, RecordDict

import clients.app
import server.app
from fedkron.ledger import read_ledger, totals_by_round
from fedkron.rundir import LEDGER, ROUNDS, run_directory
from fedkron.settings import Settings, run_config
from simulations.study.federation import StrictGrid, recall_head_only, remember_head_only
from simulations.study.outcome import Outcome

RUN_ID = 1


def run_programs(settings: Settings, nodes: int, data: Hashable) -> Path:
    """Run a federation of so many nodes to its end; returns its run folder.

    `data` is the key of `recall_head_only`. Raises `RunError` when any node fails.
    """
    config = run_config(settings)
    grid = StrictGrid(clients.app.app, nodes, config)
    recall_head_only(data, grid)
    server.app.app(grid, Context(RUN_ID, 1, {}, RecordDict(), config))
    remember_head_only(data, grid)
    return run_directory(settings, RUN_ID)


def written_outcome(run: Path, started: float) -> Outcome:
    """The figures in a run folder, with each task once; `started` is when, by `time.perf_counter`."""
    rounds = [json.loads(line) for line in (run / ROUNDS).read_text(encoding="utf-8").splitlines()]
    by_round = totals_by_round(read_ledger(run / LEDGER)).values()
    tasks = tuple(rounds[-1]["evaluated"])

    def measured(metric: str) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(float(line["evaluated"][task]["metrics"][metric]) for task in tasks) for line in rounds
        )

    return Outcome(
        tasks=tasks,
        accuracy=measured("accuracy"),
        loss=measured("loss"),
        head_only=measured("head-only-accuracy")[-1],
        up=tuple(total.message_up for total in by_round),
        down=tuple(total.message_down for total in by_round),
        seconds=time.perf_counter() - started,
    )
