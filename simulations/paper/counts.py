"""Parameter counts of Tables 1 and 2 of the paper, computed on the meta device: they must be equal.

DistilBERT trains its new head (pre_classifier and classifier) in full; Mistral-7B has an adapter on its
lm_head, too. Exit code 1 where a count differs.

    python -m simulations.paper.counts
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from simulations.paper.models import DISTILBERT, MISTRAL, PaperModel
from simulations.study.command import tables_console, write
from simulations.study.tables import table_of


@dataclass(frozen=True)
class Claim:
    """A count of trained parameters that the paper prints."""

    table: int
    model: PaperModel
    adapter: str
    kind: str
    rank: int
    parameters: int


CLAIMS = (
    Claim(1, DISTILBERT, "Kron-LoRA", "kron_lora", 8, 840_481),
    Claim(1, DISTILBERT, "LoRA-4", "lora", 4, 923_137),
    Claim(1, DISTILBERT, "LoRA-8", "lora", 8, 1_254_913),
    Claim(1, DISTILBERT, "LoRA-16", "lora", 16, 1_918_465),
    Claim(2, MISTRAL, "Kron-LoRA", "kron_lora", 8, 5_708_448),
    Claim(2, MISTRAL, "LoRA-8", "lora", 8, 21_260_288),
)


@dataclass(frozen=True)
class Count:
    """A claim beside what the model of this library has."""

    table: int
    model: str
    adapter: str
    paper: int
    ours: int

    @property
    def equal(self) -> bool:
        """Whether they are the same."""
        return self.paper == self.ours


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print and write; 1 when a count differs."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.paper.counts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    options = parser.parse_args(arguments)
    counts = [count(claim) for claim in CLAIMS]
    show(counts, tables_console(options.json))
    if options.json:
        write(json.dumps([{**asdict(one), "equal": one.equal} for one in counts], indent=1), options.json)
    return 0 if all(one.equal for one in counts) else 1


def count(claim: Claim) -> Count:
    """Put the adapter on the model, and count."""
    ours = claim.model.trained_parameters(claim.kind, claim.rank)
    return Count(claim.table, claim.model.name, claim.adapter, claim.parameters, ours)


def show(counts: Sequence[Count], console: Console) -> None:
    """Print a row for each."""
    table: Table = table_of("Trained parameters", "table", "model", "adapter", "paper", "ours", "equal")
    for one in counts:
        table.add_row(
            f"{one.table}",
            one.model,
            one.adapter,
            f"{one.paper:,}",
            f"{one.ours:,}",
            "yes" if one.equal else "NO",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
