"""Figures over seeds, tasks and rounds, and differences that are paired by seed and task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.study.outcome import Outcome

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


def by_task(outcome: Outcome, last: int, metric: str = "accuracy") -> dict[str, float]:
    """Mean over the last rounds, and over the nodes that have the same task."""
    per_round = np.array(getattr(outcome, metric))
    return _per_task(outcome, per_round[-last:].mean(axis=0))


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
    return paired_difference([by_task(o, SMOOTH) for o in outcomes], [by_task(o, SMOOTH) for o in others])


def paired_difference(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> Difference:
    """The same for figures by task, of one seed each."""
    pairs = np.array(
        [one[task] - other[task] for one, other in zip(ours, theirs, strict=True) for task in one]
    )
    error = float(pairs.std(ddof=1)) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Difference(float(pairs.mean()), error, len(pairs))


def traffic(outcomes: Sequence[Outcome], clients: int, last: int | None = None) -> Traffic:
    """Mean over outcomes of federations of so many clients, and over rounds: the last so many, or all."""

    def per_client(direction: str) -> float:
        rounds = [getattr(outcome, direction) for outcome in outcomes]
        kept = np.array(rounds)[:, 0 if last is None else -last :]
        return float(kept.mean()) / clients

    return Traffic(per_client("up"), per_client("down"))


def best_rate(tried: Mapping[float, Outcome]) -> float:
    """The learning rate with the highest accuracy, and among equals with the lowest loss."""

    def merit(rate: float) -> tuple[float, float]:
        return mean_over_tasks(tried[rate], SMOOTH), -mean_over_tasks(tried[rate], SMOOTH, "loss")

    return max(tried, key=merit)


def mean_curve(outcomes: Sequence[Outcome]) -> tuple[float, ...]:
    """Accuracy after each round, mean over tasks and outcomes."""
    curves = [[_mean(_per_task(o, np.array(accuracies))) for accuracies in o.accuracy] for o in outcomes]
    return tuple(np.mean(curves, axis=0).tolist())


def mean_head_only(outcomes: Sequence[Outcome]) -> float:
    """What a head alone reaches, mean over tasks and outcomes."""
    return float(np.mean([_mean(_per_task(outcome, np.array(outcome.head_only))) for outcome in outcomes]))


def told(outcome: Outcome, clients: int) -> str:
    """What came of a federation of so many clients, in half a line."""
    return (
        f"accuracy {mean_over_tasks(outcome, LAST):.4f}, "
        f"{traffic([outcome], clients).both / 1000:,.1f} kB per client and round, {outcome.seconds:.0f} s"
    )


def _per_task(outcome: Outcome, figures: np.ndarray) -> dict[str, float]:
    tasks = np.array(outcome.tasks)
    return {task: float(figures[tasks == task].mean()) for task in dict.fromkeys(outcome.tasks)}


def _mean(per_task: Mapping[str, float]) -> float:
    return float(np.mean(list(per_task.values())))
