"""Simulations of 10, 100 and 1000 nodes: what they cost beyond the training that they do.

Each workload is a real `fedkron run` on the demo's tasks and base, watched from outside: time on the clock,
CPU and memory of all its processes, loads of the base, files. Beside it stands the bare training, the same
calls in a loop in as many processes with as many threads, and a plain Flower app that does the same training
with LoRA-8 in float32: its overhead is Flower's own. Overhead is (run - bare) / bare.

    python -m benchmarks.simulation_scale --json runs/scale.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from subprocess import CalledProcessError

from rich.console import Console

from benchmarks.scale_study.measure import Measured, measure
from benchmarks.scale_study.report import show
from benchmarks.scale_study.workload import QUICK_WORKLOADS, WORKLOADS, Workload
from fedkron.demo import prepare_demo
from simulations.study.command import tables_console, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 when a run failed."""
    options = _parser().parse_args(arguments)
    prepare_demo()
    workloads = [load for load in _workloads(options) if not options.nodes or load.nodes in options.nodes]
    found = []
    progress = Console(stderr=True)
    for load in workloads:
        progress.print(f"{load.nodes} nodes, {load.taking_part} in each of {load.rounds} rounds")
        try:
            found.append(measure(load, with_peer=not options.quick and load.nodes in options.peers))
        except CalledProcessError as error:
            print(f"simulation_scale: {error}\n{error.stderr[-3000:]}", file=sys.stderr)
            return 1
    show(found, tables_console(options.json))
    if options.json:
        write(json.dumps([_figures(one) for one in found], indent=1), options.json)
    return 0


def _workloads(options: argparse.Namespace) -> Sequence[Workload]:
    if options.quick:
        return QUICK_WORKLOADS
    return [replace(load, rounds=options.rounds or load.rounds) for load in WORKLOADS]


def _figures(one: Measured) -> dict[str, object]:
    runs = {name: run for name, run in (("ours", one.ours), ("peer", one.peer)) if run is not None}
    overheads = {
        name: {"overhead": run.overhead, "cpu-overhead": run.cpu_overhead} for name, run in runs.items()
    }
    return {**asdict(one), "overheads": overheads, "running-overhead": one.running_overhead}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="six nodes, two rounds, without the plain app")
    parser.add_argument("--nodes", type=int, nargs="+", help="only the workloads with so many nodes")
    parser.add_argument("--rounds", type=int, help="rounds of each run (default: those of the workload)")
    parser.add_argument(
        "--peers",
        type=int,
        nargs="*",
        default=[10, 100, 1000],
        help="numbers of nodes with which the plain Flower app runs, too (default: all)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
