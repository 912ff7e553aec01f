"""Several runs side by side: what each came to, and which settings they differ in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkron.ledger import totals
from fedkron.report_ledger import kilobytes
from fedkron.runlog import RunLog
from fedkron.settings import run_config

OF_THE_PLACE = frozenset({"run-name", "output-dir", "resume"})
"""Settings that say where a run lies, and not what it is."""


@dataclass(frozen=True)
class Summary:
    """What a run came to. Shares in [0, 1], bytes of serialized messages; None for what there is not.

    `bytes_per_node_round` up and down together, over all pairs of a round and a node in it; `factor` against
    LoRA-8 in float32.
    """

    run: str
    status: str
    rounds: int
    accuracy: float | None
    head_only_accuracy: float | None
    majority: float | None
    bytes_up: int
    bytes_down: int
    bytes_per_node_round: float | None
    factor: float | None
    failures: int
    epsilon: float | None
    seconds: float

    @property
    def gain(self) -> float | None:
        """Accuracy above that of a head on the frozen base."""
        if self.accuracy is None or self.head_only_accuracy is None:
            return None
        return self.accuracy - self.head_only_accuracy


def summary(log: RunLog, name: str = "") -> Summary:
    """What a run has come to so far; accuracy is that of the last round that was evaluated."""
    cost = totals(log.transfers)
    evaluated = next((entry for entry in reversed(log.rounds) if entry.tasks), None)
    last = log.rounds[-1] if log.rounds else None
    taking_part = len({(transfer.round, transfer.node) for transfer in log.transfers})
    return Summary(
        name or log.folder.name,
        log.outcome or "running",
        len(log.rounds),
        evaluated.accuracy if evaluated else None,
        evaluated.head_only_accuracy if evaluated else None,
        evaluated.majority if evaluated else None,
        cost.message_up,
        cost.message_down,
        cost.messages / taking_part if taking_part else None,
        None if math.isnan(cost.factor) else cost.factor,
        sum(len(entry.failures) for entry in log.rounds),
        last.privacy.epsilon if last and last.privacy else None,
        last.seconds if last else 0.0,
    )


def run_names(logs: Sequence[RunLog]) -> list[str]:
    """What to call runs by: their folders' names, with the path where that is not enough."""
    names = [log.folder.resolve().name for log in logs]
    count = Counter(names)
    return [name if count[name] == 1 else str(log.folder) for name, log in zip(names, logs, strict=True)]


def differing_settings(logs: Sequence[RunLog]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with the value of each run."""
    configs = [run_config(log.settings) for log in logs]
    return {
        key: [config[key] for config in configs]
        for key in configs[0]
        if key not in OF_THE_PLACE and len({repr(config[key]) for config in configs}) > 1
    }


def comparison_figures(logs: Sequence[RunLog]) -> dict[str, Any]:
    """Summaries and differing settings, ready for JSON."""
    names = run_names(logs)
    return {
        "summaries": [{**asdict(found), "gain": found.gain} for found in map(summary, logs, names)],
        "differing_settings": {
            key: dict(zip(names, values, strict=True)) for key, values in differing_settings(logs).items()
        },
    }


def show_comparison(logs: Sequence[RunLog], console: Console) -> None:
    """Print what each run came to, and what they differ in."""
    names = run_names(logs)
    console.print(_summaries_table([summary(log, name) for log, name in zip(logs, names, strict=True)]))
    if differing := differing_settings(logs):
        console.print(_settings_table(names, differing))
    else:
        console.print("All have the same settings.", highlight=False)


def _summaries_table(found: Sequence[Summary]) -> Table:
    title = "Runs side by side: accuracy of the last round, serialized bytes"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold", min_width=14)
    for heading in ("rounds", "accuracy", "gain", "up", "down", "× smaller", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            escape(one.run if one.status == "completed" else f"{one.run} ({one.status})"),
            str(one.rounds),
            _decimal(one.accuracy, ".3f"),
            _decimal(one.gain, "+.3f"),
            kilobytes(one.bytes_up),
            kilobytes(one.bytes_down),
            _decimal(one.factor, ".1f"),
            str(one.failures),
        )
    return table


def _settings_table(names: Sequence[str], differing: dict[str, list[Any]]) -> Table:
    """Settings down and runs across, or the other way round: whichever has fewer columns."""
    across, down, cells = list(names), list(differing), list(differing.values())
    if len(down) < len(across):
        across, down, cells = down, across, [list(values) for values in zip(*cells, strict=True)]
    table = Table(title="Settings that differ", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("", *across):
        table.add_column(escape(heading), overflow="fold")
    for name, values in zip(down, cells, strict=True):
        table.add_row(escape(name), *(escape(str(value)) for value in values))
    return table


def _decimal(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
