"""`fedkron report`: what runs brought and what they cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedkron.comparison import comparison_figures, show_comparison
from fedkron.errors import ConfigError, RunError
from fedkron.ledger import read_ledger
from fedkron.report import figures, show
from fedkron.report_ledger import ledger_figures, show_ledger, show_sockets, socket_figures
from fedkron.rundir import REPORT_PAGE
from fedkron.runlog import RunLog, read_run
from fedkron.socketlog import read_socket_log

COMPARISON_PAGE = "comparison.html"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="accuracy and bytes of runs, as tables and as a page with charts",
        description="Print accuracy and bytes per round of a run, finished or not, and write a page with "
        f"charts that needs no network: {REPORT_PAGE} in the run folder. Several runs stand side by side, in "
        f"{COMPARISON_PAGE} beside the first run's folder. Of a ledger file: the bytes per round, node and "
        "section, and no page.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="run folders, or one ledger file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there instead")
    parser.add_argument(
        "--sockets",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="socket logs of fedkron meter, one for each SuperNode: what the network carried for it all",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the figures as JSON instead of tables; a page is written only with --html",
    )
    parser.set_defaults(command=report)


def report(options: argparse.Namespace) -> int:
    """Report on run folders, or print what is in a ledger file."""
    if any(path.is_file() for path in options.run):
        return _ledger(options)
    logs = [read_run(folder) for folder in options.run]
    sockets = {path: read_socket_log(path) for path in options.sockets}
    if sockets and len(logs) > 1:
        raise ConfigError(f"--sockets are those of one run, and {len(logs)} runs are given")
    if options.html is not None:
        _write_page(logs, options.html)
    if options.json:
        extra = {"sockets": socket_figures(logs[0].transfers, sockets)} if sockets else {}
        print(json.dumps({**_figures(logs), **extra}, indent=1))
        return 0
    console = Console()
    show_comparison(logs, console) if len(logs) > 1 else show(logs[0], console)
    if sockets:
        show_sockets(logs[0].transfers, sockets, console)
    if options.html is None:
        write_usual_page(logs)
    else:
        print(f"Page: {options.html}")
    return 0


def write_usual_page(logs: Sequence[RunLog]) -> None:
    """Write the page to its usual place and say where, or why there is none: figures have been printed."""
    first = logs[0].folder
    path = first / REPORT_PAGE if len(logs) == 1 else first.resolve().parent / COMPARISON_PAGE
    try:
        _write_page(logs, path)
        print(f"Page: {path}")
    except ImportError as error:
        print(f"No page: {error.name} is missing; pip install 'fedkron[report]'", file=sys.stderr)
    except RunError as error:
        print(f"No page: {error}", file=sys.stderr)


def _write_page(logs: Sequence[RunLog], path: Path) -> None:
    from fedkron.html_report import write_page  # plotly and jinja2 are an extra

    write_page(logs, path)


def _figures(logs: Sequence[RunLog]) -> dict[str, Any]:
    if len(logs) == 1:
        return figures(logs[0])
    return {"runs": [figures(log) for log in logs], **comparison_figures(logs)}


def _ledger(options: argparse.Namespace) -> int:
    if len(options.run) > 1 or options.html is not None:
        raise ConfigError("a ledger file is reported by itself and has no page: give run folders")
    (path,) = options.run
    transfers = read_ledger(path)
    sockets = {path: read_socket_log(path) for path in options.sockets}
    if options.json:
        extra = {"sockets": socket_figures(transfers, sockets)} if sockets else {}
        print(json.dumps({**ledger_figures(path, transfers), **extra}, indent=1))
        return 0
    console = Console()
    show_ledger(transfers, console)
    if sockets:
        show_sockets(transfers, sockets, console)
    return 0
