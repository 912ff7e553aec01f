"""What came of a sweep as tidy tables: a row per cell, round and task; a row per cell. CSV and Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedkron.atomic import write_atomically
from fedkron.ledger import Totals, totals
from fedkron.runlog import RunLog, read_run
from fedkron.sweep.grid import Cell
from fedkron.sweep.journal import COMPLETED, Journal, State

Row: TypeAlias = "dict[str, Any]"

ROUNDS_TABLE, CELLS_TABLE = "rounds", "cells"

ROUND_TYPES: Mapping[str, type] = {
    "round": int,
    "task": str,
    "clients": int,
    "accuracy": float,
    "head_only_accuracy": float,
    "majority": float,
    "train_loss": float,
    "failures": int,
    "bytes_up": int,
    "bytes_down": int,
    "factor": float,
    "epsilon": float,
    "seconds": float,
}
"""Columns of the long table after the cell and what is varied. Loss, failures, bytes (serialized messages of
all nodes), factor against LoRA-8 in float32, ε and seconds (since the start) are those of the whole round.
"""

CELL_TYPES: Mapping[str, type] = {
    "status": str,
    "rounds": int,
    "accuracy": float,
    "head_only_accuracy": float,
    "train_loss": float,
    "failures": int,
    "bytes_up": int,
    "bytes_down": int,
    "factor": float,
    "epsilon": float,
    "seconds": float,
    "peak_memory": int,
    "attempts": int,
    "error": str,
    "run": str,
}
"""Columns of the wide table: accuracies are means over the tasks of the last round, bytes those of all
rounds, seconds of the federation itself, memory in bytes.
"""


@dataclass(frozen=True)
class Results:
    """Both tables, and the varied keys, which are columns of both."""

    keys: tuple[str, ...]
    rounds: tuple[Row, ...]
    cells: tuple[Row, ...]


class Tables:
    """The tables of a sweep; a completed run is read once. Raises what `read_run` raises."""

    def __init__(self, cells: Sequence[Cell], keys: Sequence[str], journal: Journal) -> None:
        self._cells = cells
        self._keys = tuple(keys)
        self._journal = journal
        self._read: dict[str, tuple[Row, list[Row]]] = {}

    def results(self) -> Results:
        """As of now: all cells, and the rounds of the completed ones."""
        rounds: list[Row] = []
        cells: list[Row] = []
        for cell in self._cells:
            state = self._journal.state(cell)
            figures, own = self._of(cell) if state.status == COMPLETED else ({}, [])
            named = {"cell": cell.name, **cell.varied}
            rounds += [{**named, **row} for row in own]
            cells.append({**named, **_state_row(state), **figures})
        return Results(self._keys, tuple(rounds), tuple(cells))

    def write(self) -> Results:
        """Write all files anew, each in one step."""
        results = self.results()
        varied = {key: type(self._cells[0].varied[key]) for key in self._keys}
        for name, rows, types in (
            (ROUNDS_TABLE, results.rounds, ROUND_TYPES),
            (CELLS_TABLE, results.cells, CELL_TYPES),
        ):
            columns = {"cell": str, **varied, **types}
            write_atomically(self._journal.folder / f"{name}.csv", _csv(rows, columns))
            write_atomically(self._journal.folder / f"{name}.parquet", _parquet(rows, columns))
        return results

    def _of(self, cell: Cell) -> tuple[Row, list[Row]]:
        if cell.name not in self._read:
            log = read_run(self._journal.run_folder(cell))
            place = log.folder.relative_to(self._journal.folder)
            self._read[cell.name] = {**cell_row(log), "run": str(place)}, round_rows(log)
        return self._read[cell.name]


def round_rows(log: RunLog) -> list[Row]:
    """The long table of one run; a round in which nothing was evaluated has one row without a task."""
    rows: list[Row] = []
    costs = log.bytes_by_round
    for entry in log.rounds:
        cost = costs.get(entry.round, Totals())
        whole = {
            "round": entry.round,
            "train_loss": entry.train_loss,
            "failures": len(entry.failures),
            "bytes_up": cost.message_up,
            "bytes_down": cost.message_down,
            "factor": _number(cost.factor),
            "epsilon": entry.privacy.epsilon if entry.privacy else None,
            "seconds": entry.seconds,
        }
        tasks: list[Row] = [
            {
                "task": task,
                "clients": figures.clients,
                "accuracy": figures.accuracy,
                "head_only_accuracy": figures.head_only_accuracy,
                "majority": figures.majority,
            }
            for task, figures in entry.tasks.items()
        ]
        rows += [{**whole, **task} for task in tasks or [{}]]
    return rows


def cell_row(log: RunLog) -> Row:
    """The figures of one run."""
    last, cost = log.rounds[-1], totals(log.transfers)
    heads = [figures.head_only_accuracy for figures in last.tasks.values()]
    return {
        "rounds": len(log.rounds),
        "accuracy": _number(last.accuracy),
        "head_only_accuracy": sum(heads) / len(heads) if heads else None,
        "train_loss": last.train_loss,
        "failures": sum(len(entry.failures) for entry in log.rounds),
        "bytes_up": cost.message_up,
        "bytes_down": cost.message_down,
        "factor": _number(cost.factor),
        "epsilon": last.privacy.epsilon if last.privacy else None,
        "seconds": last.seconds,
    }


def _state_row(state: State) -> Row:
    return {
        "status": state.status,
        "peak_memory": state.peak_bytes or None,
        "attempts": state.attempts,
        "error": state.error,
    }


def _csv(rows: Sequence[Row], columns: Mapping[str, type]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[Row], columns: Mapping[str, type]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    full = [{name: row.get(name) for name in columns} for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(full, schema=schema), sink)
    return sink.getvalue()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
