"""Tables for people, and figures for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from benchmarks.adapter_contest.timing import ratio
from simulations.paper.throughput_study.contestants import LORA, PEFT_LORA
from simulations.paper.throughput_study.memory import Memory
from simulations.paper.throughput_study.speed import Speed
from simulations.study.tables import NOTHING, table_of

REFERENCES = (LORA, PEFT_LORA)
"""What ratios are taken to: LoRA-8 by the same code, and by the library that people use."""


def figures(speeds: Sequence[Speed], memories: Sequence[Memory]) -> dict[str, object]:
    """All that was measured, with the ratios that are in the tables."""
    return {
        "speed": [asdict(speed) | {"over": _ratios(speed)} for speed in speeds],
        "memory": [asdict(memory) for memory in memories],
    }


def _ratios(speed: Speed) -> dict[str, dict[str, object]]:
    return {
        to: {name: asdict(ratio(speed.seconds, name, to)) for name in speed.seconds}
        for to in REFERENCES
        if to in speed.seconds
    }


def show_speed(speed: Speed, console: Console) -> None:
    """Print steps and tokens a second on a base, and ratios of times."""
    rounds = len(next(iter(speed.seconds.values())))
    table = table_of(
        f"{speed.base}: training, {speed.batch_tokens:,} tokens a step, {speed.threads} thread(s), "
        f"{speed.device}; medians of {rounds} rounds; time over another's: median and quartiles of the "
        "ratios by round",
        *("adapter", "steps/s", "tokens/s", *(f"time / {to}'s" for to in REFERENCES)),
    )
    for name, seconds in speed.seconds.items():
        steps = 1 / statistics.median(seconds)
        over = [str(ratio(speed.seconds, name, to)) if to in speed.seconds else NOTHING for to in REFERENCES]
        table.add_row(name, f"{steps:,.2f}", f"{steps * speed.batch_tokens:,.0f}", *over)
    console.print(table)


def show_memory(memories: Sequence[Memory], console: Console) -> None:
    """Print what training on one base takes of memory."""
    table = table_of(
        f"{memories[0].base}: memory of training besides the base, MB (10⁶ bytes), each in a fresh process",
        *("adapter", "trained parameters", "kept for backward", "gradients", "optimizer", "peak of a step"),
    )
    for one in memories:
        sizes = (one.kept, one.gradients, one.optimizer, one.step_peak)
        table.add_row(
            one.contestant, f"{one.trained_parameters:,}", *(f"{size / 1e6:,.2f}" for size in sizes)
        )
    console.print(table)
