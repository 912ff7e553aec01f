"""Accuracy against ε, and over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedkron.settings import FIXED_CLIPPING
from simulations.privacy_study.summary import Line
from simulations.privacy_study.ways import ECSQ
from simulations.study.figure import figure


def plot(lines: Sequence[Line], head_only: float, file: Path) -> None:
    """Draw the lines with fixed clipping and the default codec. Bars: standard deviation over seeds."""
    shown = [line for line in lines if (line.way.clipping, line.way.upload) == (FIXED_CLIPPING, ECSQ)]
    with figure(file, ncols=2, figsize=(9, 3.6)) as (left, right):
        _over_epsilon(left, shown)
        _over_rounds(right, shown)
        for axes in (left, right):
            axes.axhline(100 * head_only, color="grey", linewidth=0.8, linestyle=":", label="own head only")
            axes.set_ylabel("accuracy in %")
            axes.grid(visible=True, alpha=0.2)
        left.legend()
        right.legend(fontsize=6)


def _over_epsilon(axes: Axes, lines: Sequence[Line]) -> None:
    for kind in dict.fromkeys(line.way.kind for line in lines):
        private = [line for line in lines if line.way.kind == kind and line.epsilon is not None]
        if private:
            axes.errorbar(
                [line.epsilon or 0 for line in private],
                [100 * line.accuracy.mean for line in private],
                yerr=[100 * (line.accuracy.deviation or 0) for line in private],
                capsize=2,
                marker="o",
                linewidth=1,
                label=kind,
            )
    for line, style in zip([line for line in lines if line.epsilon is None], ("-", "--"), strict=False):
        label = "no privacy" if line.clipping_norm is None else "clipping only"
        axes.axhline(100 * line.accuracy.mean, color="black", linewidth=0.8, linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("ε of the whole run")


def _over_rounds(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        spent = "" if line.epsilon is None else f", ε = {line.epsilon:.3g}"
        rounds = range(1, len(line.curve) + 1)
        label = f"{line.way.name}{spent}"
        axes.plot(rounds, [100 * a for a in line.curve], linewidth=1, marker="o", markersize=3, label=label)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
