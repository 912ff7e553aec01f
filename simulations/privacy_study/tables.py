"""The table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from simulations.privacy_study.summary import Line
from simulations.study.tables import NOTHING, kilobytes, percent, points, table_of


def show(lines: Sequence[Line], head_only: float, delta: float, console: Console) -> None:
    """Print the table of a study; `head_only` is what a node alone reaches with a head on the frozen base."""
    table = table_of(
        "Accuracy in % after the last round ± standard deviation over seeds;\n"
        "differences in points ± standard error, paired by seed;\n"
        f"ε of the whole run at δ = {delta:g}; Flower messages per client and round.\n"
        f"A head on the frozen base with a node's own texts: {100 * head_only:.1f}%",
        *("way", "noise", "ε", "norm", "accuracy", "− none", "loss", "kB up", "kB down"),
    )
    for line in lines:
        table.add_row(
            line.way.name,
            f"{line.way.noise:g}",
            NOTHING if line.epsilon is None else f"{line.epsilon:.3g}",
            NOTHING if line.clipping_norm is None else f"{line.clipping_norm:.2f}",
            percent(line.accuracy),
            points(line.against),
            f"{line.loss.mean:.3f}",
            *kilobytes(line.traffic),
        )
    console.print(table)
