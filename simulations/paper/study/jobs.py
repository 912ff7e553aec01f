"""What the tables are made of: one adapter, trained once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

from fedkron.settings import Settings
from simulations.paper.study.adapters import Adapter
from simulations.study.outcome import Outcome as Measured
from simulations.study.statistics import LAST, mean_over_tasks
from simulations.study.workload import Workload

T = TypeVar("T")

CENTRALISED, FEDERATED = "centralised", "federated"


@dataclass(frozen=True)
class Job:
    """An adapter trained from its first to its last epoch; `split` is a key of `study.data.SPLITS`.

    `way` is `CENTRALISED` (one task, its texts in one place) or `FEDERATED` (nodes, one epoch a round).
    """

    adapter: Adapter
    way: str
    workload: Workload
    seed: int
    learning_rate: float
    split: str

    def settings(self, sources: Sequence[str], folder: str) -> Settings:
        """As a run's settings, with the tasks read from `sources`; all files are written below `folder`."""
        settings = self.workload.settings(
            sources, kind=self.adapter.kind, seed=self.seed, learning_rate=self.learning_rate, folder=folder
        )
        # The choices are at the end of the texts.
        train = replace(settings.train, truncation_side="left")
        return replace(settings, adapter=self.adapter.settings(), train=train)


@dataclass(frozen=True)
class Outcome(Measured):
    """What came of a job, per epoch or round; `steps` has the loss of each step of each centralised task."""

    steps: tuple[tuple[float, ...], ...]


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of one adapter on different tasks, as one with all tasks."""
    return Outcome(
        tasks=_joined(outcome.tasks for outcome in outcomes),
        accuracy=tuple(map(_joined, zip(*(outcome.accuracy for outcome in outcomes), strict=True))),
        loss=tuple(map(_joined, zip(*(outcome.loss for outcome in outcomes), strict=True))),
        head_only=_joined(outcome.head_only for outcome in outcomes),
        up=tuple(map(sum, zip(*(outcome.up for outcome in outcomes), strict=True))),
        down=tuple(map(sum, zip(*(outcome.down for outcome in outcomes), strict=True))),
        seconds=sum(outcome.seconds for outcome in outcomes),
        steps=_joined(outcome.steps for outcome in outcomes),
    )


def _joined(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(chain.from_iterable(parts))


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    if job.way == CENTRALISED:
        from simulations.paper.study.centralised import train_alone

        return train_alone(job)
    from simulations.paper.study.federation import federate

    return federate(job)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    return (
        f"{job.adapter.name}, {job.way}, {'+'.join(outcome.tasks)}, rate {job.learning_rate:g}, seed "
        f"{job.seed}, {job.split}: accuracy {mean_over_tasks(outcome, LAST):.4f}, {outcome.seconds:.0f} s"
    )
