"""How far a run is, shown live in a terminal or as plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from fedkron.ledger import totals
from fedkron.report import kilobytes
from fedkron.runlog import RunLog


class Progress(Protocol):
    """Something that is shown a run again and again while it goes on."""

    def update(self, log: RunLog) -> None:
        """The run as it stands now."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoProgress:
    """Shows nothing."""

    def update(self, log: RunLog) -> None:
        """Do nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class LineProgress:
    """Prints a line per finished round."""

    def __init__(self, output: IO[str], rounds: int) -> None:
        self._output = output
        self._rounds = rounds
        self._shown = 0

    def update(self, log: RunLog) -> None:
        """Print the rounds that are new."""
        for entry in log.rounds[self._shown :]:
            cost = log.bytes_by_round[entry.round]
            print(
                f"round {entry.round}/{self._rounds}: accuracy {entry.accuracy:.3f}, "
                f"{kilobytes(cost.message_up)} up, {kilobytes(cost.message_down)} down, "
                f"{entry.seconds:.0f} s",
                file=self._output,
                flush=True,
            )
        self._shown = len(log.rounds)

    def __enter__(self) -> None:
        print("starting the federation", file=self._output, flush=True)

    def __exit__(self, *_: object) -> None:
        pass


class TerminalProgress:
    """A bar over the rounds, with the replies in the current one and what the last one reached."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
        )
        self._task = self._bar.add_task("starting the federation", total=rounds, detail="")

    def update(self, log: RunLog) -> None:
        """Move the bar."""
        if not log.transfers:
            self._bar.update(self._task, description="loading the base")
            return
        last = log.transfers[-1]
        now = [t.direction for t in log.transfers if (t.round, t.phase) == (last.round, last.phase)]
        detail = f"{kilobytes(totals(log.transfers).messages)} sent"
        if log.rounds:
            detail = f"accuracy {log.rounds[-1].accuracy:.3f}, {detail}"
        self._bar.update(
            self._task,
            description=f"round {last.round}: {last.phase} {now.count('up')}/{now.count('down')}",
            completed=len(log.rounds),
            detail=detail,
        )

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
