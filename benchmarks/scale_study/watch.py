"""What the processes of a run take: CPU time and memory, by what they are there for."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

import psutil

MARK = "FEDKRON_SCALE"
"""Environment variable that every process of a run inherits: its SuperLink is not a child of it."""

SECONDS = 0.5
"""Between two looks. CPU time of a process in its last half second is lost."""

WORKERS, SERVER, RAY, REST = ROLES = ("workers", "server", "ray", "rest")
"""Client processes; the process with ServerApp and simulation engine; Ray's own; SuperLink and command."""


@dataclass(frozen=True)
class Taken:
    """What a run has taken: seconds on the clock and of CPU, and the highest memory in bytes.

    `began` is a time as files have it.

    Memory is the proportional set size: what processes share is divided among them. `processes` is the
    highest number at a time, `single` the highest memory of one.
    """

    began: float
    wall: float
    cpu: Mapping[str, float]
    memory: Mapping[str, int]
    single: Mapping[str, int]
    processes: Mapping[str, int]
    shared_memory: int
    output: str = ""

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all processes."""
        return sum(self.cpu.values())


@dataclass
class _Seen:
    cpu: dict[int, tuple[str, float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    single: dict[str, int] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    shared_memory: int = 0


def watched(command: Sequence[str], environment: Mapping[str, str]) -> Taken:
    """Run a command to its end and watch all that it starts. Raises `CalledProcessError` when it fails."""
    mark = str(uuid4())
    seen, ended = _Seen(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(mark, seen, ended))
    began, started = time.time(), time.monotonic()
    watcher.start()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment, MARK: mark},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        wall = time.monotonic() - started
        ended.set()
        watcher.join()
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, list(command), done.stdout, done.stderr)
    cpu = dict.fromkeys(ROLES, 0.0)
    for role, seconds in seen.cpu.values():
        cpu[role] += seconds
    return Taken(began, wall, cpu, seen.memory, seen.single, seen.processes, seen.shared_memory, done.stdout)


def _watch(mark: str, seen: _Seen, ended: threading.Event) -> None:
    ours: set[int] = set()
    others: set[int] = set()
    while not ended.wait(SECONDS):
        now: dict[str, list[int]] = {role: [] for role in ROLES}
        for process in psutil.process_iter():
            if process.pid in others:
                continue
            with suppress(psutil.Error, OSError):
                if process.pid not in ours:
                    if process.environ().get(MARK) != mark:
                        others.add(process.pid)
                        continue
                    ours.add(process.pid)
                role = _role(process)
                times = process.cpu_times()
                seen.cpu[process.pid] = (role, times.user + times.system)
                now[role].append(process.memory_full_info().pss)
        for role, sizes in now.items():
            seen.memory[role] = max(seen.memory.get(role, 0), sum(sizes))
            seen.single[role] = max(seen.single.get(role, 0), *sizes, 0)
            seen.processes[role] = max(seen.processes.get(role, 0), len(sizes))
        seen.shared_memory = max(seen.shared_memory, psutil.virtual_memory().shared)


def _role(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    if line.startswith("ray::ClientApp"):
        return WORKERS
    if "flwr-simulation" in line:
        return SERVER
    return RAY if line.startswith("ray::") or "/ray/" in line else REST
