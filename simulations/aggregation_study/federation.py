"""One job in this process: the real programs of server and nodes, and what the server has written down."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from fedkron.runlog import read_run
from simulations.aggregation_study.jobs import Job, Outcome
from simulations.study.data import sources
from simulations.study.programs import run_programs, written_outcome


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails, `ConfigError` for an aggregation that does not exist.
    """
    started = time.perf_counter()
    load = job.case.workload
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(sources(load.tasks, job.split, job.seed, Path(folder) / "tasks"), folder)
        run = run_programs(settings, load.clients, data=(job.case, job.seed, job.split))
        errors = tuple(entry.projection_error for entry in read_run(run).rounds)
        return Outcome(**asdict(written_outcome(run, started)), projection_error=errors)
