"""Figures of each defence against each attack, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.poison_study.attacks import NO_ATTACK
from simulations.poison_study.jobs import Attack, Defence, Job, Outcome


@dataclass(frozen=True)
class Figure:
    """Mean in [0, 1] and its standard error, the standard deviation / √seeds; there is none over one."""

    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class Line:
    """What came of a defence against an attack, after the last round, over `seeds` seeds.

    `lost` is the accuracy that is missing of the plain mean's of the same space without attackers, paired by
    seed: the price of a rule where there is no attack, and what is left of the attack elsewhere. `success` is
    that of the backdoor; `refused` counts uploads of all rounds and seeds, `reason` is the first one's.
    """

    case: str
    attack: Attack
    defence: Defence
    seeds: int
    accuracy: Figure
    lost: Figure | None
    success: Figure | None
    refused: int
    reason: str


def summarize(outcomes: Mapping[Job, Outcome]) -> list[Line]:
    """A line per case, attack and defence, in the order of the jobs."""
    groups: dict[tuple[str, Attack, Defence], list[Job]] = {}
    for job in outcomes:
        groups.setdefault((job.case.name, job.attack, job.defence), []).append(job)
    unattacked = {
        (job.case.name, job.defence.aggregation, job.seed): accuracy(outcome)
        for job, outcome in outcomes.items()
        if job.attack.name == NO_ATTACK and job.defence.rule == "mean"
    }
    return [_line(jobs, outcomes, unattacked) for jobs in groups.values()]


def accuracy(outcome: Outcome) -> float:
    """After the last round, in [0, 1]."""
    return outcome.accuracy[-1][0]


def _line(
    jobs: Sequence[Job], outcomes: Mapping[Job, Outcome], unattacked: Mapping[tuple[str, str, int], float]
) -> Line:
    job, found = jobs[0], [outcomes[job] for job in jobs]
    before = [unattacked.get((job.case.name, job.defence.aggregation, job.seed)) for job in jobs]
    pairs = [was - accuracy(outcome) for was, outcome in zip(before, found, strict=True) if was is not None]
    successes = [outcome.success for outcome in found if outcome.success is not None]
    return Line(
        case=job.case.name,
        attack=job.attack,
        defence=job.defence,
        seeds=len(jobs),
        accuracy=_figure([accuracy(outcome) for outcome in found]),
        lost=_figure(pairs) if pairs else None,
        success=_figure(successes) if successes else None,
        refused=sum(outcome.refused for outcome in found),
        reason=next((outcome.reason for outcome in found if outcome.reason), ""),
    )


def _figure(values: Sequence[float]) -> Figure:
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return Figure(float(np.mean(values)), error)
