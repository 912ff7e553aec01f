"""Tables 1 and 2 of the paper at a size that fits two CPU cores: accuracy of Kron-LoRA, LoRA and KronA.

    centralised  each task for itself, no exchange
    federated    five nodes, a task each, one adapter: one epoch a round, 2-bit changes both ways
    shared       ten nodes, two for each task, each with half of its texts

Every adapter kind gets, centralised and federated, the learning rate that is best for it on training texts
that are held out. All adapters see the same texts in the same order for as many steps. Each node and task
has a head of its own. Seeds differ in texts, initial adapter and order.

    python -m simulations.paper.accuracy --data FOLDER --resume runs/paper.jsonl --json runs/accuracy.json
    python -m simulations.paper.accuracy --data FOLDER --base smollm2 --resume runs/smollm2.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from fedkron.errors import ConfigError, FedKronError
from simulations.paper.study.adapters import (
    COMPARED,
    KRON_LORA,
    KRONA,
    LORA,
    OURS,
    REFERENCE,
    SMALL_KRONA,
    Adapter,
)
from simulations.paper.study.bases import MINILM, SMOLLM2, prepare_base
from simulations.paper.study.cases import CASES, cases_of
from simulations.paper.study.command import chances, paper_parser, run_plan
from simulations.paper.study.parameters import adapter_parameters
from simulations.paper.study.plot import plot_parameters
from simulations.paper.study.running import Plan, Result
from simulations.paper.study.summary import Line, head_only, summarize
from simulations.paper.study.tables import show
from simulations.paper.tasks import TASKS, task_sources
from simulations.study.command import tables_console, write
from simulations.study.workload import Workload


@dataclass(frozen=True)
class Size:
    """How much is trained on a base: `workload` says how many texts of each task and how many epochs."""

    workload: Workload
    tasks: tuple[str, ...]
    cases: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    seeds: int
    rates: Mapping[str, tuple[float, ...]]
    tuning_rounds: int


ABOVE_CHANCE = ("piqa", "arc_easy")
"""Tasks on which small bases learn something in few steps: those by which learning rates are chosen."""

FULL: Mapping[str, Size] = {
    MINILM: Size(
        Workload(tasks=(), clients=1, rounds=3, train_texts=192, test_texts=200, batch_size=8, max_length=64),
        tasks=TASKS,
        cases=CASES,
        adapters=COMPARED,
        seeds=3,
        rates={KRON_LORA: (1e-3, 3e-3), LORA: (3e-4, 1e-3), KRONA: (1e-3, 3e-3)},
        tuning_rounds=2,
    ),
    # A step takes twenty times as long: the two tasks on which it is above chance.
    SMOLLM2: Size(
        Workload(tasks=(), clients=1, rounds=2, train_texts=128, test_texts=200, batch_size=8, max_length=64),
        tasks=ABOVE_CHANCE,
        cases=CASES[:1],
        adapters=(OURS, REFERENCE, SMALL_KRONA),
        seeds=3,
        rates={KRON_LORA: (3e-4, 1e-3), LORA: (1e-4, 3e-4), KRONA: (3e-4, 1e-3)},
        tuning_rounds=1,
    ),
}
"""By name of the base; any other has the size of MiniLM."""

QUICK = Size(
    Workload(tasks=(), clients=1, rounds=1, train_texts=8, test_texts=8, batch_size=4, max_length=32),
    tasks=ABOVE_CHANCE,
    cases=CASES,
    adapters=(OURS, REFERENCE),
    seeds=1,
    rates={KRON_LORA: (1e-3,), LORA: (1e-3,)},
    tuning_rounds=1,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a job failed, or the data cannot be had."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    try:
        size = QUICK if options.quick else FULL.get(options.base, FULL[MINILM])
        every = task_sources(options.data)
        sources = {name: every[name] for name in options.tasks or size.tasks}
        base = prepare_base(options.base)
        plan = plan_of(size, base, sources, options)
        results = run_plan(plan, options)
    except FedKronError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    parameters = adapter_parameters(base, plan.adapters)
    chance = chances(sources)
    lines = {result.case.name: summarize(result, parameters) for result in results}
    for result in results:
        show(result, lines[result.case.name], chance, console)
    if options.plot:
        plot_parameters(lines, options.plot)
    if options.json:
        write(json.dumps(_report(results, lines, chance), indent=1), options.json)
    return 0


def plan_of(size: Size, base: str, sources: Mapping[str, str], options: argparse.Namespace) -> Plan:
    """What is to be run. Raises `ConfigError` for adapters that this size does not have."""
    adapters = {adapter.name: adapter for adapter in size.adapters}
    names = options.adapters or list(adapters)
    if missing := [name for name in names if name not in adapters]:
        raise ConfigError(f"there is no adapter {missing[0]!r} here: choose from {', '.join(adapters)}")
    load = replace(size.workload, base=base, rounds=options.rounds or size.workload.rounds)
    return Plan(
        cases_of(load, sources, options.cases or size.cases, ABOVE_CHANCE),
        tuple(adapters[name] for name in names),
        options.seeds or size.seeds,
        size.rates,
        size.tuning_rounds,
    )


def _report(
    results: Sequence[Result], lines: Mapping[str, Sequence[Line]], chance: Mapping[str, float]
) -> dict[str, object]:
    return {
        result.case.name: {
            "case": asdict(result.case),
            "chance": chance,
            "head_only": head_only(result),
            "adapters": [
                {**asdict(line), "runs": [asdict(outcome) for outcome in result.runs[line.adapter]]}
                for line in lines[result.case.name]
            ],
        }
        for result in results
    }


def _parser() -> argparse.ArgumentParser:
    size = FULL[MINILM]
    parser = paper_parser(
        "python -m simulations.paper.accuracy",
        __doc__,
        quick="two tasks, Kron-LoRA and LoRA-8, few texts, one seed",
        seeds=size.seeds,
        rounds=size.workload.rounds,
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=CASES, help=", ".join(CASES))
    adapters = [adapter.name for adapter in COMPARED]
    parser.add_argument("--adapters", nargs="+", metavar="NAME", choices=adapters, help=", ".join(adapters))
    return parser


if __name__ == "__main__":
    sys.exit(main())
