"""`fedkron run`: a federated run from start to true end, with progress."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedkron.commands.interruption import interruptible
from fedkron.commands.progress import (
    JsonProgress,
    NoProgress,
    Planned,
    Progress,
    is_live,
    progress_for,
)
from fedkron.commands.report import write_usual_page
from fedkron.commands.run_settings import asked_settings, localized
from fedkron.commands.runconfig import as_toml
from fedkron.errors import ConfigError, RunError
from fedkron.exchange import write_atomically
from fedkron.follow import Follower
from fedkron.ledger import Totals
from fedkron.report import figures, show
from fedkron.rundir import FLOWER_LOG, OUTCOME, REPORT, SETTINGS, run_directory
from fedkron.runlog import RunLog, read_run
from fedkron.settings import Settings, run_config

if TYPE_CHECKING:
    from fedkron.flower.superlink import Connection

FILE_POLL_SECONDS = 0.5
STATUS_POLL_SECONDS = 15.0
"""Asking Flower costs a process start, a second of CPU time: the run folder is watched, and Flower is asked
when nothing has been written there for so long.
"""

SILENCE_SECONDS = 180.0
"""So long may a SuperLink fail to answer: a restart takes seconds, one by hand may take minutes."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run a federation and wait for its end",
        description="Run a federation through `flwr run`, show its progress, and end with exit code 0 only "
        "if Flower says that it completed. By default all nodes are simulated on this machine, by a "
        "SuperLink of the run's own that is gone afterwards.",
    )
    add_run_options(parser, "simulated nodes (default: one per task)")
    parser.add_argument(
        "--cpus-per-node", type=int, default=1, help="CPUs for each simulated node (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-node", type=float, default=0.0, help="GPU share of each simulated node (default: 0)"
    )
    parser.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="CPU cores for all simulated nodes together; as many train at the same time as fit in "
        "(default: all cores)",
    )
    parser.add_argument(
        "--superlink", metavar="NAME", help="run on this SuperLink of your Flower configuration instead"
    )
    parser.set_defaults(command=run)


def add_run_options(parser: argparse.ArgumentParser, nodes: str) -> None:
    """The options of whatever runs an app; `nodes` is the help of their number."""
    parser.add_argument(
        "app", type=Path, nargs="?", default=Path(), help="folder of the Flower app (default: .)"
    )
    parser.add_argument(
        "-c",
        "--run-config",
        action="append",
        default=[],
        metavar="FILE.toml|'KEY=VALUE …'",
        help="settings that differ from those in pyproject.toml; may be given several times, later wins",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder after its last finished round, with its settings and as many "
        "nodes; -c may give it more rounds (num-server-rounds)",
    )
    parser.add_argument("-n", "--nodes", type=int, help=nodes)
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object; the progress, on standard error, has then an object per "
        "line as well, unless that is a terminal",
    )


def run(options: argparse.Namespace) -> int:
    """Run, and print the report. Raises `RunError` when the run did not complete."""
    from fedkron.flower.superlink import Connection, private_superlink

    if options.nodes is not None and options.nodes < 1:
        raise ConfigError(f"--nodes is {options.nodes}: it must be at least 1")
    settings, usual = asked_settings(options)
    if options.superlink is None:
        settings = localized(settings)
    nodes = options.nodes or usual or len(settings.task_sources)
    link: AbstractContextManager[Connection]
    if options.superlink is None:
        progress, link = progress_of(options, settings, nodes), private_superlink()
        simulation: str | None = simulation_config(options, nodes)
    else:
        progress = progress_of(options, settings, None)
        link, simulation = nullcontext(Connection(options.superlink, {})), None
    with interruptible():
        log = federate(options.app, settings, simulation, progress, link=link)
    if log is None:
        print(f"The run completed. Its folder, {settings.run_name}, is where the SuperLink runs.")
    else:
        print_result(log, options)
    return 0


def simulation_config(options: argparse.Namespace, nodes: int) -> str:
    """Flower's federation config for so many nodes on this machine.

    Raises `ConfigError` where there are too few cores for one of them.
    """
    parts = [
        f"num-supernodes={nodes}",
        f"client-resources-num-cpus={options.cpus_per_node}",
        f"client-resources-num-gpus={options.gpus_per_node}",
    ]
    if options.cpus is not None:
        if options.cpus < options.cpus_per_node:
            raise ConfigError(
                f"--cpus is {options.cpus}: a node needs --cpus-per-node = {options.cpus_per_node}"
            )
        parts.append(f"init-args-num-cpus={options.cpus}")
    return " ".join(parts)


def progress_of(options: argparse.Namespace, settings: Settings, nodes: int | None) -> Progress:
    """The progress that the options ask for, on standard error."""
    if options.quiet:
        return NoProgress()
    console = Console(stderr=True)
    if options.json and not is_live(console):
        return JsonProgress(console.file, Planned.of(settings, nodes))
    return progress_for(console, settings, nodes)


def print_result(log: RunLog, options: argparse.Namespace) -> None:
    """The report of a run that completed, for people or as JSON."""
    if options.json:
        print(json.dumps(figures(log), indent=1))
        return
    show(log, Console())
    print(f"Run folder: {log.folder}")
    write_usual_page([log])


def free_run_folder(settings: Settings) -> Path:
    """The folder that a run will write to. Raises `ConfigError` when another run has done so."""
    folder = run_directory(settings, run_id=0)
    if (folder / SETTINGS).exists() and not settings.resume:
        raise ConfigError(
            f"run folder {folder} is taken: choose another run-name, delete it, or go on with that run by "
            f"--resume {folder}"
        )
    return folder


def federate(
    app: Path,
    settings: Settings,
    simulation: str | None,
    progress: Progress,
    *,
    link: AbstractContextManager[Connection],
) -> RunLog | None:
    """Submit a run, wait for its end, and return what it wrote (None if that is on another machine).

    `simulation` is Flower's federation config (`num-supernodes=4 …`), None for a real federation.
    `link` gives the SuperLink to run on. Raises `ConfigError` when the run folder is taken, `RunError` when
    Flower says anything but completed.
    """
    from fedkron.flower.superlink import COMPLETED

    folder = free_run_folder(settings)
    (folder / OUTCOME).unlink(missing_ok=True)  # of the part that is gone on with
    with progress, link as connection, _run_config_file(settings) as file:
        run_id = connection.submit(app, file, simulation)
        status, details = _wait(connection, run_id, folder, progress)
        flower_log = connection.log(run_id)
    if not (folder / SETTINGS).exists():
        if status == COMPLETED:
            return None
        raise RunError(f"the run ended as {status} before it began ({details}):\n{_tail(flower_log)}")
    log = read_run(folder)
    try:
        write_atomically(folder / FLOWER_LOG, flower_log.encode())
        write_atomically(folder / REPORT, json.dumps(figures(log), indent=1).encode())
    except OSError as error:
        raise RunError(
            f"the run ended as {status}, and {error.filename or folder} cannot be written: {error.strerror}\n"
            f"{log.error or details}\n{_tail(flower_log)}"
        ) from None
    if status != COMPLETED or log.outcome != "completed":
        reason = log.error or f"{details}\n{_tail(flower_log)}"
        raise RunError(f"the run ended as {status}: {reason} (Flower's log: {folder / FLOWER_LOG})")
    return log


@contextmanager
def _run_config_file(settings: Settings) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run-config.toml"
        file.write_text(as_toml(run_config(settings)), encoding="utf-8")
        yield file


def _wait(connection: Connection, run_id: int, folder: Path, progress: Progress) -> tuple[str, str]:
    """Follow the run folder, and ask Flower for the true status, until the run has ended.

    A SuperLink that does not answer may be starting again; `RunError` when it stays silent.
    """
    from fedkron.flower.superlink import FINISHED

    asked = answered = time.monotonic()
    follower, seen = Follower(folder), Totals()
    try:
        while True:
            standing = follower.look()
            progress.update(standing)
            if (sent := standing.bytes) != seen:  # messages come and go: Flower need not be asked
                seen = sent
                asked = answered = time.monotonic()
            if standing.outcome is not None or time.monotonic() - asked > STATUS_POLL_SECONDS:
                asked = time.monotonic()
                try:
                    status, details = connection.status(run_id)
                    answered = asked
                    if status.startswith(FINISHED):
                        progress.update(follower.look())  # it may have written more while Flower was asked
                        return status, details
                except RunError:
                    if asked - answered > SILENCE_SECONDS:
                        raise
            time.sleep(FILE_POLL_SECONDS)
    except KeyboardInterrupt:
        connection.stop(run_id)
        raise


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
