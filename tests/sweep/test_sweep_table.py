"""The tables of a sweep, read back by pandas and pyarrow, and computed again by pandas."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweep_cases import cells_of, put

from fedkron.ledger import totals
from fedkron.runlog import read_run
from fedkron.sweep.journal import COMPLETED, FAILED, Journal
from fedkron.sweep.summary import lines_of
from fedkron.sweep.table import Results, Tables

KEYS = ("codec.upload", "seed", "secure.aggregation", "adapter.alpha")


@pytest.fixture
def journal(finished_run: Path, tmp_path: Path) -> Journal:
    """Two completed cells, one that failed, one that has not run; the tables are written."""
    journal = Journal(tmp_path / "sweep")
    changes = [
        {"codec.upload": codec, "seed": seed, "secure.aggregation": False, "adapter.alpha": 32.0}
        for codec in ("int4", "ecsq")
        for seed in (0, 1)
    ]
    cells = cells_of(finished_run, *changes)
    for cell in cells[:3]:
        journal.started(cell)
    for cell in cells[:2]:
        put(finished_run, cell, journal)
        journal.ended(cell, COMPLETED, 3.0, 1 << 32, None)
    journal.ended(cells[2], FAILED, 1.0, 0, 'it said "no", twice,\nand ended')
    Tables(cells, KEYS, journal).write()
    return journal


def test_the_long_table_has_a_row_for_each_cell_round_and_task(journal: Journal, finished_run: Path) -> None:
    frame = pd.read_parquet(journal.folder / "rounds.parquet")
    log = read_run(finished_run)
    assert list(zip(frame["cell"], frame["round"], frame["task"], strict=True)) == [
        (cell, entry.round, task)
        for cell in ("cell0", "cell1")
        for entry in log.rounds
        for task in entry.tasks
    ]
    for row in frame.to_dict("records"):
        entry, cost = log.rounds[row["round"] - 1], log.bytes_by_round[row["round"]]
        figures = entry.tasks[row["task"]]
        assert (row["accuracy"], row["majority"]) == (figures.accuracy, figures.majority)
        assert (row["train_loss"], row["seconds"]) == (entry.train_loss, entry.seconds)
        assert (row["bytes_up"], row["bytes_down"]) == (cost.message_up, cost.message_down)
    assert frame["epsilon"].isna().all()


def test_the_wide_table_has_a_row_for_each_cell_whatever_became_of_it(
    journal: Journal, finished_run: Path
) -> None:
    rows = pq.read_table(journal.folder / "cells.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["completed", "completed", "failed", "new"]
    assert [(row["codec.upload"], row["seed"]) for row in rows] == [
        ("int4", 0),
        ("int4", 1),
        ("ecsq", 0),
        ("ecsq", 1),
    ]
    log = read_run(finished_run)
    whole = totals(log.transfers)
    for row in rows[:2]:
        assert (row["rounds"], row["accuracy"]) == (2, log.rounds[-1].accuracy)
        assert (row["bytes_up"], row["factor"]) == (whole.message_up, whole.factor)
        assert (row["peak_memory"], row["attempts"]) == (1 << 32, 1)
        assert read_run(journal.folder / row["run"]).rounds == log.rounds
    assert rows[2]["error"] == 'it said "no", twice,\nand ended'
    assert rows[3]["accuracy"] is None


def test_types_do_not_depend_on_what_is_there(journal: Journal) -> None:
    schema = pq.read_schema(journal.folder / "cells.parquet")
    types = {
        name: schema.field(name).type for name in ("seed", "adapter.alpha", "secure.aggregation", "epsilon")
    }
    assert types == {
        "seed": pa.int64(),
        "adapter.alpha": pa.float64(),
        "secure.aggregation": pa.bool_(),
        "epsilon": pa.float64(),
    }


@pytest.mark.parametrize("name", ["rounds", "cells"])
def test_both_files_hold_the_same(name: str, journal: Journal) -> None:
    text = pd.read_csv(journal.folder / f"{name}.csv")
    table = pd.read_parquet(journal.folder / f"{name}.parquet")
    assert list(text.columns) == list(table.columns)
    pd.testing.assert_frame_equal(text, table, check_dtype=False, check_exact=True)


def test_the_summary_is_what_pandas_makes_of_the_wide_table() -> None:
    rng = np.random.default_rng(0)
    rows = tuple(
        {
            "cell": f"{codec}-{nodes}-{seed}",
            "codec.upload": codec,
            "nodes": nodes,
            "seed": seed,
            "status": "completed" if (codec, seed) != ("ecsq", 2) else "failed",
            "accuracy": float(rng.random()),
            "bytes_up": int(rng.integers(1 << 20)),
            "bytes_down": int(rng.integers(1 << 20)),
            "factor": float(rng.random()),
            "seconds": float(rng.random()),
        }
        for codec in ("int4", "ecsq")
        for nodes in (4, 8)
        for seed in (0, 1, 2)
    )
    lines = lines_of(Results(("codec.upload", "nodes", "seed"), (), rows))
    frame = pd.DataFrame(rows)
    groups = frame[frame["status"] == "completed"].groupby(["codec.upload", "nodes"], sort=False)
    assert [tuple(line.varied.values()) for line in lines] == list(groups.groups)
    for line, (_, group) in zip(lines, groups, strict=True):
        assert line.runs == len(group)
        assert line.accuracy is not None
        assert line.accuracy.deviation is not None
        assert math.isclose(line.accuracy.mean, group["accuracy"].mean())
        assert math.isclose(line.accuracy.deviation, group["accuracy"].std())
        assert math.isclose(line.bytes_up, group["bytes_up"].mean())
        assert math.isclose(line.seconds, group["seconds"].mean())
