"""What has become of the cells of a sweep: a line per event, in the sweep's folder.

sweeps/<name>/
    journal.jsonl          what was begun and how it ended
    configs/<cell>.toml    run configs, for `fedkron run -c`
    runs/<cell>/           run folders, as `fedkron run` writes them
    logs/<cell>.log        what `fedkron run` printed for each cell, the last time
    rounds.csv, .parquet   a row per cell, round and task
    cells.csv, .parquet    a row per cell
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedkron.errors import RunError
from fedkron.rundir import SETTINGS
from fedkron.runlog import read_outcome, read_rounds
from fedkron.settings import Settings, run_config
from fedkron.sweep.grid import OWN_KEYS, Cell

JOURNAL, RUNS, LOGS, LOCK = "journal.jsonl", "runs", "logs", ".lock"
NEW, STARTED, COMPLETED, FAILED, INTERRUPTED = "new", "started", "completed", "failed", "interrupted"


@dataclass(frozen=True)
class State:
    """One cell as it stands: `seconds` are those of its last attempt, `peak_bytes` the most memory that all
    of its processes took together.
    """

    status: str = NEW
    attempts: int = 0
    seconds: float | None = None
    peak_bytes: int | None = None
    error: str | None = None


class Journal:
    """The states of cells by name; each event is on the disk before the next. A last line that was cut off
    counts for nothing.

    Raises `RunError` for a file that is not a journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOURNAL
        self._states: dict[str, State] = {}
        if self._path.exists():
            self._read()

    def run_folder(self, cell: Cell) -> Path:
        """Where a cell's run is, or will be."""
        return self.folder / RUNS / cell.name

    def log_file(self, cell: Cell) -> Path:
        """Where what its command prints goes."""
        return self.folder / LOGS / f"{cell.name}.log"

    def state(self, cell: Cell) -> State:
        """A cell as it stands.

        Raises `RunError` when its run folder holds a run with other settings.
        """
        known, run = self._states.get(cell.name, State()), self.run_folder(cell)
        if not (run / SETTINGS).exists():
            # A run may fail before it has a folder; whoever deletes one wants it again.
            return known if known.status in (NEW, FAILED) else replace(known, status=NEW)
        _check_settings(cell, run)
        whole = read_outcome(run).get("status") == COMPLETED
        if whole and len(read_rounds(run)) == cell.settings.num_server_rounds:
            return replace(known, status=COMPLETED, error=None)
        return known if known.status == FAILED else replace(known, status=INTERRUPTED)

    def started(self, cell: Cell) -> None:
        """A cell is about to run, from the start or where it was cut off."""
        before = self._states.get(cell.name, State())
        self._enter(cell, replace(before, status=STARTED, attempts=before.attempts + 1, error=None))

    def ended(self, cell: Cell, status: str, seconds: float, peak_bytes: int, error: str | None) -> None:
        """A cell has run: it is completed, failed or interrupted."""
        before = self._states[cell.name]
        peak = max(peak_bytes, before.peak_bytes or 0)
        self._enter(cell, State(status, before.attempts, round(seconds, 3), peak, error))

    def peak_bytes(self) -> int:
        """The most memory that any completed cell took; 0 where none is."""
        completed = [state for state in self._states.values() if state.status == COMPLETED]
        return max((state.peak_bytes or 0 for state in completed), default=0)

    def strangers(self, cells: Mapping[str, Cell]) -> list[str]:
        """Cells that have run here, but are not asked for now."""
        return [name for name in self._states if name not in cells]

    def _enter(self, cell: Cell, state: State) -> None:
        self._states[cell.name] = state
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": cell.name, **asdict(state)}) + "\n")

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                entry: dict[str, Any] = json.loads(line)
                name = entry.pop("cell")
                self._states[name] = State(**entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{self._path} is not the journal of a sweep: {error}") from error
        if whole != content:
            self._path.write_bytes(whole)


def _check_settings(cell: Cell, run: Path) -> None:
    """A name has the hash of all settings, but a folder may have been moved or written by somebody else."""
    try:
        found = run_config(Settings.from_run_config(json.loads((run / SETTINGS).read_bytes())))
    except ValueError as error:
        raise RunError(f"{run / SETTINGS} cannot be read ({error}): delete {run} to run it again") from None
    for key, wanted in run_config(cell.settings).items():
        if key not in OWN_KEYS and found[key] != wanted:
            raise RunError(
                f"the run in {run} has {key} = {found[key]!r}, this cell has {wanted!r}: delete it to run "
                "the cell, or name another sweep by --name"
            )
