"""The settings of a run, from an app's pyproject.toml, run configs, or the run that is gone on with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedkron.commands.runconfig import flattened, read_run_config, read_toml
from fedkron.demo import DEMO_TASKS, resolve_task
from fedkron.errors import ConfigError, RunError, TaskError
from fedkron.exchange import load_snapshot
from fedkron.rundir import CHECKPOINT
from fedkron.runlog import read_run
from fedkron.settings import Settings, run_config


def asked_settings(options: argparse.Namespace) -> tuple[Settings, int | None]:
    """The settings that the options ask for, and how many nodes a run that is resumed began with.

    Raises what `read_settings` and `resumed_settings` raise.
    """
    if options.resume is None:
        return read_settings(options.app, options.run_config), None
    return resumed_settings(options.resume, options.run_config)


def localized(settings: Settings) -> Settings:
    """Settings for a simulation on this machine: absolute paths, demo data at hand, tasks that exist.

    Flower's processes have other current folders than the user has, and would fail much later. Raises
    `TaskError` for a task that does not exist.
    """
    sources = [_local_source(source) for source in settings.task_sources]
    base = str(Path(settings.base).absolute()) if Path(settings.base).is_dir() else settings.base
    output = str(Path(settings.output_dir).expanduser().absolute())
    return replace(settings, base=base, tasks=",".join(sources), output_dir=output)


def _local_source(source: str) -> str:
    if source.startswith("demo:"):
        resolve_task(source)
    if source.startswith(("demo:", "hf:")):
        return source
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise TaskError(
            f"task folder {source} does not exist: give a folder with train.jsonl and test.jsonl, "
            f"hf:OWNER/NAME, or one of {', '.join('demo:' + name for name in DEMO_TASKS)}"
        )
    return str(folder)


def read_settings(app_folder: Path, run_configs: Sequence[str]) -> Settings:
    """What the app's pyproject.toml says, then each run config (a TOML file, or pairs) on top, checked.

    The run gets a name if it has none. Raises `ConfigError` for anything that cannot be read or is not a
    setting.
    """
    config = app_config(app_folder)
    for text in run_configs:
        config |= read_run_config(text)
    config["run-name"] = config.get("run-name") or f"{datetime.now():%Y%m%d-%H%M%S}"
    return Settings.from_run_config(config)


def app_config(app_folder: Path) -> dict[str, Any]:
    """The run config in an app's pyproject.toml. Raises `ConfigError` where there is none."""
    pyproject = app_folder / "pyproject.toml"
    if not pyproject.is_file():
        raise ConfigError(f"{app_folder.resolve()} has no pyproject.toml: give the folder of a fedkron app")
    app = read_toml(pyproject).get("tool", {}).get("flwr", {}).get("app", {})
    return flattened(app.get("config", {}))


def resumed_settings(folder: Path, run_configs: Sequence[str]) -> tuple[Settings, int | None]:
    """The settings of a run that is gone on with, with these changes, and how many nodes it began with.

    Raises `RunError` when there is no run in the folder, or when it is complete.
    """
    log = read_run(folder)
    config = run_config(log.settings)
    for text in run_configs:
        config |= read_run_config(text)
    place = folder.expanduser().absolute()
    config |= {"output-dir": str(place.parent), "run-name": place.name, "resume": True}
    settings = Settings.from_run_config(config)
    checkpoint = load_snapshot(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else {}
    done = checkpoint.get("strategy", {}).get("round", 0)
    if log.outcome == "completed" and done >= settings.num_server_rounds:
        raise RunError(
            f"the run in {folder} has finished its {done} rounds: to go on, give it more, as in "
            f"-c num-server-rounds={2 * done}"
        )
    return settings, checkpoint.get("nodes")
