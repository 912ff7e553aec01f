"""Accuracy of every adapter, with both sorts of heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulations.groups_study.summary import FITTED, KEPT, Line
from simulations.study.figure import figure

LOOKS = {
    KEPT: {"label": "heads as trained", "color": "tab:blue", "marker": "o"},
    FITTED: {"label": "heads fitted anew", "color": "tab:orange", "marker": "D", "markerfacecolor": "white"},
}


def plot(lines: Sequence[Line], file: Path) -> None:
    """Draw the mean over tasks after the last round. Bars: standard deviation over seeds."""
    names = list(dict.fromkeys(line.adapter for line in sorted(lines, key=lambda line: line.accuracy.mean)))
    with figure(file, figsize=(8, 0.35 * len(names) + 1.2)) as axes:
        for heads, look in LOOKS.items():
            group = [line for line in lines if line.heads == heads]
            axes.errorbar(
                [100 * line.accuracy.mean for line in group],
                [names.index(line.adapter) for line in group],
                xerr=[100 * (line.accuracy.deviation or 0) for line in group],
                linestyle="none",
                capsize=2,
                elinewidth=0.6,
                **look,
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("accuracy in %, mean over tasks")
        axes.grid(visible=True, alpha=0.2)
        axes.legend(loc="lower right")
