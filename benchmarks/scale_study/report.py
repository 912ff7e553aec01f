"""Figures of simulations as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.scale_study.measure import Compared, Measured
from benchmarks.scale_study.watch import ROLES, SERVER, WORKERS

MEGABYTE = 1e6


def show(found: Sequence[Measured], console: Console) -> None:
    """A table of time, one of where CPU time goes, one of memory and disk, and one of a node's pieces."""
    _show_time(found, console)
    _show_cpu(found, console)
    _show_space(found, console)
    _show_pieces(found, console)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("nodes", "what", "run") else "right")
    return table


def _runs(found: Sequence[Measured]) -> list[tuple[Measured, str, Compared]]:
    return [
        (one, name, run)
        for one in found
        for name, run in (("fedkron", one.ours), ("plain Flower, LoRA-8 fp32", one.peer))
        if run is not None
    ]


def _show_time(found: Sequence[Measured], console: Console) -> None:
    table = _table(
        "Seconds on the clock, and overhead over the bare training and evaluation",
        *("nodes", "run", "visits", "wall", "bare", "overhead", "CPU", "bare CPU", "CPU overhead"),
        *("CPU ms a visit beyond", "start", "first round", "later rounds", "overhead there", "end"),
        "base loads",
    )
    for one, name, run in _runs(found):
        load = one.workload
        visits = load.rounds * load.taking_part
        beyond = 1000 * (run.taken.cpu_seconds - run.pure.cpu) / visits
        own = (
            f"{one.start:.1f}",
            f"{one.rounds[0]:.1f}",
            f"{sum(one.rounds[1:]):.1f}",
            f"{one.running_overhead:+.1%}",
            f"{one.end:.1f}",
            str(one.base_loads),
        )
        table.add_row(
            *(str(load.nodes), name, str(visits), f"{run.taken.wall:.1f}", f"{run.pure.wall:.1f}"),
            *(f"{run.overhead:+.1%}", f"{run.taken.cpu_seconds:.1f}", f"{run.pure.cpu:.1f}"),
            *(f"{run.cpu_overhead:+.1%}", f"{beyond:.0f}"),
            *(own if run is one.ours else ("",) * len(own)),
        )
    console.print(table)


def _show_cpu(found: Sequence[Measured], console: Console) -> None:
    table = _table("CPU seconds by process", "nodes", "run", "bare training", *ROLES)
    for one, name, run in _runs(found):
        spent = (f"{run.taken.cpu[role]:.1f}" for role in ROLES)
        table.add_row(str(one.workload.nodes), name, f"{run.pure.cpu:.1f}", *spent)
    console.print(table)


def _show_space(found: Sequence[Measured], console: Console) -> None:
    table = _table(
        "Memory at its peak and disk at the end, in MB",
        *("nodes", "run", "worker", "workers", "server", "ray", "rest", "on disk by nodes", "a node"),
        *("checkpoint", "ledger", "rounds"),
    )
    for one, name, run in _runs(found):
        files = one.files
        sizes = (files.all_nodes, files.all_nodes / max(files.keeping_nodes, 1), files.checkpoint)
        disk = [f"{size / MEGABYTE:.1f}" for size in (*sizes, files.ledger, files.rounds)]
        memory = [run.taken.single[WORKERS], *(run.taken.memory[role] for role in (WORKERS, SERVER))]
        memory += [run.taken.memory[role] for role in ("ray", "rest")]
        table.add_row(
            *(str(one.workload.nodes), name, *(f"{size / MEGABYTE:.0f}" for size in memory)),
            *(disk if run is one.ours else [""] * len(disk)),
        )
    console.print(table)


def _show_pieces(found: Sequence[Measured], console: Console) -> None:
    table = _table(
        "CPU ms per node and round in one process, two rounds, under a profiler",
        *("what", *(f"{one.workload.nodes} nodes" for one in found)),
    )
    for piece in found[0].pieces:
        table.add_row(piece, *(f"{one.pieces[piece]:.1f}" for one in found))
    console.print(table)
