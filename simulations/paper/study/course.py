"""How training goes: loss over steps and accuracy over epochs, and when one adapter is where another ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from simulations.paper.study.adapters import Adapter
from simulations.paper.study.jobs import Outcome
from simulations.paper.study.running import Result
from simulations.study.statistics import mean_curve

WINDOW = 12
"""Steps whose losses are averaged: those of single batches are noise."""


@dataclass(frozen=True)
class Course:
    """Means over tasks and seeds: `loss` over the last `WINDOW` steps, from that step on, in nats; `accuracy`
    in [0, 1] after each epoch.

    `steps_to_reference` is how many steps it takes on average to where the reference's loss ends, over those
    of `pairs` (tasks and seeds) in which it gets there, of which there are `reached`.
    """

    adapter: Adapter
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    steps: int
    steps_to_reference: float | None
    reached: int
    pairs: int


def courses(result: Result, reference: Adapter) -> list[Course]:
    """One for each adapter."""
    ends = [smoothed(steps)[-1] for outcome in result.runs[reference] for steps in outcome.steps]
    return [_course(adapter, outcomes, ends) for adapter, outcomes in result.runs.items()]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over each step and those before it, `WINDOW` together, or all where there are fewer."""
    window = min(WINDOW, len(losses))
    return np.convolve(losses, np.ones(window) / window, mode="valid").tolist()


def steps_until(losses: Sequence[float], end: float) -> int | None:
    """Steps until the mean over the last `WINDOW` losses is at most `end`; None when it never is."""
    curve = smoothed(losses)
    before = len(losses) - len(curve)
    return next((before + i for i, loss in enumerate(curve, start=1) if loss <= end), None)


def _course(adapter: Adapter, outcomes: Sequence[Outcome], ends: Sequence[float]) -> Course:
    series = [steps for outcome in outcomes for steps in outcome.steps]
    shortest = min(map(len, series))
    curves = [smoothed(steps[:shortest]) for steps in series]
    taken = [steps_until(steps, end) for steps, end in zip(series, ends, strict=True)]
    there = [steps for steps in taken if steps is not None]
    return Course(
        adapter=adapter,
        loss=tuple(np.mean(curves, axis=0).tolist()),
        accuracy=mean_curve(outcomes),
        steps=shortest,
        steps_to_reference=fmean(there) if there else None,
        reached=len(there),
        pairs=len(taken),
    )
