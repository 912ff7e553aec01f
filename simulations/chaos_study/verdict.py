"""What came of a scenario, and what a run folder looks like afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedkron.audit import read_log
from fedkron.errors import FedKronError
from fedkron.exchange import load_adapter, load_head, load_snapshot
from fedkron.flower.durable_state import STATE
from fedkron.ledger import read_ledger
from fedkron.rundir import ADAPTER, AUDIT, CHECKPOINT, HEAD, LEDGER, NODES, OUTCOME, REPORT, SETTINGS
from fedkron.runlog import read_run


@dataclass(frozen=True)
class Verdict:
    """One scenario. `observed` are sentences; `wrong` those that should not have been so."""

    name: str
    expected: str
    observed: tuple[str, ...]
    wrong: tuple[str, ...]
    rounds: int
    lost_rounds: int
    failures: int
    corrupt_files: tuple[str, ...]
    orphans: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether everything was as expected, and nothing is damaged or left over."""
        return not (self.wrong or self.corrupt_files or self.orphans)


class Findings:
    """Collects what was observed, and which of it was wrong."""

    def __init__(self) -> None:
        self.observed: list[str] = []
        self.wrong: list[str] = []

    def note(self, sentence: str) -> None:
        """Something that was observed, whatever was expected."""
        self.observed.append(sentence)

    def check(self, expected: object, sentence: str, otherwise: str) -> None:
        """One of two sentences, by whether something is true."""
        if expected:
            self.note(sentence)
        else:
            self.fail(otherwise)

    def fail(self, sentence: str) -> None:
        """Something that should not have been so."""
        self.observed.append(sentence)
        self.wrong.append(sentence)


def verdict_of(  # in the order of the table
    name: str,
    expected: str,
    folder: Path,
    rounds: int,
    findings: Findings,
    *,
    seconds: float,
    orphans: tuple[str, ...] = (),
) -> Verdict:
    """What was found, and what the run folder says."""
    corrupt = corrupt_files(folder)
    log = None if corrupt else read_run(folder)
    done = 0 if log is None else len(log.rounds)
    failures = 0 if log is None else sum(len(round_.failures) for round_ in log.rounds)
    return Verdict(
        name,
        expected,
        tuple(findings.observed),
        tuple(findings.wrong),
        rounds,
        rounds - done,
        failures,
        corrupt,
        orphans,
        round(seconds, 1),
    )


def corrupt_files(folder: Path) -> tuple[str, ...]:
    """Files of a run folder that cannot be read back, and temporary ones that were left."""
    readers = {SETTINGS: _read_json, OUTCOME: _read_json, REPORT: _read_json, ADAPTER: load_adapter}
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            if path.name == HEAD and NODES in path.parts:
                load_head(path)
            elif path.name == CHECKPOINT or (path.suffix == ".safetensors" and STATE in path.parts):
                load_snapshot(path)
            elif path.name == LEDGER:
                read_ledger(path)
            elif path.name in readers:
                readers[path.name](path)
            elif path.name == AUDIT:
                read_log(path)
            elif path.name.startswith(".") and path.name != f".{AUDIT}.lock":
                raise ValueError("left over")
        except (FedKronError, ValueError, OSError) as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    try:
        if (folder / SETTINGS).exists():
            read_run(folder)
    except FedKronError as error:
        found.append(str(error))
    return tuple(found)


def _read_json(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))
