"""The real path: `fedkron sweep` starts real `fedkron run`s. It is cut off, and the same command goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import psutil
import pyarrow.parquet as pq

from fedkron.runlog import read_run

ROOT = Path(__file__).resolve().parents[2]
TEST_MARK = "FEDKRON_TEST_SWEEP"


def left_of(mark: str) -> list[str]:
    found = psutil.process_iter(["environ", "cmdline"], ad_value=None)
    return [
        " ".join(process.info["cmdline"] or [])
        for process in found
        if (process.info["environ"] or {}).get(TEST_MARK) == mark
    ]


def journal_of(folder: Path) -> list[Mapping[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_a_sweep_that_is_interrupted_leaves_nothing_running_and_goes_on(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    file, folder, mark = tmp_path / "grid.toml", tmp_path / "sweeps" / "grid", str(uuid4())
    file.write_text(
        f"""
        [run]
        base = "{tiny_bert}"
        tasks = "{tasks / "animals"},{tasks / "colours"}"
        num-server-rounds = 8
        train.max-train-examples = 16
        adapter.d-a2 = 4
        adapter.rank = 2
        device = "cpu"
        [grid]
        "codec.upload" = ["int4", "ecsq"]
        """
    )
    command = [sys.executable, "-m", "fedkron.cli", "sweep", file, "--app", ROOT, "--jobs", "2", "--json"]
    environment = {**os.environ, TEST_MARK: mark, "PYTHONPATH": str(ROOT)}

    first = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not list(folder.glob("runs/*/checkpoint.safetensors")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=90) == 130
    assert left_of(mark) == []
    events = journal_of(folder)
    assert [event["status"] for event in events].count("started") == 2

    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert left_of(mark) == []
    cells = json.loads(done.stdout)["cells"]
    assert {cell["codec.upload"] for cell in cells} == {"int4", "ecsq"}
    assert all((cell["status"], cell["rounds"]) == ("completed", 8) for cell in cells)
    gone_on_with = [cell for cell in cells if cell["attempts"] == 2]
    assert len(gone_on_with) >= 1
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [event["event"] for event in told].count("ended") == len(gone_on_with)

    table = pq.read_table(folder / "rounds.parquet").to_pylist()
    with (folder / "rounds.csv").open(newline="") as text:
        assert [row["accuracy"] for row in csv.DictReader(text)] == [str(row["accuracy"]) for row in table]
    for cell in cells:
        log = read_run(folder / str(cell["run"]))
        own = [row for row in table if row["cell"] == cell["cell"]]
        assert len(own) == 8 * 2
        for entry in log.rounds:
            rows = {row["task"]: row for row in own if row["round"] == entry.round}
            assert {task: row["accuracy"] for task, row in rows.items()} == {
                task: figures.accuracy for task, figures in entry.tasks.items()
            }
        assert cell["peak_memory"] > 100_000_000
