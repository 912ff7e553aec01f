"""The ledger: what a run cost in bytes, per round, client and direction.

Two figures stand side by side for each message: the payload (our bytes), and the serialized Flower
message around it. Next to them the baseline: what the same message would carry today for a Flower user
who sends LoRA-8 factors of the same layers in float32 (raw tensor bytes, envelope not counted).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TextIO

from fedkron.errors import RunError

BASELINE_RANK = 8
LEDGER_VERSION = 1

Direction = Literal["down", "up"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message between the server and a node. All sizes in bytes; `down` is server to node."""

    round: int
    node: str
    phase: str
    direction: Direction
    payload_bytes: int
    message_bytes: int
    baseline_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over some transfers, in bytes."""

    payload_down: int = 0
    payload_up: int = 0
    message_down: int = 0
    message_up: int = 0
    baseline: int = 0

    @property
    def messages(self) -> int:
        """Serialized bytes both ways."""
        return self.message_down + self.message_up

    @property
    def factor(self) -> float:
        """How many times smaller than the baseline, whole Flower messages against raw LoRA-8 tensors."""
        return self.baseline / self.messages if self.messages else float("nan")


class Ledger:
    """Collects transfers in memory and, when given a path, appends each to a JSON-lines file at once."""

    def __init__(self, path: Path | None = None) -> None:
        self.transfers: list[Transfer] = []
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
            self._write({"format": "fedkron-ledger", "version": LEDGER_VERSION})

    def record(self, transfer: Transfer) -> None:
        """Add one transfer."""
        self.transfers.append(transfer)
        self._write(asdict(transfer))

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def read_ledger(path: Path) -> list[Transfer]:
    """Read a ledger file; an unfinished last line (a run still being written) is left out.

    Raises `RunError` when the file is missing, of another format or version, or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"no ledger at {path}: {error.strerror}") from None
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    try:
        header, *rows = [json.loads(line) for line in lines]
        if header.get("format") != "fedkron-ledger":
            raise RunError(f"{path} is not a ledger")
        if header["version"] != LEDGER_VERSION:
            raise RunError(f"{path} has ledger version {header['version']}, known here is {LEDGER_VERSION}")
        names = {item.name for item in fields(Transfer)}
        if any(row.keys() != names for row in rows):
            raise RunError(f"{path} is damaged: a line does not have the fields {', '.join(sorted(names))}")
        return [Transfer(**row) for row in rows]
    except (ValueError, AttributeError, KeyError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} is damaged: {error}") from error


def totals(transfers: Iterable[Transfer]) -> Totals:
    """Sum up transfers."""
    payload = {"down": 0, "up": 0}
    message = {"down": 0, "up": 0}
    baseline = 0
    for transfer in transfers:
        payload[transfer.direction] += transfer.payload_bytes
        message[transfer.direction] += transfer.message_bytes
        baseline += transfer.baseline_bytes
    return Totals(payload["down"], payload["up"], message["down"], message["up"], baseline)


def totals_by_round(transfers: Iterable[Transfer]) -> dict[int, Totals]:
    """Sums per round, in the order of rounds."""
    by_round: dict[int, list[Transfer]] = {}
    for transfer in transfers:
        by_round.setdefault(transfer.round, []).append(transfer)
    return {number: totals(by_round[number]) for number in sorted(by_round)}
