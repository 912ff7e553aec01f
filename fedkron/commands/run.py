"""`fedkron run`: a federated run from start to true end, with progress."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedkron.commands.progress import LineProgress, NoProgress, Progress, TerminalProgress
from fedkron.errors import ConfigError, RunError
from fedkron.report import figures, show
from fedkron.rundir import SETTINGS, run_directory
from fedkron.runlog import read_run
from fedkron.settings import Settings, run_config

if TYPE_CHECKING:
    from fedkron.flower.superlink import Connection

FILE_POLL_SECONDS = 0.5
STATUS_POLL_SECONDS = 15.0
"""Asking Flower costs a process start, so the run folder is watched and Flower is asked seldom."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run a federation and wait for its end",
        description="Run a federation through `flwr run`, show its progress, and end with exit code 0 only if "
        "Flower says that it completed. By default all nodes are simulated on this machine, by a "
        "SuperLink of the run's own that is gone afterwards.",
    )
    parser.add_argument("app", type=Path, nargs="?", default=Path(), help="folder of the Flower app (default: .)")
    parser.add_argument(
        "-c",
        "--run-config",
        action="append",
        default=[],
        metavar="FILE.toml|'KEY=VALUE …'",
        help="settings that differ from those in pyproject.toml; may be given several times, later wins",
    )
    parser.add_argument("-n", "--nodes", type=int, help="simulated nodes (default: one per task)")
    parser.add_argument(
        "--cpus-per-node", type=int, default=1, help="CPUs for each simulated node (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-node", type=float, default=0.0, help="GPU share of each simulated node (default: 0)"
    )
    parser.add_argument(
        "--superlink", metavar="NAME", help="run on this SuperLink of your Flower configuration instead"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress is off")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Check the settings, run, and print the report. Raises `RunError` when the run did not complete."""
    settings = _settings(options)
    if options.nodes is not None and options.nodes < 1:
        raise ConfigError(f"--nodes is {options.nodes}: it must be at least 1")
    folder = run_directory(settings, run_id=0)
    if (folder / SETTINGS).exists():
        raise ConfigError(f"run folder {folder} is taken: choose another run-name, or delete it")
    with _connection(options.superlink) as connection, _run_config_file(settings) as file:
        run_id = connection.submit(options.app, file, _federation_config(options, settings))
        status, details = _wait(connection, run_id, folder, _progress(options, settings))
        log_text = connection.log(run_id)
    if not folder.exists():
        raise RunError(f"the run ended as {status} before it began ({details}); Flower's log:\n{_tail(log_text)}")
    (folder / "flower.log").write_text(log_text, encoding="utf-8")
    log = read_run(folder)
    if status != "finished:completed" or log.outcome != "completed":
        reason = log.error or details or _tail(log_text)
        raise RunError(f"the run ended as {status}: {reason} (Flower's log: {folder / 'flower.log'})")
    if options.json:
        print(json.dumps(figures(log), indent=1))
    else:
        show(log, Console())
        print(f"Run folder: {folder}")
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    """What the app's pyproject.toml says, then every --run-config on top, checked."""
    from flwr.common.config import flatten_dict, parse_config_args

    pyproject = options.app / "pyproject.toml"
    if not pyproject.is_file():
        raise ConfigError(f"{options.app.resolve()} has no pyproject.toml: give the folder of a fedkron app")
    app = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("flwr", {}).get("app", {})
    config: dict[str, object] = dict(flatten_dict(app.get("config", {})))
    for text in options.run_config:
        if text.endswith(".toml") and not Path(text).is_file():
            raise ConfigError(f"run-config file {text} does not exist")
        try:
            config |= parse_config_args([text])
        except Exception as error:  # Flower raises whatever its parsers raise
            raise ConfigError(f"--run-config {text!r} cannot be read: {error}") from error
    config["run-name"] = config.get("run-name") or f"{datetime.now():%Y%m%d-%H%M%S}"
    config["output-dir"] = str(Path(str(config.get("output-dir", "runs"))).expanduser().absolute())
    return Settings.from_run_config(config)


@contextmanager
def _run_config_file(settings: Settings) -> Iterator[Path]:
    # JSON's strings, numbers and booleans are valid TOML.
    lines = [f"{key} = {json.dumps(value)}" for key, value in run_config(settings).items()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run-config.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        yield file


def _connection(superlink: str | None) -> AbstractContextManager[Connection]:
    from fedkron.flower.superlink import Connection, private_superlink

    return private_superlink() if superlink is None else nullcontext(Connection(superlink, {}))


def _federation_config(options: argparse.Namespace, settings: Settings) -> str | None:
    if options.superlink is not None:
        return None
    nodes = options.nodes or len(settings.task_sources)
    return (
        f"num-supernodes={nodes} client-resources-num-cpus={options.cpus_per_node} "
        f"client-resources-num-gpus={options.gpus_per_node}"
    )


def _progress(options: argparse.Namespace, settings: Settings) -> Progress:
    if options.quiet or options.json:
        return NoProgress()
    console = Console(stderr=True)
    rounds = settings.num_server_rounds
    return TerminalProgress(console, rounds) if console.is_terminal else LineProgress(sys.stderr, rounds)


def _wait(connection: Connection, run_id: int, folder: Path, progress: Progress) -> tuple[str, str]:
    """Follow the run folder, and ask Flower for the true status, until the run has ended."""
    asked = time.monotonic()
    try:
        with progress:
            while True:
                log = read_run(folder) if (folder / SETTINGS).exists() else None
                if log is not None:
                    progress.update(log)
                ended = log is not None and log.outcome is not None
                if ended or time.monotonic() - asked > STATUS_POLL_SECONDS:
                    status, details = connection.status(run_id)
                    asked = time.monotonic()
                    if status.startswith("finished:"):
                        return status, details
                time.sleep(FILE_POLL_SECONDS)
    except KeyboardInterrupt:
        connection.stop(run_id)
        raise


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
