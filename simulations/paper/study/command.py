"""What the commands on the shared jobs have in common: data, base, and running."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from rich.console import Console

from clients.tasks import load_task
from simulations.paper.study.bases import MINILM, SMOLLM2
from simulations.paper.study.jobs import Outcome
from simulations.paper.study.running import Plan, Result, run
from simulations.paper.tasks import add_data_option
from simulations.study.command import study_parser
from simulations.study.journal import Journal
from simulations.study.pool import processes


def paper_parser(
    prog: str, description: str | None, *, quick: str, seeds: int, rounds: int
) -> argparse.ArgumentParser:
    """A parser of the options of all studies, with `--data` and `--base`."""
    parser = study_parser(prog, description or "", quick=quick, seeds=seeds, rounds=rounds)
    add_data_option(parser)
    parser.add_argument(
        "--base",
        default=MINILM,
        help=f"{MINILM} (default), {SMOLLM2}, a folder or Hub id (sizes of {MINILM})",
    )
    return parser


def run_plan(plan: Plan, options: argparse.Namespace) -> list[Result]:
    """Do what is missing in the journal of the options, in as many processes as they ask for."""
    with processes(options.workers) as executor:
        return run(plan, Journal(Outcome, options.resume), executor, Console(stderr=True))


def chances(sources: Mapping[str, str]) -> dict[str, float]:
    """Accuracy of guessing, by the task's own name."""
    tasks = [load_task(source) for source in sources.values()]
    return {task.name: task.majority for task in tasks}
