"""The tables of benchmarks/secure.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.secure_study.accuracy import Way
from benchmarks.secure_study.sizes import GOAL, Exchange, Packed
from benchmarks.secure_study.speed import Speed
from simulations.study.outcome import Outcome
from simulations.study.statistics import LAST, SMOOTH, mean_over_tasks, traffic


def show_packed(rows: Sequence[Packed], console: Console) -> None:
    """Bits per parameter, nodes across, levels down."""
    nodes = sorted({row.nodes for row in rows})
    table = _table(
        f"Bits per parameter of masked codes (times the codec of fixed width; * at most {GOAL:g})",
        "levels",
        "unmasked",
        *(f"{count} nodes" for count in nodes),
    )
    for levels in dict.fromkeys(row.levels for row in rows):
        own = {row.nodes: row for row in rows if row.levels == levels}
        cells = [
            f"{row.bits:.2f} ({row.times:.2f}{'*' if row.times <= GOAL else ''})"
            for row in (own[count] for count in nodes)
        ]
        table.add_row(str(levels), own[nodes[0]].codec, *cells)
    console.print(table)


def show_exchanges(rows: Sequence[Exchange], console: Console) -> None:
    """Flower messages of a round."""
    table = _table(
        f"Flower messages of a training round, {rows[0].parameters:,} parameters, per node",
        "nodes",
        "way",
        "kB up",
        "bits per parameter up",
        "kB down",
        "messages",
    )
    for row in rows:
        table.add_row(
            str(row.nodes),
            row.way,
            f"{row.up / 1000:.1f}",
            f"{8 * row.bytes_per_parameter:.2f}",
            f"{row.down / 1000:.1f}",
            f"{row.messages_per_node:.0f}",
        )
    console.print(table)


def show_speed(rows: Sequence[Speed], console: Console) -> None:
    """CPU of a round."""
    table = _table(
        f"CPU ms in a round of {rows[0].nodes} nodes, {rows[0].levels} levels",
        *("parameters", "gone", "node: keys", "shares", "mask", "reveal", "all", "server", "Flower: mask"),
    )
    for row in rows:
        figures = (row.keys_ms, row.shares_ms, row.mask_ms, row.reveal_ms, row.node_ms, row.server_ms)
        table.add_row(
            f"{row.parameters:,}",
            str(row.gone),
            *(f"{figure:.1f}" for figure in (*figures, row.flower_ms)),
        )
    console.print(table)


def show_accuracy(outcomes: Mapping[Way, Sequence[Outcome]], clients: int, console: Console) -> None:
    """Accuracy and bytes of federations."""
    table = _table(
        "Federations by the real programs", "way", "accuracy, last two", "last", "loss", "kB up", "kB down"
    )
    for way, found in outcomes.items():
        bytes_ = traffic(found, clients)
        figures = [
            float(np.mean([mean_over_tasks(outcome, last, metric) for outcome in found]))
            for last, metric in ((SMOOTH, "accuracy"), (LAST, "accuracy"), (SMOOTH, "loss"))
        ]
        table.add_row(
            way.name,
            f"{100 * figures[0]:.2f} %",
            f"{100 * figures[1]:.2f} %",
            f"{figures[2]:.3f}",
            f"{bytes_.up / 1000:.1f}",
            f"{bytes_.down / 1000:.1f}",
        )
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
