"""`fedkron report`: what a run brought and what it cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from fedkron.ledger import read_ledger
from fedkron.report import figures, show
from fedkron.report_ledger import ledger_figures, show_ledger, show_sockets, socket_figures
from fedkron.runlog import read_run
from fedkron.socketlog import read_socket_log


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="accuracy and bytes per round of a run",
        description="Print accuracy and bytes per round of a run, finished or not; of a ledger file, the "
        "bytes per round, node and section.",
    )
    parser.add_argument("run", type=Path, help="run folder, or a ledger file")
    parser.add_argument(
        "--sockets",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="socket logs of fedkron meter, one for each SuperNode: what the network carried for it all",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    parser.set_defaults(command=report)


def report(options: argparse.Namespace) -> int:
    """Print the report of a run folder or a ledger file."""
    sockets = {path: read_socket_log(path) for path in options.sockets}
    log = None if options.run.is_file() else read_run(options.run)
    transfers = read_ledger(options.run) if log is None else log.transfers
    if options.json:
        found = ledger_figures(options.run, transfers) if log is None else figures(log)
        extra = {"sockets": socket_figures(transfers, sockets)} if sockets else {}
        print(json.dumps({**found, **extra}, indent=1))
        return 0
    console = Console()
    if log is None:
        show_ledger(transfers, console)
    else:
        show(log, console)
    if sockets:
        show_sockets(transfers, sockets, console)
    return 0
