"""How far a study is: a bar in a terminal, a line per finished job elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor
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

from simulations.study.journal import JobT, Journal, OutcomeT
from simulations.study.pool import run_jobs

Report = Callable[[str], None]
"""Takes a line about a job that has finished."""


def run_missing(
    name: str,
    jobs: Collection[JobT],
    journal: Journal[JobT, OutcomeT],
    *,
    work: Callable[[JobT], OutcomeT],
    describe: Callable[[JobT, OutcomeT], str],
    executor: Executor,
    console: Console,
) -> None:
    """Do the work of the jobs that are not in the journal, and tell the console of each.

    Raises what the first failed job raised; what has finished by then is in the journal.
    """
    missing = [job for job in jobs if job not in journal]
    with _progress(console, name, total=len(jobs), done=len(jobs) - len(missing)) as report:
        run_jobs(missing, work, journal, executor, lambda job, outcome: report(describe(job, outcome)))


@contextmanager
def _progress(console: Console, name: str, *, total: int, done: int) -> Iterator[Report]:
    if not console.is_terminal:
        yield _lines(console, name, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=total, completed=done)

        def advance(line: str) -> None:
            bar.console.print(line, highlight=False)
            bar.advance(task)

        yield advance


def _lines(console: Console, name: str, total: int, done: int) -> Report:
    count = done

    def print_line(line: str) -> None:
        nonlocal count
        count += 1
        console.print(f"{name} {count}/{total}: {line}", highlight=False, soft_wrap=True)

    return print_line
