"""The table, and what the figures say about the goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.adapter_contest.timing import Spread
from benchmarks.compression_contest.contestants import COPY
from benchmarks.compression_contest.timing import Timing

MOST_COPIES = 5
"""Times that `int4` may take of a memory copy, to encode and to decode."""
LEAST_ECSQ = {"encode": 150, "decode": 200}
"""MB/s of `ecsq`."""


@dataclass(frozen=True)
class Row:
    """One contestant: speeds in MB (1e6 bytes) of float32 input a second, and times of a copy."""

    name: str
    threads: int
    bytes_per_parameter: float
    error: float
    encode: Spread
    encode_copies: Spread
    decode: Spread
    decode_copies: Spread


@dataclass(frozen=True)
class Goal:
    """What was aimed at, what was found (median), and whether that is enough."""

    text: str
    found: float
    reached: bool


def rows(timings: Sequence[Timing], parameters: int) -> list[Row]:
    """A row for each contestant; ratios are taken round by round."""
    megabytes = 4 * parameters / 1e6
    (copy,) = (timing for timing in timings if timing.contestant.name == COPY)

    def speed(seconds: list[float]) -> Spread:
        return Spread.of([megabytes / value for value in seconds])

    def copies(seconds: list[float]) -> Spread:
        # Both of the copy's calls are the same copy.
        return Spread.of([2 * s / (a + b) for s, a, b in zip(seconds, copy.encode, copy.decode, strict=True)])

    return [
        Row(
            timing.contestant.name,
            timing.contestant.threads,
            timing.contestant.size / parameters,
            timing.contestant.error,
            speed(timing.encode),
            copies(timing.encode),
            speed(timing.decode),
            copies(timing.decode),
        )
        for timing in timings
    ]


def goals(found: Sequence[Row]) -> list[Goal]:
    """All goals, reached or not."""
    by_name = {row.name: row for row in found}
    int4, ecsq = by_name["fedkron int4"], by_name["fedkron ecsq"]
    copies = {"encode": int4.encode_copies.median, "decode": int4.decode_copies.median}
    speeds = {"encode": ecsq.encode.median, "decode": ecsq.decode.median}
    return [
        *(
            Goal(f"int4, {way}: at most {MOST_COPIES} × a memory copy", value, value <= MOST_COPIES)
            for way, value in copies.items()
        ),
        *(
            Goal(f"ecsq, {way}: at least {LEAST_ECSQ[way]} MB/s", value, value >= LEAST_ECSQ[way])
            for way, value in speeds.items()
        ),
    ]


def show(found: Sequence[Row], parameters: int, missing: Sequence[str], console: Console) -> None:
    """Print the table and the goals."""
    table = Table(
        title=f"{parameters:,} parameters: MB/s of float32 input, median. × is the time over that of a "
        "memory copy, median ± half of the interquartile range",
        title_justify="left",
        box=box.SIMPLE,
    )
    headings = ("", "threads", "bytes/parameter", "error", "encode MB/s", "×", "decode MB/s", "×")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in found:
        table.add_row(
            row.name,
            str(row.threads),
            f"{row.bytes_per_parameter:.4f}",
            f"{row.error:.2g}",
            f"{row.encode.median:,.0f}",
            _short(row.encode_copies),
            f"{row.decode.median:,.0f}",
            _short(row.decode_copies),
        )
    for name in missing:
        table.add_row(name, *("–",) * (len(headings) - 1))
    console.print(table)
    for goal in goals(found):
        console.print(
            f"  {'reached' if goal.reached else 'missed':<8} {goal.text}: {goal.found:.1f}", highlight=False
        )


def _short(spread: Spread) -> str:
    return f"{spread.median:.1f} ±{(spread.upper - spread.lower) / 2:.1f}"
