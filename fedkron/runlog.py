"""Reading a run folder: what a report, an export and a progress bar need to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkron.errors import FedKronError, RunError
from fedkron.ledger import Totals, Transfer, read_ledger, totals_by_round
from fedkron.privacy import Spent
from fedkron.rundir import LEDGER, OUTCOME, ROUNDS, SETTINGS
from fedkron.settings import Settings


@dataclass(frozen=True)
class TaskFigures:
    """One task in one round: shares in [0, 1], measured on the clients' own test splits."""

    accuracy: float
    head_only_accuracy: float
    majority: float
    clients: int


@dataclass(frozen=True)
class NodeFigures:
    """One node in one round; what is None was not measured, or is not written down where nodes are protected.

    `examples` it trained on (None: its update does not count); `failures` are the reasons why it failed.
    """

    task: str
    partition: int
    examples: int | None
    update_norm: float | None
    train_loss: float | None
    accuracy: float | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class RoundFigures:
    """One finished round; `seconds` since the start, `projection_error` relative."""

    round: int
    tasks: dict[str, TaskFigures]
    train_loss: float | None
    failures: tuple[str, ...]
    projection_error: float | None
    seconds: float
    groups: dict[str, tuple[str, ...]]
    """The nodes (task-partition) of each group that has an adapter of its own."""
    privacy: Spent | None = None
    nodes: Mapping[str, NodeFigures] = field(default_factory=dict)
    """The nodes that answered or failed, by their ids; empty in runs of before they were written down."""

    @property
    def accuracy(self) -> float:
        """Mean accuracy over tasks; NaN when nothing was evaluated."""
        values = [figures.accuracy for figures in self.tasks.values()]
        return sum(values) / len(values) if values else float("nan")

    @property
    def head_only_accuracy(self) -> float:
        """Mean accuracy over tasks of a head on the frozen base; NaN when nothing was evaluated."""
        values = [figures.head_only_accuracy for figures in self.tasks.values()]
        return sum(values) / len(values) if values else float("nan")

    @property
    def majority(self) -> float:
        """Mean share of the largest class over tasks; NaN when nothing was evaluated."""
        values = [figures.majority for figures in self.tasks.values()]
        return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class RunLog:
    """A run as it stands. `outcome` is None while it is going on."""

    folder: Path
    settings: Settings
    rounds: tuple[RoundFigures, ...]
    transfers: tuple[Transfer, ...]
    outcome: str | None
    error: str | None

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each group, as of the last round in which each was evaluated; empty without groups."""
        latest = {node: group for r in self.rounds for group, nodes in r.groups.items() for node in nodes}
        return {
            group: tuple(n for n, g in latest.items() if g == group) for group in sorted(set(latest.values()))
        }

    @property
    def bytes_by_round(self) -> dict[int, Totals]:
        """Sums of the ledger per round."""
        return totals_by_round(self.transfers)


def read_run(folder: Path) -> RunLog:
    """Read a run folder, finished or not.

    Raises `RunError` when there is no run in it or a file is damaged, `ConfigError` for settings that are
    not known here.
    """
    if not (folder / SETTINGS).is_file():
        raise RunError(f"{folder} is not a run folder: there is no {SETTINGS} in it")
    try:
        settings = Settings.from_run_config(_json(folder / SETTINGS))
        outcome = read_outcome(folder)
        transfers = tuple(read_ledger(folder / LEDGER)) if _has_content(folder / LEDGER) else ()
        rounds = read_rounds(folder)
        return RunLog(folder, settings, rounds, transfers, outcome.get("status"), outcome.get("error"))
    except FedKronError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"run folder {folder} is damaged: {error!r}") from error


def read_rounds(folder: Path) -> tuple[RoundFigures, ...]:
    """The finished rounds in a run folder. Raises `LookupError`, `TypeError` or `ValueError` for a damaged
    file.
    """
    return tuple(round_figures(line) for line in _lines(folder / ROUNDS))


def read_outcome(folder: Path) -> dict[str, str]:
    """How the run in a folder ended: `status` and, where it failed, `error`; empty while it goes on."""
    return _json(folder / OUTCOME)


def _has_content(path: Path) -> bool:
    # A ledger that the server has just opened is still empty.
    return path.exists() and path.stat().st_size > 0


def _json(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    content: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # The last line may still be on its way.
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def round_figures(line: Mapping[str, Any]) -> RoundFigures:
    """The figures in a line of `rounds.jsonl`; raises `LookupError` or `TypeError` for a damaged one."""
    tasks = {
        task: TaskFigures(
            report["metrics"]["accuracy"],
            report["metrics"]["head-only-accuracy"],
            report["metrics"]["majority"],
            report["clients"],
        )
        for task, report in line["evaluated"].items()
    }
    losses = [
        (report["metrics"]["loss"], report["examples"])
        for report in line["trained"].values()
        if "loss" in report["metrics"]  # under local privacy it stays on the node
    ]
    examples = sum(count for _, count in losses)
    loss = sum(value * count for value, count in losses) / examples if examples else None
    return RoundFigures(
        line["round"],
        tasks,
        loss,
        tuple(line["failures"]),
        line["projection_error"],
        line["seconds"],
        {group: tuple(nodes) for group, nodes in line["groups"].items()},
        Spent(**line["privacy"]) if line.get("privacy") else None,
        {node: _node(report) for node, report in line.get("nodes", {}).items()},
    )


def _node(report: Mapping[str, Any]) -> NodeFigures:
    return NodeFigures(
        report["task"],
        report["partition"],
        report["examples"],
        report["update_norm"],
        report["trained"].get("loss"),
        report["evaluated"].get("accuracy"),
        tuple(report["failures"]),
    )
