"""What few levels cost in accuracy: federations by the real programs, masked and not.

Eight nodes share the training texts of TREC and one head.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fedkron.settings import CodecSettings, SecureSettings
from simulations.study.outcome import Outcome
from simulations.study.statistics import told
from simulations.study.workload import Workload

RATE = 3e-3
"""The best learning rate of Kron-LoRA on these tasks (docs/results.md), found without any codec."""

LABELS = "abbreviation,description,entity,human,location,number"

WORKLOAD = Workload(
    tasks=("demo:trec",),
    clients=8,
    rounds=6,
    train_texts=32,
    test_texts=300,
    batch_size=8,
    max_length=32,
)
QUICK_WORKLOAD = replace(WORKLOAD, clients=3, rounds=1, train_texts=8, test_texts=8, max_length=16)

PLAIN, MASKED = ("fp32", "int4", "ecsq"), (2, 3, 5, 15, 255)
QUICK_PLAIN, QUICK_MASKED = ("int4",), (5,)


@dataclass(frozen=True)
class Way:
    """How updates travel: with a codec, or masked with so many levels (then the codec is not used)."""

    codec: str
    levels: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return f"masked, {self.levels} levels" if self.levels else self.codec


@dataclass(frozen=True)
class Job:
    """One federation from its first to its last round."""

    way: Way
    workload: Workload
    seed: int


def ways(plain: tuple[str, ...], masked: tuple[int, ...]) -> list[Way]:
    """Codecs, and numbers of levels."""
    return [*map(Way, plain), *(Way("ecsq", levels) for levels in masked)]


def outcome_of(job: Job) -> Outcome:
    """Run a job to its end; the first round's keys and all queries are in its bytes."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.study.data import TEST, sources
    from simulations.study.programs import run_programs, written_outcome

    started = time.perf_counter()
    load, way = job.workload, job.way
    with TemporaryDirectory(prefix="fedkron-secure-") as folder:
        settings = load.settings(
            sources(load.tasks, TEST, job.seed, Path(folder)),
            kind="kron_lora",
            seed=job.seed,
            learning_rate=RATE,
            folder=folder,
        )
        secure = SecureSettings(True, way.levels) if way.levels else SecureSettings()
        settings = replace(
            settings,
            codec=CodecSettings(way.codec, "ecsq"),
            secure=secure,
            head="shared",
            head_labels=LABELS,
            # All nodes would measure the same model on the same texts.
            fraction_evaluate=1 / load.clients,
        )
        run = run_programs(settings, load.clients, data=(load, job.seed))
        return written_outcome(run, started)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    return f"{job.way.name}, seed {job.seed}: {told(outcome, job.workload.clients)}"
