"""Figures of each adapter in one case, over seeds and tasks, and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkron.layout import AdapterLayout
from simulations.paper.study.adapters import Adapter
from simulations.paper.study.jobs import Outcome
from simulations.paper.study.running import Result
from simulations.study.statistics import (
    LAST,
    Difference,
    Spread,
    Traffic,
    by_task,
    mean_over_tasks,
    paired_difference,
    spread,
    traffic,
)
from simulations.study.tables import NOTHING

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Line:
    """What a case says of an adapter, after the last epoch. Accuracy in [0, 1].

    `accuracy` is over seeds, of the mean over tasks; `by_task` are means over seeds. `against` is the
    difference to the reference, paired by seed and task, and `half` half the length of its 95 % interval.
    `traffic` is the mean over rounds; None where nothing travels.
    """

    adapter: Adapter
    parameters: int
    learning_rate: float
    by_task: dict[str, float]
    accuracy: Spread
    against: Difference | None
    half: float | None
    traffic: Traffic | None


def summarize(
    result: Result, adapters: Mapping[Adapter, AdapterLayout], compared_with: Adapter
) -> list[Line]:
    """A line per adapter, with its difference to one of them, where that was run."""
    reference = result.runs.get(compared_with)
    lines = []
    for adapter, outcomes in result.runs.items():
        pairs = None
        if reference is not None and outcomes is not reference:
            pairs = paired_difference(_by_task(outcomes), _by_task(reference))
        lines.append(
            Line(
                adapter=adapter,
                parameters=adapters[adapter].size,
                learning_rate=result.rates[adapter.kind],
                by_task=_mean(_by_task(outcomes)),
                accuracy=spread([mean_over_tasks(outcome, LAST) for outcome in outcomes]),
                against=pairs,
                half=half_interval(pairs) if pairs else None,
                traffic=traffic(outcomes, result.case.clients) if outcomes[0].up else None,
            )
        )
    return lines


def half_interval(difference: Difference) -> float | None:
    """Half of the 95 % confidence interval (Student's t over the pairs); None for a single pair."""
    from scipy.stats import t

    if difference.standard_error is None:
        return None
    return float(t.ppf((1 + CONFIDENCE) / 2, difference.pairs - 1)) * difference.standard_error


def difference_of(line: Line) -> str:
    """The difference to the reference in points, ± half of its interval."""
    if line.against is None:
        return NOTHING
    half = "" if line.half is None else f" ± {100 * line.half:.2f}"
    return f"{100 * line.against.mean:+.2f}{half}"


def head_only(result: Result) -> dict[str, float]:
    """What a head alone reaches on the frozen base, by task, mean over seeds and nodes."""
    found: dict[str, list[float]] = {}
    for outcome in next(iter(result.runs.values())):
        for task, accuracy in zip(outcome.tasks, outcome.head_only, strict=True):
            found.setdefault(task, []).append(accuracy)
    return {task: float(np.mean(accuracies)) for task, accuracies in found.items()}


def _by_task(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    return [by_task(outcome, LAST) for outcome in outcomes]


def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {task: float(np.mean([of_seed[task] for of_seed in figures])) for task in figures[0]}
