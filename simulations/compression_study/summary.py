"""Figures of each scheme over seeds and tasks, and differences between schemes, paired by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulations.compression_study.schemes import BASELINE, REFERENCE, Scheme
from simulations.study.outcome import Outcome
from simulations.study.statistics import (
    LAST,
    SMOOTH,
    Difference,
    Spread,
    Times,
    Traffic,
    difference,
    mean_curve,
    mean_head_only,
    mean_over_tasks,
    spread,
    traffic,
)


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


def summarize(
    runs: Mapping[Scheme, Sequence[Outcome]], rates: Mapping[str, float], clients: int
) -> list[Line]:
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
            head_only=mean_head_only(outcomes),
            curve=mean_curve(outcomes),
            against={
                name: difference(outcomes, other) if other and other is not outcomes else None
                for name, other in others.items()
            },
            traffic=traffic(outcomes, clients),
            steady=traffic(outcomes, clients, last=1),
            smaller=traffic(outcomes, clients).times_smaller(traffic(baseline, clients))
            if baseline
            else None,
        )
        for scheme, outcomes in runs.items()
    ]
