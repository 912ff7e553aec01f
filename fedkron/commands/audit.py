"""`fedkron audit`: check the signed log of a run, or read it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkron.errors import AuditError, ConfigError

if TYPE_CHECKING:  # `cryptography` is part of an extra
    from fedkron.audit import Entry, Head, Verified


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "audit",
        help="check or read the signed log of a run",
        description="Check or read the signed log of a run: who sent what, and what became of it.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("verify", help="check every line, and the run's files against the log")
    show = actions.add_parser("show", help="check the log as verify does, and print it as a table")
    for action in (check, show):
        action.add_argument("run", type=Path, help="run folder")
        action.add_argument(
            "--key", type=Path, metavar="PUBLIC.pem", help="the server's public key (default: the log's own)"
        )
        action.add_argument("--head", metavar="N:HEX", help="an entry noted earlier: it must be there")
        action.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("--round", type=int, metavar="N", help="only the events of this round")
    check.set_defaults(command=_verify)
    show.set_defaults(command=_show)


def _verify(options: argparse.Namespace) -> int:
    verified = _verified(options)
    if options.json:
        print(json.dumps(_facts(verified), indent=1))
        return 0
    print(f"{options.run}: nothing is wrong with {len(verified.entries)} entries, {verified.rounds} rounds")
    print(f"head        {verified.head}")
    print(f"public key  {verified.public_key}{'' if options.key else '  (the log says so: compare it)'}")
    return 0


def _show(options: argparse.Namespace) -> int:
    verified = _verified(options)
    number = options.round
    entries = [e for e in verified.entries if number is None or e.fields.get("round") == number]
    if not entries:
        raise AuditError(f"{options.run} has no event of round {number}: it has {verified.rounds} rounds")
    if options.json:
        print(json.dumps({**_facts(verified), "log": [asdict(entry) for entry in entries]}, indent=1))
        return 0
    Console().print(event_table(entries))
    print(f"head {verified.head}")
    return 0


def _verified(options: argparse.Namespace) -> Verified:
    from fedkron.audit import read_public_key, verify

    key = read_public_key(options.key) if options.key else None
    return verify(options.run, key, _head(options.head) if options.head else None)


def _head(text: str) -> Head:
    from fedkron.audit import Head

    if not (found := re.fullmatch(r"([1-9]\d{0,17}):([0-9a-f]{64})", text)):
        raise ConfigError(f"--head is {text!r}: give N:HEX as `fedkron audit verify` prints it")
    return Head(int(found[1]), found[2])


def _facts(verified: Verified) -> dict[str, Any]:
    return {
        "entries": verified.head.entries,
        "head": str(verified.head),
        "public_key": verified.public_key,
        "rounds": verified.rounds,
    }


def event_table(entries: Sequence[Entry]) -> Table:
    """Events, a row each, for people; hashes are cut to their first 12 digits."""
    table = Table(box=box.SIMPLE)
    for heading in ("#", "time", "round", "event", "who", "what"):
        justify: Literal["left", "right"] = "right" if heading in ("#", "round") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading in ("time", "event"))
    for entry in entries:
        who, what = _DESCRIPTIONS.get(entry.event, _any)(entry.fields)
        number = str(entry.fields.get("round", ""))
        # Names come from nodes, and must not be taken for markup.
        table.add_row(*map(_plain, (str(entry.number), entry.time, number, entry.event, who, what)))
    return table


def _plain(text: str) -> str:
    return escape("".join(character if character.isprintable() else "�" for character in text))


Fields = Mapping[str, Any]


def _short(digest: str) -> str:
    return digest[:12]


def _upload(fields: Fields) -> tuple[str, str]:
    records = (f"{key} {r['bytes']} bytes {_short(r['sha256'])}" for key, r in fields["records"].items())
    return fields["node"], ", ".join(records)


def _admitted(fields: Fields) -> tuple[str, str]:
    nodes = fields["nodes"]
    whose = (f"{n['task']}-{n['partition']} × {n['weight']:g}" for n in nodes)
    return ", ".join(n["node"] for n in nodes), ", ".join(whose)


def _aggregated(fields: Fields) -> tuple[str, str]:
    groups = (f"{name} {_short(digest)}" for name, digest in fields["groups"].items())
    return ", ".join(fields["nodes"]), ", ".join([f"adapter {_short(fields['adapter_sha256'])}", *groups])


def _any(fields: Fields) -> tuple[str, str]:
    return "", ", ".join(f"{name} {value}" for name, value in fields.items() if name != "round")


_DESCRIPTIONS: Mapping[str, Callable[[Fields], tuple[str, str]]] = {
    "opened": lambda f: ("", f"fedkron {f['fedkron']}, settings {_short(f['settings_sha256'])}"),
    "resumed": lambda f: ("", f"checkpoint {_short(f['checkpoint_sha256'])}"),
    "sent": lambda f: (", ".join(f["nodes"]), f"{f['phase']}, adapter {_short(f['adapter_sha256'])}"),
    "upload": _upload,
    "admitted": _admitted,
    "refused": lambda f: (f["node"], f"{f['phase']}: {f['reason']}"),
    "aggregated": _aggregated,
    "ended": lambda f: ("", ": ".join(str(f[name]) for name in ("status", "error") if f.get(name))),
}
"""Who was concerned and what happened, per event."""
