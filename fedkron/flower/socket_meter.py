"""A TCP relay that counts the bytes that really cross the socket, each connection and direction by itself.

It stands between a SuperNode and the SuperLink and never looks inside: TLS passes as it is.

    async with SocketMeter(Address("127.0.0.1", 0), Address("127.0.0.1", 8000)) as meter:
        ...  # connect to meter.address instead of the target
    meter.crossings
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedkron.errors import ConfigError, RunError
from fedkron.socketlog import Crossing, SocketLog

CHUNK = 1 << 16
"""Bytes read at once; about as many are buffered while the other side is slow."""

LOG_SECONDS = 1.0
"""A connection gets at most one line in the log in this time, and one when it ends."""


class Address(NamedTuple):
    """Where a TCP socket listens."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Address:
        """Read `HOST:PORT` or `[IPV6]:PORT`. Raises `ConfigError` for anything else."""
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ConfigError(f"{text!r} is not an address: write HOST:PORT or [IPV6]:PORT, port 0 to 65535")
        return Address(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass
class _Connection:
    """One connection: what has passed so far, and what of it stands in the log (up to the time `since`)."""

    number: int
    opened: float
    since: float
    up: int = 0
    down: int = 0
    logged: tuple[int, int] = (0, 0)

    def count_up(self, size: int) -> None:
        self.up += size

    def count_down(self, size: int) -> None:
        self.down += size


class SocketMeter:
    """Relays every connection to `listen` (port 0: any free one) on to `to`; an async context manager.

    A byte counts when it has been received from its sender: `up` from whoever connects, `down` from the
    target. A slow receiver slows its sender down, the end of one direction is passed on as such, and a broken
    connection breaks the other half too. With `path` a socket log is written while the bytes flow. `warn`
    is told when the target cannot be reached; that connection is closed, and the meter goes on.

    Raises `RunError` on entry when nothing listens at `to`, the port is taken or the file cannot be written.
    """

    def __init__(
        self,
        listen: Address,
        to: Address,
        *,
        path: Path | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.address = listen
        self._to = to
        self._path = path
        self._warn = warn
        self._log: SocketLog | None = None
        self._connections: list[_Connection] = []
        self._relays: dict[asyncio.Task[None], _Connection] = {}

    @property
    def connections(self) -> list[Crossing]:
        """What has passed so far, one entry a connection, in the order in which they came."""
        now = time.time()
        open_ = {connection.number for connection in self._relays.values()}
        return [
            Crossing(c.number, c.opened, now if c.number in open_ else c.since, c.up, c.down)
            for c in self._connections
        ]

    async def __aenter__(self) -> SocketMeter:
        await self._try_target()
        try:
            self._server = await asyncio.start_server(self._accept, *self.address)
        except OSError as error:
            raise RunError(f"cannot listen on {self.address}: {_reason(error)}") from None
        self.address = Address(*self._server.sockets[0].getsockname()[:2])
        try:
            if self._path is not None:
                self._log = SocketLog(self._path, listen=str(self.address), to=str(self._to))
        except RunError:
            self._server.close()
            raise
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        ending = [self._ticker, *self._relays]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._log is not None:
            self._log.close()

    async def _try_target(self) -> None:
        try:
            _, writer = await asyncio.open_connection(*self._to)
        except OSError as error:
            raise RunError(
                f"cannot reach {self._to}: {_reason(error)}; start what listens there first, or correct the "
                "address"
            ) from None
        writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine: the task that asyncio makes of one complains when it is cancelled (Python 3.11).
        now = time.time()
        connection = _Connection(len(self._connections) + 1, now, now)
        self._connections.append(connection)
        self._relays[asyncio.create_task(self._serve(reader, writer, connection))] = connection

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        try:
            await self._relay(reader, writer, connection)
        finally:
            writer.transport.abort()
            task = asyncio.current_task()
            assert task is not None
            del self._relays[task]
            self._enter(connection)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection(*self._to)
        except OSError as error:
            self._warn(f"cannot reach {self._to}: {_reason(error)}")
            return
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, target_writer, connection.count_up))
                pumps.create_task(_pump(target_reader, writer, connection.count_down))
            for side in (writer, target_writer):
                side.close()
                await side.wait_closed()
        except* OSError:
            pass  # one side broke off; `abort` tells the other
        finally:
            target_writer.transport.abort()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(LOG_SECONDS)
            for connection in self._relays.values():
                if (connection.up, connection.down) != connection.logged:
                    self._enter(connection)

    def _enter(self, connection: _Connection) -> None:
        start, connection.since = connection.since, time.time()
        up, down = connection.up - connection.logged[0], connection.down - connection.logged[1]
        connection.logged = (connection.up, connection.down)
        if self._log is not None:
            self._log.record(Crossing(connection.number, start, connection.since, up, down))


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
) -> None:
    while data := await reader.read(CHUNK):
        count(len(data))
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _reason(error: OSError) -> str:
    # asyncio's own text repeats the address in its way; a failed look-up has an errno of its own.
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
