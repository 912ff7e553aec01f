"""Figures of each scheme over seeds and tasks, and differences between schemes, paired by both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.compression_study.jobs import Outcome
from simulations.compression_study.schemes import BASELINE, REFERENCE, Scheme

LAST, SMOOTH = 1, 2
"""Rounds at the end over which accuracy is averaged: the last one, or two, which is less noisy."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n − 1) over seeds; there is none over one."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its standard error: their standard deviation / √pairs."""

    mean: float
    standard_error: float | None
    pairs: int


@dataclass(frozen=True)
class Traffic:
    """Serialized Flower messages in bytes, per client and round."""

    up: float
    down: float

    @property
    def both(self) -> float:
        """Up and down together."""
        return self.up + self.down

    def times_smaller(self, than: Traffic) -> Times:
        """How many times fewer bytes than another."""
        return Times(than.up / self.up, than.down / self.down, than.both / self.both)


@dataclass(frozen=True)
class Times:
    """Ratios of bytes."""

    up: float
    down: float
    both: float


@dataclass(frozen=True)
class Line:
    """What the study says of a scheme. Accuracy in [0, 1], loss in nats, all means over tasks.

    `last` is of the last round; `smooth`, `loss` and `against` (by name of the other scheme) are of the mean
    of the last two. `curve` is the accuracy after each round. `traffic` is the mean over all rounds, `steady`
    the last round, `smaller` compares `traffic` with that of the baseline. What was not run is None.
    """

    scheme: Scheme
    learning_rate: float
    last: Spread
    smooth: Spread
    loss: Spread
    head_only: float
    curve: tuple[float, ...]
    against: Mapping[str, Difference | None]
    traffic: Traffic
    steady: Traffic
    smaller: Times | None


def summarize(runs: Mapping[Scheme, Sequence[Outcome]], rates: Mapping[str, float]) -> list[Line]:
    """A line per scheme; `runs` has one outcome per seed, `rates` the learning rate per adapter kind."""
    baseline = runs.get(BASELINE)
    others = {other.name: runs.get(other) for other in (REFERENCE, BASELINE)}
    return [
        Line(
            scheme=scheme,
            learning_rate=rates[scheme.kind],
            last=spread([mean_over_tasks(outcome, LAST) for outcome in outcomes]),
            smooth=spread([mean_over_tasks(outcome, SMOOTH) for outcome in outcomes]),
            loss=spread([mean_over_tasks(outcome, SMOOTH, "loss") for outcome in outcomes]),
            head_only=float(np.mean([_mean(_by_task(o, np.array(o.head_only))) for o in outcomes])),
            curve=tuple(np.mean([_curve(outcome) for outcome in outcomes], axis=0).tolist()),
            against={
                name: difference(outcomes, other) if other and other is not outcomes else None
                for name, other in others.items()
            },
            traffic=traffic(outcomes),
            steady=traffic(outcomes, last=1),
            smaller=traffic(outcomes).times_smaller(traffic(baseline)) if baseline else None,
        )
        for scheme, outcomes in runs.items()
    ]


def by_task(outcome: Outcome, last: int, metric: str = "accuracy") -> dict[str, float]:
    """Mean over the last rounds, and over the nodes that have the same task."""
    per_round = np.array(getattr(outcome, metric))
    return _by_task(outcome, per_round[-last:].mean(axis=0))


def mean_over_tasks(outcome: Outcome, last: int, metric: str = "accuracy") -> float:
    """Mean of `by_task`: each task has the same weight, however many nodes have it."""
    return _mean(by_task(outcome, last, metric))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def difference(outcomes: Sequence[Outcome], others: Sequence[Outcome]) -> Difference:
    """Accuracy of `outcomes` minus that of `others`, of the same seeds in the same order.

    A pair is a seed and a task: same texts, same order of batches, same initial head. The standard error
    takes the pairs as independent.
    """
    pairs = np.array(
        [
            accuracy - by_task(other, SMOOTH)[task]
            for outcome, other in zip(outcomes, others, strict=True)
            for task, accuracy in by_task(outcome, SMOOTH).items()
        ]
    )
    error = float(pairs.std(ddof=1)) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Difference(float(pairs.mean()), error, len(pairs))


def traffic(outcomes: Sequence[Outcome], last: int | None = None) -> Traffic:
    """Mean over outcomes and rounds: the last so many, or all."""

    def mean(direction: str) -> float:
        rounds = [getattr(outcome, direction) for outcome in outcomes]
        kept = np.array(rounds)[:, 0 if last is None else -last :]
        return float(kept.mean()) / len(outcomes[0].tasks)

    return Traffic(mean("up"), mean("down"))


def best_rate(tried: Mapping[float, Outcome]) -> float:
    """The learning rate with the highest accuracy, and among equals with the lowest loss."""

    def merit(rate: float) -> tuple[float, float]:
        return mean_over_tasks(tried[rate], SMOOTH), -mean_over_tasks(tried[rate], SMOOTH, "loss")

    return max(tried, key=merit)


def _curve(outcome: Outcome) -> list[float]:
    return [_mean(_by_task(outcome, np.array(accuracies))) for accuracies in outcome.accuracy]


def _by_task(outcome: Outcome, per_node: np.ndarray) -> dict[str, float]:
    tasks = np.array(outcome.tasks)
    return {task: float(per_node[tasks == task].mean()) for task in dict.fromkeys(outcome.tasks)}


def _mean(per_task: Mapping[str, float]) -> float:
    return float(np.mean(list(per_task.values())))
