"""Accuracy against bytes and over rounds: a row of both for each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from simulations.aggregation_study.summary import Line
from simulations.aggregation_study.ways import LORA, WAYS
from simulations.study.figure import figure, kilobytes_axis

COLOURS = {name: f"C{number}" for number, name in enumerate(WAYS)}
"""A way has the same colour in every picture, whichever ways are in it."""


def plot(cases: Mapping[str, Sequence[Line]], file: Path) -> None:
    """Draw the lines of each case by name. Bars: standard deviation over seeds, last two rounds."""
    size = (9, 3.6 * len(cases))
    with figure(file, nrows=len(cases), ncols=2, figsize=size, squeeze=False) as rows:
        for (name, lines), (left, right) in zip(cases.items(), rows, strict=True):
            _over_bytes(left, lines)
            _over_rounds(right, lines)
            for axes in (left, right):
                axes.set_title(name)
                axes.set_ylabel("accuracy in %, mean over tasks")
                axes.grid(visible=True, alpha=0.2)
        rows[0][1].legend(loc="lower right")


def _over_bytes(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        axes.errorbar(
            line.traffic.both / 1000,
            100 * line.accuracy.mean,
            yerr=100 * (line.accuracy.deviation or 0),
            capsize=2,
            elinewidth=0.6,
            **_look(line),
        )
    kilobytes_axis(axes)
    axes.margins(x=0.08, y=0.12)


def _over_rounds(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        rounds = range(1, len(line.curve) + 1)
        axes.plot(rounds, [100 * a for a in line.curve], linewidth=1, markersize=4, **_look(line))
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _look(line: Line) -> dict[str, Any]:
    way = line.way
    return {"label": way.name, "color": COLOURS[way.name], "marker": "s" if way.kind == LORA else "o"}
