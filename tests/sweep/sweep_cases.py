"""Cells without a federation: a program that puts the folder of a finished run where a cell's belongs."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedkron.rundir import SETTINGS
from fedkron.settings import Settings, run_config
from fedkron.sweep.grid import Cell, Simulation
from fedkron.sweep.journal import Journal
from fedkron.sweep.workers import Command

COPY = "import shutil, sys, time; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True); "


def cells_of(run: Path, *changes: Mapping[str, object]) -> list[Cell]:
    """Cells with the settings of a run and some of their own."""
    config = json.loads((run / SETTINGS).read_bytes()) | {"output-dir": "runs", "run-name": ""}
    settings = [Settings.from_run_config(config | change) for change in changes]
    return [
        Cell(f"cell{number}", own, Simulation(2), dict(change))
        for number, (own, change) in enumerate(zip(settings, changes, strict=True))
    ]


def put(run: Path, cell: Cell, journal: Journal) -> Path:
    """The folder of a finished run as if the cell had written it."""
    folder = shutil.copytree(run, journal.run_folder(cell))
    (folder / SETTINGS).write_text(json.dumps(run_config(cell.settings)))
    return folder


def copying(run: Path, folder: Path, then: str = "") -> Command:
    """A command that puts a finished run into a cell's folder, then does something more."""

    def command(cell: Cell, journal: Journal, share: int) -> Sequence[str]:  # noqa: ARG001
        template = folder / f"{cell.name}.template"
        if not template.exists():
            shutil.copytree(run, template)
            (template / SETTINGS).write_text(json.dumps(run_config(cell.settings)))
        return [sys.executable, "-c", COPY + then, str(template), str(journal.run_folder(cell))]

    return command
