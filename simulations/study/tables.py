"""Cells and frames of tables for people."""

from __future__ import annotations

from rich import box
from rich.table import Table

from simulations.study.statistics import Difference, Spread, Traffic

NOTHING = "–"
"""What a table says of something that was not run, or does not exist."""

TEXTS = {"scheme", "adapter", "way", "heads", "nodes"}
"""Headings of columns that do not hold numbers."""


def percent(spread: Spread) -> str:
    """A mean in percent, ± its standard deviation."""
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"


def points(difference: Difference | None) -> str:
    """A mean difference in percentage points, ± its standard error."""
    if difference is None:
        return NOTHING
    error = "" if difference.standard_error is None else f" ± {100 * difference.standard_error:.2f}"
    return f"{100 * difference.mean:+.2f}{error}"


def kilobytes(traffic: Traffic) -> tuple[str, str]:
    """Up and down."""
    return f"{traffic.up / 1000:,.1f}", f"{traffic.down / 1000:,.1f}"


def table_of(title: str, *headings: str) -> Table:
    """A table without rows."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in TEXTS else "right")
    return table
