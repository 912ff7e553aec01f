"""How much is trained: in full for each base, and in seconds to try a program out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedkron.settings import BFLOAT16
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
from simulations.paper.study.bases import MINILM, SMOLLM2
from simulations.paper.study.cases import CASES, cases_of
from simulations.paper.study.running import Plan
from simulations.paper.tasks import TASKS
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
        Workload(
            tasks=(),
            clients=1,
            rounds=3,
            train_texts=160,
            test_texts=200,
            batch_size=8,
            max_length=48,
            precision=BFLOAT16,
        ),
        tasks=TASKS,
        cases=CASES,
        adapters=COMPARED,
        seeds=3,
        rates={
            KRON_LORA: (1e-4, 3e-4, 1e-3, 3e-3),
            LORA: (3e-5, 1e-4, 3e-4, 1e-3),
            KRONA: (1e-4, 3e-4, 1e-3, 3e-3),
        },
        tuning_rounds=2,
    ),
    # A step takes twenty times as long: the two tasks on which it is above chance.
    SMOLLM2: Size(
        Workload(
            tasks=(),
            clients=1,
            rounds=2,
            train_texts=96,
            test_texts=150,
            batch_size=8,
            max_length=48,
            precision=BFLOAT16,
        ),
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
    Workload(
        tasks=(),
        clients=1,
        rounds=1,
        train_texts=8,
        test_texts=8,
        batch_size=4,
        max_length=32,
        precision=BFLOAT16,
    ),
    tasks=ABOVE_CHANCE,
    cases=CASES,
    adapters=(OURS, REFERENCE),
    seeds=1,
    rates={KRON_LORA: (1e-3,), LORA: (1e-3,)},
    tuning_rounds=1,
)


def size_for(options: argparse.Namespace) -> Size:
    """The size that the options of `paper_parser` ask for."""
    return QUICK if options.quick else FULL.get(options.base, FULL[MINILM])


def plan_for(
    size: Size,
    base: str,
    sources: Mapping[str, str],
    options: argparse.Namespace,
    *,
    cases: Sequence[str],
    adapters: Sequence[Adapter],
) -> Plan:
    """What is to be run: these cases with these adapters, on the tasks of the size that have a source."""
    load = replace(
        size.workload,
        base=base,
        rounds=options.rounds or size.workload.rounds,
        train_texts=options.texts or size.workload.train_texts,
        test_texts=options.test_texts or size.workload.test_texts,
    )
    wanted = {name: source for name, source in sources.items() if name in (options.tasks or size.tasks)}
    return Plan(
        cases_of(load, wanted, cases, ABOVE_CHANCE),
        tuple(adapters),
        options.seeds or size.seeds,
        size.rates,
        size.tuning_rounds,
    )
