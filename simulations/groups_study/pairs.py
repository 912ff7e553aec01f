"""How well groups match tasks: by pairs of nodes, of which each is grouped as its tasks say, or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Pairs:
    """Pairs of nodes over all runs: how many have the same task, and how many share an adapter.

    With many tasks most pairs are apart by right, whatever is found: `same_together` says more than the share
    of pairs that are right.
    """

    same: int
    same_together: int
    different: int
    different_apart: int

    @property
    def right(self) -> float:
        """Share of pairs that are together where tasks are the same, and apart where not (Rand index)."""
        return (self.same_together + self.different_apart) / (self.same + self.different)


def pairs(runs: Iterable[Sequence[Sequence[str]]]) -> Pairs:
    """Count those of the groups of each run; nodes are named task-partition."""
    found = [
        (task_of(one) == task_of(other), group == another)
        for groups in runs
        for (one, group), (other, another) in combinations(_members(groups), 2)
    ]
    same = [together for same_task, together in found if same_task]
    different = [together for same_task, together in found if not same_task]
    return Pairs(len(same), sum(same), len(different), different.count(False))


def task_of(node: str) -> str:
    """The task in a node's name."""
    return node.rpartition("-")[0]


def _members(groups: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    return [(node, number) for number, group in enumerate(groups) for node in group]
