"""What the study runs: one federation per scheme and seed, and before that one per learning rate to try."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.compression_study.schemes import Scheme, title
from simulations.study.outcome import Outcome
from simulations.study.statistics import told
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round; `split` is a key of `study.data.SPLITS`."""

    scheme: Scheme
    workload: Workload
    seed: int
    learning_rate: float
    split: str


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.compression_study.federation import federate

    return federate(job)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    return (
        f"{title(job.scheme)}, rate {job.learning_rate:g}, seed {job.seed}, {job.split}: "
        f"{told(outcome, job.workload.clients)}"
    )
