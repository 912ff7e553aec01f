"""Training dynamics of Kron-LoRA, LoRA-8 and KronA: loss after each step, accuracy after each epoch.

The jobs are those of the centralised case of `simulations.paper.accuracy`: with its journal nothing is
trained again.

    python -m simulations.paper.dynamics --data FOLDER --resume runs/paper.jsonl --plot runs/dynamics.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from fedkron.errors import FedKronError
from simulations.paper.study.adapters import OURS, REFERENCE, SMALL_KRONA
from simulations.paper.study.bases import prepare_base
from simulations.paper.study.command import paper_parser, run_plan
from simulations.paper.study.course import WINDOW, Course, courses
from simulations.paper.study.jobs import CENTRALISED
from simulations.paper.study.plot import plot_courses
from simulations.paper.study.sizes import plan_for, size_for
from simulations.paper.tasks import task_sources
from simulations.study.command import tables_console, write
from simulations.study.tables import NOTHING, table_of

SHOWN = (OURS, REFERENCE, SMALL_KRONA)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a job failed, or the data cannot be had."""
    parser = paper_parser(
        "python -m simulations.paper.dynamics",
        __doc__,
        quick="two tasks, Kron-LoRA and LoRA-8, few texts, one seed",
    )
    options = parser.parse_args(arguments)
    try:
        size = size_for(options)
        sources = task_sources(options.data)
        adapters = [adapter for adapter in size.adapters if adapter in SHOWN]
        plan = plan_for(
            size, prepare_base(options.base), sources, options, cases=[CENTRALISED], adapters=adapters
        )
        (result,) = run_plan(plan, options)
    except FedKronError as error:
        print(f"dynamics: {error}", file=sys.stderr)
        return 1
    found = courses(result, REFERENCE)
    tables_console(options.json).print(_table(found))
    if options.plot:
        plot_courses(found, options.plot)
    if options.json:
        write(json.dumps([asdict(course) for course in found], indent=1), options.json)
    return 0


def _table(found: Sequence[Course]) -> Table:
    epochs = range(1, len(found[0].accuracy) + 1)
    table = table_of(
        f"Means over tasks and seeds: accuracy in % after each epoch; loss over the first and last {WINDOW} "
        f"steps;\nsteps until the loss is where {REFERENCE.name}'s ends, over the runs that get there",
        *("adapter", *(f"epoch {epoch}" for epoch in epochs), "first loss", "last loss"),
        *("steps", "to that loss", "runs that get there"),
    )
    for course in found:
        taken = course.steps_to_reference
        table.add_row(
            course.adapter.name,
            *(f"{100 * share:.2f}" for share in course.accuracy),
            f"{course.loss[0]:.3f}",
            f"{course.loss[-1]:.3f}",
            f"{course.steps}",
            NOTHING if taken is None else f"{taken:.0f}",
            f"{course.reached} of {course.pairs}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
