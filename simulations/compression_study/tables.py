"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from simulations.compression_study.schemes import BASELINE, REFERENCE, title
from simulations.compression_study.summary import Line
from simulations.study.outcome import Outcome
from simulations.study.statistics import SMOOTH, mean_over_tasks
from simulations.study.tables import kilobytes, percent, points, table_of

Tried = Mapping[str, Mapping[float, Outcome]]
"""Outcomes of tuning by adapter kind and learning rate."""


def show(lines: Sequence[Line], tried: Tried, console: Console) -> None:
    """Print four tables: tuning, accuracy, bytes, and accuracy round by round."""
    console.print(_tuning(tried))
    console.print(_accuracy(lines))
    console.print(
        f"A head alone on the frozen base: {100 * lines[0].head_only:.2f} %. Without feedback: what a codec "
        "leaves out is thrown away, up and down.\n",
        highlight=False,
    )
    console.print(_bytes(lines))
    console.print(_curves(lines))


def _tuning(tried: Tried) -> Table:
    rates = sorted({rate for by_rate in tried.values() for rate in by_rate})
    table = table_of("Accuracy in % by learning rate", "adapter", *map("{:g}".format, rates))
    for kind, by_rate in tried.items():
        means = (mean_over_tasks(by_rate[rate], SMOOTH) for rate in rates)
        table.add_row(kind, *(f"{100 * mean:.2f}" for mean in means))
    return table


def _accuracy(lines: Sequence[Line]) -> Table:
    table = table_of(
        "Accuracy in %: mean over tasks ± standard deviation over seeds;\n"
        "differences in points over the last two rounds ± standard error, paired by seed and task",
        *("scheme", "rate", "last round", "last two", "loss"),
        *(f"− {title(other)}" for other in (REFERENCE, BASELINE)),
    )
    for line in lines:
        table.add_row(
            title(line.scheme),
            f"{line.learning_rate:g}",
            percent(line.last),
            percent(line.smooth),
            f"{line.loss.mean:.3f}",
            *(points(line.against[other.name]) for other in (REFERENCE, BASELINE)),
        )
    return table


def _bytes(lines: Sequence[Line]) -> Table:
    table = table_of(
        f"Serialized Flower messages per client and round, and × fewer bytes than {BASELINE.name}",
        *("scheme", "kB up", "kB down", "last round: up", "down", "× up", "× down", "× both"),
    )
    for line in lines:
        times = (line.smaller.up, line.smaller.down, line.smaller.both) if line.smaller else ()
        cells = [f"{ratio:.1f}" for ratio in times] or ["–"] * 3
        table.add_row(title(line.scheme), *kilobytes(line.traffic), *kilobytes(line.steady), *cells)
    return table


def _curves(lines: Sequence[Line]) -> Table:
    rounds = range(1, len(lines[0].curve) + 1)
    table = table_of("Accuracy in % after each round", "scheme", *map(str, rounds))
    for line in lines:
        table.add_row(title(line.scheme), *(f"{100 * accuracy:.2f}" for accuracy in line.curve))
    return table
