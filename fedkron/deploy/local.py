"""A whole federation on this machine: SuperLink, SuperExec and SuperNodes, with TLS, node keys, supervision.

The SuperExec, which starts the server's program, is a process of its own beside the SuperLink: a SuperLink
that dies and is started again on the same database finds the run still going on.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedkron.deploy.keys import (
    CA,
    LOCAL_HOSTS,
    NODE_KEY,
    NODE_PUBLIC,
    SECRET,
    SERVER,
    SERVER_KEY,
    SUPERLINK,
    issue,
)
from fedkron.deploy.supervisor import Program, Supervisor, tail
from fedkron.errors import RunError
from fedkron.flower.superlink import QUIET, Connection, free_ports

HOST = "127.0.0.1"
CONNECTION = "fedkron"
LINK, EXEC = "superlink", "superexec"
ONLINE = "online"

START_SECONDS = 120.0
"""So long may it take until the SuperLink answers, and then until all nodes are online."""

START_DEATHS = 3
"""A program that dies so often before everything is up will not come up."""


@dataclass(frozen=True)
class LocalFederation:
    """A federation that is up. `nodes` are the SuperNodes' ids at Flower, by their programs' names."""

    connection: Connection
    supervisor: Supervisor
    folder: Path
    port: int
    logs: Path
    nodes: Mapping[str, int]

    def node_program(self, name: str, key: Path, config: str) -> Program:
        """The program of a SuperNode with this key and node config, at a free port."""
        (port,) = free_ports(1)
        command = (
            *("flower-supernode", "--superlink", f"{HOST}:{self.port}", "--root-certificates", self._ca),
            *("--auth-supernode-private-key", str(key), "--host", HOST, "--port", str(port)),
            *("--node-config", config),
        )
        return _program(name, command, self.folder, self.logs)

    @property
    def _ca(self) -> str:
        return str(self.folder / "keys" / SUPERLINK / CA)


@contextmanager
def local_federation(
    node_configs: Sequence[str], logs: Path, report: Callable[[str], None]
) -> Iterator[LocalFederation]:
    """Bring up a SuperLink and a SuperNode for each node config; when the context ends no process is left.

    Keys and the SuperLink's database are made for this federation and deleted with it. Logs go to a folder.
    Raises `RunError`, with the end of the log in question, when something does not come up.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fedkron-", ignore_cleanup_errors=True) as place,
        Supervisor(report) as supervisor,
    ):
        folder = Path(place)
        issue(folder / "keys", hosts=LOCAL_HOSTS, nodes=len(node_configs))
        (port,) = free_ports(1)
        connection = _connection(folder, port)
        names = [f"node{number}" for number in range(len(node_configs))]
        _start_link(supervisor, folder, port, logs)
        ids = {name: connection.register_node(folder / "keys" / name / NODE_PUBLIC) for name in names}
        federation = LocalFederation(connection, supervisor, folder, port, logs, ids)
        for name, config in zip(names, node_configs, strict=True):
            key = folder / "keys" / name / NODE_KEY
            supervisor.start(federation.node_program(name, key, config))
        _wait_until_online(federation)
        try:
            yield federation
        finally:
            # Nodes say good-bye to the SuperLink: it has to be there.
            supervisor.end(*names)


def _start_link(supervisor: Supervisor, folder: Path, port: int, logs: Path) -> None:
    keys = folder / "keys" / SUPERLINK
    secret = ("--superexec-auth-secret-file", str(keys / SECRET))
    link = (
        *("flower-superlink", "--host", HOST, "--port", str(port), "--database", str(folder / "state.db")),
        *("--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / SERVER)),
        *(
            "--ssl-keyfile",
            str(keys / SERVER_KEY),
            "--enable-supernode-auth",
            "--isolation",
            "process",
            *secret,
        ),
    )
    executor = (
        *("flower-superexec", "--runtime-api-address", f"{HOST}:{port}"),
        *("--root-certificates", str(keys / CA), *secret),
    )
    supervisor.start(_program(LINK, link, folder, logs))
    trusted = ssl.create_default_context(cafile=keys / CA)

    def answers() -> bool:
        return _is_healthy(port, trusted)

    _wait(answers, supervisor, {LINK: logs / f"{LINK}.log"}, "the SuperLink does not answer")
    supervisor.start(_program(EXEC, executor, folder, logs))


def _wait_until_online(federation: LocalFederation) -> None:
    files = {name: federation.logs / f"{name}.log" for name in federation.nodes}

    def online() -> bool:
        statuses = federation.connection.node_statuses()
        for name, node in federation.nodes.items():
            if statuses.get(node) == ONLINE:
                files.pop(name, None)
        return not files

    _wait(online, federation.supervisor, files, "not all SuperNodes are online")


def _wait(
    ready: Callable[[], bool], supervisor: Supervisor, waited_for: Mapping[str, Path], trouble: str
) -> None:
    """Until ready; `waited_for` are the logs of the programs that are not, by name."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        dying = [name for name in waited_for if supervisor.deaths(name) >= START_DEATHS]
        if dying or time.monotonic() > deadline:
            why = f"{dying[0]} keeps dying" if dying else f"waited {START_SECONDS:.0f} s"
            logs = "\n".join(f"{path}:\n{tail(path)}" for path in waited_for.values())
            raise RunError(f"{trouble} ({why})\n{logs}")
        time.sleep(0.5)


def _is_healthy(port: int, trusted: ssl.SSLContext) -> bool:
    connection = http.client.HTTPSConnection(HOST, port, timeout=2, context=trusted)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except ssl.SSLCertVerificationError:
        raise
    except OSError:
        return False
    finally:
        connection.close()


def _connection(folder: Path, port: int) -> Connection:
    home = folder / "home"
    home.mkdir()
    certificate = folder / "keys" / SUPERLINK / CA
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{HOST}:{port}"\nroot-certificates = "{certificate}"\n',
        encoding="utf-8",
    )
    return Connection(CONNECTION, {**_environment(), "FLWR_HOME": str(home)})


def _program(name: str, command: tuple[str, ...], folder: Path, logs: Path) -> Program:
    home = folder / f"home-{name}"
    home.mkdir(exist_ok=True)
    # The script of this very environment, whatever is first on the PATH.
    script = Path(sys.executable).parent / command[0]
    environment = {**_environment(), "FLWR_HOME": str(home)}
    return Program(name, (str(script), *command[1:]), environment, folder, logs / f"{name}.log")


def _environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)  # Flower starts its helpers by name
    return {
        **QUIET,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
    }
