"""How far a run is: live in a terminal, as plain lines elsewhere, as JSON for a program."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedkron.follow import Phase, Standing
from fedkron.ledger import Totals
from fedkron.pace import clock, seconds_left
from fedkron.report import BASELINE, kilobytes
from fedkron.rundir import run_directory
from fedkron.runlog import RoundFigures
from fedkron.settings import Settings

PHASES = {"train": "training", "evaluate": "evaluating"}
SHOWN_REFUSALS = 3
"""So many reasons are shown at a time: where all of 1000 nodes fail, they fail for the same."""

WIDEST_BAR = 40


@dataclass(frozen=True)
class Planned:
    """What is about to run; `nodes` is None where they are not ours to count."""

    base: str
    tasks: tuple[str, ...]
    nodes: int | None
    rounds: int
    folder: Path

    @staticmethod
    def of(settings: Settings, nodes: int | None) -> Planned:
        """What these settings make run."""
        folder = run_directory(settings, run_id=0)
        return Planned(settings.base, settings.task_sources, nodes, settings.num_server_rounds, folder)

    def __str__(self) -> str:
        nodes = "" if self.nodes is None else f" on {_counted(self.nodes, 'node')}"
        return (
            f"{_counted(self.rounds, 'round')}{nodes}; base {self.base}; "
            f"tasks {', '.join(self.tasks)}; run folder {self.folder}"
        )


class Progress(Protocol):
    """Something that is shown a run again and again while it goes on."""

    def update(self, standing: Standing) -> None:
        """The run as it stands now."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoProgress:
    """Shows nothing."""

    def update(self, standing: Standing) -> None:
        """Do nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class LineProgress:
    """Prints what runs, then a line per finished round, and one for each refusal as it happens."""

    def __init__(self, output: IO[str], planned: Planned) -> None:
        self._output = output
        self._planned = planned
        self._news = _News()

    def update(self, standing: Standing) -> None:
        """Print what is new."""
        for reason in _few(self._news.refused(standing)):
            self._say(f"refused: {reason}")
        for entry in self._news.rounds(standing):
            self._say(
                f"round {entry.round}/{self._planned.rounds}: {_brought(entry)}, "
                f"{_cost(standing.bytes_by_round.get(entry.round, Totals()))}, "
                f"{clock(entry.seconds)}{_remaining(_left(standing, self._planned.rounds, 0.0))}"
            )

    def __enter__(self) -> None:
        self._say(f"starting {self._planned}")

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, line: str) -> None:
        print(line, file=self._output, flush=True)


class JsonProgress:
    """The same as `LineProgress`, each line an object with an `event`: `started`, `round` or `refused`."""

    def __init__(self, output: IO[str], planned: Planned) -> None:
        self._output = output
        self._planned = planned
        self._news = _News()

    def update(self, standing: Standing) -> None:
        """Print what is new."""
        for reason in self._news.refused(standing):
            self._say("refused", reason=reason)
        for entry in self._news.rounds(standing):
            cost = standing.bytes_by_round.get(entry.round, Totals())
            self._say(
                "round",
                round=entry.round,
                rounds=self._planned.rounds,
                accuracy=_number(entry.accuracy),
                train_loss=entry.train_loss,
                bytes_up=cost.message_up,
                bytes_down=cost.message_down,
                factor=_number(cost.factor),
                seconds=entry.seconds,
                seconds_left=_left(standing, self._planned.rounds, 0.0),
            )

    def __enter__(self) -> None:
        planned = self._planned
        self._say(
            "started",
            base=planned.base,
            tasks=planned.tasks,
            nodes=planned.nodes,
            rounds=planned.rounds,
            run=str(planned.folder),
        )

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, event: str, **facts: object) -> None:
        print(json.dumps({"event": event, **facts}), file=self._output, flush=True)


class TerminalProgress:
    """Four lines that stay in place: rounds and replies, what the last round brought, bytes, time."""

    def __init__(self, console: Console, planned: Planned) -> None:
        self._console = console
        self._planned = planned
        self._standing: Standing | None = None
        self._news = _News()
        self._began = self._round_began = time.monotonic()
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4)

    def update(self, standing: Standing) -> None:
        """Show the run as it stands; refusals go above, and stay."""
        if self._news.rounds(standing):
            self._round_began = time.monotonic()
        for reason in _few(self._news.refused(standing)):
            self._console.print(f"[yellow]refused[/yellow] {escape(reason)}", highlight=False)
        self._standing = standing

    def __enter__(self) -> None:
        self._began = self._round_began = time.monotonic()
        self._console.print(f"[dim]{escape(str(self._planned))}[/dim]", highlight=False)
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        now, standing = time.monotonic(), self._standing or Standing()
        done, rounds = len(standing.rounds), self._planned.rounds
        head = Table.grid(padding=(0, 1))
        width = max(8, min(WIDEST_BAR, self._console.width - 36))
        bar = ProgressBar(total=rounds, completed=done + _share(standing), width=width)
        head.add_row(f"round {min(done + 1, rounds)}/{rounds}", bar, _doing(self._standing, rounds))
        left = _left(standing, rounds, now - self._round_began)
        lines = [
            *([f"round {(last := standing.rounds[-1]).round}: {_brought(last)}"] if done else []),
            *([_cost(standing.bytes)] if standing.bytes.messages else []),
            f"{clock(now - self._began)} elapsed{_remaining(left)}",
        ]
        return Group(head, *map(Text, lines))


def progress_for(console: Console, settings: Settings, nodes: int | None) -> Progress:
    """Live where there is a terminal that can do it, plain lines elsewhere."""
    planned = Planned.of(settings, nodes)
    if is_live(console):
        return TerminalProgress(console, planned)
    return LineProgress(console.file, planned)


def is_live(console: Console) -> bool:
    """Whether what was printed can be painted over."""
    return console.is_terminal and not console.is_dumb_terminal


def doing(phase: Phase) -> str:
    """What goes on in a round, in a few words."""
    return f"{PHASES.get(phase.name, phase.name)} {phase.replied}/{phase.asked}"


class _News:
    """What of a standing has not been told yet; what a run had before it was gone on with is no news."""

    def __init__(self) -> None:
        self._round: int | None = None
        self._refusals = 0

    def rounds(self, standing: Standing) -> Sequence[RoundFigures]:
        last = standing.rounds[-1].round if standing.rounds else 0
        if self._round is None and standing.phase is None:
            self._round = last
        told, self._round = self._round or 0, last
        return [entry for entry in standing.rounds if entry.round > told]

    def refused(self, standing: Standing) -> Sequence[str]:
        new = standing.refused[self._refusals :]
        self._refusals = len(standing.refused)
        return new


def _doing(standing: Standing | None, rounds: int) -> str:
    if standing is None or (standing.phase is None and not standing.rounds):
        return "starting the federation"
    if len(standing.rounds) >= rounds:
        return "finishing"
    return doing(standing.phase) if standing.phase else "starting the federation again"


def _share(standing: Standing) -> float:
    """How much of the round that goes on is done: training is its first half, evaluation the second."""
    phase = standing.phase
    if phase is None or (standing.rounds and phase.round <= standing.rounds[-1].round):
        return 0.0
    if phase.name not in PHASES:
        return 0.0
    return (phase.replied / max(phase.asked, 1) + list(PHASES).index(phase.name)) / len(PHASES)


def _brought(entry: RoundFigures) -> str:
    known = [("accuracy", entry.accuracy), ("loss", entry.train_loss)]
    parts = [f"{name} {value:.3f}" for name, value in known if value is not None and not math.isnan(value)]
    failed = len(entry.failures)
    return ", ".join([*parts, *([f"{failed} failed"] if failed else [])]) or "nothing was evaluated"


def _cost(cost: Totals) -> str:
    sent = f"{kilobytes(cost.message_up)} up, {kilobytes(cost.message_down)} down"
    return sent if not cost.baseline else f"{sent}, {cost.factor:.1f}× smaller than {BASELINE}"


def _left(standing: Standing, rounds: int, since: float) -> float | None:
    return seconds_left([entry.seconds for entry in standing.rounds], rounds, since)


def _remaining(left: float | None) -> str:
    return f", about {clock(left)} left" if left else ""


def _few(reasons: Sequence[str]) -> list[str]:
    rest = len(reasons) - SHOWN_REFUSALS
    return [*reasons[:SHOWN_REFUSALS], *([f"and {rest} more"] if rest > 0 else [])]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float) -> float | None:
    # JSON has no NaN.
    return None if math.isnan(value) else value
