"""`fedkron report`: what a run brought and what it cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from fedkron.report import figures, show
from fedkron.runlog import read_run


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="accuracy and bytes per round of a run",
        description="Print accuracy and bytes per round of a run, finished or not.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    parser.set_defaults(command=report)


def report(options: argparse.Namespace) -> int:
    """Print the report of a run folder."""
    log = read_run(options.run)
    if options.json:
        print(json.dumps(figures(log), indent=1))
    else:
        show(log, Console())
    return 0
