"""Drive Flower from outside, through its own command line: submit a run, ask how it stands, clean up.

Flower's exit codes say only whether a run was accepted. How it ended is known to `flwr ls` alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedkron.errors import RunError

FINISHED = "finished:"
COMPLETED = "finished:completed"
SLOW_START, STARTS = "Failed to start local SuperLink within", 4
"""Flower gives a SuperLink 15 seconds to start, then kills it: too few where other runs keep the cores busy.
The next attempt finds its files in memory.
"""

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Connection:
    """A SuperLink: its name in Flower's configuration (None: the default one), and our environment for it."""

    name: str | None
    environment: Mapping[str, str]

    def submit(self, app: Path, run_config: Path, federation_config: str | None) -> int:
        """Hand in a run of the app in a folder; returns the run id. Raises `RunError` when refused."""
        options = ["--run-config", str(run_config)]
        if federation_config:
            options += ["--federation-config", federation_config]
        command = ("run", str(app), *self._names(), *options, "--format", "json")
        done = self._call(*command)
        for _ in range(STARTS - 1):
            if SLOW_START not in done.stderr:
                break
            done = self._call(*command)
        answer = _answer(done)
        if not answer.get("run-id"):
            reason = answer.get("error-message") or done.stderr.strip()[-2000:] or answer
            raise RunError(f"Flower did not start the run: {reason}")
        return int(str(answer["run-id"]))

    def status(self, run_id: int) -> tuple[str, str]:
        """Status (`pending`, `running`, `finished:completed`, `finished:failed`, …) and its details."""
        answer = self._flwr("ls", *self._names(), "--run-id", str(run_id), "--format", "json")
        runs = answer.get("runs")
        if not isinstance(runs, list) or not runs:
            raise RunError(f"Flower does not know run {run_id}: {answer.get('error-message', answer)}")
        return str(runs[0]["status"]), str(runs[0].get("status-details", ""))

    def stop(self, run_id: int) -> None:
        """End a run early."""
        self._flwr("stop", str(run_id), *self._names(), "--format", "json")

    def log(self, run_id: int) -> str:
        """What the run has logged so far."""
        return self._call("log", str(run_id), *self._names(), "--show").stdout

    def register_node(self, public_key: Path) -> int:
        """Let the owner of a key take part; returns the node's id. Raises `RunError` when refused."""
        answer = self._flwr("supernode", "register", str(public_key), *self._names(), "--format", "json")
        if not answer.get("node-id"):
            raise RunError(f"Flower did not register {public_key}: {answer.get('error-message', answer)}")
        return int(str(answer["node-id"]))

    def node_statuses(self) -> dict[int, str]:
        """Status of each registered node by its id (`registered`, `online`, `offline`, …)."""
        answer = self._flwr("supernode", "list", *self._names(), "--format", "json")
        nodes = answer.get("nodes")
        if not isinstance(nodes, list):
            raise RunError(f"Flower did not list its nodes: {answer.get('error-message', answer)}")
        return {int(node["node-id"]): str(node["status"]) for node in nodes}

    def _names(self) -> Sequence[str]:
        return () if self.name is None else (self.name,)

    def _flwr(self, *arguments: str) -> dict[str, object]:
        return _answer(self._call(*arguments))

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # The flwr of this very environment, whatever is first on the PATH.
        command = [sys.executable, "-c", "from flwr.cli.app import app; app()", *arguments]
        return subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    # The JSON object may follow lines meant for people.
    start = done.stdout.find("{")
    try:
        answer = json.loads(done.stdout[start:])
    except ValueError:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise RunError(f"`flwr {done.args[3]}` failed: {said}") from None
    assert isinstance(answer, dict)
    return answer


@contextmanager
def private_superlink() -> Iterator[Connection]:
    """A local SuperLink of our own: own state, own ports, nothing left behind.

    Flower's default local SuperLink is a daemon that outlives the run and is shared by all checkouts on
    the machine; runs from there may import the code of another checkout.
    """
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedkron-", ignore_cleanup_errors=True))
        ports = free_ports(2)
        scripts = str(Path(sys.executable).parent)  # Flower starts its helpers by name
        environment = {
            **QUIET,
            "FLWR_HOME": home,
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
            "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        stack.callback(_end_superlink, ports[0])
        yield Connection(None, environment)


def _end_superlink(port: int) -> None:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("flower-superlink" in word for word in words) and str(port) in words:
            family = [*process.children(recursive=True), process]
            for member in family:
                _signal(member, "terminate")
            _, alive = psutil.wait_procs(family, timeout=1)
            for member in alive:
                _signal(member, "kill")


def _signal(process: psutil.Process, signal: str) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended by itself
        getattr(process, signal)()


def free_ports(count: int) -> list[int]:
    """Different local ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for candidate in sockets:
            candidate.bind(("127.0.0.1", 0))
        return [candidate.getsockname()[1] for candidate in sockets]
