"""How far a study is: a bar in a terminal, a line per finished job elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from simulations.compression_study.jobs import Job, Outcome
from simulations.compression_study.pool import Report
from simulations.compression_study.summary import LAST, mean_over_tasks, traffic
from simulations.compression_study.tables import title


@contextmanager
def progress(console: Console, name: str, *, total: int, done: int) -> Iterator[Report]:
    """Gives a `Report` for `pool.run_jobs`; of `total` jobs `done` are there already."""
    if not console.is_terminal:
        yield _lines(console, name, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=total, completed=done)

        def advance(job: Job, outcome: Outcome) -> None:
            bar.console.print(_line(job, outcome), highlight=False)
            bar.advance(task)

        yield advance


def _lines(console: Console, name: str, total: int, done: int) -> Report:
    count = done

    def print_line(job: Job, outcome: Outcome) -> None:
        nonlocal count
        count += 1
        console.print(f"{name} {count}/{total}: {_line(job, outcome)}", highlight=False, soft_wrap=True)

    return print_line


def _line(job: Job, outcome: Outcome) -> str:
    return (
        f"{title(job.scheme)}, rate {job.learning_rate:g}, seed {job.seed}, {job.split}: "
        f"accuracy {mean_over_tasks(outcome, LAST):.4f}, "
        f"{traffic([outcome]).both / 1000:,.1f} kB per client and round, {outcome.seconds:.0f} s"
    )
