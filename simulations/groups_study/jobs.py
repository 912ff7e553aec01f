"""What the study runs: a federation per way and seed, with what is made of its adapters afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedkron.settings import Settings
from simulations.groups_study.ways import Way
from simulations.study.outcome import Outcome as Measured
from simulations.study.statistics import told
from simulations.study.workload import Workload

AS_TRAINED = "as trained"
"""Name of the adapters of the last round, which are not merged."""


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round; each node keeps a head of its own."""

    way: Way
    workload: Workload
    seed: int
    learning_rate: float

    def settings(self, folder: str) -> Settings:
        """As a run's settings; all files are written below `folder`."""
        load = self.workload
        settings = load.settings(
            load.tasks, kind="kron_lora", seed=self.seed, learning_rate=self.learning_rate, folder=folder
        )
        return replace(settings, groups=self.way.groups)


@dataclass(frozen=True)
class Outcome(Measured):
    """What came of a job: figures per task and round, and of the adapters that it ended with.

    `groups` are the nodes (task-partition) that share an adapter, `adapters` the names of what was measured
    after training: `AS_TRAINED`, and for the adapters of tasks each way to merge them. `kept` is by those
    names the accuracy per task with the heads that the nodes have trained, `fitted` that with new heads
    trained on the frozen adapter. `projection_error` is relative, for those that are merged.
    """

    groups: tuple[tuple[str, ...], ...]
    kept: Mapping[str, tuple[float, ...]]
    fitted: Mapping[str, tuple[float, ...]]
    projection_error: Mapping[str, float]


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.groups_study.federation import federate

    return federate(job)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    return f"{job.way.name}, seed {job.seed}: {told(outcome, job.workload.clients)}"
