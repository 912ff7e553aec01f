"""A sweep for people: cells that differ in their seed alone are one line, with mean ± standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from fedkron.report import BASELINE, kilobytes
from fedkron.sweep.journal import COMPLETED
from fedkron.sweep.table import Results, Row

SEED = "seed"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n − 1); there is none over one."""

    mean: float
    deviation: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return Spread(mean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Line:
    """One combination of all keys but the seed. Accuracy in [0, 1], bytes of whole runs, mean over seeds."""

    varied: dict[str, Any]
    runs: int
    accuracy: Spread | None
    bytes_up: float
    bytes_down: float
    factor: float | None
    seconds: float


def lines_of(results: Results) -> list[Line]:
    """One line for each combination that has completed cells, in the order of the cells."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    keys = [key for key in results.keys if key != SEED]
    for row in results.cells:
        if row["status"] == COMPLETED:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [_line(dict(zip(keys, values, strict=True)), rows) for values, rows in groups.items()]


def summary_table(results: Results) -> Table:
    """The lines, without keys that have one value only."""
    lines = lines_of(results)
    varying = [key for key in results.keys if len({row[key] for row in results.cells}) > 1 and key != SEED]
    title = f"Mean ± standard deviation over seeds; bytes of whole runs, × smaller than {BASELINE}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for key in varying:
        table.add_column(escape(key), overflow="fold")
    for heading in ("runs", "accuracy", "up", "down", "× smaller", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            *(escape(str(line.varied[key])) for key in varying),
            str(line.runs),
            _spread(line.accuracy),
            kilobytes(round(line.bytes_up)),
            kilobytes(round(line.bytes_down)),
            "–" if line.factor is None else f"{line.factor:.1f}",
            f"{line.seconds:.0f}",
        )
    return table


def _line(varied: dict[str, Any], rows: Sequence[Row]) -> Line:
    accuracies, factors = _known(rows, "accuracy"), _known(rows, "factor")
    return Line(
        varied,
        len(rows),
        Spread.of(accuracies) if accuracies else None,
        mean(row["bytes_up"] for row in rows),
        mean(row["bytes_down"] for row in rows),
        mean(factors) if factors else None,
        mean(row["seconds"] for row in rows),
    )


def _known(rows: Sequence[Row], column: str) -> list[float]:
    return [row[column] for row in rows if row[column] is not None]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")
