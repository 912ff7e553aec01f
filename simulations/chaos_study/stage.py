"""A run on a real federation of processes, to be watched and disturbed while it goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import psutil

from fedkron.commands.federation import node_configs
from fedkron.commands.progress import NoProgress
from fedkron.commands.run import federate, free_run_folder
from fedkron.deploy.local import LocalFederation, local_federation
from fedkron.deploy.supervisor import session_members
from fedkron.errors import RunError
from fedkron.ledger import read_ledger
from fedkron.rundir import LEDGER, LOGS
from fedkron.runlog import RunLog
from fedkron.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MARK = "FEDKRON_CHAOS"
"""Environment variable that every process of a scenario inherits, to find what is left of it."""

PATIENCE = 240.0
"""No single wait is longer, in seconds."""

Outcome: TypeAlias = "Future[RunLog | None]"
"""What `federate` returns, or raises."""

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A run that is going on."""

    federation: LocalFederation
    folder: Path
    outcome: Outcome

    def until(self, seen: Callable[[], T | None], what: str) -> T:
        """The first true answer; raises `RunError` when the run ends before, or it takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not (answer := seen()):
            if self.outcome.done():
                raise RunError(f"the run ended before {what}: {self.outcome.exception()}")
            if time.monotonic() > deadline:
                raise RunError(f"waited {PATIENCE:.0f} s for {what}")
            time.sleep(0.05)
        return answer

    def sent(self, round_: int, phase: str) -> bool:
        """Whether the server has sent the messages of a phase of a round."""
        ledger = self.folder / LEDGER
        if not ledger.exists() or not ledger.stat().st_size:
            return False
        return any((t.round, t.phase, t.direction) == (round_, phase, "down") for t in read_ledger(ledger))

    def process(self, program: str, command: str, *, since: float = 0.0) -> psutil.Process | None:
        """A process that a program has started, by its command, younger than a time."""
        pid = self.federation.supervisor.pid(program)
        for member in session_members([pid] if pid else []):
            try:
                if member.create_time() > since and any(command in word for word in member.cmdline()):
                    return member
            except psutil.NoSuchProcess:
                continue
        return None

    def training(self, node: str, round_: int) -> psutil.Process:
        """The process in which a node trains in a round, as soon as it is in the app.

        One that dies before it has got its message is replaced by Flower, and nothing is to be seen.
        """
        self.until(lambda: self.sent(round_, "train"), f"round {round_} was sent")
        # Older ones may still be about to end; the message of this round was sent a moment ago.
        since = (self.folder / LEDGER).stat().st_mtime - 0.5

        def in_app() -> psutil.Process | None:
            process = self.process(node, "flwr-clientapp", since=since)
            return process if process and _has_loaded(process, "libtorch") else None

        return self.until(in_app, f"{node} trained in round {round_}")

    def run_again(self, settings: Settings) -> RunLog | None:
        """Another run on the same federation, to its end."""
        return federate(ROOT, settings, None, NoProgress(), link=nullcontext(self.federation.connection))

    def kill(self, program: str) -> None:
        """SIGKILL a supervised program."""
        pid = self.federation.supervisor.pid(program)
        if pid is None:
            raise RunError(f"{program} is not running")
        os.kill(pid, signal.SIGKILL)


@contextmanager
def stage(settings: Settings, nodes: int) -> Iterator[Stage]:
    """Bring up a federation and start the run; when the context ends both are over."""
    folder = free_run_folder(settings)
    with (
        local_federation(node_configs(settings, nodes), folder / LOGS, lambda _: None) as federation,
        ThreadPoolExecutor(1) as pool,
    ):
        link = nullcontext(federation.connection)
        outcome = pool.submit(federate, ROOT, settings, None, NoProgress(), link=link)
        try:
            yield Stage(federation, folder, outcome)
        except BaseException:
            # Without a SuperLink the run is over: nobody waits for it.
            federation.supervisor.end("superexec", "superlink")
            raise


def _has_loaded(process: psutil.Process, library: str) -> bool:
    try:
        return any(library in region.path for region in process.memory_maps())
    except psutil.Error:
        return False


def left_over(mark: str) -> tuple[str, ...]:
    """Processes that carry a mark, but for this one."""
    found = psutil.process_iter(["environ", "cmdline", "pid", "status"], ad_value=None)
    return tuple(
        " ".join(process.info["cmdline"] or [])
        for process in found
        if (process.info["environ"] or {}).get(MARK) == mark and process.info["pid"] != os.getpid()
    )
