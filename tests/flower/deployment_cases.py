"""A real Flower deployment on this machine: SuperLink and SuperNodes, each a process with its own home."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from fedkron.flower.superlink import COMPLETED, FINISHED, QUIET, Connection

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = Path(sys.executable).parent
CONNECTION = "here"

T = TypeVar("T")


@dataclass
class Deployment:
    """A SuperLink at a local port, and whatever is started besides; all of it ends together."""

    folder: Path
    port: int
    environment: Mapping[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, log: str, *command: object, home: str = "home") -> None:
        """Start a program; its output goes to a file in the folder."""
        environment = {**os.environ, **self.environment, "FLWR_HOME": str(self.folder / home)}
        with (self.folder / log).open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    [*map(str, command)], env=environment, cwd=self.folder, stdout=output, stderr=output
                )
            )

    def add_node(self, name: str, *, via: int, port: int, config: str) -> None:
        """Start a SuperNode that connects to the local port `via`."""
        command = (SCRIPTS / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{via}")
        options = ("--host", "127.0.0.1", "--port", port, "--node-config", config)
        self.start(f"{name}.log", *command, *options, home=name)

    def complete(self, app: Path, run_config: Path, last: Path) -> dict[str, int]:
        """Run an app to its end, which has to be a good one; `last` is the file that it writes last.

        Returns what Flower says about the run's network traffic.
        """
        connection = Connection(CONNECTION, {**self.environment, "FLWR_HOME": str(self.folder / "home")})
        run_id = connection.submit(app, run_config, None)

        def ended() -> tuple[str, str] | None:
            # To ask costs a process start, which the run would miss.
            with suppress(AssertionError):
                until(last.exists, "the last file", patience=20)
            status = connection.status(run_id)
            return status if status[0].startswith(FINISHED) else None

        status, details = until(ended, "the end of the run")
        assert status == COMPLETED, f"{details}\n{connection.log(run_id)}"
        listed = subprocess.run(
            [SCRIPTS / "flwr", "ls", CONNECTION, "--run-id", str(run_id), "--format", "json"],
            env={**os.environ, **connection.environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return json.loads(listed[listed.index("{") :])["runs"][0]["network-traffic"]

    def end(self) -> None:
        """End all programs and what they have started."""
        family = [member for process in self.processes for member in family_of(process)]
        for send in (psutil.Process.terminate, psutil.Process.kill):
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    send(member)
            psutil.wait_procs(family, timeout=8)
        for process in self.processes:
            process.wait()


@contextmanager
def deployment(folder: Path, port: int) -> Iterator[Deployment]:
    """A SuperLink at a local port; when the context ends no process is left."""
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **QUIET,
        "HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
    }
    running = Deployment(folder, port, environment)
    try:
        link = (SCRIPTS / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port)
        running.start("superlink.log", *link)
        yield running
    finally:
        running.end()


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [*parent.children(recursive=True), parent]
    return []


def until(ask: Callable[[], T | None], what: str, *, patience: float = 120, pause: float = 0.2) -> T:
    """The first true answer."""
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(pause)
    return answer
