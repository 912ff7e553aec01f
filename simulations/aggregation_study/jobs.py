"""What the study runs: a federation per way, case and seed, and before that one per learning rate to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedkron.settings import PartitionSettings, Settings
from simulations.aggregation_study.ways import Way
from simulations.study.outcome import Outcome as Measured
from simulations.study.statistics import told
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Case:
    """Whose data is trained on: a workload, how nodes that have the same task share it, and their heads.

    With `head_labels` (comma-separated, those of the only task) all nodes share one head, else each keeps its
    own.
    """

    name: str
    workload: Workload
    head_labels: str = ""
    partition: PartitionSettings = field(default_factory=PartitionSettings)


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round; `split` is a key of `study.data.SPLITS`."""

    way: Way
    case: Case
    seed: int
    learning_rate: float
    split: str

    def settings(self, sources: Sequence[str], folder: str) -> Settings:
        """As a run's settings, with the tasks read from `sources`; all files are written below `folder`."""
        case, load = self.case, self.case.workload
        settings = load.settings(
            sources,
            kind=self.way.kind,
            seed=self.seed,
            learning_rate=self.learning_rate,
            folder=folder,
        )
        return replace(
            settings,
            aggregation=self.way.aggregation,
            head="shared" if case.head_labels else "local",
            head_labels=case.head_labels,
            # With one head and one task, all nodes would measure the same model on the same texts.
            fraction_evaluate=1 / load.clients if case.head_labels else 1.0,
            partition=case.partition,
        )


@dataclass(frozen=True)
class Outcome(Measured):
    """What came of a job: figures per task and round.

    `projection_error` is that of each round, relative; None where nothing was projected.
    """

    projection_error: tuple[float | None, ...]


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.aggregation_study.federation import federate

    return federate(job)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    return (
        f"{job.case.name}, {job.way.name}, rate {job.learning_rate:g}, seed {job.seed}, {job.split}: "
        f"{told(outcome, job.case.workload.clients)}"
    )
