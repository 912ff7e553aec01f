"""One job in this process: the real program of the nodes, the real messages, the ledger of all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

import clients.app
from clients.app import METRICS
from clients.worker import Worker, load_worker
from fedkron.adapters import adapted_layers, adapter_layout, adapter_state
from fedkron.flower import ORIGIN, CompressedGrid, FedKron
from fedkron.flower.metered_grid import MeteredGrid
from fedkron.flower.wire import to_arrays
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import totals_by_round
from fedkron.settings import run_config
from simulations.compression_study.forgetting import ForgetfulServer, forgetful_client
from simulations.compression_study.jobs import Job
from simulations.compression_study.schemes import FORGETFUL, PLAIN, SEAM, Scheme
from simulations.in_process import InProcessGrid
from simulations.study.data import sources
from simulations.study.federation import StrictGrid, recall_head_only, remember_head_only
from simulations.study.outcome import Outcome


@dataclass(frozen=True)
class Exchange:
    """The program on the nodes, the Grid with a ledger, the strategy on it, and from what that starts."""

    app: Any
    grid: Callable[[InProcessGrid, AdapterLayout, Scheme], MeteredGrid | CompressedGrid]
    strategy: Callable[..., FedAvg]
    start: Callable[[Any, ArrayRecord], ArrayRecord]


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails, `ConfigError` for a codec that does not exist.
    """
    started = time.perf_counter()
    exchange, data = EXCHANGES[job.scheme.exchange], (job.workload, job.seed, job.split)
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.workload.settings(
            sources(job.workload.tasks, job.split, job.seed, Path(folder)),
            kind=job.scheme.kind,
            seed=job.seed,
            learning_rate=job.learning_rate,
            folder=folder,
        )
        worker = load_worker(settings.base, settings.adapter, settings.device, settings.train.truncation_side)
        layout, initial = _initial_adapter(worker, job.seed)
        nodes = StrictGrid(exchange.app, job.workload.clients, run_config(settings))
        recall_head_only(data, nodes)
        grid = exchange.grid(nodes, layout, job.scheme)
        evaluations = Evaluations()
        strategy = exchange.strategy(
            layout,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=job.workload.clients,
            evaluate_metrics_aggr_fn=evaluations,
        )
        contract = ConfigRecord({"contract": layout.contract})
        random.seed(job.seed)  # Flower's strategies choose the order of the clients with it
        strategy.start(
            grid,
            exchange.start(grid, to_arrays(initial)),
            num_rounds=job.workload.rounds,
            train_config=contract,
            evaluate_config=contract,
        )
        remember_head_only(data, nodes)
    by_round = totals_by_round(grid.ledger.transfers)
    return Outcome(
        tasks=evaluations.tasks,
        accuracy=evaluations.of("accuracy"),
        loss=evaluations.of("loss"),
        head_only=evaluations.of("head-only-accuracy")[-1],
        up=tuple(total.message_up for total in by_round.values()),
        down=tuple(total.message_down for total in by_round.values()),
        seconds=time.perf_counter() - started,
    )


class Evaluations:
    """An `evaluate_metrics_aggr_fn` that keeps what every node has measured in every round."""

    def __init__(self) -> None:
        self._rounds: list[list[RecordDict]] = []

    def __call__(self, contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:  # noqa: ARG002
        """Keep the replies of a round, in the order of nodes."""
        self._rounds.append(sorted(contents, key=lambda content: content[ORIGIN]["partition"]))
        return MetricRecord()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Name of each node's task."""
        return tuple(str(content[ORIGIN]["task"]) for content in self._rounds[-1])

    def of(self, metric: str) -> tuple[tuple[float, ...], ...]:
        """One metric: a tuple per round, an entry per node."""
        return tuple(tuple(float(c[METRICS][metric]) for c in contents) for contents in self._rounds)


# ---------------------------------------------------------------- how it travels


def _plain_app() -> ClientApp:
    app = ClientApp()
    app.train()(clients.app.train)
    app.evaluate()(clients.app.evaluate)
    return app


def _metered(grid: InProcessGrid, layout: AdapterLayout, scheme: Scheme) -> MeteredGrid:  # noqa: ARG001
    return MeteredGrid(grid)


def _compressed(grid: InProcessGrid, layout: AdapterLayout, scheme: Scheme) -> CompressedGrid:
    return CompressedGrid(grid, layout=layout, upload=scheme.upload, broadcast=scheme.broadcast)


EXCHANGES = {
    PLAIN: Exchange(_plain_app(), _metered, lambda _, **options: FedAvg(**options), lambda _, arrays: arrays),
    SEAM: Exchange(clients.app.app, _compressed, FedKron, CompressedGrid.agreed),
    FORGETFUL: Exchange(forgetful_client, _compressed, ForgetfulServer, CompressedGrid.agreed),
}


# ---------------------------------------------------------------- where it starts


def _initial_adapter(worker: Worker, seed: int) -> tuple[AdapterLayout, State]:
    """The adapter of round 0 as the server makes it: random factors from the seed, with ΔW = 0."""
    torch.manual_seed(seed)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    return adapter_layout(worker.adapted, worker.fingerprint), adapter_state(worker.adapted)
