"""The figures, what they say about the goals, and the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.adapter_contest.timing import Spread
from benchmarks.edge_peers.latency import BASE, Latency
from benchmarks.edge_peers.memory import Held
from benchmarks.edge_peers.sizes import PARTS
from benchmarks.edge_peers.switching import Switch

MOST_MERGED, MOST_UNMERGED, MOST_SWITCH, MOST_MEMORY, MOST_SEVERAL = 1.00, 1.08, 0.1, 80.0, 1.05


@dataclass(frozen=True)
class Goal:
    """A bound on a figure, and the figure (a median) in every case it applies to."""

    text: str
    bound: float
    unit: str
    cases: dict[str, float]

    @property
    def missed(self) -> dict[str, float]:
        """Cases beyond the bound, at the two decimals that are printed."""
        return {name: figure for name, figure in self.cases.items() if round(figure, 2) > self.bound}


@dataclass(frozen=True)
class Report:
    """All of it. Sizes are bytes of a bundle's parts by the bundle's name, starts are seconds."""

    machine: dict[str, object]
    threads: int
    latencies: list[Latency]
    switches: list[Switch]
    memory: list[Held]
    sizes: dict[str, dict[str, int]]
    starts: dict[str, Spread]
    goals: list[Goal]


def goals(latencies: Sequence[Latency], switches: Sequence[Switch], memory: Sequence[Held]) -> list[Goal]:
    """What was meant to be reached."""
    merged = {_case(row): row.over_bare.median for row in latencies if row.kind == "merged"}
    slots = [row for row in latencies if row.kind == "slot" and row.over_one is None]
    slot = {_case(row): row.over_bare.median for row in slots if row.bare == BASE}
    slot_8_bit = {_case(row): row.over_bare.median for row in slots if row.bare != BASE}
    several = {_case(row): row.over_one.median for row in latencies if row.over_one is not None}
    switch = {row.name: row.change.median for row in switches if _ours(row) and row.change is not None}
    # The last row of a name has the most adapters.
    most = {row.name: row for row in memory if _ours(row) and row.bytes_per_adapter is not None}
    held = {f"{row.name}, {row.adapters} loaded": row.bytes_per_adapter / 1e3 for row in most.values()}
    return [
        Goal("merged: latency over the base's", MOST_MERGED, "×", merged),
        Goal("unmerged: latency over the base's", MOST_UNMERGED, "×", slot),
        Goal("unmerged on a base of 8 bits: latency over that base's", MOST_UNMERGED, "×", slot_8_bit),
        Goal("a change of adapter", MOST_SWITCH, "ms", switch),
        Goal("resident memory of a 4-bit adapter", MOST_MEMORY, "kB", held),
        Goal("a batch of 8 different adapters: latency over one for all", MOST_SEVERAL, "×", several),
    ]


def show(report: Report, console: Console) -> None:
    """Print all of it."""
    for batch in dict.fromkeys(row.batch for row in report.latencies):
        console.print(f"[bold]{batch} tokens[/bold], threads: {report.threads}", highlight=False)
        console.print(_latency_table([row for row in report.latencies if row.batch == batch]))
    console.print(
        "ms: median ± half of the interquartile range, ratios by round. × own: to the same form of the base "
        "without adapter;\n× one: to one adapter for all rows; error: the largest difference of a logit to "
        "torch's, over torch's largest\n",
        highlight=False,
    )
    console.print(
        "[bold]Another adapter[/bold], ms. change: what a call takes longer when the one before used "
        "another;\n"
        "choose: taking one that is loaded, a part of every call; load: from its file, with checks",
        highlight=False,
    )
    console.print(_switch_table(report.switches))
    console.print("[bold]Resident memory[/bold], each adapter having answered once", highlight=False)
    console.print(_memory_table(report.memory))
    console.print("[bold]Size of bundles[/bold], kB", highlight=False)
    console.print(_size_table(report.sizes))
    console.print("[bold]From process start to the first answer[/bold], files in the page cache")
    console.print(_start_table(report.starts))
    console.print("[bold]Goals[/bold], medians")
    for goal in report.goals:
        for line in _verdict(goal):
            console.print(line, highlight=False, soft_wrap=True)


def _case(row: Latency) -> str:
    return f"{row.name} ({row.batch})"


def _ours(row: Switch | Held) -> bool:
    return row.name.startswith("fedkron")


def _verdict(goal: Goal) -> Iterator[str]:
    missed = goal.missed
    worst = max(goal.cases, key=lambda name: goal.cases[name])
    count = len(goal.cases)
    yield (
        f"  {'missed ' if missed else 'reached'}  {goal.text} ≤ {goal.bound:.2f} {goal.unit}: "
        f"{count - len(missed)} of {count}, worst {goal.cases[worst]:.2f} ({worst})"
    )
    others = {name: figure for name, figure in missed.items() if name != worst}
    if others:
        yield "           also " + "; ".join(f"{figure:.2f} {name}" for name, figure in others.items())


def _short(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    digits = 1 if spread.median >= 10 else 2 if spread.median >= 0.1 else 3
    return f"{spread.median:.{digits}f} ±{(spread.upper - spread.lower) / 2:.{digits}f}"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left")
    return table


def _latency_table(rows: Sequence[Latency]) -> Table:
    table = _table("", "ms", "× base", "× own", "× one", "error")
    for row in rows:
        table.add_row(
            row.name,
            _short(row.milliseconds),
            _short(row.over_base),
            _short(row.over_bare),
            _short(row.over_one),
            f"{row.difference / row.magnitude:.1e}",
        )
    return table


def _switch_table(found: Sequence[Switch]) -> Table:
    table = _table("", "adapters", "change", "choose", "load")
    for row in found:
        table.add_row(row.name, str(row.adapters), _short(row.change), _short(row.select), _short(row.load))
    return table


def _memory_table(found: Sequence[Held]) -> Table:
    table = _table("", "adapters", "process MB", "kB for one more", "file kB")
    for row in found:
        table.add_row(
            row.name,
            f"{row.adapters:,}",
            f"{row.process_bytes / 1e6:,.0f}",
            "–" if row.bytes_per_adapter is None else f"{row.bytes_per_adapter / 1e3:,.1f}",
            f"{row.file_bytes / 1e3:,.1f}",
        )
    return table


def _size_table(sizes: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("", *sizes)
    for part in PARTS:
        table.add_row(part, *(f"{found[part] / 1e3:,.1f}" for found in sizes.values()))
    table.add_row("all", *(f"{sum(found.values()) / 1e3:,.1f}" for found in sizes.values()))
    return table


def _start_table(starts: Mapping[str, Spread]) -> Table:
    table = _table("", "s")
    for name, seconds in starts.items():
        table.add_row(name, _short(seconds))
    return table
