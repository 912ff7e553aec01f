"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from simulations.groups_study.summary import Line, Sharing
from simulations.groups_study.ways import ONE_FOR_ALL
from simulations.study.tables import NOTHING, kilobytes, percent, points, table_of


def show(lines: Sequence[Line], sharings: Sequence[Sharing], console: Console) -> None:
    """Print accuracy, then bytes and who shared an adapter."""
    console.print(_accuracy(lines))
    console.print(_sharing(sharings))
    console.print(_groups(sharings))


def _accuracy(lines: Sequence[Line]) -> Table:
    table = table_of(
        "Accuracy in % after the last round ± standard deviation over seeds, and by task. Heads are kept as "
        "trained, or new ones are fitted to the frozen adapter. Difference in points ± standard error, "
        f"paired by seed and task, to {ONE_FOR_ALL!r} with heads kept; relative projection error of merging",
        *("adapter", "heads", "mean", f"− {ONE_FOR_ALL}", "proj. error", *lines[0].tasks),
    )
    for line, after in zip(lines, [*lines[1:], None], strict=True):
        table.add_row(
            line.adapter,
            line.heads,
            percent(line.accuracy),
            points(line.against),
            NOTHING if line.projection_error is None else f"{line.projection_error:.3f}",
            *(f"{100 * spread.mean:.1f}" for spread in line.tasks.values()),
            end_section=after is not None and after.heads != line.heads,
        )
    return table


def _sharing(sharings: Sequence[Sharing]) -> Table:
    table = table_of(
        "Serialized Flower messages per client and round, and × as many bytes as one adapter for all; pairs "
        "of nodes in all runs: those with the same task that share an adapter, those with different tasks "
        "that do not, and the share of all pairs that are grouped as their tasks say",
        *("way", "kB up", "kB down", "× up", "× down", "same: together", "different: apart", "right"),
    )
    for line in sharings:
        pairs = line.pairs
        table.add_row(
            line.way,
            *kilobytes(line.traffic),
            *(f"{ratio:.2f}" for ratio in (line.times.up, line.times.down)),
            f"{pairs.same_together} of {pairs.same}",
            f"{pairs.different_apart} of {pairs.different}",
            f"{pairs.right:.2f}",
        )
    return table


def _groups(sharings: Sequence[Sharing]) -> Table:
    table = table_of("Who shared an adapter in the last round", "way", "seed", "nodes")
    for line in sharings:
        for seed, groups in enumerate(line.groups):
            nodes = " | ".join(" ".join(group) for group in groups)
            table.add_row(line.way, str(seed), nodes)
    return table
