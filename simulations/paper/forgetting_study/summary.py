"""Figures of each way over seeds, and differences between ways, paired by seed and order of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from simulations.paper.forgetting_study.jobs import Job, Outcome
from simulations.paper.forgetting_study.ways import FEDERATED, ONE_MACHINE, SEPARATE, SEQUENCE, Way

LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, half of the width of its 95 % confidence interval (Student's t), and how many seeds.

    There is no interval over one.
    """

    mean: float
    half: float | None
    seeds: int


@dataclass(frozen=True)
class Forgotten:
    """What became of a task that was trained first, in one run. Accuracy in [0, 1], loss in nats.

    `before` is after its own rounds, `after` after those of the other task, which has then reached `other`.
    """

    before: float
    after: float
    loss_before: float
    loss_after: float
    other: float

    @property
    def drop(self) -> float:
        """Accuracy that was lost."""
        return self.before - self.after

    @property
    def rise(self) -> float:
        """Loss that came back: minus the mean log-likelihood of the right answer."""
        return self.loss_after - self.loss_before

    @property
    def both(self) -> float:
        """Mean accuracy of both tasks in the end."""
        return (self.after + self.other) / 2


@dataclass(frozen=True)
class Line:
    """A way in one pair, with one sort of heads.

    `first` is the task that came first (without an order: the one that is looked at); None: mean of both.

    `against` is the difference of the drop to the reference's (the same adapter without a federation, or for
    other aggregations the plain mean of the factors), `both_against` that of the mean accuracy in the end.
    """

    way: str
    first: str | None
    before: Figure
    after: Figure
    drop: Figure
    rise: Figure
    other: Figure
    both: Figure
    against: Figure | None
    both_against: Figure | None


Runs = Mapping[tuple[int, int], Forgotten]
"""What was forgotten, by seed and by the index of the task that was trained first."""


def figure_of(values: Sequence[float]) -> Figure:
    """Mean and interval of values that are taken as independent."""
    count = len(values)
    if count < 2:
        return Figure(float(np.mean(values)), None, count)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Figure(float(np.mean(values)), error * float(stats.t.ppf((1 + LEVEL) / 2, count - 1)), count)


def summarize(done: Mapping[Job, Outcome]) -> list[Line]:
    """The lines of all ways of one pair with one sort of heads: by order, then over both."""
    runs = by_name(done)
    tasks = next(iter(done)).load.tasks
    lines = []
    for name, of_way in runs.items():
        orders = sorted({first for _, first in of_way})
        if len(orders) > 1 and "merged:" not in name:
            lines += [_line(name, tasks[first], _ordered(of_way, first), {}) for first in orders]
        lines.append(_line(name, None, of_way, runs.get(_reference(name), {})))
    return lines


def by_name(done: Mapping[Job, Outcome]) -> dict[str, Runs]:
    """Runs by the name of the way, those of each way of merging by its own name."""
    found: dict[str, dict[tuple[int, int], Forgotten]] = {}
    for job, outcome in done.items():
        for name, of_first in forgotten(job, outcome).items():
            for first, one in of_first.items():
                found.setdefault(name, {})[job.seed, first] = one
    return dict(found)


def forgotten(job: Job, outcome: Outcome) -> dict[str, dict[int, Forgotten]]:
    """What a run says: for each name, by the index of the task that came first.

    Where there is no order, each task counts once as the first. What merging loses is counted from the
    adapters before they were merged.
    """
    if job.way.plan == SEQUENCE:
        return {job.way.name: {job.first: _of_sequence(job, outcome)}}
    own = outcome.accuracy[-1], outcome.loss[-1]
    found = {job.way.name: _of_unordered(own, own)}
    if job.way.plan == SEPARATE:
        found |= {f"merged: {name}": _of_unordered(own, pair) for name, pair in outcome.merged.items()}
    return found


def _of_sequence(job: Job, outcome: Outcome) -> Forgotten:
    turn, first = outcome.rounds.index(job.load.rounds), job.first
    return Forgotten(
        before=outcome.accuracy[turn][first],
        after=outcome.accuracy[-1][first],
        loss_before=outcome.loss[turn][first],
        loss_after=outcome.loss[-1][first],
        other=outcome.accuracy[-1][1 - first],
    )


Worths = tuple[Sequence[float], Sequence[float]]


def _of_unordered(before: Worths, after: Worths) -> dict[int, Forgotten]:
    return {
        task: Forgotten(before[0][task], after[0][task], before[1][task], after[1][task], after[0][1 - task])
        for task in (0, 1)
    }


def _ordered(runs: Runs, first: int) -> Runs:
    return {key: one for key, one in runs.items() if key[1] == first}


def _reference(name: str) -> str | None:
    if name in (ONE_MACHINE.name, FEDERATED.name):
        return None
    return FEDERATED.name if name.startswith("federated") else ONE_MACHINE.name


def _line(name: str, first: str | None, runs: Runs, reference: Runs) -> Line:
    shared = runs.keys() & reference.keys()

    def figure(metric: str) -> Figure:
        return _over_seeds({key: getattr(one, metric) for key, one in runs.items()})

    def against(metric: str) -> Figure | None:
        pairs = {key: getattr(runs[key], metric) - getattr(reference[key], metric) for key in shared}
        return _over_seeds(pairs) if pairs else None

    return Line(
        name,
        first,
        *(figure(metric) for metric in ("before", "after", "drop", "rise", "other", "both")),
        against("drop"),
        against("both"),
    )


def _over_seeds(values: Mapping[tuple[int, int], float]) -> Figure:
    """Each seed counts once, with the mean over its orders: these are not independent of each other."""
    seeds = sorted({seed for seed, _ in values})
    return figure_of([float(np.mean([v for key, v in values.items() if key[0] == seed])) for seed in seeds])


def best_rate(tried: Mapping[float, Outcome]) -> float:
    """The learning rate with which separate adapters have the least mean loss on held-out texts."""
    return min(tried, key=lambda rate: float(np.mean(tried[rate].loss[-1])))


def way_names(ways: Sequence[Way]) -> list[str]:
    """Names of lines in the order of a table."""
    return [name for way in ways for name in (way.name, *(f"merged: {m}" for m in way.mergings))]
