"""What the commands on the shared jobs have in common: data, base, and running."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from clients.tasks import load_task
from fedkron.errors import RunError
from simulations.paper.study.bases import MINILM, SMOLLM2
from simulations.paper.study.jobs import Outcome
from simulations.paper.study.running import Plan, Result, finished, run
from simulations.paper.study.sizes import FULL
from simulations.paper.tasks import TASKS, add_data_option
from simulations.study.command import positive, study_parser
from simulations.study.journal import Journal
from simulations.study.pool import processes


def paper_parser(prog: str, description: str | None, *, quick: str) -> argparse.ArgumentParser:
    """A parser of the options of all studies, with `--data`, `--base` and `--tasks`."""
    size = FULL[MINILM]
    parser = study_parser(prog, description or "", quick=quick, seeds=size.seeds, rounds=size.workload.rounds)
    add_data_option(parser)
    parser.add_argument("--tasks", nargs="+", metavar="NAME", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument(
        "--texts",
        type=positive,
        help=f"training questions of each task (default {size.workload.train_texts})",
    )
    parser.add_argument(
        "--test-texts",
        type=positive,
        help=f"test questions of each task (default {size.workload.test_texts})",
    )
    parser.add_argument(
        "--finished", type=Path, metavar="FILE", help="run nothing, show what a file of --resume has"
    )
    parser.add_argument(
        "--base",
        default=MINILM,
        help=f"{MINILM} (default), {SMOLLM2}, a folder or Hub id (sizes of {MINILM})",
    )
    return parser


def run_plan(plan: Plan, options: argparse.Namespace) -> list[Result]:
    """Do what is missing in the journal of the options, in as many processes as they ask for.

    With `--finished` nothing is done: `RunError` where the journal has no seed that is complete.
    """
    if options.finished is not None:
        if results := finished(plan, Journal(Outcome, options.finished)):
            return results
        raise RunError(f"{options.finished} has no case yet in which all adapters have finished a seed")
    with processes(options.workers) as executor:
        return run(plan, Journal(Outcome, options.resume), executor, Console(stderr=True))


def chances(plan: Plan) -> dict[str, float]:
    """Accuracy of guessing, by the task's own name."""
    sources = dict.fromkeys(s for case in plan.cases for load in case.workloads for s in load.tasks)
    tasks = [load_task(source) for source in sources]
    return {task.name: task.majority for task in tasks}
