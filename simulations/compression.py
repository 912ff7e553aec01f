"""Accuracy against bytes, end to end: what does each codec cost, and what does it save?

Eight nodes with six real tasks (node i has task i mod 6; nodes of one task share its texts) fine-tune
adapters of MiniLM, once per scheme and seed, with the programs and messages of a real run: LoRA-8 as a plain
Flower app sends it, and Kron-LoRA with each codec, with and without error feedback. All schemes see the same
texts, batches and steps. Bytes are serialized Flower messages, training and evaluation, both ways.

Before that, the learning rate of either adapter is chosen, without any loss on the way, on a third of the
training texts that is held out, with a seed of its own.

    python -m simulations.compression --resume runs/compression.jsonl --json runs/compression.json
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
from fedkron.errors import FedKronError
from simulations.compression_study.jobs import Job, describe, outcome_of
from simulations.compression_study.schemes import SCHEMES, Scheme, lossless
from simulations.compression_study.summary import Line, summarize
from simulations.compression_study.tables import Tried, show
from simulations.study.command import study_parser, tables_console, write
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.outcome import Outcome
from simulations.study.pool import processes
from simulations.study.progress import run_missing
from simulations.study.statistics import best_rate
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Study:
    """Which schemes, on which workload, with seeds 0 … seeds − 1; `rates` are tried with `tuning_seed`."""

    workload: Workload
    schemes: tuple[str, ...]
    seeds: int
    rates: tuple[float, ...]
    tuning_seed: int = 100

    @property
    def chosen(self) -> list[Scheme]:
        """The schemes by name, in the order of the table."""
        return [scheme for name, scheme in SCHEMES.items() if name in self.schemes]


FULL = Study(
    Workload(
        tasks=tuple(f"demo:{name}" for name in DEMO_TASKS),
        clients=8,
        rounds=6,
        train_texts=96,
        test_texts=120,
        batch_size=8,
        max_length=48,
    ),
    schemes=tuple(SCHEMES),
    seeds=3,
    rates=(3e-4, 1e-3, 3e-3, 1e-2),
)
QUICK = Study(
    Workload(
        tasks=("demo:trec", "demo:tweets"),
        clients=3,
        rounds=2,
        train_texts=16,
        test_texts=16,
        batch_size=8,
        max_length=32,
    ),
    schemes=("LoRA-8", "fp32", "int4", "int4-no-feedback"),
    seeds=1,
    rates=(1e-3, 3e-3),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a federation failed."""
    options = _parser().parse_args(arguments)
    study = _study(options)
    console = tables_console(options.json)
    try:
        prepare_demo()
        with processes(options.workers) as executor:
            tried, runs = run(study, Journal(Outcome, options.resume), executor, Console(stderr=True))
    except FedKronError as error:
        print(f"compression: {error}", file=sys.stderr)
        return 1
    rates = {kind: best_rate(outcomes) for kind, outcomes in tried.items()}
    lines = summarize(runs, rates, study.workload.clients)
    show(lines, tried, console)
    if options.plot:
        from simulations.compression_study.plot import plot

        plot(lines, options.plot)
    if options.json:
        write(json.dumps(_report(study, tried, lines, runs), indent=1), options.json)
    return 0


def run(
    study: Study, journal: Journal[Job, Outcome], executor: Executor, console: Console
) -> tuple[Tried, dict[Scheme, list[Outcome]]]:
    """Tune, then run every scheme with every seed: outcomes by adapter kind and rate, and by scheme.

    Raises `RunError` when a federation fails.
    """
    lossless_ones = dict.fromkeys(lossless(scheme) for scheme in study.chosen)
    tuning = {
        (scheme.kind, rate): Job(scheme, study.workload, study.tuning_seed, rate, VALIDATION)
        for scheme in lossless_ones
        for rate in study.rates
    }
    finish = partial(run_missing, work=outcome_of, describe=describe, executor=executor, console=console)
    finish("tuning", tuning.values(), journal)
    tried = {
        scheme.kind: {rate: journal.outcome(tuning[scheme.kind, rate]) for rate in study.rates}
        for scheme in lossless_ones
    }
    jobs = {
        scheme: [
            Job(scheme, study.workload, seed, best_rate(tried[scheme.kind]), TEST)
            for seed in range(study.seeds)
        ]
        for scheme in study.chosen
    }
    # Seed by seed: what an interrupted study has finished can be compared.
    in_order = [job for same_seed in zip(*jobs.values(), strict=True) for job in same_seed]
    finish("study", in_order, journal)
    return tried, {scheme: [journal.outcome(job) for job in of_scheme] for scheme, of_scheme in jobs.items()}


def _report(
    study: Study, tried: Tried, lines: Sequence[Line], runs: Mapping[Scheme, Sequence[Outcome]]
) -> dict[str, object]:
    return {
        "study": asdict(study),
        "tuning": {
            kind: {f"{rate:g}": asdict(outcome) for rate, outcome in by_rate.items()}
            for kind, by_rate in tried.items()
        },
        "schemes": [
            {**asdict(line), "runs": [asdict(outcome) for outcome in runs[line.scheme]]} for line in lines
        ],
    }


def _study(options: argparse.Namespace) -> Study:
    study = QUICK if options.quick else FULL
    own = {key: value for key in ("tasks", "rounds") if (value := getattr(options, key)) is not None}
    given = {key: value for key in ("schemes", "seeds") if (value := getattr(options, key)) is not None}
    return replace(study, workload=replace(study.workload, **own), **given)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "python -m simulations.compression",
        __doc__,
        quick="four schemes, two tasks, few texts, one seed",
        seeds=FULL.seeds,
        rounds=FULL.workload.rounds,
    )
    parser.add_argument("--schemes", nargs="+", metavar="NAME", choices=SCHEMES, help=", ".join(SCHEMES))
    parser.add_argument("--tasks", nargs="+", metavar="SOURCE", type=str, help="instead of the demo's six")
    return parser


if __name__ == "__main__":
    sys.exit(main())
