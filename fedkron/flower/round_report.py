"""A round as the server saw it: what the nodes of each task measured, who was admitted, who was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message

from fedkron.flower.admission import Origin, metrics_of, origin_of
from fedkron.privacy import Spent


@dataclass(frozen=True)
class TaskReport:
    """What the clients of one task measured: means weighted by their numbers of examples."""

    clients: int
    examples: int
    metrics: Mapping[str, float]


@dataclass
class RoundReport:
    """One round as the server saw it.

    `failures` are the reasons, `projection_error` is relative, `groups` says which clients (task-partition)
    share an adapter, where not all do. `privacy` is what differential privacy has cost, with this round.
    """

    round: int
    trained: dict[str, TaskReport] = field(default_factory=dict)
    evaluated: dict[str, TaskReport] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    projection_error: float | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)
    privacy: Spent | None = None


@dataclass(frozen=True)
class Verdict:
    """Who was admitted in one phase (`train`, `evaluate`) of a round, with what weight, and who was not, and
    why.
    """

    round: int
    phase: str
    admitted: Mapping[Origin, float]
    refused: Mapping[int, str]


def by_task(replies: Sequence[Message], weighted_by: str) -> dict[str, TaskReport]:
    """What admitted replies report, by task; `weighted_by` is the metric that counts a node's examples."""
    groups: dict[str, list[Message]] = {}
    for reply in replies:
        groups.setdefault(origin_of(reply).task, []).append(reply)
    return {task: _task_report(group, weighted_by) for task, group in groups.items()}


def _task_report(replies: Sequence[Message], weighted_by: str) -> TaskReport:
    records = [metrics_of(reply) for reply in replies]
    weights = [record[weighted_by] for record in records]
    means = {
        name: float(np.average([record[name] for record in records], weights=weights))
        for name in records[0]
        if name != weighted_by
    }
    return TaskReport(len(replies), int(sum(weights)), means)
