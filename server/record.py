"""What the server writes down: a run folder that a report, an export and a progress bar can read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedkron.errors import ConfigError
from fedkron.exchange import AdapterFile, on_folded_base, save_adapter, save_terms, write_atomically
from fedkron.flower import RoundReport
from fedkron.flower.global_adapter import FOR_ALL
from fedkron.layout import AdapterLayout, State
from fedkron.rundir import ADAPTER, OUTCOME, ROUNDS, SETTINGS, TERMS, group_directory
from fedkron.runlog import RoundFigures, read_run, round_figures
from fedkron.settings import NO_PRIVACY, Settings, run_config

MAY_CHANGE = frozenset(
    {
        "num-server-rounds",
        "round-timeout",
        "max-failure-fraction",
        "output-dir",
        "run-name",
        "device",
    }
)
"""Settings that a run which is gone on with may have new values of."""


@dataclass(frozen=True)
class Held:
    """An adapter as its nodes have it."""

    state: State
    layout: AdapterLayout


class RunRecord:
    """Writes into one run folder. Start it with `RunRecord.start`."""

    def __init__(self, folder: Path, settings: Settings, seconds: float = 0.0) -> None:
        self._folder = folder
        self._settings = settings
        self._started = time.monotonic() - seconds

    @staticmethod
    def start(folder: Path, settings: Settings) -> RunRecord:
        """Create the folder; raises `ConfigError` when a run has been there before."""
        if (folder / SETTINGS).exists():
            raise ConfigError(
                f"run folder {folder} is taken: choose another run-name, delete it, or go on with that run "
                "by `fedkron run --resume`"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SETTINGS, _json(run_config(settings)))
        return RunRecord(folder, settings)

    @staticmethod
    def resume(folder: Path, settings: Settings, done: int) -> RunRecord:
        """Go on in a folder after so many rounds: what was written of later ones is taken back.

        Raises `ConfigError`, changing nothing, for settings other than the run's own that matter.
        """
        log = read_run(folder)
        settings = replace(settings, resume=False)
        before, now = run_config(log.settings), run_config(settings)
        for key in now.keys() - MAY_CHANGE:
            if now[key] != before[key]:
                raise ConfigError(
                    f"run-config key {key!r} is {now[key]!r}, the run in {folder} has {before[key]!r}: a run "
                    f"is gone on with as it was begun, only {', '.join(sorted(MAY_CHANGE))} may change"
                )
        lines = (folder / ROUNDS).read_bytes().splitlines(keepends=True) if log.rounds else []
        kept = [line for line in lines[: len(log.rounds)] if json.loads(line)["round"] <= done]
        seconds = max((entry.seconds for entry in log.rounds if entry.round <= done), default=0.0)
        (folder / OUTCOME).unlink(missing_ok=True)
        write_atomically(folder / SETTINGS, _json(now))
        write_atomically(folder / ROUNDS, b"".join(kept))
        return RunRecord(folder, settings, seconds)

    def save_adapters(
        self, report: RoundReport, adapters: Mapping[str, Held], terms: Sequence[State]
    ) -> dict[str, Path]:
        """Save the adapters of a round by name, and the terms; returns where the adapters are."""
        paths = {
            name: (self._folder if name == FOR_ALL else group_directory(self._folder, name)) / ADAPTER
            for name in adapters
        }
        for name, held in adapters.items():
            save_adapter(paths[name], on_folded_base(self._file(report, name, held), terms))
        if terms:
            save_terms(self._folder / TERMS, terms)
        return paths

    def finish_round(self, report: RoundReport) -> RoundFigures:
        """Add the round's line: whoever sees it finds its adapters. Returns the figures in it."""
        line = {**asdict(report), "nodes": self._nodes(report), "seconds": self._seconds()}
        with (self._folder / ROUNDS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        return round_figures(line)

    def _nodes(self, report: RoundReport) -> dict[str, Any]:
        """The nodes of a round; of protected ones what the audit log says, and no more."""
        settings = self._settings
        if settings.privacy.kind == NO_PRIVACY and not settings.secure.aggregation:
            return {name: asdict(node) for name, node in report.nodes.items()}
        hidden: dict[str, Any] = {"update_norm": None, "trained": {}, "evaluated": {}}
        return {name: asdict(node) | hidden for name, node in report.nodes.items()}

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _file(self, report: RoundReport, name: str, held: Held) -> AdapterFile:
        settings = self._settings
        info = {"round": str(report.round), "aggregation": settings.aggregation}
        whose = f" ({name})" if name else ""
        step = f"run {self._folder.name}: {report.round} rounds on {', '.join(sorted(report.trained))}{whose}"
        return AdapterFile(held.state, held.layout, settings.base, info, asdict(settings.adapter), (step,))

    def end(self, outcome: Mapping[str, str]) -> None:
        """The run is over."""
        write_atomically(self._folder / OUTCOME, _json(outcome))


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode()
