"""Figures of each way in one case, over seeds and tasks, and differences between ways, paired by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.aggregation_study.jobs import Case, Outcome
from simulations.aggregation_study.ways import LORA_REFERENCE, REFERENCE, Way
from simulations.study.statistics import (
    SMOOTH,
    Difference,
    Spread,
    Times,
    Traffic,
    best_rate,
    difference,
    mean_curve,
    mean_over_tasks,
    spread,
    traffic,
)


@dataclass(frozen=True)
class Result:
    """All outcomes of a case: of tuning by way and learning rate, and of the runs by way, one per seed."""

    case: Case
    tried: Mapping[Way, Mapping[float, Outcome]]
    runs: Mapping[Way, Sequence[Outcome]]


@dataclass(frozen=True)
class Line:
    """What the study says of a way. Accuracy in [0, 1], loss in nats, all means over tasks.

    `accuracy`, `loss` and `against` (by name of the other way) are of the mean of the last two rounds;
    `curve` is the accuracy after each round. `projection_error` is relative, the mean over rounds and seeds;
    None where nothing is projected. `traffic` is the mean over all rounds, and `times` as many bytes as the
    reference that is, or None where that was not run.
    """

    way: Way
    learning_rate: float
    accuracy: Spread
    loss: Spread
    against: Mapping[str, Difference | None]
    projection_error: float | None
    curve: tuple[float, ...]
    traffic: Traffic
    times: Times | None


def summarize(result: Result) -> list[Line]:
    """A line per way."""
    clients = result.case.workload.clients
    reference = result.runs.get(REFERENCE)
    others = {other.name: result.runs.get(other) for other in (REFERENCE, LORA_REFERENCE)}
    return [
        Line(
            way=way,
            learning_rate=best_rate(result.tried[way]),
            accuracy=spread([mean_over_tasks(outcome, SMOOTH) for outcome in outcomes]),
            loss=spread([mean_over_tasks(outcome, SMOOTH, "loss") for outcome in outcomes]),
            against={
                name: difference(outcomes, other) if other and other is not outcomes else None
                for name, other in others.items()
            },
            projection_error=_projection_error(outcomes),
            curve=mean_curve(outcomes),
            traffic=traffic(outcomes, clients),
            times=traffic(reference, clients).times_smaller(traffic(outcomes, clients))
            if reference
            else None,
        )
        for way, outcomes in result.runs.items()
    ]


def _projection_error(outcomes: Sequence[Outcome]) -> float | None:
    errors = [error for outcome in outcomes for error in outcome.projection_error if error is not None]
    return float(np.mean(errors)) if errors else None
