"""The ledger: what a run cost in bytes, per round, client and direction.

Two figures stand side by side for each message: the payload (our bytes, by section: factors, head, and the
headers around them), and the serialized Flower message around it. Next to them the baseline: what the same
message would carry today for a Flower user who sends LoRA-8 factors of the same layers in float32 (raw tensor
bytes, envelope not counted).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar, get_args

from fedkron.errors import RunError

BASELINE_RANK = 8
FORMAT, LEDGER_VERSION = "fedkron-ledger", 2

Direction = Literal["down", "up"]

K = TypeVar("K", int, str)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message between the server and a node. All sizes in bytes; `down` is server to node.

    `factor_bytes` and `head_bytes` are what the factors and the dense tensors (a shared head) take,
    `header_bytes` all else of ours: payload headers, layout, digests. `message_bytes` is the serialized
    Flower message that carries the three.
    """

    round: int
    node: str
    phase: str
    direction: Direction
    factor_bytes: int
    head_bytes: int
    header_bytes: int
    message_bytes: int
    baseline_bytes: int

    @property
    def payload_bytes(self) -> int:
        """Everything of ours in the message."""
        return self.factor_bytes + self.head_bytes + self.header_bytes


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over some transfers, in bytes."""

    payload_down: int = 0
    payload_up: int = 0
    message_down: int = 0
    message_up: int = 0
    baseline: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.payload_down + other.payload_down,
            self.payload_up + other.payload_up,
            self.message_down + other.message_down,
            self.message_up + other.message_up,
            self.baseline + other.baseline,
        )

    @property
    def messages(self) -> int:
        """Serialized bytes both ways."""
        return self.message_down + self.message_up

    @property
    def factor(self) -> float:
        """How many times smaller than the baseline, whole Flower messages against raw LoRA-8 tensors."""
        return self.baseline / self.messages if self.messages else float("nan")


@dataclass(frozen=True, slots=True)
class Sections:
    """Bytes of serialized Flower messages by what they are for; `envelope` is Flower's own part."""

    factors: int = 0
    head: int = 0
    headers: int = 0
    envelope: int = 0

    def __add__(self, other: Sections) -> Sections:
        return Sections(
            self.factors + other.factors,
            self.head + other.head,
            self.headers + other.headers,
            self.envelope + other.envelope,
        )


class Ledger:
    """Collects transfers in memory and, when given a path, appends each to a JSON-lines file at once.

    A file that is there already is gone on with: what was sent has cost its bytes, whatever came of it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.transfers: list[Transfer] = []
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.transfers += _continued(path)
            self._file = path.open("a", encoding="utf-8")
            if not path.stat().st_size:
                self._write({"format": FORMAT, "version": LEDGER_VERSION})

    def record(self, transfer: Transfer) -> None:
        """Add one transfer."""
        self.transfers.append(transfer)
        self._write(asdict(transfer))

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _continued(path: Path) -> list[Transfer]:
    """What a ledger holds so far; a line that its writer did not get to end is cut off."""
    if not path.exists() or not path.stat().st_size:
        return []
    transfers = read_ledger(path)
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return transfers


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
    return {number: totals(own) for number, own in by_round(transfers).items()}


def by_round(transfers: Iterable[Transfer]) -> dict[int, list[Transfer]]:
    """The transfers of each round, in the order of rounds."""
    return _grouped(transfers, lambda transfer: transfer.round)


def by_node(transfers: Iterable[Transfer]) -> dict[str, list[Transfer]]:
    """The transfers of each node, in the order of node ids."""
    return _grouped(transfers, lambda transfer: transfer.node)


def sections(transfers: Iterable[Transfer]) -> dict[Direction, Sections]:
    """Where the bytes of each direction went."""
    found = {direction: Sections() for direction in get_args(Direction)}
    for t in transfers:
        envelope = t.message_bytes - t.payload_bytes
        found[t.direction] += Sections(t.factor_bytes, t.head_bytes, t.header_bytes, envelope)
    return found


def _grouped(transfers: Iterable[Transfer], key: Callable[[Transfer], K]) -> dict[K, list[Transfer]]:
    groups: dict[K, list[Transfer]] = {}
    for transfer in transfers:
        groups.setdefault(key(transfer), []).append(transfer)
    return dict(sorted(groups.items()))
