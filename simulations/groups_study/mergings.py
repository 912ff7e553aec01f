"""How the adapters of all tasks become one after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedkron.aggregation.task_merging import MergedTasks, merge_tasks, of_rank
from fedkron.layout import AdapterLayout, State
from fedkron.settings import AdapterSettings

DENSITY = 0.5


@dataclass(frozen=True)
class Merging:
    """Arguments of `merge_tasks`; the merged adapter has `times_rank` times the rank of the tasks'."""

    name: str
    method: str
    scaling: float = 1.0
    times_rank: int = 1

    def settings(self, adapter: AdapterSettings) -> AdapterSettings:
        """Those of the merged adapter: α/r stays as it is."""
        return replace(adapter, rank=adapter.rank * self.times_rank, alpha=adapter.alpha * self.times_rank)

    def merge(self, adapters: Sequence[State], layout: AdapterLayout, rank: int, seed: int) -> MergedTasks:
        """Merge adapters of one layout and rank."""
        return merge_tasks(
            adapters,
            layout,
            self.method,
            density=DENSITY,
            scaling=self.scaling,
            seed=seed,
            target=of_rank(layout, rank * self.times_rank),
        )


def mergings(tasks: int) -> tuple[Merging, ...]:
    """All ways to merge the adapters of so many tasks."""
    return (
        Merging("mean", "mean"),
        Merging("mean, 2r", "mean", times_rank=2),
        Merging("sum", "mean", scaling=tasks),
        Merging("ties", "ties"),
        Merging("dare", "dare"),
        Merging("dare_ties", "dare_ties"),
    )
