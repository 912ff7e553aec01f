"""The plot: error against bits, and bits above Shannon's bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rate_distortion_study.compressors import (
    BLOCK_SIZES,
    NF4_BLOCK_SIZES,
    SWEEP,
    int4_blocks,
    nf4_blocks,
)
from benchmarks.rate_distortion_study.measure import Point
from benchmarks.rate_distortion_study.report import GOAL, all_steps, kinds, of

_HIGH_RATE = 0.255  # ½·log2(πe/6): Gish and Pierce 1968
_DOTS = {"fp16": "P", "int8": "s", "int4:channel": "X", "sign": "v"}
_LINES = {
    "int4, blocks of 16 to 256": (tuple(map(int4_blocks, BLOCK_SIZES)), "tab:red", "o"),
    "NF4, blocks of 64 to 512": (tuple(map(nf4_blocks, NF4_BLOCK_SIZES)), "tab:orange", "D"),
}


def draw(points: Sequence[Point], path: Path) -> None:
    """Write the plot of the first adapter kind (medians over tasks, learning rates and rounds) to a file."""
    kind = kinds(points)[0]
    some = of(points, kind=kind)
    # Same figures, same bytes: no date and no random ids in an SVG.
    with mpl.rc_context({"svg.hashsalt": "fedkron", "font.size": 9}):
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _errors(left, some)
        _gaps(right, some)
        figure.suptitle(
            f"{kind} updates: medians over tasks, learning rates, first and later rounds", fontsize=10
        )
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _errors(axes: Axes, points: Sequence[Point]) -> None:
    rates = np.array([0, 17])
    axes.plot(rates, 4.0**-rates, color="black", linewidth=1, label="Shannon's bound, Gaussian")
    for steps, color in _colors(points).items():
        axes.plot(
            *_medians(of(points, steps=steps), SWEEP, _error), color=color, marker=".", label=_ecsq(steps)
        )
    for label, (names, color, marker) in _LINES.items():
        axes.plot(*_medians(points, names, _error), color=color, marker=marker, markersize=4, label=label)
    for name, marker in _DOTS.items():
        axes.plot(
            *_medians(points, (name,), _error), color="dimgray", marker=marker, linestyle="", label=name
        )
    axes.set(
        yscale="log", xlim=(0, 17), ylim=(1e-9, 2),
        xlabel="bits per parameter, headers included", ylabel="‖x − x̂‖² / ‖x‖²",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()


def _gaps(axes: Axes, points: Sequence[Point]) -> None:
    axes.axhline(0, color="black", linewidth=1)
    axes.axhline(GOAL, color="black", linewidth=1, linestyle="--", label=f"goal for ecsq: {GOAL} bit")
    axes.axhline(
        _HIGH_RATE, color="gray", linewidth=1, linestyle=":", label=f"ECSQ at high rate: {_HIGH_RATE} bit"
    )
    for steps, color in _colors(points).items():
        axes.plot(
            *_medians(of(points, steps=steps), SWEEP, _gap), color=color, marker=".", label=_ecsq(steps)
        )
    for label, (names, color, marker) in _LINES.items():
        axes.plot(*_medians(points, names, _gap), color=color, marker=marker, markersize=4, label=label)
    axes.set(xlim=(0, 6.4), ylim=(-1, 1.4), xlabel="bits per parameter", ylabel="bits above the bound")
    axes.grid(alpha=0.3)
    axes.legend()


def _error(point: Point) -> float:
    return point.error


def _gap(point: Point) -> float:
    return point.gap


def _medians(
    points: Sequence[Point], names: Sequence[str], figure: Callable[[Point], float]
) -> tuple[list[float], list[float]]:
    groups = [of(points, compressor=name) for name in names]
    return (
        [median(point.bits for point in group) for group in groups],
        [median(figure(point) for point in group) for group in groups],
    )


def _colors(points: Sequence[Point]) -> dict[int, tuple[float, ...]]:
    counts = all_steps(points)
    shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(counts)))
    return dict(zip(counts, map(tuple, shades), strict=True))


def _ecsq(steps: int) -> str:
    return f"ecsq, {steps} local {'step' if steps == 1 else 'steps'}"
