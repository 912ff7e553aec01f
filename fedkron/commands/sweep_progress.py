"""How far a sweep is: live over its cells in a terminal, a line per cell elsewhere, JSON for a program."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedkron.commands.progress import WIDEST_BAR, doing, is_live
from fedkron.pace import clock
from fedkron.sweep.grid import Cell
from fedkron.sweep.journal import COMPLETED, State
from fedkron.sweep.workers import Job, Watcher

SHOWN_JOBS = 8


class SweepProgress(Watcher, Protocol):
    """A watcher that is entered before the first cell runs."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoSweepProgress:
    """Shows nothing."""

    def started(self, cell: Cell) -> None:
        """Do nothing."""

    def running(self, jobs: Sequence[Job]) -> None:
        """Do nothing."""

    def ended(self, cell: Cell, state: State) -> None:
        """Do nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class SweepLines:
    """Prints how much there is to do, then a line for each cell that begins or ends."""

    def __init__(self, output: IO[str], total: int, done: int) -> None:
        self._output = output
        self._count = Count(total, done)

    def started(self, cell: Cell) -> None:
        """Say so."""
        self._say(f"started {cell.name}")

    def running(self, jobs: Sequence[Job]) -> None:
        """Nothing: a log does not want to be written twice a second."""

    def ended(self, cell: Cell, state: State) -> None:
        """Say what came of it."""
        self._count.add()
        self._say(f"{self._count}: {end_of(cell, state)}{self._count.remaining()}")

    def __enter__(self) -> None:
        self._say(f"{self._count} cells are done")

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, line: str) -> None:
        print(line, file=self._output, flush=True)


class SweepJson:
    """The same as `SweepLines`, each line an object with an `event`: `sweep`, `started` or `ended`."""

    def __init__(self, output: IO[str], total: int, done: int) -> None:
        self._output = output
        self._count = Count(total, done)

    def started(self, cell: Cell) -> None:
        """Say so."""
        self._say("started", cell=cell.name)

    def running(self, jobs: Sequence[Job]) -> None:
        """Nothing."""

    def ended(self, cell: Cell, state: State) -> None:
        """Say what came of it."""
        self._count.add()
        self._say(
            "ended",
            cell=cell.name,
            status=state.status,
            error=state.error,
            seconds=state.seconds,
            done=self._count.done,
            seconds_left=self._count.seconds_left(),
        )

    def __enter__(self) -> None:
        self._say("sweep", cells=self._count.total, done=self._count.done)

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, event: str, **facts: object) -> None:
        print(json.dumps({"event": event, **facts}), file=self._output, flush=True)


class SweepLive:
    """A bar over all cells, and a line for each that is running; what has ended stands above."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._count = Count(total, done)
        self._jobs: Sequence[Job] = ()
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4)

    def started(self, cell: Cell) -> None:
        """It is shown while it is running."""

    def running(self, jobs: Sequence[Job]) -> None:
        """Show them."""
        self._jobs = tuple(jobs)

    def ended(self, cell: Cell, state: State) -> None:
        """Say what came of it."""
        self._count.add()
        colour = "green" if state.status == COMPLETED else "red"
        self._console.print(f"[{colour}]{escape(end_of(cell, state))}[/{colour}]", highlight=False)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        count, now = self._count, time.monotonic()
        # Bar and cells count what cells that are running have done, too.
        parts = sum(len(job.standing.rounds) / job.cell.settings.num_server_rounds for job in self._jobs)
        head = Table.grid(padding=(0, 1))
        width = max(8, min(WIDEST_BAR, self._console.width - 44))
        bar = ProgressBar(total=count.total, completed=min(count.done + parts, count.total), width=width)
        head.add_row(f"{count} cells", bar, f"{clock(now - count.began)} elapsed{count.remaining()}")
        cells = Table.grid(padding=(0, 1))
        cells.add_column(overflow="ellipsis", no_wrap=True)
        cells.add_column(no_wrap=True)
        for job in self._jobs[:SHOWN_JOBS]:
            cells.add_row(f"  {escape(job.cell.name)}", _stands(job))
        rest = len(self._jobs) - SHOWN_JOBS
        return Group(head, cells, *([Text(f"  and {rest} more")] if rest > 0 else []))


class Count:
    """How many cells are done, and how long the others will take at the pace so far."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.began = time.monotonic()
        self._before = done

    def __str__(self) -> str:
        return f"{self.done}/{self.total}"

    def add(self) -> None:
        """One more."""
        self.done += 1

    def seconds_left(self) -> float | None:
        """None before the first one of this time has ended."""
        ended = self.done - self._before
        return (time.monotonic() - self.began) / ended * (self.total - self.done) if ended else None

    def remaining(self) -> str:
        """The same in words, empty where there is nothing to tell."""
        left = self.seconds_left()
        return f", about {clock(left)} left" if left else ""


def progress_on(console: Console, total: int, done: int) -> SweepProgress:
    """Live where there is a terminal that can do it, plain lines elsewhere."""
    return SweepLive(console, total, done) if is_live(console) else SweepLines(console.file, total, done)


def end_of(cell: Cell, state: State) -> str:
    """What came of a cell, in one line."""
    took = "" if state.seconds is None else f" after {clock(state.seconds)}"
    return f"{cell.name} {state.status}{took}{'' if state.error is None else f': {state.error}'}"


def _stands(job: Job) -> str:
    standing, rounds = job.standing, job.cell.settings.num_server_rounds
    if standing.phase is None:
        return "starting"
    accuracy = f", {standing.rounds[-1].accuracy:.3f}" if standing.rounds else ""
    return f"round {standing.phase.round}/{rounds}: {doing(standing.phase)}{accuracy}"
