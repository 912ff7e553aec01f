"""A federation of nodes with the five tasks: the real programs of server and nodes, the default codec."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from simulations.paper.study.jobs import Job, Outcome
from simulations.study.data import sources
from simulations.study.programs import run_programs, written_outcome


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails.
    """
    started = time.perf_counter()
    load = job.workload
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(sources(load.tasks, job.split, job.seed, Path(folder) / "tasks"), folder)
        run = run_programs(settings, load.clients, data=(load, job.seed, job.split))
        return Outcome(**asdict(written_outcome(run, started)), steps=())
