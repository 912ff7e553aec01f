"""Figures of each way over seeds, and its distance to training without privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulations.privacy_study.jobs import Outcome
from simulations.privacy_study.ways import NONE, Way
from simulations.study.statistics import (
    LAST,
    Difference,
    Spread,
    Traffic,
    mean_curve,
    mean_over_tasks,
    paired_difference,
    spread,
    traffic,
)
from simulations.study.statistics import by_task as accuracies

Runs = Mapping[Way, Sequence[Outcome]]


@dataclass(frozen=True)
class Line:
    """What the study says of a way. Accuracy in [0, 1] and loss in nats after the last round.

    `against` is the difference to training without privacy, paired by seed; `epsilon` that of the whole run,
    None where nothing is guaranteed; `clipping_norm` of the last round, mean over seeds.
    """

    way: Way
    epsilon: float | None
    accuracy: Spread
    loss: Spread
    against: Difference | None
    clipping_norm: float | None
    curve: tuple[float, ...]
    traffic: Traffic


def summarize(runs: Runs, clients: int) -> list[Line]:
    """A line per way."""
    reference = runs.get(NONE)
    return [
        Line(
            way=way,
            epsilon=outcomes[0].epsilon[-1],
            accuracy=spread([mean_over_tasks(outcome, LAST) for outcome in outcomes]),
            loss=spread([mean_over_tasks(outcome, LAST, "loss") for outcome in outcomes]),
            against=paired_difference(
                [accuracies(o, LAST) for o in outcomes], [accuracies(o, LAST) for o in reference]
            )
            if reference and way != NONE
            else None,
            clipping_norm=_norm(outcomes),
            curve=mean_curve(outcomes),
            traffic=traffic(outcomes, clients),
        )
        for way, outcomes in runs.items()
    ]


def _norm(outcomes: Sequence[Outcome]) -> float | None:
    norms = [outcome.clipping_norm for outcome in outcomes if outcome.clipping_norm is not None]
    return sum(norms) / len(norms) if norms else None
