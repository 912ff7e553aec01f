"""Running cells: as many at once as cores and memory allow, each a `fedkron run` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from fedkron.atomic import write_atomically
from fedkron.commands.runconfig import as_toml
from fedkron.errors import RunError
from fedkron.follow import Follower, Standing
from fedkron.rundir import CHECKPOINT
from fedkron.settings import run_config
from fedkron.sweep.grid import Cell
from fedkron.sweep.journal import COMPLETED, FAILED, INTERRUPTED, Journal, State
from fedkron.sweep.processes import end, end_rest, marked, memory_of, spawn

POLL_SECONDS = 0.5
MEMORY_SECONDS = 3.0
"""So often memory is looked up, which takes milliseconds for each process."""

SPARE = 1.2
"""A cell is expected to take so many times the memory that others took at most."""

CONFIGS = "configs"


@dataclass
class Job:
    """A cell that is running; memory in bytes, of all its processes."""

    cell: Cell
    process: subprocess.Popen[bytes]
    follower: Follower
    began: float = field(default_factory=time.monotonic)
    first_round: int = 1
    standing: Standing = field(default_factory=Standing)
    memory: int = 0
    peak: int = 0

    @property
    def has_shown_its_size(self) -> bool:
        """Whether a round was finished since it began: it has loaded and trained everything by then."""
        phase, rounds = self.standing.phase, self.standing.rounds
        return phase is not None and bool(rounds) and rounds[-1].round >= self.first_round


class Watcher(Protocol):
    """Who is told what happens to cells."""

    def started(self, cell: Cell) -> None:
        """A cell has begun to run."""

    def running(self, jobs: Sequence[Job]) -> None:
        """How the cells that are running stand."""

    def ended(self, cell: Cell, state: State) -> None:
        """A cell is completed or has failed."""


Command = Callable[[Cell, Journal, int], Sequence[str]]
"""The words of a program that runs a cell on so many cores, and writes to its run folder."""

Slots = Callable[[Sequence[Job], int], int]
"""How many cells may run at once, given those that do, and how many wait."""


def exactly(jobs: int) -> Slots:
    """As many as somebody has asked for."""
    return lambda running, waiting: jobs  # noqa: ARG005


def as_many_as_fit(cells: Sequence[Cell], journal: Journal) -> Slots:
    """One for each core, as long as there is memory for one more of the largest so far. The first one runs
    alone until its first round is over, since nobody knows what it takes. Where nodes use a GPU, whose memory
    is not measured, each runs alone.
    """
    most = max(1, cores() // max(cell.simulation.cpus_per_node for cell in cells))
    if any(cell.simulation.gpus_per_node for cell in cells):
        most = 1

    def slots(running: Sequence[Job], waiting: int) -> int:
        largest = max([journal.peak_bytes(), *(job.peak for job in running if job.has_shown_its_size)])
        if not largest:
            return 1
        expected = SPARE * largest
        growth = sum(max(expected - job.memory, 0) for job in running)
        room = int((psutil.virtual_memory().available - growth) // expected)
        return max(1, min(most, len(running) + waiting, len(running) + room))

    return slots


def run_cells(
    cells: Sequence[Cell],
    journal: Journal,
    command: Command,
    *,
    slots: Slots,
    watcher: Watcher,
    after_each: Callable[[], object],
) -> None:
    """Run cells to their ends; what comes of each is in the journal, then `after_each` is called. When
    interrupted, all of them are ended, and can be gone on with; it is called once more.
    """
    waiting, running = list(cells), list[Job]()
    runs = journal.run_folder(cells[0]).parent
    looked = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < (allowed := slots(running, len(waiting))):
                running.append(_start(waiting.pop(0), journal, command, cores() // allowed))
                watcher.started(running[-1].cell)
            time.sleep(POLL_SECONDS)
            if time.monotonic() - looked > MEMORY_SECONDS:
                _measure(running, runs)
                looked = time.monotonic()
            for job in running:
                with suppress(RunError):  # of a half-written file; how the cell ends will tell
                    job.standing = job.follower.look()
            watcher.running(running)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                watcher.ended(job.cell, _finish(job, journal))
                watcher.running(running)
                after_each()
    except BaseException:
        end([job.process for job in running], runs)
        for job in running:
            journal.ended(job.cell, INTERRUPTED, time.monotonic() - job.began, job.peak, None)
        after_each()
        raise


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fedkron_run(app: Path) -> Command:
    """Cells run by `fedkron run` on the app in a folder: from the start, or after the last finished round."""

    def command(cell: Cell, journal: Journal, share: int) -> list[str]:
        run, simulation = journal.run_folder(cell), cell.simulation
        options = ["--quiet", "--json", "--nodes", str(simulation.nodes)]
        options += ["--cpus-per-node", str(simulation.cpus_per_node)]
        options += ["--gpus-per-node", str(simulation.gpus_per_node)]
        options += ["--cpus", str(max(share, simulation.cpus_per_node))]
        if (run / CHECKPOINT).exists():
            options += ["--resume", str(run)]
        else:
            config = run_config(cell.settings) | {"output-dir": str(run.parent), "run-name": run.name}
            file = journal.folder / CONFIGS / f"{cell.name}.toml"
            write_atomically(file, as_toml(config).encode())
            options += ["--run-config", str(file)]
        return [sys.executable, "-m", "fedkron.cli", "run", str(app.absolute()), *options]

    return command


def _start(cell: Cell, journal: Journal, command: Command, share: int) -> Job:
    run = journal.run_folder(cell)
    if not (run / CHECKPOINT).exists():  # no round was finished: nothing is lost
        shutil.rmtree(run, ignore_errors=True)
    words = command(cell, journal, share)
    # As many threads as a node has cores, however many cells run: how they add up must not depend on that.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(cell.simulation.cpus_per_node)}
    follower = Follower(run)
    journal.started(cell)
    process = spawn(words, run, journal.log_file(cell), environment)
    return Job(cell, process, follower, first_round=len(follower.look().rounds) + 1)


def _measure(running: Sequence[Job], runs: Path) -> None:
    families = marked(runs)
    for job in running:
        job.memory = memory_of(families.get(str(runs / job.cell.name), []))
        job.peak = max(job.peak, job.memory)


def _finish(job: Job, journal: Journal) -> State:
    run = journal.run_folder(job.cell)
    end_rest(marked(run.parent).get(str(run), []))
    code = job.process.wait()
    error = None if code == 0 else _reason(journal.log_file(job.cell), code)
    status = COMPLETED if code == 0 else FAILED
    journal.ended(job.cell, status, time.monotonic() - job.began, job.peak, error)
    return journal.state(job.cell)


def _reason(log: Path, code: int) -> str:
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    ours = [line for line in said if line.startswith("fedkron: ")]
    return ours[-1].removeprefix("fedkron: ") if ours else f"`fedkron run` ended with code {code}, see {log}"
