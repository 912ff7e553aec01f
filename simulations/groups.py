"""Who should share an adapter when tasks are unlike: all nodes, those of a task, or those that learn alike?

Eight nodes have six real tasks (node i has task i mod 6), and each has a head of its own. The server and the
nodes run the programs of a real run. They share

    one for all   one adapter
    clustered     as many adapters as there are tasks; the server finds by their updates who shares one
    per task      one adapter per task

Afterwards the adapters of the tasks become one, in several ways (`fedkron merge`). Each node measures it on
its own test texts with the head that it has, which was trained with another adapter, and with a new head that
it trains on the frozen merged adapter. All ways see the same texts, batches and steps.

    python -m simulations.groups --resume runs/groups.jsonl --json runs/groups.json
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
from fedkron.settings import ONE_GROUP
from simulations.aggregation import SIX_TASKS
from simulations.groups_study.jobs import Job, Outcome, describe, outcome_of
from simulations.groups_study.summary import Runs, sharings, summarize
from simulations.groups_study.tables import show
from simulations.groups_study.ways import Way, ways
from simulations.study.command import study_parser, tables_console, write
from simulations.study.journal import Journal
from simulations.study.pool import processes
from simulations.study.progress import run_missing
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Study:
    """All ways to share adapters, with seeds 0 … seeds − 1.

    An adapter of one or two nodes moves as far as they do, a mean of eight does not: `shared_rate` is the
    learning rate of one adapter for all, `group_rate` that of groups.
    """

    workload: Workload
    seeds: int
    shared_rate: float
    group_rate: float

    def rate(self, way: Way) -> float:
        """The learning rate of a way."""
        return self.shared_rate if way.groups.by == ONE_GROUP else self.group_rate


FULL = Study(
    SIX_TASKS,
    seeds=3,
    shared_rate=3e-3,  # what `simulations.aggregation` finds best for one adapter for all
    group_rate=1e-3,  # better than 3e-4 on held-out texts, see docs/results.md
)
QUICK = replace(
    FULL,
    workload=replace(
        SIX_TASKS,
        tasks=("demo:trec", "demo:tweets"),
        clients=3,
        rounds=2,
        train_texts=8,
        test_texts=12,
        batch_size=4,
        max_length=32,
    ),
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
        print(f"groups: {error}", file=sys.stderr)
        return 1
    lines, shared = summarize(runs), sharings(runs, study.workload.clients)
    show(lines, shared, console)
    if options.plot:
        from simulations.groups_study.plot import plot

        plot(lines, options.plot)
    if options.json:
        report = {
            "study": asdict(study),
            "adapters": [asdict(line) for line in lines],
            "ways": [
                {**asdict(line), "runs": [asdict(outcome) for outcome in runs[line.way]]} for line in shared
            ],
        }
        write(json.dumps(report, indent=1), options.json)
    return 0


def run(study: Study, journal: Journal[Job, Outcome], executor: Executor, console: Console) -> Runs:
    """Run every way with every seed. Raises `RunError` when a federation fails."""
    jobs = {
        way.name: [Job(way, study.workload, seed, study.rate(way)) for seed in range(study.seeds)]
        for way in ways(len(study.workload.tasks))
    }
    run_missing(
        "groups",
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
        "python -m simulations.groups",
        __doc__,
        quick="two tasks, three nodes, few texts, one seed",
        seeds=FULL.seeds,
        rounds=FULL.workload.rounds,
    )


if __name__ == "__main__":
    sys.exit(main())
