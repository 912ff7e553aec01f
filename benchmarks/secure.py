"""Secure aggregation: what it costs in bytes, in time and in accuracy.

Bytes: bits per parameter of masked codes by number of nodes and levels, against the codec of fixed width that
holds as many levels (goal: at most 1.3 times), and real Flower messages of a training round with all queries.
Time: CPU of a node and of the server, with and without nodes that vanish, and Flower's own masking on the
same vector. Accuracy: federations by the real programs.

    python -m benchmarks.secure --resume runs/secure.jsonl --json runs/secure.json
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.secure_study import accuracy
from benchmarks.secure_study.report import show_accuracy, show_exchanges, show_packed, show_speed
from benchmarks.secure_study.sizes import LEVELS, NODES, exchange, packed
from benchmarks.secure_study.speed import speed
from fedkron.demo import prepare_demo
from fedkron.errors import FedKronError
from simulations.study.command import tables_console, write
from simulations.study.journal import Journal
from simulations.study.outcome import Outcome
from simulations.study.pool import processes
from simulations.study.progress import run_missing
from simulations.study.workload import Workload

PARAMETERS, QUICK_PARAMETERS = (41_000, 5_700_000), (4_100, 41_000)
SPEED_NODES, GONE = 10, (0, 2)
SPEED_LEVELS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 when a federation failed."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = [packed(nodes, levels) for levels in LEVELS for nodes in NODES]
    show_packed(rows, console)
    counts = QUICK_PARAMETERS if options.quick else PARAMETERS
    nodes = NODES[:2] if options.quick else NODES
    exchanges = [
        exchange(count, counts[0], codec=codec, levels=levels)
        for count in nodes
        for codec, levels in (("int8", 0), ("int4", 0), ("ecsq", 0), *(("ecsq", n) for n in LEVELS))
    ]
    show_exchanges(exchanges, console)
    speeds = [speed(count, SPEED_NODES, gone, SPEED_LEVELS) for count in counts for gone in GONE]
    show_speed(speeds, console)
    try:
        outcomes = _federations(options)
    except FedKronError as error:
        print(f"secure: {error}", file=sys.stderr)
        return 1
    show_accuracy(
        outcomes, (accuracy.QUICK_WORKLOAD if options.quick else accuracy.WORKLOAD).clients, console
    )
    if options.json:
        report = {
            "packed": [asdict(row) for row in rows],
            "exchanges": [asdict(row) for row in exchanges],
            "speed": [asdict(row) for row in speeds],
            "accuracy": {way.name: [asdict(o) for o in found] for way, found in outcomes.items()},
        }
        write(json.dumps(report, indent=1), options.json)
    return 0


def _federations(options: argparse.Namespace) -> dict[accuracy.Way, list[Outcome]]:
    quick = options.quick
    ways = accuracy.ways(
        accuracy.QUICK_PLAIN if quick else accuracy.PLAIN, accuracy.QUICK_MASKED if quick else accuracy.MASKED
    )
    load = _workload(options)
    jobs = {way: [accuracy.Job(way, load, seed) for seed in range(options.seeds)] for way in ways}
    journal: Journal[accuracy.Job, Outcome] = Journal(Outcome, options.resume)
    prepare_demo()
    with processes(1) as executor:
        run_missing(
            "accuracy",
            [job for same_seed in zip(*jobs.values(), strict=True) for job in same_seed],
            journal,
            work=accuracy.outcome_of,
            describe=accuracy.describe,
            executor=executor,
            console=Console(stderr=True),
        )
    return {way: [journal.outcome(job) for job in own] for way, own in jobs.items()}


def _workload(options: argparse.Namespace) -> Workload:
    return accuracy.QUICK_WORKLOAD if options.quick else accuracy.WORKLOAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.secure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="small vectors, two short federations")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="repeat none that is in this file")
    parser.add_argument("--seeds", type=int, default=1, help="federations of each kind (default 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
