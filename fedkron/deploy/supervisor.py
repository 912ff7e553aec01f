"""Start programs, start them again when they die, and end all of them with whatever they have started.

Each program leads a session of its own. What it starts belongs to that session and is found by it even when
its parent is gone. The session's id is the pid of its leader, which nobody else gets before we reap it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

POLL_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds before a program that died is started again; doubled each time, up to the longest."""

STABLE_SECONDS = 60.0
"""A program that has lived so long starts again with the first pause."""

PATIENCE = 8.0
"""Seconds that programs get to end by themselves."""


@dataclass(frozen=True)
class Program:
    """What to start, and the file that its output goes to (appended)."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path


@dataclass
class _Supervised:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    pause: float = FIRST_PAUSE
    deaths: int = 0
    wanted: bool = True


class Supervisor:
    """Keeps programs alive while it is entered; when it is left, nothing of them is.

    All processes are started by one thread of its own, so that a signal never strikes between a start and
    its being written down.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._programs: dict[str, _Supervised] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self.end(*self._programs)

    def start(self, program: Program) -> None:
        """Have a program started, and started again whenever it dies."""
        with self._lock:
            self._programs[program.name] = _Supervised(program)

    def end(self, *names: str) -> None:
        """End programs, all at the same time, and keep them ended."""
        with self._lock:
            ending = [self._programs[name] for name in names]
            for supervised in ending:
                supervised.wanted = False
        running = [s.process for s in ending if s.process is not None]
        for process in running:
            os.kill(process.pid, signal.SIGTERM)  # `terminate` would reap one that has ended
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not all(_has_ended(process.pid) for process in running):
            time.sleep(POLL_SECONDS)
        with self._lock:
            for supervised in ending:
                _bury(supervised)

    def pid(self, name: str) -> int | None:
        """Process id of a program; None while it is not running."""
        with self._lock:
            process = self._programs[name].process
            return None if process is None or _has_ended(process.pid) else process.pid

    def deaths(self, name: str) -> int:
        """How often a program has ended unasked."""
        with self._lock:
            return self._programs[name].deaths

    def members(self) -> list[psutil.Process]:
        """All processes of all programs, and what they have started."""
        with self._lock:
            sessions = {s.process.pid for s in self._programs.values() if s.process is not None}
        return list(session_members(sessions))

    def _watch(self) -> None:
        while not self._ending.wait(POLL_SECONDS):
            with self._lock:
                for supervised in self._programs.values():
                    if supervised.wanted:
                        self._look_after(supervised)

    def _look_after(self, supervised: _Supervised) -> None:
        now, name = time.monotonic(), supervised.program.name
        if supervised.process is None:
            if now < supervised.due:
                return
            supervised.started = now
            try:
                supervised.process = _spawn(supervised.program)
                return
            except OSError as error:
                end = f"could not be started ({error})"
        elif _has_ended(supervised.process.pid):
            end = f"ended with code {_bury(supervised)}"
        else:
            return
        if now - supervised.started > STABLE_SECONDS:
            supervised.pause = FIRST_PAUSE
        supervised.deaths += 1
        supervised.due = now + supervised.pause
        self._report(f"{name} {end}; it is started again in {supervised.pause:.0f} s")
        supervised.pause = min(2 * supervised.pause, LONGEST_PAUSE)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log; empty if there is none yet."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:])


def session_members(sessions: Iterable[int]) -> Iterable[psutil.Process]:
    """All living processes of some sessions."""
    wanted = set(sessions)
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(process.pid) in wanted and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _spawn(program: Program) -> subprocess.Popen[bytes]:
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as output:
        return subprocess.Popen(
            program.command,
            env={**os.environ, **program.environment},
            cwd=program.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _has_ended(pid: int) -> bool:
    # Not by `poll`, which would reap it and give its pid free.
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _bury(supervised: _Supervised) -> int | None:
    """End what is left of a program's session, then reap its leader; returns its exit code."""
    process = supervised.process
    if process is None:
        return None
    deadline = time.monotonic() + PATIENCE
    # Again and again: one of them may have started another one while we looked.
    while (members := list(session_members({process.pid}))) and time.monotonic() < deadline:
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, timeout=1)
    code = process.wait()
    supervised.process = None
    return code
