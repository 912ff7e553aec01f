"""Which tasks are trained where, and on how many texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulations.paper.study.jobs import CENTRALISED, FEDERATED
from simulations.study.workload import Workload

SHARED = "shared"
CASES = (CENTRALISED, FEDERATED, SHARED)
"""Names of the cases."""


@dataclass(frozen=True)
class Case:
    """One table: `workloads` are trained in the same way, each for itself, and make a mean over tasks.

    Those in `tuning` are trained to choose learning rates.
    """

    name: str
    way: str
    workloads: tuple[Workload, ...]
    tuning: tuple[Workload, ...]

    @property
    def clients(self) -> int:
        """Nodes of the federation; 1 where there is none."""
        return self.workloads[0].clients


def cases_of(
    size: Workload, sources: Mapping[str, str], names: Sequence[str], tuned_on: Sequence[str]
) -> tuple[Case, ...]:
    """The cases by name, with as many texts of a task as `size` has, however many nodes share them.

    centralised
        each task for itself; learning rates by the tasks `tuned_on` alone
    federated
        a node for each task
    shared
        two nodes for each task, each with half of the texts; the learning rates are those of `federated`
    """
    alone = {task: replace(size, tasks=(source,)) for task, source in sources.items()}
    every = replace(size, tasks=tuple(sources.values()), clients=len(sources))
    halves = replace(every, clients=2 * every.clients, train_texts=size.train_texts // 2)
    tuning = tuple(alone[task] for task in tuned_on if task in alone) or tuple(alone.values())
    cases = (
        Case(CENTRALISED, CENTRALISED, tuple(alone.values()), tuning),
        Case(FEDERATED, FEDERATED, (every,), (every,)),
        Case(SHARED, FEDERATED, (halves,), (every,)),
    )
    return tuple(case for case in cases if case.name in names)
