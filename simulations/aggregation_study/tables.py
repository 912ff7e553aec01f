"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from simulations.aggregation_study.summary import Line, Result
from simulations.aggregation_study.ways import LORA_REFERENCE, REFERENCE
from simulations.study.statistics import SMOOTH, mean_over_tasks
from simulations.study.tables import NOTHING, kilobytes, percent, points, table_of


def show(result: Result, lines: Sequence[Line], console: Console) -> None:
    """Print a case's table, and how its learning rates were chosen."""
    console.print(_figures(result, lines))
    console.print(_tuning(result))


def _figures(result: Result, lines: Sequence[Line]) -> Table:
    others = [other.name for other in (REFERENCE, LORA_REFERENCE) if other in result.runs]
    table = table_of(
        f"{result.case.name}: accuracy in % over the last two rounds ± standard deviation over seeds;\n"
        "differences in points ± standard error, paired by seed and task; relative projection error;\n"
        f"serialized Flower messages per client and round, and × as many bytes as {REFERENCE.name}",
        *("way", "rate", "accuracy", "loss", "proj. error", *(f"− {name}" for name in others)),
        *("kB up", "kB down", "× up", "× down", "× both"),
    )
    for line in lines:
        times = (line.times.up, line.times.down, line.times.both) if line.times else ()
        table.add_row(
            line.way.name,
            f"{line.learning_rate:g}",
            percent(line.accuracy),
            f"{line.loss.mean:.3f}",
            NOTHING if line.projection_error is None else f"{line.projection_error:.3f}",
            *(points(line.against[name]) for name in others),
            *kilobytes(line.traffic),
            *([f"{ratio:.2f}" for ratio in times] or [NOTHING] * 3),
        )
    return table


def _tuning(result: Result) -> Table:
    rates = sorted({rate for by_rate in result.tried.values() for rate in by_rate})
    table = table_of(
        f"{result.case.name}: accuracy in % on held-out training texts, by learning rate",
        *("way", *map("{:g}".format, rates)),
    )
    for way, by_rate in result.tried.items():
        means = {rate: f"{100 * mean_over_tasks(outcome, SMOOTH):.2f}" for rate, outcome in by_rate.items()}
        table.add_row(way.name, *(means.get(rate, NOTHING) for rate in rates))
    return table
