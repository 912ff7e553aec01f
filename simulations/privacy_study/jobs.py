"""What the study runs: a federation per way and seed, of nodes that share one task and one head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedkron.settings import AdmissionSettings, CodecSettings, PrivacySettings, Settings
from simulations.privacy_study.ways import Way
from simulations.study.outcome import Outcome as Measured
from simulations.study.statistics import told
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round; `labels` (comma-separated) are those of the task."""

    way: Way
    workload: Workload
    labels: str
    seed: int
    learning_rate: float
    clipping_norm: float
    delta: float

    def settings(self, folder: str) -> Settings:
        """As a run's settings; all files are written below `folder`."""
        load, way = self.workload, self.way
        settings = load.settings(
            load.tasks, kind="kron_lora", seed=self.seed, learning_rate=self.learning_rate, folder=folder
        )
        return replace(
            settings,
            head="shared",
            head_labels=self.labels,
            # All nodes would measure the same model on the same texts.
            fraction_evaluate=1 / load.clients,
            codec=CodecSettings(upload=way.upload),
            admission=AdmissionSettings(norm_limit=0.0),
            privacy=PrivacySettings(way.kind, way.clipping, self.clipping_norm, way.noise, self.delta),
        )


@dataclass(frozen=True)
class Outcome(Measured):
    """What came of a job. `epsilon` after each round is None where nothing is guaranteed; `clipping_norm` is
    that of the last round, None without clipping.
    """

    epsilon: tuple[float | None, ...]
    clipping_norm: float | None


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.privacy_study.federation import federate

    return federate(job)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    spent = outcome.epsilon[-1]
    return (
        f"{job.way.name}, noise {job.way.noise:g}, ε {'–' if spent is None else f'{spent:.3g}'}, "
        f"seed {job.seed}: {told(outcome, job.workload.clients)}"
    )
