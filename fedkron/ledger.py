"""The ledger: what a run cost in bytes, per round, client and direction.

Two figures stand side by side for each message: the payload (our bytes), and the serialized Flower
message around it. Next to them the baseline: what the same message would carry today for a Flower user
who sends LoRA-8 factors of the same layers in float32 (raw tensor bytes, envelope not counted).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from fedkron.errors import RunError

BASELINE_RANK = 8
FORMAT, LEDGER_VERSION = "fedkron-ledger", 1

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
            self._write({"format": FORMAT, "version": LEDGER_VERSION})

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
        *lines, _unfinished = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"no ledger at {path}: {error.strerror}") from None
    try:
        header, *rows = [json.loads(line) for line in lines]
        if header.get("format") != FORMAT:
            raise RunError(f"{path} is not a ledger: its format is {header.get('format')!r}, not {FORMAT!r}")
        if header["version"] != LEDGER_VERSION:
            raise RunError(f"{path} has ledger version {header['version']}, known here is {LEDGER_VERSION}")
        return [_transfer(row) for row in rows]
    except RunError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise RunError(f"{path} is damaged, or not a ledger: {error}") from error


def _transfer(row: dict[str, Any]) -> Transfer:
    transfer = Transfer(**row)
    numbers = [value for name, value in row.items() if name not in ("node", "phase", "direction")]
    texts = (transfer.node, transfer.phase)
    if (
        transfer.direction not in get_args(Direction)
        or not all(type(number) is int and number >= 0 for number in numbers)
        or not all(type(text) is str for text in texts)
    ):
        raise ValueError(f"{row} is not a transfer")
    return transfer


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
