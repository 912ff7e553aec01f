"""One job in this process: the real program of the nodes, the real messages, a server with a schedule."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from flwr.app import ArrayRecord

import clients.app
from clients.node import this_node
from clients.worker import load_worker
from fedkron.adapters import adapted_layers, adapter_layout, adapter_state
from fedkron.flower import CompressedGrid
from fedkron.flower.global_adapter import FOR_ALL
from fedkron.flower.unopened_grid import UnopenedGrid
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout, State
from fedkron.ledger import totals_by_round
from fedkron.settings import Settings, run_config
from simulations.compression_study.federation import Evaluations
from simulations.paper.forgetting_study.jobs import LOCAL, SHARED, Job, Outcome
from simulations.paper.forgetting_study.mergings import MERGINGS
from simulations.paper.forgetting_study.schedule import ScheduledFedKron
from simulations.paper.forgetting_study.ways import SEPARATE
from simulations.paper.forgetting_study.worth import worth
from simulations.study.data import sources as split_sources
from simulations.study.federation import StrictGrid, recall_head_only, remember_head_only

FIRST_NODE = 1000
"""Id of the node with partition 0 in an `InProcessGrid`."""


@dataclass(frozen=True)
class Trained:
    """A finished run: what nodes measured, in `rounds`, the adapter that they hold, and bytes by round."""

    rounds: tuple[int, ...]
    tasks: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]
    head_only: tuple[float, ...]
    adapter: State
    layout: AdapterLayout
    up: tuple[int, ...]
    down: tuple[int, ...]


def run(job: Job, sources: Mapping[str, str]) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails.
    """
    started = time.perf_counter()
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        places = split_sources([sources[name] for name in job.load.tasks], job.split, job.seed, Path(folder))
        settings = job.settings(",".join(places), folder)
        trained = [_train(job, settings, schedule) for schedule in job.schedules()]
        merged = {name: _merged(name, job, settings, trained) for name in job.way.mergings}
    rounds, accuracy, loss = _each_on_its_own(trained) if job.way.plan == SEPARATE else _curves(trained[0])
    return Outcome(
        tasks=trained[0].tasks,
        accuracy=accuracy,
        loss=loss,
        head_only=trained[0].head_only,
        up=tuple(size for one in trained for size in one.up),
        down=tuple(size for one in trained for size in one.down),
        seconds=time.perf_counter() - started,
        rounds=rounds,
        merged=merged,
    )


Curves = tuple[tuple[int, ...], tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]


def _curves(trained: Trained) -> Curves:
    return trained.rounds, trained.accuracy, trained.loss


def _each_on_its_own(trained: Sequence[Trained]) -> Curves:
    def last(metric: str) -> tuple[float, ...]:
        return tuple(getattr(one, metric)[-1][task] for task, one in enumerate(trained))

    return (len(trained[0].up),), (last("accuracy"),), (last("loss"),)


def _train(job: Job, settings: Settings, schedule: Sequence[Sequence[int]]) -> Trained:
    tasks, last = len(job.load.tasks), len(schedule)
    nodes = range(tasks * job.way.clients)

    def trains(round_: int) -> list[int]:
        return [FIRST_NODE + node for node in nodes if node % tasks in schedule[round_ - 1]]

    def evaluates(round_: int) -> list[int]:
        if round_ not in job.measured:
            return []
        # With one head, all nodes of a task would measure the same model on the same texts.
        return [FIRST_NODE + node for node in nodes if job.heads == LOCAL or node < tasks]

    data = (job.load, job.seed, job.split, job.way.clients)
    layout, initial = _initial_adapter(settings)
    in_process = StrictGrid(clients.app.app, len(nodes), run_config(settings))
    recall_head_only(data, in_process)
    codec = settings.codec
    grid = UnopenedGrid(in_process, layout=layout, upload=codec.upload, broadcast=codec.broadcast)
    evaluations = Evaluations()
    strategy = ScheduledFedKron(
        layout,
        trains=trains,
        evaluates=evaluates,
        aggregation=settings.aggregation,
        uploads=grid.uploads,
        seed=job.seed,
        evaluate_metrics_aggr_fn=evaluations,
    )
    strategy.adapters.adopt(0, to_arrays(initial))
    strategy.start(grid, _agreed(strategy, grid), num_rounds=last)
    remember_head_only(data, in_process)
    by_round = totals_by_round(grid.ledger.transfers).values()
    return Trained(
        job.measured,
        job.load.tasks,
        _by_task(evaluations, "accuracy", tasks),
        _by_task(evaluations, "loss", tasks),
        _by_task(evaluations, "head-only-accuracy", tasks)[-1],
        _held(strategy, grid),
        layout,
        tuple(total.message_up for total in by_round),
        tuple(total.message_down for total in by_round),
    )


def _by_task(evaluations: Evaluations, metric: str, tasks: int) -> tuple[tuple[float, ...], ...]:
    """Means over the nodes of each task: node i has task i mod their number."""
    return tuple(
        tuple(float(np.mean(of_round[task::tasks])) for task in range(tasks))
        for of_round in evaluations.of(metric)
    )


def _initial_adapter(settings: Settings) -> tuple[AdapterLayout, State]:
    """The adapter of round 0 as the server makes it: random factors from the seed, with ΔW = 0."""
    worker = load_worker(settings.base, settings.adapter, settings.device, settings.train.truncation_side)
    torch.manual_seed(settings.seed)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    layout, state = adapter_layout(worker.adapted, worker.fingerprint), adapter_state(worker.adapted)
    if settings.head == SHARED:
        layout = layout.with_head(settings.shared_head_outputs, worker.hidden_size)
        state |= {t.name: np.zeros(t.shape, np.float32) for t in layout.dense if t.name not in state}
    return layout, state


def _agreed(strategy: ScheduledFedKron, grid: CompressedGrid) -> ArrayRecord:
    """The initial adapter as the nodes will get it."""
    sent = strategy.adapters.held()[FOR_ALL]
    parts = [to_state(grid.agreed(record, key)) for key, record in sent.records.items()]
    return to_arrays(_whole(parts, sent.layout))


def _held(strategy: ScheduledFedKron, grid: CompressedGrid) -> State:
    """The adapter that nodes have measured last."""
    sent = strategy.adapters.held()[FOR_ALL]
    return _whole([grid.shared_state(key) for key in sent.records], sent.layout)


def _whole(parts: Sequence[State], layout: AdapterLayout) -> State:
    state = {name: values for part in parts for name, values in part.items()}
    return {tensor.name: state[tensor.name] for tensor in layout.tensors}


def _merged(
    name: str, job: Job, settings: Settings, trained: Sequence[Trained]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Accuracy and loss of each task on one adapter, merged from those of all tasks."""
    merging = MERGINGS[name]
    state = merging.merge(
        [one.adapter for one in trained], trained[0].layout, settings.adapter.rank, job.seed
    ).adapter
    count = len(trained) * job.way.clients
    nodes = [this_node({"partition-id": i, "num-partitions": count}, settings, 1) for i in range(count)]
    found = [worth(node, state, merging.settings(settings.adapter), settings) for node in nodes]

    def mean(metric: str) -> tuple[float, ...]:
        of_nodes = [getattr(one, metric) for one in found]
        return tuple(float(np.mean(of_nodes[task :: len(trained)])) for task in range(len(trained)))

    return mean("accuracy"), mean("loss")
