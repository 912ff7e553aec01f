"""Tables and verdicts for the figures of `benchmarks/adapters.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.adapter_contest.cases import STEP, Saved, Timing
from benchmarks.adapter_contest.layers import (
    BARE,
    KRON_LORA,
    LYCORIS_LOKR,
    PEFT_LOKR,
    PEFT_LORA,
    PEFT_LORA_LOW,
)
from benchmarks.adapter_contest.timing import Spread, ratio

MANY_TOKENS = 256


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio, the ratio in every case it applies to, and whether less is better."""

    text: str
    bound: float
    at_most: bool
    cases: dict[str, Spread]

    @property
    def failed(self) -> list[str]:
        """Cases whose median misses the bound, the worst first."""
        sign = 1 if self.at_most else -1
        missed = [name for name, found in self.cases.items() if sign * found.median > sign * self.bound]
        return sorted(missed, key=lambda name: -sign * self.cases[name].median)

    @property
    def worst(self) -> float:
        """The ratio that is nearest to missing the bound, or farthest beyond it."""
        medians = [found.median for found in self.cases.values()]
        return max(medians) if self.at_most else min(medians)

    @property
    def median(self) -> float:
        """Median over the cases."""
        return statistics.median(found.median for found in self.cases.values())

    def as_json(self) -> dict[str, object]:
        """All of it, with what follows from it."""
        return asdict(self) | {
            "holds": not self.failed if self.cases else None,
            "failed": self.failed,
            "worst": self.worst if self.cases else None,
            "median": self.median if self.cases else None,
        }


def goals(timings: Sequence[Timing], saved: Sequence[Saved]) -> list[Goal]:
    """Every goal with the cases that were measured for it."""
    steps = [timing for timing in timings if timing.mode == STEP and not _whole(timing)]
    many = [timing for timing in steps if timing.tokens >= MANY_TOKENS]
    one = [timing for timing in steps if timing.tokens == 1]
    models = [timing for timing in timings if _whole(timing)]
    layers = [item for item in saved if not _whole(item)]
    tokens = f"≥ {MANY_TOKENS} tokens"
    return [
        Goal(f"training step, {tokens}: time over PEFT LoRA's", 1, True, _over(many, PEFT_LORA)),
        Goal(f"training step, {tokens}: × faster than PEFT LoKr", 2, False, _faster(many, PEFT_LOKR)),
        Goal("training step, one token: × faster than PEFT LoKr", 10, False, _faster(one, PEFT_LOKR)),
        Goal(
            "memory saved, without x, over PEFT LoRA's", 2, True, _memory(layers, lambda s: s.bytes_without_x)
        ),
        Goal("memory saved, with x, over PEFT LoRA's", 2, True, _memory(layers, lambda s: s.bytes_with_x)),
        Goal("whole MiniLM, training step: time over PEFT LoRA's", 1, True, _over(models, PEFT_LORA)),
        Goal("whole MiniLM, training step: × faster than PEFT LoKr", 1, False, _faster(models, PEFT_LOKR)),
        Goal(f"training step, {tokens}: time over {PEFT_LORA_LOW}", 1, True, _over(many, PEFT_LORA_LOW)),
        Goal("training step, one token: time over PEFT LoRA's", 1, True, _over(one, PEFT_LORA)),
        Goal(f"training step, {tokens}: × faster than LyCORIS LoKr", 1, False, _faster(many, LYCORIS_LOKR)),
        Goal("training step, one token: × faster than LyCORIS LoKr", 1, False, _faster(one, LYCORIS_LOKR)),
    ]


def show(timings: Sequence[Timing], saved: Sequence[Saved], console: Console) -> None:
    """Print a table for each base, dtype, and number of threads, then one of the memory, then the goals."""
    for setting in dict.fromkeys(map(_setting, timings)):
        console.print(_timing_table([timing for timing in timings if _setting(timing) == setting]))
    console.print(_saved_table(saved))
    console.print("[bold]Goals[/bold], for Kron-LoRA; medians of the ratios by round")
    for goal in goals(timings, saved):
        for line in _verdict(goal):
            console.print(line, highlight=False, soft_wrap=True)


def _verdict(goal: Goal) -> Iterator[str]:
    bound = f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"
    if not goal.cases:
        yield f"  not measured   {goal.text} {bound}"
        return
    found = f"worst {goal.worst:.2f}, median {goal.median:.2f} of {len(goal.cases)} cases"
    yield f"  {'does not hold' if goal.failed else 'holds':<14} {goal.text} {bound}: {found}"
    if goal.failed:
        yield f"      in {len(goal.failed)}: " + "; ".join(
            f"{name}: {goal.cases[name]}" for name in goal.failed
        )


def _timing_table(timings: Sequence[Timing]) -> Table:
    first = timings[0]
    threads = "thread" if first.threads == 1 else "threads"
    table = Table(
        title=f"{first.base}, {first.dtype}, {first.device}, {first.threads} {threads}: "
        "time over the bare layer's, median ± half of the interquartile range",
        title_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("layer", "tokens", "pass", "bare ms", *list(first.seconds)[1:]):
        table.add_column(heading, justify="left" if heading in {"layer", "pass"} else "right")
    for timing in timings:
        bare = Spread.of([1e3 * seconds for seconds in timing.seconds[BARE]])
        ratios = [_short(ratio(timing.seconds, name, BARE)) for name in list(timing.seconds)[1:]]
        table.add_row(timing.layer, f"{timing.tokens:,}", timing.mode, _short(bare), *ratios)
    return table


def _saved_table(saved: Sequence[Saved]) -> Table:
    table = Table(
        title="Kept for the backward pass besides the parameters: without the input x / with it. "
        f"kB of {PEFT_LORA}, the others in multiples of it",
        caption="LoKr has no dropout on x.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
    )
    names = dict.fromkeys(name for item in saved for name in item.bytes_with_x)
    others = [name for name in names if name not in {BARE, PEFT_LORA}]
    for heading in ("base", "layer", "tokens", "dtype", "dropout", f"{PEFT_LORA}, kB", *others):
        table.add_column(heading, justify="left" if heading in {"base", "layer"} else "right")
    for item in saved:
        pairs = {name: (item.bytes_without_x[name], size) for name, size in item.bytes_with_x.items()}
        unit = pairs[PEFT_LORA]
        table.add_row(
            item.base,
            item.layer,
            f"{item.tokens:,}",
            item.dtype,
            f"{item.dropout:g}",
            _pair(unit, (1e3, 1e3)),
            *(_pair(pairs[name], unit) if name in pairs else "–" for name in others),
        )
    return table


def _pair(sizes: tuple[float, float], units: tuple[float, float]) -> str:
    return " / ".join(f"{size / unit:,.1f}" for size, unit in zip(sizes, units, strict=True))


def _short(spread: Spread) -> str:
    return f"{spread.median:.2f} ±{(spread.upper - spread.lower) / 2:.2f}"


def _setting(timing: Timing) -> tuple[str, str, int]:
    return timing.base, timing.dtype, timing.threads


def _whole(item: Timing | Saved) -> bool:
    return item.base.endswith("whole")


def _name(timing: Timing) -> str:
    return f"{timing.base} {timing.layer}, {timing.tokens} tokens, {timing.dtype}, {timing.threads} thr."


def _over(timings: Sequence[Timing], other: str) -> dict[str, Spread]:
    return {_name(t): ratio(t.seconds, KRON_LORA, other) for t in timings if other in t.seconds}


def _faster(timings: Sequence[Timing], other: str) -> dict[str, Spread]:
    return {_name(t): ratio(t.seconds, other, KRON_LORA) for t in timings if other in t.seconds}


def _memory(saved: Sequence[Saved], of: Callable[[Saved], dict[str, int]]) -> dict[str, Spread]:
    found = {}
    for item in saved:
        value = of(item)[KRON_LORA] / of(item)[PEFT_LORA]
        name = f"{item.base} {item.layer}, {item.tokens} tokens, {item.dtype}, dropout {item.dropout:g}"
        found[name] = Spread(value, value, value)
    return found
