"""The processes of cells: found by a mark in their environment, measured, and ended without a rest.

A run starts daemons that belong to sessions of their own. The mark is inherited by all of them, and is
still there when their parents are gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "FEDKRON_CELL"
"""Environment variable of whatever belongs to a cell, with the path of its run folder."""

PATIENCE = 30.0
"""Seconds that a run gets to stop its federation by itself."""

POLL_SECONDS = 0.2


def spawn(
    command: Sequence[str], run: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the command of a cell, in a session of its own: a Ctrl-C in the terminal is not meant for it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:  # of this attempt: the journal knows how earlier ones ended
        return subprocess.Popen(
            command,
            env={**os.environ, **environment, MARK: str(run)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def marked(runs: Path) -> dict[str, list[psutil.Process]]:
    """The living processes of all cells whose run folders are in a folder, by their marks."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK, "")
            if mark and Path(mark).parent == runs and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(mark, []).append(process)
    return found


def memory_of(processes: Sequence[psutil.Process]) -> int:
    """Bytes that processes take together; what they share counts once where the system tells (Linux)."""
    total = 0
    for process in processes:
        with suppress(psutil.Error, OSError):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    return total


def end(running: Sequence[subprocess.Popen[bytes]], runs: Path) -> None:
    """Ask commands to end, all at the same time; then end whatever is left of any cell by force."""
    for process in running:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(POLL_SECONDS)
    end_rest([process for family in marked(runs).values() for process in family])
    for process in running:
        process.wait()


def end_rest(processes: Sequence[psutil.Process]) -> None:
    """End processes by force."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)
