"""A run as tables for people and as figures for machines."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from fedkron.contributions import contributions
from fedkron.ledger import Totals, totals
from fedkron.privacy import Spent
from fedkron.report_ledger import byte_figures, kilobytes, section_figures, sections_table
from fedkron.runlog import RunLog

__all__ = ["BASELINE", "bytes_line", "figures", "kilobytes", "rounds_table", "show", "tasks_table"]

BASELINE = "LoRA-8 fp32"


def figures(log: RunLog) -> dict[str, Any]:
    """All figures of a run, ready for JSON: bytes are whole Flower messages unless named payload.

    A figure that does not exist (accuracy where nothing was evaluated) is None.
    """
    overall = totals(log.transfers)
    by_round = log.bytes_by_round
    return {
        "run": str(log.folder),
        "status": log.outcome or "running",
        "error": log.error,
        "rounds": [
            {
                **asdict(entry),
                "accuracy": _number(entry.accuracy),
                "bytes": byte_figures(by_round.get(entry.round, Totals())),
            }
            for entry in log.rounds
        ],
        "groups": log.groups,
        "nodes": [asdict(one) for one in contributions(log)],
        "total_bytes": byte_figures(overall),
        "sections": section_figures(log.transfers),
    }


def show(log: RunLog, console: Console) -> None:
    """Print what happened round by round, what it cost, and what it brought per task."""
    console.print(rounds_table(log))
    if log.rounds and log.rounds[-1].tasks:
        console.print(tasks_table(log))
    for group, nodes in log.groups.items():
        console.print(f"Adapter of their own ({escape(group)}): {escape(', '.join(nodes))}", highlight=False)
    if log.rounds and (spent := log.rounds[-1].privacy):
        console.print(privacy_line(spent, log.settings.privacy.kind), highlight=False)
    console.print(bytes_line(totals(log.transfers)), highlight=False)
    if log.transfers:
        console.print(sections_table("Where the bytes went", "", {"all": log.transfers}))
    for entry in log.rounds:
        for failure in entry.failures:
            console.print(f"round {entry.round}: [red]failure[/red] {escape(failure)}", highlight=False)
    if log.outcome == "failed":
        console.print(f"[red]The run failed:[/red] {escape(str(log.error))}", highlight=False)


def rounds_table(log: RunLog) -> RenderableType:
    """One line per round: clients, accuracy per task, what projection lost, bytes, factor against the
    baseline.
    """
    tasks = list(log.rounds[-1].tasks) if log.rounds else []
    title = f"Per round: accuracy, serialized bytes, × smaller than {BASELINE}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    projected = any(entry.projection_error is not None for entry in log.rounds)
    private = any(entry.privacy is not None for entry in log.rounds)
    lost = [*(["proj. error"] if projected else []), *(["ε"] if private else [])]
    for heading in ("round", "clients", *map(escape, tasks), "mean", *lost, "up", "down", "× smaller"):
        table.add_column(heading, justify="right", no_wrap=True)
    by_round = log.bytes_by_round
    for entry in log.rounds:
        cost = by_round.get(entry.round, Totals())
        clients = sum(task.clients for task in entry.tasks.values())
        accuracies = [f"{entry.tasks[task].accuracy:.3f}" if task in entry.tasks else "–" for task in tasks]
        table.add_row(
            str(entry.round),
            str(clients),
            *accuracies,
            _decimal(entry.accuracy, 3),
            *(
                ["–" if entry.projection_error is None else f"{entry.projection_error:.3f}"]
                if projected
                else []
            ),
            *([_epsilon(entry.privacy)] if private else []),
            kilobytes(cost.message_up),
            kilobytes(cost.message_down),
            _decimal(cost.factor, 1),
        )
    return table


def tasks_table(log: RunLog) -> RenderableType:
    """What the federation brought: majority share, head on the frozen base, federated adapter."""
    table = Table(title="Accuracy on the nodes' own test texts", title_justify="left", box=box.SIMPLE)
    for heading in ("task", "majority", "frozen base + head", "federated adapter", "gain"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    tasks = log.rounds[-1].tasks
    rows = [(t.majority, t.head_only_accuracy, t.accuracy) for t in tasks.values()]
    for name, row in zip(tasks, rows, strict=True):
        table.add_row(escape(name), *_shares(*row))
    table.add_section()
    table.add_row("mean", *_shares(*(sum(column) / len(rows) for column in zip(*rows, strict=True))))
    return table


def bytes_line(cost: Totals) -> str:
    """The whole run in one sentence."""
    if not cost.messages:
        return "No message has been sent."
    return (
        f"Whole run, serialized Flower messages: {kilobytes(cost.message_up)} up and "
        f"{kilobytes(cost.message_down)} down (payloads {kilobytes(cost.payload_up)} and "
        f"{kilobytes(cost.payload_down)}); {BASELINE} would be {kilobytes(cost.baseline)}: "
        f"{cost.factor:.1f}× smaller."
    )


def privacy_line(spent: Spent, kind: str) -> str:
    """What has been spent, in one sentence."""
    if spent.epsilon is None:
        return "No differential privacy: updates are clipped, but without noise nothing is guaranteed."
    return (
        f"Differential privacy of nodes ({kind}): ε = {_epsilon(spent)} at δ = {spent.delta:g} "
        f"for the node that was asked most often, {spent.rounds} times. Metrics are not protected."
    )


def _epsilon(spent: Spent | None) -> str:
    return "–" if spent is None or spent.epsilon is None else f"{spent.epsilon:.3g}"


def _shares(majority: float, head_only: float, accuracy: float) -> tuple[str, ...]:
    return (f"{majority:.3f}", f"{head_only:.3f}", f"{accuracy:.3f}", f"{accuracy - head_only:+.3f}")


def _decimal(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _number(value: float) -> float | None:
    # JSON has no NaN.
    return None if math.isnan(value) else value
