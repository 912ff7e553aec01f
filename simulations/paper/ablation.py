"""Ablation: accuracy, parameters and bytes of Kron-LoRA over d_A2 and the rank r, with α = 32.

Every size is trained on each task for itself, as in the centralised case of `simulations.paper.accuracy`,
with the learning rate that is best for rank 8. A larger d_A2 makes B1 smaller; a larger r makes B1 and B2
larger, and the factor α/r smaller. `kB` is a change in the default codec.

    python -m simulations.paper.ablation --data FOLDER --resume runs/paper.jsonl --json runs/ablation.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from rich.table import Table

from fedkron.errors import FedKronError
from fedkron.layout import AdapterLayout
from fedkron.settings import CodecSettings
from simulations.paper.study.adapters import KRON_LORA, Adapter
from simulations.paper.study.bases import prepare_base
from simulations.paper.study.command import paper_parser, run_plan
from simulations.paper.study.jobs import CENTRALISED
from simulations.paper.study.parameters import layouts, payload_bytes
from simulations.paper.study.plot import plot_parameters
from simulations.paper.study.sizes import ABOVE_CHANCE, plan_for, size_for
from simulations.paper.study.summary import Line, difference_of, summarize
from simulations.paper.tasks import task_sources
from simulations.study.command import tables_console, write
from simulations.study.tables import percent, table_of

GRID = tuple(
    Adapter(f"d_A2 = {d_a2}, r = {rank}", KRON_LORA, rank=rank, d_a2=d_a2)
    for d_a2 in (2, 4, 8)
    for rank in (4, 8, 16)
)
DEFAULT = GRID[1]
"""What a run takes on MiniLM: the power of two nearest to hidden/200, and the paper's rank."""

CODEC = CodecSettings().upload


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a job failed, or the data cannot be had."""
    parser = paper_parser(
        "python -m simulations.paper.ablation", __doc__, quick="two sizes, few texts, one seed"
    )
    options = parser.parse_args(arguments)
    try:
        size = replace(size_for(options), tasks=ABOVE_CHANCE)
        grid = GRID[:2] if options.quick else GRID
        sources = task_sources(options.data)
        base = prepare_base(options.base)
        plan = plan_for(size, base, sources, options, cases=[CENTRALISED], adapters=grid)
        (result,) = run_plan(plan, options)
    except FedKronError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 1
    sizes = layouts(base, grid)
    lines = summarize(result, sizes, DEFAULT)
    tables_console(options.json).print(_table(lines, sizes))
    if options.plot:
        plot_parameters({CENTRALISED: lines}, options.plot)
    if options.json:
        report = [
            {**asdict(line), "runs": [asdict(outcome) for outcome in result.runs[line.adapter]]}
            for line in lines
        ]
        write(json.dumps(report, indent=1), options.json)
    return 0


def _table(lines: Sequence[Line], sizes: Mapping[Adapter, AdapterLayout]) -> Table:
    table = table_of(
        "Kron-LoRA by size: mean accuracy in % ± standard deviation over seeds;\n"
        f"difference to {DEFAULT.name} in points with its 95 % interval, paired by seed and task",
        *("d_A2", "r", "parameters", f"kB ({CODEC})", *lines[0].by_task, "mean", "difference"),
    )
    for line in lines:
        table.add_row(
            f"{line.adapter.d_a2}",
            f"{line.adapter.rank}",
            f"{line.parameters:,}",
            f"{payload_bytes(sizes[line.adapter], CODEC) / 1000:,.1f}",
            *(f"{100 * share:.1f}" for share in line.by_task.values()),
            percent(line.accuracy),
            difference_of(line),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
