"""The events that a log is checked for: which fields they have, and how they follow each other in a run.

Other events may be in a log. They are signed like all, and mean nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedkron.audit.lines import Entry
from fedkron.errors import AuditError

OPENED, RESUMED, SENT, UPLOAD, ADMITTED = "opened", "resumed", "sent", "upload", "admitted"
REFUSED, AGGREGATED, ENDED, REPAIRED = "refused", "aggregated", "ended", "repaired"

Check = Callable[[object], bool]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _text(value: object) -> bool:
    return isinstance(value, str)


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


def _number(value: object) -> bool:
    return type(value) in (int, float)


def _sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _map_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _object(**checks: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(key in value and check(value[key]) for key, check in checks.items())
    )


_FIELDS: Mapping[str, Mapping[str, Check]] = {
    OPENED: {"settings_sha256": _sha256, "fedkron": _text, "public_key": _sha256},
    RESUMED: {"round": _count, "checkpoint_sha256": _sha256},
    SENT: {"round": _count, "phase": _text, "nodes": _list_of(_text), "adapter_sha256": _sha256},
    UPLOAD: {"round": _count, "node": _text, "records": _map_of(_object(sha256=_sha256, bytes=_count))},
    ADMITTED: {
        "round": _count,
        "nodes": _list_of(_object(node=_text, task=_text, partition=_count, weight=_number)),
    },
    REFUSED: {"round": _count, "phase": _text, "node": _text, "reason": _text},
    AGGREGATED: {
        "round": _count,
        "adapter_sha256": _sha256,
        "groups": _map_of(_sha256),
        "nodes": _list_of(_text),
    },
    ENDED: {"status": _text},
    REPAIRED: {"file": _text, "sha256": _sha256, "bytes": _count},
}
"""What each event has at least."""


def check_fields(event: str, fields: Mapping[str, Any]) -> None:
    """Raise `AuditError` when a known event lacks a field, or has one of another type."""
    for name, check in _FIELDS.get(event, {}).items():
        if name not in fields:
            raise AuditError(f"event {event!r} lacks its field {name!r}")
        if not check(fields[name]):
            raise AuditError(f"event {event!r} has a field {name!r} that cannot be: {fields[name]!r:.100}")


@dataclass
class History:
    """What a log says of its run: the `aggregated` entry of each round that counts, in order of rounds.

    Rounds that were given up (the run was resumed from before them) stay in the log and do not count.
    """

    finished: list[Entry] = field(default_factory=list)
    _round: int = 0
    _uploaded: set[str] = field(default_factory=set)
    _admitted: set[str] = field(default_factory=set)
    _last: str = ""

    @staticmethod
    def of(entries: Iterable[Entry], name: str) -> History:
        """Go through a log; raises `AuditError` that names the first line which cannot follow the others."""
        history = History()
        for entry in entries:
            try:
                history._take(entry)
            except AuditError as error:
                raise AuditError(f"{name} line {entry.number}: {error}") from error
        return history

    def _take(self, entry: Entry) -> None:
        check_fields(entry.event, entry.fields)
        if (entry.event == OPENED) != (entry.number == 1):
            raise AuditError(f"a log begins with its one event {OPENED!r}, this is {entry.event!r}")
        if self._last == ENDED and entry.event not in (RESUMED, REPAIRED):
            raise AuditError(f"event {entry.event!r} follows {ENDED!r}")
        follow = {
            RESUMED: self._resume,
            UPLOAD: self._upload,
            ADMITTED: self._admit,
            AGGREGATED: self._aggregate,
        }.get(entry.event)
        if entry.event in (SENT, UPLOAD, ADMITTED, REFUSED, AGGREGATED):
            self._enter(entry.fields["round"])
        if follow is not None:
            follow(entry)
        self._last = entry.event

    def _resume(self, entry: Entry) -> None:
        if (checkpoint := entry.fields["round"]) > len(self.finished):
            raise AuditError(
                f"it resumes from round {checkpoint}, but {len(self.finished)} rounds were finished"
            )
        del self.finished[checkpoint:]
        self._begin(checkpoint)

    def _enter(self, number: int) -> None:
        if number == self._round + 1 and self._round == len(self.finished):
            self._begin(number)
        elif number != self._round:
            raise AuditError(f"it belongs to round {number}, but {self._where()}")

    def _begin(self, number: int) -> None:
        self._round, self._uploaded, self._admitted = number, set(), set()

    def _where(self) -> str:
        state = "finished" if self._round == len(self.finished) else "not finished"
        return f"round {self._round} is {state}"

    def _upload(self, entry: Entry) -> None:
        self._uploaded.add(entry.fields["node"])

    def _admit(self, entry: Entry) -> None:
        for admitted in entry.fields["nodes"]:
            node = admitted["node"]
            if node in self._admitted:
                raise AuditError(f"node {node!r} is admitted twice in round {self._round}")
            # Where the server sees sums only, no uploads are noted.
            if self._uploaded and node not in self._uploaded:
                raise AuditError(f"node {node!r} is admitted in round {self._round} without an upload")
            self._admitted.add(node)

    def _aggregate(self, entry: Entry) -> None:
        if self._round == 0 or self._round == len(self.finished):
            raise AuditError(f"round {self._round} is aggregated, but {self._where()}")
        if strangers := sorted(set(entry.fields["nodes"]) - self._admitted):
            raise AuditError(f"node {strangers[0]!r} is in the aggregate, but was not admitted")
        self.finished.append(entry)
