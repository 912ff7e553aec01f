"""One job in this process: the real programs of server and nodes, and what the server has written down."""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory

from fedkron.runlog import read_run
from simulations.privacy_study.jobs import Job, Outcome
from simulations.study.programs import run_programs, written_outcome


def federate(job: Job) -> Outcome:
    """Run a job to its end. The noise is another one each time. Raises `RunError` when any node fails."""
    started = time.perf_counter()
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        run = run_programs(job.settings(folder), job.workload.clients, data=(job.workload, job.seed))
        spent = [entry.privacy for entry in read_run(run).rounds]
        return Outcome(
            **vars(written_outcome(run, started)),
            epsilon=tuple(s.epsilon if s else None for s in spent),
            clipping_norm=spent[-1].clipping_norm if spent[-1] else None,
        )
