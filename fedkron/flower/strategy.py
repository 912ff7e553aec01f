"""FedKron: the Flower strategy that knows what an adapter is.

It is FedAvg with three differences: aggregation respects the adapter's structure (factor-wise, or the
merged ΔW projected back), accuracy is reported per task, and a round in which too many clients fail ends
the run as failed instead of going on with whoever is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedkron.aggregation import AGGREGATIONS, aggregate
from fedkron.errors import ConfigError, RunError
from fedkron.flower.admission import admitted, metrics_of, origin_of
from fedkron.flower.wire import EXPLAINED_ERROR, REJECTED_UPLOAD, to_arrays, to_state
from fedkron.layout import AdapterLayout


@dataclass(frozen=True)
class TaskReport:
    """What the clients of one task measured: means weighted by their numbers of examples."""

    clients: int
    examples: int
    metrics: Mapping[str, float]


@dataclass
class RoundReport:
    """One round as the server saw it. `failures` are the reasons, `projection_error` is relative."""

    round: int
    trained: dict[str, TaskReport] = field(default_factory=dict)
    evaluated: dict[str, TaskReport] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    projection_error: float | None = None


class FedKron(FedAvg):
    """Aggregates adapters of one layout; see the module's docstring for what differs from FedAvg.

    `aggregation` is a name in `fedkron.aggregation.AGGREGATIONS`. `max_failure_fraction` is the share of
    the chosen clients that may fail (error, refusal or no reply in time) in training or evaluation
    before the run is ended with a `RunError`. `on_round` is called after each round. Everything else
    is passed on to FedAvg. Raises `ConfigError` for an unknown aggregation.
    """

    def __init__(
        self,
        layout: AdapterLayout,
        *,
        aggregation: str = "factorwise",
        max_failure_fraction: float = 0.5,
        on_round: Callable[[RoundReport, ArrayRecord], None] = lambda *_: None,
        **fedavg: object,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise ConfigError(
                f"aggregation {aggregation!r} does not exist: use one of {', '.join(AGGREGATIONS)}"
            )
        super().__init__(**fedavg)  # type: ignore[arg-type]
        self._layout = layout
        self._aggregation = aggregation
        self._max_failure_fraction = max_failure_fraction
        self._on_round = on_round
        self._report = RoundReport(0)
        self._expected = 0
        self._arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the clients of this round, as FedAvg does."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._report = RoundReport(server_round)
        self._expected = len(messages)
        self._arrays = arrays
        return messages

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the clients' adapters, weighted by their numbers of examples.

        Raises `RunError` when too many clients failed.
        """
        valid = self._admit(replies, is_train=True)
        if not valid:
            return None, None
        adapters = [to_state(next(iter(reply.content.array_records.values()))) for reply in valid]
        weights = [metrics_of(reply)[self.weighted_by_key] for reply in valid]
        combined = aggregate(self._aggregation, adapters, weights, self._layout)
        self._report.projection_error = combined.projection_error
        self._report.trained = self._by_task(valid)
        self._arrays = to_arrays(combined.adapter)
        return self._arrays, self.train_metrics_aggr_fn(
            [reply.content for reply in valid], self.weighted_by_key
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the clients that evaluate, as FedAvg does."""
        messages = list(super().configure_evaluate(server_round, arrays, config, grid))
        self._expected = len(messages)
        return messages

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Mean of the clients' metrics, and the report of the round per task.

        Raises `RunError` when too many clients failed.
        """
        valid = self._admit(replies, is_train=False)
        self._report.evaluated = self._by_task(valid)
        self._on_round(self._report, self._arrays)
        if not valid:
            return None
        return self.evaluate_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)

    def _admit(self, replies: Iterable[Message], *, is_train: bool) -> list[Message]:
        replies = list(replies)
        answers, errors = self._check_and_log_replies(replies, is_train, validate=False)
        valid, refusals = admitted(answers, self.weighted_by_key, arrays=int(is_train))
        failures = [f"node {e.metadata.src_node_id}: {_reason(e.error)}" for e in errors] + refusals
        failures += ["no reply in time"] * (self._expected - len(replies))
        self._report.failures += failures
        if len(failures) > self._max_failure_fraction * self._expected:
            phase = "training" if is_train else "evaluation"
            raise RunError(
                f"round {self._report.round}: {len(failures)} of {self._expected} clients failed in {phase}, "
                f"more than max-failure-fraction = {self._max_failure_fraction:g} allows; "
                f"first: {failures[0]}"
            )
        # Floating-point sums depend on their order, and node ids differ from run to run.
        return sorted(valid, key=origin_of)

    def _by_task(self, replies: list[Message]) -> dict[str, TaskReport]:
        groups: dict[str, list[Message]] = {}
        for reply in replies:
            groups.setdefault(origin_of(reply).task, []).append(reply)
        return {task: self._task_report(group) for task, group in groups.items()}

    def _task_report(self, replies: list[Message]) -> TaskReport:
        records = [metrics_of(reply) for reply in replies]
        weights = [record[self.weighted_by_key] for record in records]
        means = {
            name: float(np.average([record[name] for record in records], weights=weights))
            for name in records[0]
            if name != self.weighted_by_key
        }
        return TaskReport(len(replies), int(sum(weights)), means)


def _reason(error: Error) -> str:
    reason = (error.reason or "").strip() or "no reason given"
    # For whatever else an app raised Flower may send a traceback, whose last line says what it was.
    return reason if error.code in (REJECTED_UPLOAD, EXPLAINED_ERROR) else reason.splitlines()[-1]
