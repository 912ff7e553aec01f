"""What the study runs: a federation per defence, attack, case and seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedkron.settings import AdmissionSettings, PartitionSettings, RobustSettings, Settings
from simulations.poison_study.attacks import BY_HAND, NO_ATTACK, OUTSIDE
from simulations.study.outcome import Outcome as Measured
from simulations.study.workload import Workload

EXPECTED = 0.2
"""Share of attackers that a server expects where there are none."""

MOST_OF_KRUM = 0.3
"""Share of ten nodes that Krum can be told to expect at most."""


@dataclass(frozen=True)
class Defence:
    """A robust rule in the space of an aggregation."""

    rule: str
    aggregation: str


@dataclass(frozen=True)
class Attack:
    """What the first nodes do instead of what they should, and their share of all."""

    name: str = NO_ATTACK
    share: float = 0.0


@dataclass(frozen=True)
class Case:
    """Whose data is trained on: nodes share one task and one head with these labels (comma-separated).

    `targets` are the layers with adapters.
    """

    name: str
    workload: Workload
    head_labels: str
    learning_rate: float
    head_learning_rate: float
    targets: str = "*"
    partition: PartitionSettings = field(default_factory=PartitionSettings)


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round. `norm_limit` is `admission.norm-limit`, 0 none."""

    defence: Defence
    attack: Attack
    case: Case
    seed: int
    norm_limit: float = 0.0

    @property
    def attackers(self) -> int:
        """Number of attackers: nodes 0 to this."""
        return round(self.attack.share * self.case.workload.clients)

    def settings(self, folder: str) -> Settings:
        """As a run's settings; all files are written below `folder`. The server knows how many may attack."""
        case = self.case
        expected = self.attack.share or EXPECTED
        if "krum" in self.defence.rule:
            expected = min(expected, MOST_OF_KRUM)
        settings = case.workload.settings(
            case.workload.tasks,
            kind="kron_lora",
            seed=self.seed,
            learning_rate=case.learning_rate,
            folder=folder,
        )
        if self.attack.name in OUTSIDE:  # NaN written by hand is in the codec that was asked for
            settings = replace(settings, codec=replace(settings.codec, upload=BY_HAND))
        return replace(
            settings,
            aggregation=self.defence.aggregation,
            head="shared",
            head_labels=case.head_labels,
            fraction_evaluate=0.0,  # what attackers measure says nothing, and one look at the end is enough
            partition=case.partition,
            adapter=replace(settings.adapter, targets=case.targets),
            train=replace(settings.train, head_learning_rate=case.head_learning_rate),
            robust=RobustSettings(self.defence.rule, expected),
            admission=AdmissionSettings(self.norm_limit),
        )


@dataclass(frozen=True)
class Outcome(Measured):
    """Accuracy and loss on clean test texts after the last round.

    `success` is the share of the other labels' test texts that get the target label when they have the
    trigger; it is measured with that attack and with none. `refused` is the number of refused uploads, and
    `reason` the first one's.
    """

    success: float | None
    refused: int
    reason: str


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.poison_study.federation import federate

    return federate(job)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    backdoor = "" if outcome.success is None else f"backdoor {outcome.success:.4f}, "
    return (
        f"{job.case.name}, {title(job.attack)}, {job.defence.rule} of {job.defence.aggregation}, "
        f"seed {job.seed}: accuracy {outcome.accuracy[-1][0]:.4f}, {backdoor}{outcome.refused} refused, "
        f"{outcome.seconds:.0f} s"
    )


def title(attack: Attack) -> str:
    """An attack and its share, for people."""
    return f"{attack.name} {100 * attack.share:.0f} %" if attack.share else attack.name
