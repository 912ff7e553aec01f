"""The socket log: bytes that crossed a socket, as a relay between a SuperNode and the SuperLink saw them.

The ledger says what the messages weigh, this file what the network carried for them: the same bytes, and
around them HTTP, TLS, polling, heartbeats and the app's own download.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from fedkron.errors import RunError

FORMAT, SOCKET_LOG_VERSION = "fedkron-sockets", 1


@dataclass(frozen=True, slots=True)
class Crossing:
    """Bytes of one connection between two moments: `up` towards the target, `down` from it.

    `connection` counts from 1, `start` and `end` are seconds since the Unix epoch.
    """

    connection: int
    start: float
    end: float
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class SocketTotals:
    """Sums over some crossings: bytes per direction, and how many connections they belong to."""

    up: int
    down: int
    connections: int


def socket_totals(crossings: Iterable[Crossing]) -> SocketTotals:
    """Sum up crossings."""
    known = list(crossings)
    return SocketTotals(
        sum(crossing.up for crossing in known),
        sum(crossing.down for crossing in known),
        len({crossing.connection for crossing in known}),
    )


class SocketLog:
    """Appends crossings to a JSON-lines file, each at once; an existing file is overwritten.

    Raises `RunError` when the file cannot be written.
    """

    def __init__(self, path: Path, *, listen: str, to: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write the socket log {path}: {error.strerror}") from None
        self._write({"format": FORMAT, "version": SOCKET_LOG_VERSION, "listen": listen, "to": to})

    def record(self, crossing: Crossing) -> None:
        """Append one line."""
        self._write(asdict(crossing))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def is_socket_log(path: Path) -> bool:
    """Whether the first line of a file names this format; the file may be damaged all the same."""
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.readline(1000)


def read_socket_log(path: Path) -> list[Crossing]:
    """Read a socket log; an unfinished last line (a relay still running) is left out.

    Raises `RunError` when the file is missing, of another format or version, or damaged.
    """
    try:
        *lines, _unfinished = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"no socket log at {path}: {error.strerror}") from None
    try:
        header, *rows = [json.loads(line) for line in lines]
        if header.get("format") != FORMAT:
            raise RunError(f"{path} is not a socket log: its format is {header.get('format')!r}")
        if header["version"] != SOCKET_LOG_VERSION:
            raise RunError(
                f"{path} has socket log version {header['version']}, known here is {SOCKET_LOG_VERSION}"
            )
        return [_crossing(row) for row in rows]
    except RunError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise RunError(f"{path} is damaged, or not a socket log: {error}") from error


def _crossing(row: dict[str, Any]) -> Crossing:
    crossing = Crossing(**row)
    counts = (crossing.connection, crossing.up, crossing.down)
    times = (crossing.start, crossing.end)
    if not all(type(count) is int and count >= 0 for count in counts) or not all(
        type(time) in (int, float) and math.isfinite(time) for time in times
    ):
        raise ValueError(f"{row} is not a crossing")
    return crossing
