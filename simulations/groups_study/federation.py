"""One job in this process: the real programs of server and nodes, then what their adapters are worth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clients.node import Node, this_node
from fedkron.exchange import AdapterFile, load_adapter
from fedkron.flower.global_adapter import FOR_ALL
from fedkron.layout import State
from fedkron.rundir import ADAPTER, group_directory
from fedkron.runlog import read_run
from fedkron.settings import TASK_GROUPS, AdapterSettings, Settings
from simulations.groups_study.heads import Accuracies, accuracies
from simulations.groups_study.jobs import AS_TRAINED, Job, Outcome
from simulations.groups_study.mergings import mergings
from simulations.study.programs import RUN_ID, run_programs, written_outcome

Groups = Mapping[str, tuple[str, ...]]
"""Nodes (task-partition) by the name of the adapter that they share."""


@dataclass(frozen=True)
class Candidate:
    """Adapters to measure, by node; the settings are those of each. Merged ones have an error."""

    name: str
    states: Mapping[str, State]
    adapter: AdapterSettings
    projection_error: float | None = None


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails.
    """
    started = time.perf_counter()
    load = job.workload
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(folder)
        run = run_programs(settings, load.clients, data=(load, job.seed))
        nodes = {name_of(node): node for node in nodes_of(settings, load.clients)}
        return _outcome(run, nodes, settings, started)


def nodes_of(settings: Settings, count: int) -> list[Node]:
    """All nodes of a run, with the data that they had."""
    return [
        this_node({"partition-id": number, "num-partitions": count}, settings, RUN_ID)
        for number in range(count)
    ]


def name_of(node: Node) -> str:
    """As a run folder has it: task-partition."""
    return f"{node.task.name}-{node.partition}"


def groups_of(run: Path, nodes: Sequence[str]) -> Groups:
    """Who shared an adapter in the last round; those without a group have the one for all."""
    groups = read_run(run).groups
    grouped = {node for members in groups.values() for node in members}
    rest = tuple(node for node in nodes if node not in grouped)
    return {**groups, FOR_ALL: rest} if rest else groups


def adapters_of(run: Path, groups: Groups) -> dict[str, AdapterFile]:
    """The adapter of each group after the last round."""
    return {
        name: load_adapter((run if name == FOR_ALL else group_directory(run, name)) / ADAPTER)
        for name in groups
    }


def candidates(
    groups: Groups, adapters: Mapping[str, AdapterFile], settings: Settings
) -> Iterator[Candidate]:
    """The adapters of a run as they are; those of tasks also as one, in every way to merge them."""
    held = {node: adapters[name].state for name, members in groups.items() for node in members}
    yield Candidate(AS_TRAINED, held, settings.adapter)
    if settings.groups.by != TASK_GROUPS:
        return
    states, layout = [file.state for file in adapters.values()], next(iter(adapters.values())).layout
    for merging in mergings(len(states)):
        merged = merging.merge(states, layout, settings.adapter.rank, settings.seed)
        yield Candidate(
            merging.name,
            dict.fromkeys(held, merged.adapter),
            merging.settings(settings.adapter),
            merged.projection_error,
        )


def _outcome(run: Path, nodes: Mapping[str, Node], settings: Settings, started: float) -> Outcome:
    groups = groups_of(run, list(nodes))
    measured: dict[str, dict[str, Accuracies]] = {}
    errors = {}
    for candidate in candidates(groups, adapters_of(run, groups), settings):
        measured[candidate.name] = {
            name: accuracies(nodes[name], state, candidate.adapter, settings)
            for name, state in candidate.states.items()
        }
        if candidate.projection_error is not None:
            errors[candidate.name] = candidate.projection_error
    written = written_outcome(run, started)

    def by_task(of_nodes: Mapping[str, Accuracies], heads: str) -> tuple[float, ...]:
        # Nodes that have the same task have the same test texts: each counts as much.
        return tuple(
            float(
                np.mean([getattr(a, heads) for name, a in of_nodes.items() if nodes[name].task.name == task])
            )
            for task in written.tasks
        )

    return Outcome(
        **vars(written),
        groups=tuple(groups.values()),
        kept={name: by_task(of_nodes, "kept") for name, of_nodes in measured.items()},
        fitted={name: by_task(of_nodes, "fitted") for name, of_nodes in measured.items()},
        projection_error=errors,
    )
