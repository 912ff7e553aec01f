"""What is forgotten by each way, and what both tasks reach in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from simulations.paper.forgetting_study.summary import Figure, Line
from simulations.study.figure import figure


def plot(parts: Mapping[str, Sequence[Line]], file: Path) -> None:
    """Draw a row for each part (a pair with one sort of heads). Bars: 95 % intervals over seeds."""
    lines = {title: [line for line in part if line.first is None] for title, part in parts.items()}
    heights = [0.24 * len(part) + 1 for part in lines.values()]
    with figure(
        file,
        nrows=len(lines),
        ncols=2,
        sharey="row",
        squeeze=False,
        figsize=(9, sum(heights)),
        height_ratios=heights,
    ) as rows:
        for (title, part), (left, right) in zip(lines.items(), rows, strict=True):
            _draw(left, part, [line.drop for line in part])
            _draw(right, part, [line.both for line in part])
            left.axvline(0, color="grey", linewidth=0.6)
            left.set_title(title, loc="left", fontsize=9)
        rows[-1][0].set_xlabel("forgotten of the first task, points")
        rows[-1][1].set_xlabel("accuracy of both tasks in the end, %")


def _draw(axes: Axes, lines: Sequence[Line], figures: Sequence[Figure]) -> None:
    places = range(len(lines) - 1, -1, -1)
    for place, line, found in zip(places, lines, figures, strict=True):
        axes.errorbar(
            100 * found.mean,
            place,
            xerr=100 * (found.half or 0),
            marker="s" if "LoRA-" in line.way and not line.way.endswith("Kron-LoRA") else "o",
            markersize=4,
            capsize=2,
            elinewidth=0.6,
            color=_colour(line.way),
        )
    axes.set_yticks(list(places), [line.way for line in lines])
    axes.grid(visible=True, alpha=0.2)


def _colour(way: str) -> str:
    if way.startswith("federated"):
        return "tab:blue"
    return "tab:green" if way.startswith(("merged", "adapter per")) else "tab:orange"
