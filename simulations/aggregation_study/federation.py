"""One job in this process: the real programs of server and nodes, and what the server has written down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import Context, RecordDict

import clients.app
import server.app
from fedkron.ledger import read_ledger, totals_by_round
from fedkron.rundir import LEDGER, ROUNDS, run_directory
from fedkron.settings import run_config
from simulations.aggregation_study.jobs import Job, Outcome
from simulations.study.data import sources
from simulations.study.federation import StrictGrid, recall_head_only, remember_head_only

RUN_ID = 1


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails, `ConfigError` for an aggregation that does not exist.
    """
    started = time.perf_counter()
    load = job.case.workload
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(sources(load.tasks, job.split, job.seed, Path(folder) / "tasks"), folder)
        nodes = StrictGrid(clients.app.app, load.clients, run_config(settings))
        data = (job.case, job.seed, job.split)
        recall_head_only(data, nodes)
        server.app.app(nodes, Context(RUN_ID, 1, {}, RecordDict(), run_config(settings)))
        remember_head_only(data, nodes)
        return _outcome(run_directory(settings, RUN_ID), started)


def _outcome(run: Path, started: float) -> Outcome:
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
        projection_error=tuple(line["projection_error"] for line in rounds),
    )
