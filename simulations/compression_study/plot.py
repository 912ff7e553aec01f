"""Accuracy against bytes, one point per scheme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from simulations.compression_study.schemes import FORGETFUL, PLAIN, SEAM
from simulations.compression_study.summary import Line
from simulations.study.figure import figure, kilobytes_axis

TOO_NEAR = 1.4
"""Labels of schemes whose bytes differ by a smaller factor would run into each other."""

LOOKS = {
    PLAIN: {"label": "plain Flower", "color": "tab:red", "marker": "s"},
    SEAM: {"label": "Kron-LoRA, with error feedback", "color": "tab:blue", "marker": "o"},
    FORGETFUL: {
        "label": "Kron-LoRA, what a codec leaves out is lost",
        "color": "tab:gray",
        "marker": "o",
        "markerfacecolor": "white",
    },
}


def plot(lines: Sequence[Line], file: Path) -> None:
    """Draw accuracy (last two rounds, bars: standard deviation over seeds) over kB both ways."""
    with figure(file, figsize=(8, 5)) as axes:
        for exchange, look in LOOKS.items():
            group = [line for line in lines if line.scheme.exchange == exchange]
            if not group:
                continue
            axes.errorbar(
                [line.traffic.both / 1000 for line in group],
                [100 * line.smooth.mean for line in group],
                yerr=[100 * (line.smooth.deviation or 0) for line in group],
                linestyle="none",
                capsize=2,
                elinewidth=0.6,
                **look,
            )
            direction = -1 if exchange == FORGETFUL else 1
            for line, level in _levels(group):
                _label(axes, line, direction * (8 + 11 * level))
        kilobytes_axis(axes)
        axes.set_ylabel("accuracy in %, mean over tasks")
        axes.grid(visible=True, alpha=0.2)
        axes.margins(x=0.08, y=0.12)
        axes.legend(loc="lower right")


def _levels(group: Sequence[Line]) -> list[tuple[Line, int]]:
    """Lines by bytes, each with how many labels of near neighbours its own has to clear."""
    levels: list[tuple[Line, int]] = []
    for line in sorted(group, key=lambda line: line.traffic.both):
        before, level = levels[-1] if levels else (line, -1)
        near = line.traffic.both < TOO_NEAR * before.traffic.both
        levels.append((line, level + 1 if near else 0))
    return levels


def _label(axes: Axes, line: Line, offset: int) -> None:
    axes.annotate(
        line.scheme.name.removesuffix("-no-feedback"),
        (line.traffic.both / 1000, 100 * line.smooth.mean),
        xytext=(4, offset),
        textcoords="offset points",
        verticalalignment="center",
        color=LOOKS[line.scheme.exchange]["color"],
        fontsize=8,
    )
