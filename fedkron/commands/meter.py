"""`fedkron meter`: count the bytes between a SuperNode and the SuperLink."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from fedkron.report import kilobytes
from fedkron.socketlog import Crossing, socket_totals

if TYPE_CHECKING:
    from fedkron.flower.socket_meter import Address

LARGEST = 20
"""So many connections get a line of their own in the table."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "meter",
        help="count the bytes between a SuperNode and the SuperLink",
        description="Relay TCP connections and count their bytes, TLS or not, until Ctrl-C or SIGTERM. "
        "Start one for each SuperNode and give the SuperNode its address as --superlink; with TLS the "
        "SuperLink's certificate has to be valid for the name of that address.",
    )
    parser.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="where the SuperNode connects (port 0: any)"
    )
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="where the SuperLink listens")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="socket log to write, for fedkron report --sockets"
    )
    parser.set_defaults(command=meter)


def meter(options: argparse.Namespace) -> int:
    """Relay until a signal comes, then print what has passed."""
    from fedkron.flower.socket_meter import Address

    listen, to = Address.parse(options.listen), Address.parse(options.to)
    Console().print(connections_table(asyncio.run(_relay(listen, to, options.output))))
    return 0


async def _relay(listen: Address, to: Address, output: Path | None) -> Sequence[Crossing]:
    from fedkron.flower.socket_meter import SocketMeter

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with SocketMeter(listen, to, path=output, warn=_say) as relay:
        _say(f"listening on {relay.address}, relaying to {to}; Ctrl-C ends it")
        await ended.wait()
    return relay.connections


def _say(line: str) -> None:
    print(f"fedkron meter: {line}", file=sys.stderr, flush=True)


def connections_table(connections: Sequence[Crossing]) -> Table:
    """What passed, the largest connections one by one, then the sum."""
    table = Table(title="Bytes that crossed the socket", title_justify="left", box=box.SIMPLE)
    for heading in ("connection", "began", "seconds", "up", "down"):
        table.add_column(heading, justify="right")
    largest = sorted(connections, key=lambda c: c.up + c.down, reverse=True)[:LARGEST]
    for c in sorted(largest, key=lambda c: c.connection):
        began = time.strftime("%H:%M:%S", time.localtime(c.start))
        table.add_row(str(c.connection), began, f"{c.end - c.start:.1f}", kilobytes(c.up), kilobytes(c.down))
    if others := [c for c in connections if c not in largest]:
        rest = socket_totals(others)
        table.add_row(f"{rest.connections} others", "", "", kilobytes(rest.up), kilobytes(rest.down))
    table.add_section()
    total = socket_totals(connections)
    table.add_row(f"all {total.connections}", "", "", kilobytes(total.up), kilobytes(total.down))
    return table
