"""Finished jobs in a JSON-lines file: a study that was interrupted goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fedkron.errors import RunError
from simulations.study.outcome import Outcome

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

JobT = TypeVar("JobT", bound="DataclassInstance")
OutcomeT = TypeVar("OutcomeT", bound=Outcome)

LINE_START = b'{"job": '


class Journal(Generic[JobT, OutcomeT]):
    """Outcomes of one type by job, `{"job": …, "outcome": …}` a line; without a path, in memory only.

    A job is a dataclass. A last line that was cut off is removed: its job runs again. Raises `RunError` for
    a file that is not a journal.
    """

    def __init__(self, outcome: type[OutcomeT], path: Path | None = None) -> None:
        self._outcome = outcome
        self._path = path
        self._outcomes: dict[str, OutcomeT] = {}
        if path is not None and path.exists():
            self._read(path)

    def __contains__(self, job: JobT) -> bool:
        """Whether a job with exactly these settings has finished."""
        return _key(asdict(job)) in self._outcomes

    def outcome(self, job: JobT) -> OutcomeT:
        """What came of a job that is in the journal."""
        return self._outcomes[_key(asdict(job))]

    def add(self, job: JobT, outcome: OutcomeT) -> None:
        """Write down a finished job at once."""
        self._outcomes[_key(asdict(job))] = outcome
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"job": asdict(job), "outcome": asdict(outcome)}) + "\n")

    def _read(self, path: Path) -> None:
        *lines, cut_off = path.read_bytes().split(b"\n")
        try:
            for line in lines:
                entry = json.loads(line)
                self._outcomes[_key(entry["job"])] = self._outcome(**_tuples(entry["outcome"]))
            if not cut_off.startswith(LINE_START[: len(cut_off)]):
                raise ValueError(f"its last line starts with {cut_off[:20]!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} is not a journal of this study ({error!r}): name another file") from error
        if cut_off:
            path.write_bytes(b"".join(line + b"\n" for line in lines))


def _key(job: dict[str, object]) -> str:
    return json.dumps(job, sort_keys=True)


def _tuples(value: object) -> object:
    """JSON has lists where an `Outcome` has tuples."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
