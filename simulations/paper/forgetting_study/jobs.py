"""What the study runs: two tasks, one way, one order, one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedkron.settings import CodecSettings, Settings
from simulations.paper.forgetting_study.ways import JOINT, SEPARATE, SEQUENCE, Way
from simulations.study.outcome import Outcome as Measured
from simulations.study.workload import Workload

LOCAL, SHARED = "local", "shared"


@dataclass(frozen=True)
class Pair:
    """Two tasks, and what is done with them. In `load`, texts and rounds are per task; `ways` are by heads.

    In a sequence, nodes measure after the rounds in `measured` (from 1), which has the last of both tasks;
    otherwise after the last round. `rates` are the learning rates that are tried, by adapter kind.
    """

    name: str
    load: Workload
    ways: Mapping[str, tuple[Way, ...]]
    measured: tuple[int, ...]
    rates: Mapping[str, tuple[float, ...]]
    seeds: int


@dataclass(frozen=True)
class Job:
    """One run to its end. `first` is the index of the task that is trained first, in a sequence.

    `split` is a key of `study.data.SPLITS`.
    """

    way: Way
    pair: str
    load: Workload
    curve: tuple[int, ...]
    heads: str
    first: int
    seed: int
    learning_rate: float
    split: str

    @property
    def measured(self) -> tuple[int, ...]:
        """Rounds after which nodes measure."""
        return self.curve if self.way.plan == SEQUENCE else (self.load.rounds,)

    def settings(self, sources: str, folder: str) -> Settings:
        """As a run's settings; nodes read `sources` (comma-separated) and write below `folder`."""
        load = replace(self.load, train_texts=self.load.train_texts // self.way.clients)
        settings = load.settings(
            sources.split(","),
            kind=self.way.kind,
            seed=self.seed,
            learning_rate=self.learning_rate,
            folder=folder,
        )
        codec = CodecSettings(self.way.codec, self.way.codec)
        return replace(
            settings,
            adapter=self.way.adapter(),
            aggregation=self.way.aggregation,
            codec=codec,
            head=self.heads,
        )

    def schedules(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each adapter that is trained, the tasks that take part in each round."""
        rounds = self.load.rounds
        plans = {
            SEQUENCE: (((self.first,),) * rounds + ((1 - self.first,),) * rounds,),
            JOINT: (((0, 1),) * rounds,),
            SEPARATE: (((0,),) * rounds, ((1,),) * rounds),
        }
        return plans[self.way.plan]


@dataclass(frozen=True)
class Outcome(Measured):
    """What came of a job: each task once, means over its nodes, for each round in `rounds`.

    With separate adapters there is one round, the last, in which each task is measured on its own adapter;
    `merged` has by way of merging what the merged adapter reaches: accuracy and loss per task.
    """

    rounds: tuple[int, ...]
    merged: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]


def outcome_of(job: Job, sources: Mapping[str, str]) -> Outcome:
    """Run a job to its end; `sources` says where each task is read from."""
    # torch and Flower take seconds to import: only in the processes where they are used.
    from simulations.paper.forgetting_study.federation import run

    return run(job, sources)


def describe(job: Job, outcome: Outcome) -> str:
    """What was run, and what came of it."""
    told = "; ".join(
        f"round {number}: " + ", ".join(f"{a:.3f} ({b:.3f})" for a, b in zip(accuracy, loss, strict=True))
        for number, accuracy, loss in zip(outcome.rounds, outcome.accuracy, outcome.loss, strict=True)
    )
    return (
        f"{job.pair}, {job.heads} heads, {job.way.name}, first {job.load.tasks[job.first]}, "
        f"rate {job.learning_rate:g}, seed {job.seed}, {job.split}: {told}, {outcome.seconds:.0f} s"
    )
