"""Figures over seeds and tasks: of adapters with the nodes' heads, and of the ways to share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulations.groups_study.jobs import AS_TRAINED, Outcome
from simulations.groups_study.pairs import Pairs, pairs
from simulations.groups_study.ways import ONE_FOR_ALL
from simulations.study.statistics import (
    Difference,
    Spread,
    Times,
    Traffic,
    paired_difference,
    spread,
    traffic,
)

NO_ADAPTER = "none"

KEPT, FITTED = "kept", "fitted"
"""Heads that the nodes have trained with their adapters, or new ones for the adapter, which is frozen."""

Runs = Mapping[str, Sequence[Outcome]]
"""Outcomes by name of the way, one per seed."""

ByTask = Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """What nodes reach with an adapter and their heads, after the last round. Accuracy in [0, 1].

    `heads` is `KEPT` or `FITTED`. `against` is the paired difference to one adapter for all with the heads
    that were trained with it; None for that itself. `projection_error` is the mean over seeds, relative; None
    where nothing was merged.
    """

    adapter: str
    heads: str
    tasks: Mapping[str, Spread]
    accuracy: Spread
    against: Difference | None
    projection_error: float | None


@dataclass(frozen=True)
class Sharing:
    """What a way costs, and which nodes shared an adapter in each run.

    `traffic` is the mean over rounds and seeds, and `times` as many bytes as that has one adapter for all.
    """

    way: str
    traffic: Traffic
    times: Times
    pairs: Pairs
    groups: tuple[tuple[tuple[str, ...], ...], ...]


def summarize(runs: Runs) -> list[Line]:
    """A line per adapter: first all with the heads as trained, then all with new ones."""
    return [
        *_lines(runs, KEPT),
        _line(
            runs, NO_ADAPTER, FITTED, [_by_task(outcome, outcome.head_only) for outcome in runs[ONE_FOR_ALL]]
        ),
        *_lines(runs, FITTED),
    ]


def sharings(runs: Runs, clients: int) -> list[Sharing]:
    """A line per way, in a federation of so many clients."""
    reference = traffic(runs[ONE_FOR_ALL], clients)
    return [
        Sharing(
            way=way,
            traffic=(own := traffic(outcomes, clients)),
            times=reference.times_smaller(own),
            pairs=pairs(outcome.groups for outcome in outcomes),
            groups=tuple(outcome.groups for outcome in outcomes),
        )
        for way, outcomes in runs.items()
    ]


def _lines(runs: Runs, heads: str) -> Iterator[Line]:
    for way, outcomes in runs.items():
        for name in outcomes[0].kept:
            errors = [o.projection_error[name] for o in outcomes if name in o.projection_error]
            adapter = way if name == AS_TRAINED else f"merged: {name}"
            yield _line(runs, adapter, heads, _seeds(outcomes, heads, name), errors)


def _line(
    runs: Runs, adapter: str, heads: str, seeds: Sequence[ByTask], errors: Sequence[float] = ()
) -> Line:
    reference = _seeds(runs[ONE_FOR_ALL], KEPT, AS_TRAINED)
    itself = (adapter, heads) == (ONE_FOR_ALL, KEPT)
    return Line(
        adapter=adapter,
        heads=heads,
        tasks={task: spread([by_task[task] for by_task in seeds]) for task in seeds[0]},
        accuracy=spread([float(np.mean(list(by_task.values()))) for by_task in seeds]),
        against=None if itself else paired_difference(seeds, reference),
        projection_error=float(np.mean(errors)) if errors else None,
    )


def _seeds(outcomes: Sequence[Outcome], heads: str, name: str) -> list[ByTask]:
    """Accuracy of each seed."""
    return [_by_task(outcome, getattr(outcome, heads)[name]) for outcome in outcomes]


def _by_task(outcome: Outcome, figures: Sequence[float]) -> ByTask:
    return dict(zip(outcome.tasks, figures, strict=True))
