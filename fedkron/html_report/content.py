"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Table:
    """Plain text in cells; the first column names its row. `caption` may be empty."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False
    """Cells are to be read as words, even those that look like numbers."""


@dataclass(frozen=True)
class Chart:
    """A figure with what it shows in a sentence, and its numbers."""

    title: str
    caption: str
    figure: Figure
    numbers: Table


@dataclass(frozen=True)
class Tile:
    """A figure that matters."""

    name: str
    value: str
    remark: str


@dataclass(frozen=True)
class Section:
    """A heading with charts, tables and sentences below it."""

    title: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    """Tables that are opened on demand."""
    text: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values."""


@dataclass(frozen=True)
class Article:
    """A run, or a comparison of several."""

    title: str
    status: str
    error: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]


def numbers(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The table of a chart."""
    return Table("", tuple(headings), tuple(map(tuple, rows)))


def decimal(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash for none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"  # noqa: PLR0124  # NaN


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
