"""Which way to combine adapters is best: accuracy, what projection loses, and bytes, end to end.

The server and the nodes run the programs of a real run, with the default codec both ways. Three cases of
eight nodes, six rounds each:

    tasks      six real tasks (node i has task i mod 6), each node with a head of its own
    iid        one task, shared at random, with one head for all
    dirichlet  the same, with label proportions drawn from Dirichlet(0.3) for each node

Before that, every way gets in every case the learning rate that is best for it on a third of the training
texts that is held out, in four rounds, with a seed of its own. All ways see the same texts, batches and
steps.

    python -m simulations.aggregation --resume runs/aggregation.jsonl --json runs/aggregation.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import Console

from fedkron.demo import DEMO_TASKS, prepare_demo
from fedkron.errors import ConfigError, FedKronError
from fedkron.settings import PartitionSettings
from simulations.aggregation_study.jobs import Case, Job, Outcome, describe, outcome_of
from simulations.aggregation_study.summary import Line, Result, summarize
from simulations.aggregation_study.tables import show
from simulations.aggregation_study.ways import KRON_LORA, LORA, WAYS, Way
from simulations.study.command import study_parser, tables_console, write
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.pool import processes
from simulations.study.progress import run_missing
from simulations.study.statistics import best_rate
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Study:
    """Which ways, in which cases, with seeds 0 … seeds − 1.

    `rates` are tried per adapter kind, in `tuning_rounds` rounds with `tuning_seed`.
    """

    cases: tuple[Case, ...]
    ways: tuple[str, ...]
    seeds: int
    rates: Mapping[str, tuple[float, ...]]
    tuning_rounds: int
    tuning_seed: int = 100

    @property
    def chosen(self) -> list[Way]:
        """The ways by name, in the order of the table."""
        return [way for name, way in WAYS.items() if name in self.ways]


TREC_LABELS = "abbreviation,description,entity,human,location,number"
DIRICHLET = PartitionSettings("dirichlet", alpha=0.3)

SIX_TASKS = Workload(
    tasks=tuple(f"demo:{name}" for name in DEMO_TASKS),
    clients=8,
    rounds=6,
    train_texts=96,
    test_texts=120,
    batch_size=8,
    max_length=48,
)
ONE_TASK = replace(SIX_TASKS, tasks=("demo:trec",), train_texts=60, test_texts=480)
FULL = Study(
    (
        Case("tasks", SIX_TASKS),
        Case("iid", ONE_TASK, TREC_LABELS),
        Case("dirichlet", ONE_TASK, TREC_LABELS, DIRICHLET),
    ),
    ways=tuple(WAYS),
    seeds=3,
    rates={KRON_LORA: (1e-3, 3e-3), LORA: (3e-4, 1e-3)},
    tuning_rounds=4,
)

_FEW_TEXTS = Workload(
    tasks=("demo:trec", "demo:tweets"),
    clients=2,
    rounds=2,
    train_texts=8,
    test_texts=12,
    batch_size=4,
    max_length=32,
)
QUICK = Study(
    (
        Case("tasks", _FEW_TEXTS),
        Case("dirichlet", replace(_FEW_TEXTS, tasks=("demo:trec",)), TREC_LABELS, DIRICHLET),
    ),
    ways=tuple(name for name, way in WAYS.items() if way.kind == KRON_LORA),
    seeds=1,
    rates={KRON_LORA: (3e-3,), LORA: (1e-3,)},
    tuning_rounds=1,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a federation failed."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    try:
        study = _study(options)
        prepare_demo()
        with processes(options.workers) as executor:
            results = run(study, Journal(Outcome, options.resume), executor, Console(stderr=True))
    except FedKronError as error:
        print(f"aggregation: {error}", file=sys.stderr)
        return 1
    lines = {result.case.name: summarize(result) for result in results}
    for result in results:
        show(result, lines[result.case.name], console)
    if options.plot:
        from simulations.aggregation_study.plot import plot

        plot(lines, options.plot)
    if options.json:
        write(json.dumps(_report(study, results, lines), indent=1), options.json)
    return 0


def run(study: Study, journal: Journal[Job, Outcome], executor: Executor, console: Console) -> list[Result]:
    """Case by case: tune every way, then run every way with every seed.

    Raises `RunError` when a federation fails.
    """
    return [_run_case(case, study, journal, executor, console) for case in study.cases]


def _run_case(
    case: Case, study: Study, journal: Journal[Job, Outcome], executor: Executor, console: Console
) -> Result:
    finish = partial(
        run_missing, journal=journal, work=outcome_of, describe=describe, executor=executor, console=console
    )
    shorter = replace(case, workload=replace(case.workload, rounds=study.tuning_rounds))
    tuning = {
        way: {rate: Job(way, shorter, study.tuning_seed, rate, VALIDATION) for rate in study.rates[way.kind]}
        for way in study.chosen
    }
    finish(f"{case.name}, tuning", [job for by_rate in tuning.values() for job in by_rate.values()])
    tried = {
        way: {rate: journal.outcome(job) for rate, job in by_rate.items()} for way, by_rate in tuning.items()
    }
    jobs = {
        way: [Job(way, case, seed, best_rate(tried[way]), TEST) for seed in range(study.seeds)]
        for way in study.chosen
    }
    # Seed by seed: what an interrupted study has finished can be compared.
    finish(case.name, [job for same_seed in zip(*jobs.values(), strict=True) for job in same_seed])
    runs = {way: [journal.outcome(job) for job in of_way] for way, of_way in jobs.items()}
    return Result(case, tried, runs)


def _report(
    study: Study, results: Sequence[Result], lines: Mapping[str, Sequence[Line]]
) -> dict[str, object]:
    return {
        "study": asdict(study),
        "cases": {
            result.case.name: [
                {
                    **asdict(line),
                    "tuning": {
                        f"{rate:g}": asdict(outcome) for rate, outcome in result.tried[line.way].items()
                    },
                    "runs": [asdict(outcome) for outcome in result.runs[line.way]],
                }
                for line in lines[result.case.name]
            ]
            for result in results
        },
    }


def _study(options: argparse.Namespace) -> Study:
    study = QUICK if options.quick else FULL
    cases = {case.name: case for case in study.cases}
    names = options.workloads or list(cases)
    if missing := [name for name in names if name not in cases]:
        raise ConfigError(f"--quick has no workload {missing[0]!r}: choose from {', '.join(cases)}")
    return replace(
        study,
        cases=tuple(
            replace(case, workload=replace(case.workload, rounds=options.rounds or case.workload.rounds))
            for name, case in cases.items()
            if name in names
        ),
        ways=tuple(options.ways or study.ways),
        seeds=options.seeds or study.seeds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "python -m simulations.aggregation",
        __doc__,
        quick="Kron-LoRA only, two cases, few texts, one seed",
        seeds=FULL.seeds,
        rounds=SIX_TASKS.rounds,
    )
    names = [case.name for case in FULL.cases]
    parser.add_argument("--ways", nargs="+", metavar="NAME", choices=WAYS, help=", ".join(WAYS))
    parser.add_argument("--workloads", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    return parser


if __name__ == "__main__":
    sys.exit(main())
