"""Fuzzing of the payload decoder: mutants of right payloads, of every codec, on layouts of 0 bytes to 1 MB.

Each mutant must be refused with an error of ours, or decode to finite numbers of the layout, written in the
only way in which they can be written (see benchmarks/fuzzing). Where the decoder does anything else, the
program shows the mutant and exits with 1. `--seed` and `--count` give the same mutants again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.fuzzing.judging import (
    ACCEPTED,
    MEMORY_BASE,
    MEMORY_FACTOR,
    judge,
    memory_limit,
    traced_memory,
)
from benchmarks.fuzzing.mutations import Mutant, Sealing, mutant_of
from benchmarks.fuzzing.victims import LARGE, SMALL, Victim, victims

DEFAULT_COUNT, QUICK_COUNT = 200_000, 30_000
ONE_LARGE_IN = 100
HANGS_AFTER = 60  # seconds for one mutant


@dataclass
class Tally:
    """What became of the mutants of one codec's payloads."""

    codec: str
    mutants: int = 0
    accepted: int = 0
    slowest_seconds: float = 0.0
    most_allocated: int = 0
    nearest_to_limit: float = 0.0
    """Largest share of the memory that decoding is allowed to take."""


@dataclass
class Result:
    """All that was seen."""

    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    outcomes: dict[Sealing, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[dict[str, str]] = field(default_factory=list)
    resident_growth: int = 0
    """How much the most memory that the process ever had grew while decoding, in bytes."""


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_COUNT:,} mutants")
    parser.add_argument("--count", type=int, help=f"number of mutants (default: {DEFAULT_COUNT:,})")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = options.count or (QUICK_COUNT if options.quick else DEFAULT_COUNT)
    with traced_memory():
        result = fuzz(count, options.seed)
    figures = {
        "seed": result.seed,
        "count": count,
        "codecs": [asdict(tally) for tally in result.tallies.values()],
        "outcomes": {sealing.value: dict(outcomes) for sealing, outcomes in result.outcomes.items()},
        "resident_growth": result.resident_growth,
        "faults": result.faults,
    }
    if options.json == "-":
        print(json.dumps(figures, indent=1))
    else:
        show(result)
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    sys.exit(1 if result.faults else 0)


def fuzz(count: int, seed: int) -> Result:
    """Judge `count` mutants, inside of `traced_memory`."""
    result = Result(seed)
    small, large = victims(SMALL, seed), victims([LARGE], seed)
    for victim in large:  # what decoding them takes is no growth
        judge(Mutant("", Sealing.RESEALED, victim.payload), victim)
    resident = _most_resident()
    for number, victim, mutant in _with_progress(mutants(small, large, count, seed), count):
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        tally = result.tallies.setdefault(victim.codec, Tally(victim.codec))
        try:
            verdict = judge(mutant, victim)
        except Exception as fault:  # whatever it is: only errors of ours may come out
            result.faults.append(_described(fault, number, victim, mutant))
            continue
        finally:
            faulthandler.cancel_dump_traceback_later()
        tally.mutants += 1
        tally.accepted += verdict.outcome == ACCEPTED
        tally.slowest_seconds = max(tally.slowest_seconds, verdict.seconds)
        tally.most_allocated = max(tally.most_allocated, verdict.allocated)
        limit = memory_limit(victim)
        tally.nearest_to_limit = max(tally.nearest_to_limit, verdict.allocated / limit)
        result.outcomes[mutant.sealing][verdict.outcome] += 1
    result.resident_growth = _most_resident() - resident
    return result


def mutants(
    small: list[Victim], large: list[Victim], count: int, seed: int
) -> Iterator[tuple[int, Victim, Mutant]]:
    """`count` mutants, their numbers and what they were made from: one in a hundred of a large payload."""
    chance = Random(seed)
    for number in range(count):
        group = large if number % ONE_LARGE_IN == 0 else small
        victim, other = chance.choice(group), chance.choice(group)
        yield number, victim, mutant_of(victim, other, chance)


def show(result: Result) -> None:
    """Print what became of the mutants, by codec and by error."""
    console = Console()
    table = Table(
        title="Mutants by codec: slowest decode, most memory, share of the limit",
        title_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("codec", "mutants", "refused", "accepted", "ms", "KiB", "of limit"):
        table.add_column(heading, justify="left" if heading == "codec" else "right", no_wrap=True)
    for tally in sorted(result.tallies.values(), key=lambda tally: tally.codec):
        table.add_row(
            tally.codec,
            f"{tally.mutants:,}",
            f"{tally.mutants - tally.accepted:,}",
            f"{tally.accepted:,}",
            f"{1e3 * tally.slowest_seconds:.1f}",
            f"{tally.most_allocated / 1024:,.0f}",
            f"{tally.nearest_to_limit:.0%}",
        )
    console.print(table)
    outcomes = sorted({outcome for counter in result.outcomes.values() for outcome in counter})
    table = Table(title="What became of them", title_justify="left", box=box.SIMPLE)
    table.add_column("outcome")
    for sealing in Sealing:
        table.add_column(sealing.value, justify="right")
    for outcome in outcomes:
        table.add_row(outcome, *(f"{result.outcomes[sealing][outcome]:,}" for sealing in Sealing))
    console.print(table)
    console.print(
        f"Limit of memory: {MEMORY_BASE // 1024} KiB + {MEMORY_FACTOR} × the layout as float32, every decode "
        f"traced. The most memory the process held grew by {result.resident_growth / 2**20:.1f} MiB."
    )
    for fault in result.faults[:20]:
        console.print(fault, style="red")
    console.print(f"{len(result.faults)} faults of the decoder.", style="red" if result.faults else "green")


def _with_progress(
    items: Iterable[tuple[int, Victim, Mutant]], count: int
) -> Iterator[tuple[int, Victim, Mutant]]:
    columns = (TextColumn("Mutants"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=count)
        for item in items:
            yield item
            if item[0] % 256 == 0:
                progress.update(task, completed=item[0])


def _described(fault: Exception, number: int, victim: Victim, mutant: Mutant) -> dict[str, str]:
    return {
        "fault": f"{type(fault).__name__}: {fault}",
        "number": str(number),
        "codec": victim.codec,
        "mutation": mutant.mutation,
        "sealing": mutant.sealing.value,
        "payload": mutant.data[:2048].hex(),
    }


def _most_resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
