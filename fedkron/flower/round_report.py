"""A round as the server saw it: what the nodes of each task measured, who was admitted, who was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message

from fedkron.flower.admission import Origin, metrics_of, origin_of
from fedkron.flower.node_report import NodeReport
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
    `nodes` has each node that answered or failed, by its id.
    """

    round: int
    trained: dict[str, TaskReport] = field(default_factory=dict)
    evaluated: dict[str, TaskReport] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    projection_error: float | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)
    privacy: Spent | None = None
    nodes: dict[str, NodeReport] = field(default_factory=dict)

    def node(self, origin: Origin) -> NodeReport:
        """The report on a node, which is begun where there is none yet."""
        report = self.nodes.setdefault(str(origin.node), NodeReport())
        report.task, report.partition = origin.task, origin.partition
        return report


@dataclass(frozen=True)
class Verdict:
    """Who was admitted in one phase (`train`, `evaluate`) of a round, with what weight, and who was not, and
    why.
    """

    round: int
    phase: str
    admitted: Mapping[Origin, float]
    refused: Mapping[int, str]


def note_training(
    report: RoundReport, replies: Sequence[Message], norms: Mapping[int, float], weighted_by: str
) -> None:
    """Enter who trained, as admitted replies say; `norms` are those of their updates, by node, where known.

    `weighted_by` is the metric that counts a node's examples.
    """
    report.trained = _by_task(replies, weighted_by)
    for reply in replies:
        node = report.node(origin_of(reply))
        node.examples = int(metrics_of(reply)[weighted_by])
        node.trained = _measured(reply, weighted_by)
        node.update_norm = norms.get(reply.metadata.src_node_id)


def note_evaluation(report: RoundReport, replies: Sequence[Message], weighted_by: str) -> None:
    """Enter what was measured, as admitted replies say."""
    report.evaluated = _by_task(replies, weighted_by)
    for reply in replies:
        report.node(origin_of(reply)).evaluated = _measured(reply, weighted_by)


def note_failures(report: RoundReport, reasons: Mapping[int, str], origins: Mapping[int, Origin]) -> None:
    """Enter why nodes failed; `origins` are those of the nodes that have ever answered."""
    report.failures += reasons.values()
    for node, reason in reasons.items():
        report.node(origins.get(node, Origin("", 0, node))).failures.append(reason)


def _by_task(replies: Sequence[Message], weighted_by: str) -> dict[str, TaskReport]:
    groups: dict[str, list[Message]] = {}
    for reply in replies:
        groups.setdefault(origin_of(reply).task, []).append(reply)
    return {task: _task_report(group, weighted_by) for task, group in groups.items()}


def _task_report(replies: Sequence[Message], weighted_by: str) -> TaskReport:
    weights = [metrics_of(reply)[weighted_by] for reply in replies]
    measured = [_measured(reply, weighted_by) for reply in replies]
    means = {
        name: float(np.average([record[name] for record in measured], weights=weights))
        for name in measured[0]
    }
    return TaskReport(len(replies), int(sum(weights)), means)


def _measured(reply: Message, weighted_by: str) -> dict[str, float]:
    return {name: value for name, value in metrics_of(reply).items() if name != weighted_by}
