"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table

from simulations.paper.study.adapters import REFERENCE, TUNED
from simulations.paper.study.running import Result
from simulations.paper.study.summary import Line, difference_of, head_only
from simulations.study.statistics import SMOOTH, mean_over_tasks
from simulations.study.tables import NOTHING, percent, table_of


def show(result: Result, lines: Sequence[Line], chance: Mapping[str, float], console: Console) -> None:
    """Print a case's table, and how its learning rates were chosen."""
    console.print(_figures(result, lines, chance))
    if any(result.tried.values()):
        console.print(_tuning(result))


def _figures(result: Result, lines: Sequence[Line], chance: Mapping[str, float]) -> Table:
    seeds = len(next(iter(result.runs.values())))
    tasks = list(chance)
    table = table_of(
        f"{result.case.name}: accuracy in %, {seeds} seed(s), mean ± deviation over seeds;\ndifference "
        f"to {REFERENCE.name} in points with its 95 % interval, paired by seed and task;\nserialized Flower "
        "messages per client and round",
        *("adapter", "parameters", "rate", *tasks, "mean", f"− {REFERENCE.name}", "kB up + down"),
    )
    for name, known in (("chance", chance), ("head alone", head_only(result))):
        figures = [known[task] for task in tasks]
        table.add_row(name, "", "", *map(_percent, figures), _percent(fmean(figures)), "", "")
    for line in lines:
        table.add_row(
            line.adapter.name,
            f"{line.parameters:,}",
            f"{line.learning_rate:g}",
            *(_percent(line.by_task[task]) for task in tasks),
            percent(line.accuracy),
            difference_of(line),
            NOTHING if line.traffic is None else f"{line.traffic.both / 1000:,.1f}",
        )
    return table


def _tuning(result: Result) -> Table:
    rates = sorted({rate for by_rate in result.tried.values() for rate in by_rate})
    table = table_of(
        f"{result.case.name}: accuracy in % on held-out training texts, by learning rate",
        *("adapter", *map("{:g}".format, rates)),
    )
    for kind, by_rate in result.tried.items():
        means = {rate: _percent(mean_over_tasks(outcome, SMOOTH)) for rate, outcome in by_rate.items()}
        table.add_row(TUNED[kind].name, *(means.get(rate, NOTHING) for rate in rates))
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
