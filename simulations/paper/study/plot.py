"""Accuracy against parameters: a picture for each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations.paper.study.summary import Line
from simulations.study.figure import figure


def plot_parameters(cases: Mapping[str, Sequence[Line]], file: Path) -> None:
    """Draw the lines of each case by name. Bars: standard deviation over seeds."""
    with figure(file, ncols=len(cases), figsize=(4.5 * len(cases), 3.6), squeeze=False) as ((*all_axes,),):
        for axes, (name, lines) in zip(all_axes, cases.items(), strict=True):
            for line in lines:
                axes.errorbar(
                    line.parameters / 1000,
                    100 * line.accuracy.mean,
                    yerr=100 * (line.accuracy.deviation or 0),
                    marker="o",
                    capsize=2,
                    elinewidth=0.6,
                    label=line.adapter.name,
                )
            axes.set_title(name)
            axes.set_xlabel("thousand parameters")
            axes.set_ylabel("accuracy in %, mean over tasks")
            axes.grid(visible=True, alpha=0.2)
        all_axes[-1].legend()
