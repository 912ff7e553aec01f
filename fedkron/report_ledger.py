"""Where the bytes of a run went: by section, round, node and direction, and what the sockets carried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_args

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkron.ledger import Direction, Totals, Transfer, by_node, by_round, sections, totals
from fedkron.socketlog import Crossing, socket_totals

Ledgered = Sequence[Transfer]
SocketLogs = Mapping[Path, Sequence[Crossing]]

K = TypeVar("K", int, str)


def ledger_figures(path: Path, transfers: Ledgered) -> dict[str, Any]:
    """All figures of a ledger, ready for JSON: sections and sums for each round and node, and over all."""
    return {
        "ledger": str(path),
        "rounds": [{"round": round_, **_figures(own)} for round_, own in by_round(transfers).items()],
        "nodes": [{"node": node, **_figures(own)} for node, own in by_node(transfers).items()],
        **_figures(transfers),
    }


def show_ledger(transfers: Ledgered, console: Console) -> None:
    """Print where the bytes went in each round, to and from each node, and over all."""
    if not transfers:
        console.print("No message has been sent.")
        return
    console.print(sections_table("Messages and their bytes per round", "round", by_round(transfers)))
    console.print(sections_table("Messages and their bytes per node", "node", by_node(transfers)))
    console.print(sections_table("Messages and their bytes in all", "", {"all": transfers}))
    cost = totals(transfers)
    if cost.baseline and not math.isnan(cost.factor):
        console.print(
            f"\n{kilobytes(cost.messages)} both ways; the same in float32 (LoRA-8 for adapted layers) would "
            f"be {kilobytes(cost.baseline)}: {cost.factor:.1f}× smaller.",
            highlight=False,
        )


def sections_table(title: str, heading: str, groups: Mapping[K, Ledgered]) -> Table:
    """Two lines a group, down and up: how many messages, and their bytes by section and in all."""
    # No edges: node ids have up to 20 digits, and all of it has to fit into 80 columns.
    table = Table(title=f"\n{title}", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    for column in (heading, "", "sent", "factors", "head", "headers", "envelope", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, transfers in groups.items():
        label = escape(str(name))
        for direction, section in sections(transfers).items():
            count = sum(transfer.direction == direction for transfer in transfers)
            parts = asdict(section).values()
            table.add_row(label, direction, str(count), *map(kilobytes, parts), kilobytes(sum(parts)))
            label = ""
    return table


def section_figures(transfers: Ledgered) -> dict[Direction, dict[str, int]]:
    """Bytes by section, for each direction."""
    return {direction: asdict(section) for direction, section in sections(transfers).items()}


def socket_figures(transfers: Ledgered, logs: SocketLogs) -> dict[str, Any]:
    """What the sockets carried, next to messages and payloads, for each direction; and each log by itself."""
    cost = totals(transfers)
    carried = [{"file": str(path), **asdict(socket_totals(log))} for path, log in logs.items()]
    return {
        "down": _layers(cost.payload_down, cost.message_down, sum(log["down"] for log in carried)),
        "up": _layers(cost.payload_up, cost.message_up, sum(log["up"] for log in carried)),
        "logs": carried,
    }


def show_sockets(transfers: Ledgered, logs: SocketLogs, console: Console) -> None:
    """Print what the sockets carried, next to messages and payloads."""
    found = socket_figures(transfers, logs)
    table = Table(title="From payload to socket", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("", "payload", "messages", "sockets", "around messages"):
        table.add_column(column, justify="right", no_wrap=True)
    for direction in get_args(Direction):
        sizes = found[direction]
        around = sizes["socket"] - sizes["message"]
        share = f" ({around / sizes['message']:+.1%})" if sizes["message"] else ""
        cells = (kilobytes(sizes[layer]) for layer in ("payload", "message", "socket"))
        table.add_row(direction, *cells, f"{kilobytes(around)}{share}")
    table.add_section()
    for log in found["logs"]:
        name = escape(Path(log["file"]).name)
        table.add_row(name, "", "", f"{kilobytes(log['down'])} down, {kilobytes(log['up'])} up", "")
    console.print(table)
    if any(found[direction]["socket"] < found[direction]["message"] for direction in get_args(Direction)):
        console.print(
            "The sockets carried less than the messages weigh: a node had no meter, a log is of another run, "
            "or a message was never fetched.",
            highlight=False,
        )


def kilobytes(count: int) -> str:
    """Bytes for people, three digits, in units of 1000."""
    if abs(count) < 999_500:
        return f"{count / 1000:,.{0 if abs(count) >= 99_950 else 1}f} kB"
    return f"{count / 1_000_000:,.{1 if abs(count) >= 9_995_000 else 2}f} MB"


def byte_figures(cost: Totals) -> dict[str, float | None]:
    """Sums ready for JSON, which has no NaN: the factor is None where nothing was sent."""
    return {**asdict(cost), "factor": None if math.isnan(cost.factor) else cost.factor}


def _figures(transfers: Ledgered) -> dict[str, Any]:
    return {"total_bytes": byte_figures(totals(transfers)), "sections": section_figures(transfers)}


def _layers(payload: int, message: int, socket: int) -> dict[str, int]:
    return {"payload": payload, "message": message, "socket": socket}
