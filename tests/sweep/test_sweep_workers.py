"""Cells as processes: how many at once, what becomes of those that fail or are killed; nothing is left."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from sweep_cases import cells_of, copying

from fedkron.follow import Follower, Phase, Standing
from fedkron.runlog import read_rounds
from fedkron.sweep.grid import Cell
from fedkron.sweep.journal import COMPLETED, FAILED, INTERRUPTED, RUNS, Journal, State
from fedkron.sweep.processes import marked
from fedkron.sweep.workers import Command, Job, as_many_as_fit, cores, exactly, run_cells

DETACHED = (
    "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    "start_new_session=True); "
)


class Witness:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.most = 0
        self.told: list[str] = []

    def started(self, cell: Cell) -> None:
        self.told.append(f"{cell.name} started")

    def running(self, jobs: Sequence[Job]) -> None:
        self.most = max(self.most, len(jobs))

    def ended(self, cell: Cell, state: State) -> None:
        self.told.append(f"{cell.name} {state.status}")


class Impatient(Witness):
    """Interrupts once all cells have left something behind."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self._folders = folders

    def running(self, jobs: Sequence[Job]) -> None:  # noqa: ARG002
        if all((folder / "settings.json").exists() for folder in self._folders):
            raise KeyboardInterrupt


def run(cells: Sequence[Cell], journal: Journal, command: Command, jobs: int, watcher: Witness) -> list[int]:
    """Run cells; how many had ended each time that the tables were to be written."""
    counts: list[int] = []

    def count() -> None:
        counts.append(sum(journal.state(cell).status in (COMPLETED, FAILED) for cell in cells))

    run_cells(cells, journal, command, slots=exactly(jobs), watcher=watcher, after_each=count)
    return counts


def test_every_cell_runs_once_and_no_more_at_a_time_than_allowed(finished_run: Path, tmp_path: Path) -> None:
    cells = cells_of(finished_run, *({"seed": seed} for seed in range(4)))
    journal, witness = Journal(tmp_path / "sweep"), Witness()
    counts = run(cells, journal, copying(finished_run, tmp_path, "time.sleep(0.7)"), 2, witness)
    assert (len(counts), counts[-1]) == (4, 4)
    assert witness.most == 2
    assert sorted(witness.told) == sorted(
        f"{cell.name} {what}" for cell in cells for what in ("completed", "started")
    )
    assert all(journal.state(cell).attempts == 1 for cell in cells)


def test_a_cell_that_fails_says_why_and_does_not_stop_the_others(finished_run: Path, tmp_path: Path) -> None:
    good, bad = cells_of(finished_run, {"seed": 0}, {"seed": 1})
    copy = copying(finished_run, tmp_path)

    def command(cell: Cell, journal: Journal, share: int) -> Sequence[str]:
        if cell is good:
            return copy(cell, journal, share)
        return [sys.executable, "-c", "print('fedkron: no such base'); raise SystemExit(1)"]

    journal = Journal(tmp_path / "sweep")
    run([bad, good], journal, command, 1, Witness())
    assert (journal.state(bad).status, journal.state(bad).error) == (FAILED, "no such base")
    assert journal.state(good).status == COMPLETED


def test_what_a_killed_run_has_left_behind_is_ended(finished_run: Path, tmp_path: Path) -> None:
    (cell,) = cells_of(finished_run, {})
    kill = f"{DETACHED}import os, signal; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    command = [sys.executable, "-c", f"import sys, time; {kill}"]
    journal = Journal(tmp_path / "sweep")
    run([cell], journal, lambda *_: command, 1, Witness())
    assert marked(tmp_path / "sweep" / RUNS) == {}
    state = journal.state(cell)
    assert state.status == FAILED
    assert state.error is not None
    assert "ended with code -9" in state.error


def test_an_interrupted_sweep_leaves_no_process_and_its_cells_can_be_gone_on_with(
    finished_run: Path, tmp_path: Path
) -> None:
    cells = cells_of(finished_run, {"seed": 0, "num-server-rounds": 3}, {"seed": 1, "num-server-rounds": 3})
    journal = Journal(tmp_path / "sweep")
    stubborn = f"{DETACHED}time.sleep(60)"
    impatient = Impatient([journal.run_folder(cell) for cell in cells])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(cells, journal, copying(finished_run, tmp_path, stubborn), 2, impatient)
    assert time.monotonic() - began < 30
    assert marked(tmp_path / "sweep" / RUNS) == {}
    again = Journal(tmp_path / "sweep")
    assert [again.state(cell).status for cell in cells] == [INTERRUPTED, INTERRUPTED]
    assert [len(read_rounds(again.run_folder(cell))) for cell in cells] == [2, 2]


@pytest.fixture
def job(finished_run: Path, tmp_path: Path) -> Job:
    """A cell that has finished a round."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    cell = cells_of(finished_run, {})[0]
    standing = Standing(read_rounds(finished_run)[:1], Phase(2, "train", 2, 0))
    return Job(cell, process, Follower(tmp_path), standing=standing)


def test_the_first_cell_runs_alone_until_it_is_known_what_it_takes(job: Job, tmp_path: Path) -> None:
    slots = as_many_as_fit([job.cell] * 9, Journal(tmp_path))
    job.peak = job.memory = 1 << 20
    job.first_round = 2  # it has been gone on with: nothing is known of its memory yet
    assert slots([job], 8) == 1
    job.first_round = 1
    assert slots([job], 8) == min(cores(), 9)
    assert slots([job], 0) == 1


def test_no_more_cells_run_than_there_is_memory_for(job: Job, tmp_path: Path) -> None:
    slots = as_many_as_fit([job.cell] * 9, Journal(tmp_path))
    job.peak = job.memory = psutil.virtual_memory().total
    assert slots([job], 8) == 1
