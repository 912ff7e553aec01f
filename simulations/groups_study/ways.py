"""What is compared: who shares an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from fedkron.settings import CLUSTERS, ONE_GROUP, TASK_GROUPS, GroupSettings

ONE_FOR_ALL, CLUSTERED, PER_TASK = "one for all", "clustered", "per task"

WARM_UP = 1
"""Rounds before there are clusters. The updates of the first round, which all begin from the same adapter,
tell tasks apart as well as later ones, and each further round goes to an adapter that all pull at."""


@dataclass(frozen=True)
class Way:
    """One way to group nodes, as the settings of a run."""

    name: str
    groups: GroupSettings


def ways(tasks: int) -> tuple[Way, ...]:
    """All ways to group nodes that have so many tasks. Clusters are told the number, and nothing else."""
    return (
        Way(ONE_FOR_ALL, GroupSettings(ONE_GROUP)),
        Way(CLUSTERED, GroupSettings(CLUSTERS, clusters=tasks, warm_up=WARM_UP)),
        Way(PER_TASK, GroupSettings(TASK_GROUPS)),
    )
