"""Pictures: the same figures make the same file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: no screen is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


@contextmanager
def figure(file: Path, **subplots: Any) -> Iterator[Any]:  # noqa: ANN401
    """Gives the axes of `pyplot.subplots(**subplots)`, and writes them to a .svg or .png file at the end."""
    # Without a fixed salt and with the date, no two SVG files are alike.
    with mpl.rc_context({"svg.hashsalt": "fedkron", "font.size": 9}):
        drawn, axes = plt.subplots(layout="constrained", **subplots)
        yield axes
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        drawn.savefig(file, dpi=160, metadata=metadata)
        plt.close(drawn)


def kilobytes_axis(axes: Axes) -> None:
    """Kilobytes in powers of ten, as plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("kB per client and round, up and down (serialized Flower messages)")
