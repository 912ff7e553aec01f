"""What a federation does when things break: faults on purpose, what should come of them, and what does.

A real deployment on this machine (SuperLink, SuperExec, two SuperNodes, TLS, node keys) trains a tiny base.
Each fault strikes when something is seen to happen. The adapter is compared, bit for bit, with that of one
process in which nothing breaks and the nodes fare the same. Then many rounds inside one process, with random
dropouts.

    python -m simulations.chaos --json runs/chaos.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from flwr.common.logger import FLOWER_LOGGER
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from fedkron.commands.interruption import interruptible
from fedkron.errors import FedKronError
from simulations.chaos_study.dropouts import random_dropouts
from simulations.chaos_study.full_disk import NAME as DISK_FULL
from simulations.chaos_study.full_disk import full_disk
from simulations.chaos_study.scenarios import SCENARIOS, SUPERLINK_KILLED, perform
from simulations.chaos_study.tiny import write_tiny
from simulations.chaos_study.verdict import Verdict
from simulations.study.command import tables_console, write

CODECS = ("fp32", "ecsq")
ROUNDS, QUICK_ROUNDS = 50, 6
DROPOUTS = "dropouts"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""More processes than cores share the machine, and nobody waits longer than needed."""

NAMES = (*(scenario.name for scenario in SCENARIOS), DISK_FULL, DROPOUTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a scenario did not end as expected."""
    options = _parser().parse_args(arguments)
    console = tables_console(options.json)
    os.environ |= ENVIRONMENT
    FLOWER_LOGGER.setLevel(logging.ERROR)
    disable_progress_bar()
    verdicts = []
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="fedkron-chaos-") as place:
            output = options.output_dir.absolute() if options.output_dir else Path(place) / "runs"
            (Path(place) / "tiny").mkdir()
            write_tiny(Path(place) / "tiny")
            for verdict in _verdicts(options, Path(place) / "tiny", output):
                verdicts.append(verdict)
                end = "as expected" if verdict.passed else "WRONG"
                _say(f"{verdict.name}: {end}, {verdict.seconds:.0f} s")
    except FedKronError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
        return 130
    _show(verdicts, console)
    if options.json:
        write(json.dumps([{**asdict(v), "passed": v.passed} for v in verdicts], indent=1), options.json)
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _verdicts(options: argparse.Namespace, tiny: Path, output: Path) -> Iterator[Verdict]:
    if options.quick:
        yield perform(replace(SUPERLINK_KILLED, rounds=1, struck=1), tiny, output)
    else:
        for scenario in SCENARIOS:
            if scenario.name in options.only:
                yield perform(scenario, tiny, output)
        if DISK_FULL in options.only:
            verdict = full_disk(tiny, output / "small-disk")
            if verdict is None:
                _say(f"{DISK_FULL}: not tried, this machine allows no mount namespace")
            else:
                yield verdict
    if DROPOUTS in options.only:
        for codec in CODECS:
            rounds = QUICK_ROUNDS if options.quick else ROUNDS
            yield random_dropouts(tiny, output, rounds=rounds, codec=codec)


def _show(verdicts: Sequence[Verdict], console: Console) -> None:
    table = Table(title="Faults", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("scenario", "expected", "observed"):
        table.add_column(heading)
    for heading in ("rounds lost", "failures", "corrupt", "orphans", "s"):
        table.add_column(heading, justify="right")
    table.add_column("as expected")
    for v in verdicts:
        numbers = (v.lost_rounds, v.failures, len(v.corrupt_files), len(v.orphans), round(v.seconds))
        observed = "; ".join((*v.observed, *v.corrupt_files, *v.orphans))
        table.add_row(v.name, v.expected, observed, *map(str, numbers), "yes" if v.passed else "NO")
    console.print(table)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all verdicts as JSON (- for standard output)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="some scenarios")
    parser.add_argument("--output-dir", type=Path, help="keep the run folders here (default: deleted)")
    parser.add_argument(
        "--quick", action="store_true", help=f"one killed SuperLink, {QUICK_ROUNDS} rounds of dropouts"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
