"""The figures, what they say about the goals, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.adapter_contest.timing import Spread
from benchmarks.aggregation_scale.first_use import FirstUse
from benchmarks.aggregation_scale.growth import Growth
from benchmarks.aggregation_scale.speed import COMPILED, MANY, TORCH, Contest

MOST_PASSES, LEAST_TIMES_FLOWER = 5.0, 10.0
EVEN = 1.25
"""Memory, and the time for one more client, may differ by this factor between numbers of clients."""

MANY_CLIENTS = 100


@dataclass(frozen=True)
class Row:
    """Milliseconds for one client of a codec, and their ratios to others' times, round by round.

    `way` is what adds: compiled loops, or numpy alone. `check` is all before anything is added, decoding
    included where there is any; `header`, a part of it, the checksum and what else the header tells. `passes`
    is the whole over the fastest of numpy's multiply-add passes, `fused` that over torch's; `flower` is
    Flower's time for one client over ours.
    """

    codec: str
    way: str
    payload_bytes: int
    check: Spread
    header: Spread
    add: Spread
    whole: Spread
    clients_per_second: Spread
    passes: Spread
    fused: Spread
    flower: Spread


@dataclass(frozen=True)
class Reference:
    """Milliseconds of something that we are compared with."""

    name: str
    milliseconds: Spread


@dataclass(frozen=True)
class Goal:
    """A bound on a figure."""

    text: str
    figure: float
    holds: bool


@dataclass(frozen=True)
class Report:
    """All of it. Flower's bytes are those of the arrays in one reply."""

    machine: dict[str, object]
    parameters: int
    lora_parameters: int
    flower_bytes_per_client: int
    different_payloads: int
    codecs: list[Row]
    references: list[Reference]
    growth: list[Growth]
    first_use: FirstUse
    goals: list[Goal]


def rows(found: Contest, payload_bytes: Mapping[str, int]) -> list[Row]:
    """A row for each codec and way."""
    return [
        Row(
            codec,
            way,
            payload_bytes[codec],
            *(_milliseconds(parts[part]) for part in ("check", "header", "add")),
            _milliseconds(whole := [c + a for c, a in zip(parts["check"], parts["add"], strict=True)]),
            Spread.of([1 / seconds for seconds in whole]),
            _ratio(whole, found.passes[found.limit()]),
            _ratio(whole, found.passes[TORCH]),
            _ratio(found.flower_client, whole),
        )
        for (codec, way), parts in found.codecs.items()
    ]


def references(found: Contest) -> list[Reference]:
    """Multiply-add passes, and Flower."""
    passes = [
        Reference(f"multiply-add pass, {name}", _milliseconds(seconds))
        for name, seconds in found.passes.items()
    ]
    return [
        *passes,
        Reference("Flower FedAvg, each further client", _milliseconds(found.flower_client)),
        Reference(
            f"Flower FedAvg, {MANY} clients, for each",
            _milliseconds([s / MANY for s in found.flower["many"]]),
        ),
        Reference("Flower FedAvg, one client", _milliseconds(found.flower["few"])),
    ]


def goals(codecs: Sequence[Row], growth: Sequence[Growth]) -> list[Goal]:
    """What compiled int4 was meant to reach. Time is linear when each further client costs the same."""
    int4 = _goal_row(codecs)
    found = [
        Goal(
            f"at most {MOST_PASSES:g} multiply-add passes of numpy",
            int4.passes.median,
            int4.passes.median <= MOST_PASSES,
        ),
        Goal(
            f"at least {LEAST_TIMES_FLOWER:g} × the clients per second of Flower's FedAvg",
            int4.flower.median,
            int4.flower.median >= LEAST_TIMES_FLOWER,
        ),
    ]
    # With few clients, the largest part of the memory may not have been touched yet, and the start is most of
    # the time.
    ours = sorted(
        (g for g in growth if g.aggregation == "factorwise" and g.clients >= MANY_CLIENTS),
        key=lambda g: g.clients,
    )
    steps = [(more.seconds - less.seconds) / (more.clients - less.clients) for less, more in pairwise(ours)]
    memory = [g.memory for g in ours]
    for text, figures in (("flat memory", memory), ("linear time", steps)):
        if len(figures) > 1:
            # Noise can make a step of few clients negative.
            spread = max(figures) / max(min(figures), 1e-9)
            found.append(Goal(f"{text}: most over least, at most {EVEN:g}", spread, spread <= EVEN))
    return found


def show(report: Report, console: Console) -> None:
    """Print all of it."""
    console.print(_codecs(report.codecs), _references(report.references), _growth(report.growth))
    int4 = _goal_row(report.codecs)
    medians = (int4.header.median, int4.check.median, int4.add.median)
    header, check, add = (median / int4.whole.median for median in medians)
    console.print(
        f"Where the time of compiled int4 goes: checksum and header {header:.0%}, scales and codes "
        f"{check - header:.0%}, adding {add:.0%}. What limits it: the checksum (zlib) reads "
        f"{int4.payload_bytes / int4.header.median / 1e6:.1f} GB/s; adding takes "
        f"{int4.passes.median * add:.1f} of numpy's and {int4.fused.median * add:.1f} of torch's passes over "
        "the same sums."
    )
    use = report.first_use
    console.print(
        f"Before the first client: {use.first_seconds:.1f} s in the first process on a machine, which "
        f"compiles, {use.later_seconds:.1f} s in later ones; numba takes {use.later_memory / 1e6:.0f} MB."
    )
    console.print(
        f"Flower has all replies in memory, {report.flower_bytes_per_client / 1e6:.1f} MB a client; "
        "fedkron one payload at a time."
    )
    for goal in report.goals:
        console.print(f"{'reached' if goal.holds else 'missed '}  {goal.figure:6.2f}  {goal.text}")


def _goal_row(codecs: Sequence[Row]) -> Row:
    (row,) = (row for row in codecs if (row.codec, row.way) == ("int4", COMPILED))
    return row


def _milliseconds(seconds: Sequence[float]) -> Spread:
    return Spread.of([1e3 * value for value in seconds])


def _ratio(seconds: Sequence[float], to: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(seconds, to, strict=True)])


def _short(spread: Spread) -> str:
    digits = 2 if spread.median < 10 else 1
    return f"{spread.median:.{digits}f} ±{(spread.upper - spread.lower) / 2:.{digits}f}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left")
    return table


def _codecs(found: Sequence[Row]) -> Table:
    table = _table(
        "ms for one client, median ± half of the interquartile range; passes: multiply-adds of numpy in\n"
        "that time; fused: of torch; × Flower: clients per second over Flower's",
        "codec", "with", "payload kB", "check", "of it header", "add", "clients/s", "passes", "fused",
        "× Flower",
    )  # fmt: skip
    for row in found:
        table.add_row(
            row.codec,
            row.way,
            f"{row.payload_bytes / 1e3:,.0f}",
            *map(_short, (row.check, row.header, row.add)),
            f"{row.clients_per_second.median:,.0f}",
            *map(_short, (row.passes, row.fused, row.flower)),
        )
    return table


def _references(found: Sequence[Reference]) -> Table:
    table = _table("What they are compared with, ms for one client or pass", "", "ms")
    for reference in found:
        table.add_row(reference.name, _short(reference.milliseconds))
    return table


def _growth(found: Sequence[Growth]) -> Table:
    table = _table(
        "From the first payload to the mean, in a process of its own",
        "aggregation", "codec", "layers", "clients", "seconds", "clients/s", "check ms", "add ms",
        "memory MB", "whole process MB",
    )  # fmt: skip
    for row in found:
        table.add_row(
            row.aggregation,
            row.codec,
            str(row.layers),
            f"{row.clients:,}",
            f"{row.seconds:.2f}",
            f"{row.clients_per_second:,.1f}",
            f"{1e3 * row.check_seconds / row.clients:.2f}",
            f"{1e3 * row.add_seconds / row.clients:.2f}",
            f"{row.memory / 1e6:,.0f}",
            f"{row.process_memory / 1e6:,.0f}",
        )
    return table
