"""What the programs of all studies understand on their command lines, and where they write."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

WIDE = 120
"""Columns of the tables in a file or pipe."""


def study_parser(
    prog: str, description: str, *, quick: str, seeds: int, rounds: int
) -> argparse.ArgumentParser:
    """A parser of the options that all studies have; `quick` says what --quick runs."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="draw accuracy (.svg, .png)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="append each finished run; repeat none that is there",
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--workers", type=positive, default=2, help="processes (default 2), one core each")
    parser.add_argument("--seeds", type=positive, help=f"runs of each kind (default {seeds})")
    parser.add_argument("--rounds", type=positive, help=f"rounds per run (default {rounds})")
    return parser


def tables_console(json: str | None) -> Console:
    """Where tables go: standard output belongs to the machine when JSON is asked for there."""
    return Console(stderr=json == "-", width=None if sys.stdout.isatty() else WIDE)


def write(text: str, target: str) -> None:
    """Write to a file, or to standard output (-)."""
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must end with .svg or .png")
    return Path(text)


def positive(text: str) -> int:
    """A number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}, it must be at least 1")
    return number
