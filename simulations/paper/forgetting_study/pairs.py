"""The pairs of tasks that are trained one after the other, in full and in seconds to try the program out."""

from __future__ import annotations

from dataclasses import replace

from fedkron.settings import BFLOAT16
from simulations.paper.forgetting_study.jobs import LOCAL, SHARED, Pair
from simulations.paper.forgetting_study.ways import (
    ALTERNATING,
    FEDERATED,
    FEW,
    KRON_LORA,
    KRONA,
    LORA,
    LORA_8,
    MERGED_TASKS,
    MORE,
    ONE_MACHINE,
)
from simulations.study.workload import Workload

LOW_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
RATES = {KRON_LORA: (1e-4, 3e-4, 1e-3, 3e-3), LORA: LOW_RATES, KRONA: LOW_RATES}

TREC_FILM = Pair(
    "trec-film",
    Workload(
        tasks=("demo:trec", "demo:film"),
        clients=2,
        rounds=4,
        train_texts=240,
        test_texts=300,
        batch_size=8,
        max_length=48,
        precision=BFLOAT16,
    ),
    ways={LOCAL: (*FEW, *MORE)},
    measured=(4, 5, 8),
    rates=RATES,
    seeds=3,
)
HELLASWAG = Pair(
    "hellaswag-arc_easy",
    Workload(
        tasks=("hellaswag", "arc_easy"),
        clients=2,
        rounds=2,
        train_texts=160,
        test_texts=200,
        batch_size=8,
        max_length=64,
        precision=BFLOAT16,
    ),
    ways={SHARED: FEW, LOCAL: (ONE_MACHINE, LORA_8, FEDERATED)},
    measured=(2, 4),
    rates=RATES,
    seeds=2,
)
ARC = replace(
    HELLASWAG,
    name="arc_challenge-arc_easy",
    load=replace(HELLASWAG.load, tasks=("arc_challenge", "arc_easy")),
)
FULL = (TREC_FILM, HELLASWAG, ARC)

QUICK = (
    replace(
        TREC_FILM,
        load=replace(TREC_FILM.load, rounds=1, train_texts=16, test_texts=16),
        ways={LOCAL: (ONE_MACHINE, FEDERATED, ALTERNATING, MERGED_TASKS)},
        measured=(1, 2),
        rates={KRON_LORA: (3e-3,)},
        seeds=1,
    ),
)
