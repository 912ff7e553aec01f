"""`fedkron sweep`: a grid of runs, gone on with where it stopped, and one table of what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkron.commands.interruption import interruptible
from fedkron.commands.progress import is_live
from fedkron.commands.run_settings import app_config, localized
from fedkron.commands.sweep_progress import NoSweepProgress, SweepJson, SweepProgress, progress_on
from fedkron.errors import ConfigError, RunError
from fedkron.report import kilobytes
from fedkron.sweep.grid import Cell, Grid, read_grid
from fedkron.sweep.journal import COMPLETED, FAILED, LOCK, LOGS, RUNS, Journal, State

NAMES = {"new": "new", "completed": "done", "failed": "failed", "interrupted": "cut off"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "sweep",
        help="run a grid of settings, and make one table of it",
        description="Run every combination of the settings in a file, each as a `fedkron run` of its own, as "
        "many at once as cores and memory allow. The same command again goes on where it stopped: what is "
        "done is kept, what was cut off goes on after its last finished round. docs/sweeps.md explains the "
        "file.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE.toml", help="[run], [grid], [[exclude]], [[include]]"
    )
    parser.add_argument("--app", type=Path, default=Path(), help="folder of the Flower app (default: .)")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("sweeps"),
        help="where the sweep's folder goes (default: sweeps)",
    )
    parser.add_argument("--name", help="name of the sweep's folder (default: that of the file)")
    parser.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="cells at once (default: as cores and memory allow)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run cells again that have failed")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, list the cells and their bytes, run nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object; the progress, on standard error, has then an object per "
        "line as well, unless that is a terminal",
    )
    parser.set_defaults(command=sweep)


def sweep(options: argparse.Namespace) -> int:
    """Run what is missing, and print the summary. Raises `RunError` when cells have failed."""
    import pyarrow  # noqa: F401  # before hours of runs, not after them

    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs is {options.jobs}: it must be at least 1")
    grid = read_grid(options.file, app_config(options.app), localized)
    folder = (options.output_dir / (options.name or options.file.stem)).expanduser().absolute()
    if options.dry_run:
        _show_plan(grid, Journal(folder), options)
        return 0
    with _alone(folder):
        journal = Journal(folder)
        _run_missing(grid, journal, options)
        return _show_results(grid, journal, options)


def _run_missing(grid: Grid, journal: Journal, options: argparse.Namespace) -> None:
    from fedkron.sweep.processes import end_rest, marked
    from fedkron.sweep.table import Tables
    from fedkron.sweep.workers import as_many_as_fit, exactly, fedkron_run, run_cells

    # A sweep that was killed could not end its runs.
    end_rest([process for left in marked(journal.folder / RUNS).values() for process in left])
    done = {COMPLETED} if options.retry_failed else {COMPLETED, FAILED}
    missing = [cell for cell in grid.cells if journal.state(cell).status not in done]
    tables = Tables(grid.cells, grid.keys, journal)
    tables.write()
    if not missing:
        return
    slots = exactly(options.jobs) if options.jobs else as_many_as_fit(missing, journal)
    progress = _progress_of(options, len(grid.cells), len(grid.cells) - len(missing))
    with interruptible(), _advice_when_interrupted(), progress:
        command = fedkron_run(options.app)
        run_cells(missing, journal, command, slots=slots, watcher=progress, after_each=tables.write)


@contextmanager
def _advice_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("fedkron sweep: the same command goes on where this one stopped", file=sys.stderr)
        raise


def _progress_of(options: argparse.Namespace, total: int, done: int) -> SweepProgress:
    if options.quiet:
        return NoSweepProgress()
    console = Console(stderr=True)
    if options.json and not is_live(console):
        return SweepJson(console.file, total, done)
    return progress_on(console, total, done)


def _show_results(grid: Grid, journal: Journal, options: argparse.Namespace) -> int:
    from fedkron.sweep.summary import summary_table
    from fedkron.sweep.table import Tables

    results = Tables(grid.cells, grid.keys, journal).results()
    failed = [row for row in results.cells if row["status"] == FAILED]
    if options.json:
        print(json.dumps({"sweep": str(journal.folder), "cells": results.cells}, indent=1))
    else:
        console = Console()
        console.print(summary_table(results))
        if strangers := journal.strangers({cell.name: cell for cell in grid.cells}):
            console.print(f"Not in the file any more, and left as they are: {len(strangers)} cells")
        console.print(
            f"Tables: {journal.folder}/rounds.csv, cells.csv, and .parquet", highlight=False, soft_wrap=True
        )
    if failed:
        first = failed[0]
        raise RunError(
            f"{len(failed)} of {len(grid.cells)} cells failed; first: {first['cell']}: {first['error']} "
            f"(logs: {journal.folder / LOGS}; --retry-failed runs them again)"
        )
    return 0


def _show_plan(grid: Grid, journal: Journal, options: argparse.Namespace) -> None:
    from fedkron.sweep.estimate import round_bytes

    plan = [_planned(cell, journal.state(cell), round_bytes(cell)) for cell in grid.cells]
    if options.json:
        print(json.dumps({"sweep": str(journal.folder), "cells": plan}, indent=1))
        return
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    table.title = "Payloads of a round, all nodes together; the first round has the whole adapter on top"
    for heading in ("cell", "state", "nodes", "rounds", "≈ up", "≈ down"):
        table.add_column(
            heading, justify="left" if heading in ("cell", "state") else "right", overflow="fold"
        )
    for row in plan:
        sizes = (kilobytes(row["round_bytes_up"]), kilobytes(row["round_bytes_down"]))
        counts = (str(row["nodes"]), str(row["rounds"]))
        table.add_row(escape(row["cell"]), NAMES[row["status"]], *counts, *sizes)
    console = Console()
    console.print(table)
    states = Counter(NAMES[row["status"]] for row in plan)
    total = sum(row["rounds"] * (row["round_bytes_up"] + row["round_bytes_down"]) for row in plan)
    console.print(
        f"{len(plan)} cells ({', '.join(f'{count} {state}' for state, count in states.items())}), "
        f"about {kilobytes(total)} of payloads; folder {journal.folder}",
        highlight=False,
        soft_wrap=True,
    )


def _planned(cell: Cell, state: State, sizes: tuple[int, int]) -> dict[str, Any]:
    return {
        "cell": cell.name,
        **cell.varied,
        "status": state.status,
        "nodes": cell.simulation.nodes,
        "rounds": cell.settings.num_server_rounds,
        "round_bytes_up": sizes[0],
        "round_bytes_down": sizes[1],
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another sweep out of the folder. Raises `RunError` when there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise RunError(
            f"another `fedkron sweep` is running in {folder}: wait for it, or give a --name"
        ) from None
