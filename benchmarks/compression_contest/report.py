"""The figures of each contestant, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.adapter_contest.timing import Spread
from benchmarks.compression_contest.contestants import COPY
from benchmarks.compression_contest.timing import Timing


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


def show(found: Sequence[Row], parameters: int, missing: Sequence[str], console: Console) -> None:
    """Print the table."""
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


def _short(spread: Spread) -> str:
    return f"{spread.median:.1f} ±{(spread.upper - spread.lower) / 2:.1f}"
