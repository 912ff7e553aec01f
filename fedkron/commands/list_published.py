"""`fedkron list`: what a store of adapters has."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # `cryptography` is part of an extra
    from fedkron.registry.listing import Listed


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "list",
        help="the adapters in a store",
        description="The adapters in a store, the latest release of each. Signatures are checked, files "
        "are not: fedkron verify does.",
    )
    parser.add_argument("store", help="a folder, or a URL")
    parser.add_argument("--task", default="", help="only adapters for this task")
    parser.add_argument(
        "--base", default="", help="only for this base: a part of its name, or how its fingerprint begins"
    )
    parser.add_argument("--contract", default="", help="only with a contract that begins like this")
    parser.add_argument("--all", action="store_true", help="all releases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=list_published)


def list_published(options: argparse.Namespace) -> int:
    """Print a table, and what could not be read."""
    from fedkron.registry.listing import Filter, listed
    from fedkron.registry.storage import open_storage

    wanted = Filter(options.task, options.base, options.contract)
    found = list(listed(open_storage(options.store), wanted, all_releases=options.all))
    damaged = [item for item in found if item.signed is None]
    if options.json:
        content = {
            "adapters": [_facts(item) for item in found if item.signed is not None],
            "damaged": [{"adapter": f"{i.name}@{i.release}", "problem": i.problem} for i in damaged],
        }
        print(json.dumps(content, indent=1))
        return 0
    Console().print(_table([item for item in found if item.signed is not None]))
    for item in damaged:
        print(f"Left out: {item.name}@{item.release}: {item.problem}", file=sys.stderr)
    return 0


def _facts(item: Listed) -> dict[str, Any]:
    assert item.signed is not None
    published = json.loads(item.signed.content)
    return {**published, "release_name": str(item.release), "sha256": item.signed.digest}


def _table(items: list[Listed]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("adapter", "base", "tasks", "accuracy", "bytes", "licence", "created", "key"):
        justify: Literal["left", "right"] = "right" if heading in ("accuracy", "bytes") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading == "adapter")
    for item in items:
        assert item.signed is not None
        p = item.signed.publication
        accuracies = [metric.value for metric in p.metrics if metric.name == "accuracy"]
        mean = f"{sum(accuracies) / len(accuracies):.3f}" if accuracies else ""
        row = (f"{p.name}@{item.release}", p.base.name, ", ".join(p.tasks), mean, f"{p.size:,}")
        # Names come from publishers, and must not be taken for markup.
        table.add_row(*map(escape, (*row, p.license, p.created[:10], f"{p.public_key[:12]}…")))
    return table
