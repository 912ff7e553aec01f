"""What an adapter forgets of a task when another one comes: on one machine, federated, and what may help.

Two tasks are trained one after the other on the same adapter; forgotten is what the first has lost in
accuracy when the second is done. The tasks come in both orders, with the same seeds.

    ARC-C and ARC-E, HellaSwag and ARC-E    the paper's pairs; each task with a head of its own, or one
                                            scoring head for both, which is part of the adapter
    trec and film                           two tasks that a small model learns well, with their own heads

Ways: Kron-LoRA and LoRA-8 on one machine (float32); a federation with two nodes a task, of which those of
the first task take part in the first rounds and those of the second in the later ones (the default codec
both ways), with the mean of the factors, `alternating` and `merged` aggregation; both tasks at once; and
adapters of each task from the same start, merged afterwards. Learning rates have the least loss on a third of
the training texts that is held out, with a seed of its own, when each task has an adapter of its own.

    python -m simulations.paper.forgetting --data FOLDER --resume runs/forgetting.jsonl --plot forgetting.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import Console

from fedkron.demo import prepare_demo
from fedkron.errors import FedKronError
from simulations.paper.forgetting_study.jobs import LOCAL, Job, Outcome, Pair, describe, outcome_of
from simulations.paper.forgetting_study.pairs import FULL, HELLASWAG, QUICK
from simulations.paper.forgetting_study.summary import Line, best_rate, summarize, way_names
from simulations.paper.forgetting_study.tables import show, show_tuning
from simulations.paper.forgetting_study.ways import (
    SEPARATE,
    SEQUENCE,
    Way,
)
from simulations.paper.tasks import add_data_option, task_sources
from simulations.study.command import study_parser, tables_console, write
from simulations.study.data import TEST, VALIDATION
from simulations.study.journal import Journal
from simulations.study.pool import processes
from simulations.study.progress import run_missing

DEMO = "demo:"
TUNING_SEED = 100


@dataclass(frozen=True)
class Part:
    """A pair with one sort of heads: what came of its jobs, and of tuning by adapter and learning rate."""

    pair: Pair
    heads: str
    tried: Mapping[str, Mapping[float, Outcome]]
    done: Mapping[Job, Outcome]

    @property
    def title(self) -> str:
        """Its name."""
        return f"{self.pair.name}, {self.heads} heads"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a run failed."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    pairs = _pairs(options)
    try:
        journal = Journal[Job, Outcome](Outcome, options.resume)
        if not options.only_show:
            sources = _sources(pairs, options)
            with processes(options.workers) as executor:
                run(pairs, sources, journal, executor, Console(stderr=True))
    except FedKronError as error:
        print(f"forgetting: {error}", file=sys.stderr)
        return 1
    parts = [part for part in finished(pairs, journal) if part.done]
    lines = {part.title: _lines(part) for part in parts}
    for part in parts:
        show(part.title, lines[part.title], _head_only(part), console)
        show_tuning(part.title, part.tried, console)
    if options.plot:
        from simulations.paper.forgetting_study.plot import plot

        plot(lines, options.plot)
    if options.json:
        write(json.dumps([_report(part, lines[part.title]) for part in parts], indent=1), options.json)
    return 0


def run(
    pairs: Sequence[Pair],
    sources: Mapping[str, str],
    journal: Journal[Job, Outcome],
    executor: Executor,
    console: Console,
) -> None:
    """Tune pair by pair, then run seed by seed, so that what an interrupted study has can be compared.

    Raises `RunError` when a run fails.
    """
    finish = partial(
        run_missing,
        journal=journal,
        work=partial(outcome_of, sources=sources),
        describe=describe,
        executor=executor,
        console=console,
    )
    for seed in range(max(pair.seeds for pair in pairs)):
        for pair in pairs:
            finish(
                f"{pair.name}, tuning", [job for by_rate in tuning(pair).values() for job in by_rate.values()]
            )
            if seed < pair.seeds:
                rates = _rates(pair, journal)
                finish(
                    f"{pair.name}, seed {seed}",
                    [job for heads in pair.ways for job in _jobs(pair, heads, seed, rates)],
                )


def finished(pairs: Sequence[Pair], journal: Journal[Job, Outcome]) -> Iterator[Part]:
    """What the journal has of each part, complete or not."""
    for pair in pairs:
        if any(job not in journal for by_rate in tuning(pair).values() for job in by_rate.values()):
            continue
        tried = {
            name: {rate: journal.outcome(job) for rate, job in by_rate.items()}
            for name, by_rate in tuning(pair).items()
        }
        rates = _rates(pair, journal)
        for heads in pair.ways:
            jobs = [job for seed in range(pair.seeds) for job in _jobs(pair, heads, seed, rates)]
            yield Part(pair, heads, tried, {job: journal.outcome(job) for job in jobs if job in journal})


def tuning(pair: Pair) -> dict[str, dict[float, Job]]:
    """A job for each adapter and learning rate: each task on its own adapter, on held-out texts."""
    ways = [way for of_heads in pair.ways.values() for way in of_heads]
    adapters = {_adapter(way): Way(_adapter(way), way.kind, way.rank, SEPARATE) for way in ways}
    return {
        name: {
            rate: Job(way, pair.name, pair.load, (), LOCAL, 0, TUNING_SEED, rate, VALIDATION)
            for rate in pair.rates[way.kind]
        }
        for name, way in adapters.items()
    }


def _rates(pair: Pair, journal: Journal[Job, Outcome]) -> dict[str, float]:
    return {
        name: best_rate({rate: journal.outcome(job) for rate, job in by_rate.items()})
        for name, by_rate in tuning(pair).items()
    }


def _jobs(pair: Pair, heads: str, seed: int, rates: Mapping[str, float]) -> list[Job]:
    return [
        Job(way, pair.name, pair.load, pair.measured, heads, first, seed, rates[_adapter(way)], TEST)
        for way in pair.ways[heads]
        for first in ((0, 1) if way.plan == SEQUENCE else (0,))
    ]


def _adapter(way: Way) -> str:
    return f"{way.kind}, rank {way.rank}"


def _lines(part: Part) -> list[Line]:
    order = way_names(part.pair.ways[part.heads])
    return sorted(summarize(part.done), key=lambda line: order.index(line.way))


def _head_only(part: Part) -> str:
    means = [
        sum(outcome.head_only[task] for outcome in part.done.values()) / len(part.done) for task in (0, 1)
    ]
    told = ", ".join(
        f"{name} {100 * mean:.1f}" for name, mean in zip(part.pair.load.tasks, means, strict=True)
    )
    return f"A head alone: {told}"


def _report(part: Part, lines: Sequence[Line]) -> dict[str, object]:
    return {
        "pair": asdict(part.pair),
        "heads": part.heads,
        "lines": [asdict(line) for line in lines],
        "tuning": {
            name: {f"{rate:g}": asdict(outcome) for rate, outcome in by_rate.items()}
            for name, by_rate in part.tried.items()
        },
        "runs": [{"job": asdict(job), "outcome": asdict(outcome)} for job, outcome in part.done.items()],
    }


def _pairs(options: argparse.Namespace) -> list[Pair]:
    pairs = QUICK if options.quick else FULL
    return [
        replace(
            pair,
            seeds=options.seeds or pair.seeds,
            load=replace(pair.load, rounds=options.rounds or pair.load.rounds),
            measured=_measured(pair, options.rounds),
        )
        for pair in pairs
        if not options.pairs or pair.name in options.pairs
    ]


def _measured(pair: Pair, rounds: int | None) -> tuple[int, ...]:
    return (rounds, 2 * rounds) if rounds else pair.measured


def _sources(pairs: Sequence[Pair], options: argparse.Namespace) -> dict[str, str]:
    """Where each task is read from; what is built in is prepared."""
    names = {name for pair in pairs for name in (*pair.load.tasks, pair.load.base)}
    if any(name.startswith(DEMO) for name in names):
        prepare_demo()
    tasks = {task for pair in pairs for task in pair.load.tasks}
    demo = {task: task for task in tasks if task.startswith(DEMO)}
    return demo if demo.keys() == tasks else demo | task_sources(options.data)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "python -m simulations.paper.forgetting",
        __doc__,
        quick="trec and film only, few texts, one seed",
        seeds=HELLASWAG.seeds,
        rounds=HELLASWAG.load.rounds,
    )
    names = [pair.name for pair in FULL]
    parser.add_argument("--pairs", nargs="+", metavar="PAIR", choices=names, help=", ".join(names))
    parser.add_argument(
        "--only-show", action="store_true", help="run nothing: show what --resume FILE has so far"
    )
    add_data_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
