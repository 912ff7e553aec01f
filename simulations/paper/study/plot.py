"""Pictures: accuracy against parameters, and how training goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from simulations.paper.study.course import Course
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


def plot_courses(found: Sequence[Course], file: Path) -> None:
    """Draw loss over steps, and accuracy over epochs."""
    with figure(file, ncols=2, figsize=(9, 3.6)) as (left, right):
        for course in found:
            first = course.steps - len(course.loss) + 1
            label = course.adapter.name
            left.plot(range(first, course.steps + 1), course.loss, linewidth=1, label=label)
            epochs = range(1, len(course.accuracy) + 1)
            right.plot(
                epochs, [100 * share for share in course.accuracy], marker="o", linewidth=1, label=label
            )
        left.set_xlabel("step")
        left.set_ylabel("training loss in nats")
        right.set_xlabel("epoch")
        right.set_ylabel("accuracy in %, mean over tasks")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.legend()
        for axes in (left, right):
            axes.grid(visible=True, alpha=0.2)
