"""What does differential privacy cost: accuracy against ε, where the server adds the noise or the nodes do?

Sixty nodes have a few texts each of one real task, and share one head, which is part of the adapter.
The server and the nodes run the programs of a real run, with the default codec both ways. Compared are no
privacy, clipping only, noise by the server and noise by the nodes, and other codecs under the same noise.

The noise comes from the operating system: a seed stands for texts, batches and initial factors only.

    python -m simulations.privacy --resume runs/privacy.jsonl --json runs/privacy.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace

from rich.console import Console

from fedkron.demo import prepare_demo
from fedkron.errors import FedKronError
from simulations.aggregation import TREC_LABELS
from simulations.privacy_study.jobs import Job, Outcome, describe, outcome_of
from simulations.privacy_study.summary import Runs, summarize
from simulations.privacy_study.tables import show
from simulations.privacy_study.ways import CENTRAL, LOCAL, NONE, WAYS, Way
from simulations.study.command import study_parser, tables_console, write
from simulations.study.journal import Journal
from simulations.study.pool import processes
from simulations.study.progress import run_missing
from simulations.study.statistics import mean_head_only
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Study:
    """Which ways, with seeds 0 … seeds − 1."""

    workload: Workload
    labels: str
    ways: tuple[Way, ...]
    seeds: int
    learning_rate: float
    clipping_norm: float
    delta: float


FULL = Study(
    Workload(
        tasks=("demo:trec",),
        clients=60,
        rounds=5,
        train_texts=16,
        test_texts=480,
        batch_size=8,
        max_length=32,
    ),
    TREC_LABELS,
    WAYS,
    seeds=2,
    learning_rate=3e-3,
    clipping_norm=0.5,
    delta=1e-3,  # below 1/60 nodes
)
QUICK = replace(
    FULL,
    workload=replace(FULL.workload, clients=3, rounds=2, train_texts=8, test_texts=12, batch_size=4),
    ways=(NONE, CENTRAL[0], LOCAL[0]),
    seeds=1,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a federation failed."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    study = _study(options)
    try:
        prepare_demo()
        with processes(options.workers) as executor:
            runs = run(study, Journal(Outcome, options.resume), executor, Console(stderr=True))
    except FedKronError as error:
        print(f"privacy: {error}", file=sys.stderr)
        return 1
    lines = summarize(runs, study.workload.clients)
    head_only = mean_head_only([outcome for outcomes in runs.values() for outcome in outcomes])
    show(lines, head_only, study.delta, console)
    if options.plot:
        from simulations.privacy_study.plot import plot

        plot(lines, head_only, options.plot)
    if options.json:
        report = {
            "study": asdict(study),
            "head_only": head_only,
            "ways": [
                {**asdict(line), "runs": [asdict(outcome) for outcome in runs[line.way]]} for line in lines
            ],
        }
        write(json.dumps(report, indent=1), options.json)
    return 0


def run(study: Study, journal: Journal[Job, Outcome], executor: Executor, console: Console) -> Runs:
    """Run every way with every seed. Raises `RunError` when a federation fails."""
    jobs = {
        way: [
            Job(
                way,
                study.workload,
                study.labels,
                seed,
                study.learning_rate,
                study.clipping_norm,
                study.delta,
            )
            for seed in range(study.seeds)
        ]
        for way in study.ways
    }
    run_missing(
        "privacy",
        # Seed by seed: what an interrupted study has finished can be compared.
        [job for same_seed in zip(*jobs.values(), strict=True) for job in same_seed],
        journal,
        work=outcome_of,
        describe=describe,
        executor=executor,
        console=console,
    )
    return {way: [journal.outcome(job) for job in of_way] for way, of_way in jobs.items()}


def _study(options: argparse.Namespace) -> Study:
    study = QUICK if options.quick else FULL
    return replace(
        study,
        workload=replace(study.workload, rounds=options.rounds or study.workload.rounds),
        seeds=options.seeds or study.seeds,
    )


def _parser() -> argparse.ArgumentParser:
    return study_parser(
        "python -m simulations.privacy",
        __doc__,
        quick="three ways, three nodes, few texts, one seed",
        seeds=FULL.seeds,
        rounds=FULL.workload.rounds,
    )


if __name__ == "__main__":
    sys.exit(main())
