"""Following a run while it goes on: each look reads only what has been written since the last one.

With 1000 nodes a round is 4000 lines of the ledger; to read them all again twice a second would take longer
than the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkron.errors import RunError
from fedkron.ledger import Totals
from fedkron.rundir import AUDIT, LEDGER, ROUNDS
from fedkron.runlog import RoundFigures, read_outcome, read_rounds

UP, DOWN, BASELINE = range(3)
"""What is summed up for each round: serialized messages either way, and what LoRA-8 would take."""


@dataclass(frozen=True)
class Phase:
    """What goes on in a round: how many nodes were asked (`train`, `evaluate`, …), and how many replied."""

    round: int
    name: str
    asked: int
    replied: int


@dataclass(frozen=True)
class Standing:
    """A run as it stands. `phase` is None until a message has been sent since the following began; `refused`
    is what was not admitted since then, a sentence each. `bytes_by_round` counts serialized messages only.
    """

    rounds: tuple[RoundFigures, ...] = ()
    phase: Phase | None = None
    bytes_by_round: Mapping[int, Totals] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    outcome: str | None = None

    @property
    def bytes(self) -> Totals:
        """What has been sent so far."""
        parts = self.bytes_by_round.values()
        return Totals(
            message_down=sum(part.message_down for part in parts),
            message_up=sum(part.message_up for part in parts),
            baseline=sum(part.baseline for part in parts),
        )


class Follower:
    """Looks at a run folder again and again, which need not be there yet. What is in it at first is what the
    run, if it is gone on with, had written before.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ledger = _Tail(folder / LEDGER)
        self._audit = _Tail(folder / AUDIT)
        self._phase: tuple[int, str] | None = None
        self._asked: set[str] = set()
        self._replied: set[str] = set()
        self._bytes: dict[int, list[int]] = {}
        self._refused: list[str] = []
        self._rounds: tuple[RoundFigures, ...] = ()
        self._rounds_state: tuple[int, ...] | None = None
        self.look()
        self._phase = None
        self._refused = []

    def look(self) -> Standing:
        """The run as it stands now. Raises `RunError` when a file of it is damaged."""
        # In this order: whoever sees that a run has ended sees its last round, too.
        try:
            outcome = read_outcome(self._folder)
            self._read_rounds()
            for line in self._ledger.new_lines():
                self._enter(json.loads(line))
            for line in self._audit.new_lines():
                if b'"refused"' in line:  # the rest are many, and long
                    self._enter_refusal(json.loads(line))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"run folder {self._folder} is damaged: {error!r}") from error
        return Standing(
            self._rounds,
            self._phase and Phase(*self._phase, len(self._asked), len(self._replied)),
            {
                round_: Totals(message_up=sums[UP], message_down=sums[DOWN], baseline=sums[BASELINE])
                for round_, sums in self._bytes.items()
            },
            tuple(self._refused),
            outcome.get("status"),
        )

    def _read_rounds(self) -> None:
        # Not only appended to: a run that is gone on with takes back what followed its last whole round.
        path = self._folder / ROUNDS
        if path.exists():
            found = path.stat()
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
            if state != self._rounds_state:
                self._rounds, self._rounds_state = read_rounds(self._folder), state

    def _enter(self, row: dict[str, Any]) -> None:
        if "format" in row:
            return
        round_, node, up = row["round"], row["node"], row["direction"] == "up"
        sums = self._bytes.setdefault(round_, [0, 0, 0])
        sums[UP if up else DOWN] += row["message_bytes"]
        sums[BASELINE] += row["baseline_bytes"]
        phase = (round_, row["phase"])
        if phase != self._phase:
            self._phase, self._asked, self._replied = phase, set(), set()
        (self._replied if up else self._asked).add(node)

    def _enter_refusal(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "refused":
            fields = entry["fields"]
            self._refused.append(f"round {fields['round']}: {fields['reason']}")


class _Tail:
    """The whole lines that a file which is only appended to has grown by."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def new_lines(self) -> Iterator[bytes]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):  # still on its way
                    return
                self._position += len(line)
                yield line
