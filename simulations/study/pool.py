"""Jobs in parallel processes with one torch thread each; each finished one is in the journal at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context

from fedkron.commands.interruption import interruptible
from simulations.study.journal import JobT, Journal, OutcomeT


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """Up to so many processes for `run_jobs`; on an error, jobs that have not begun are cancelled.

    A signal to end this process ends them all: it raises `KeyboardInterrupt`.
    """
    # Inherited by the processes, and read when they load torch: waiting threads must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Not forked: a copy of a process that has loaded torch may hang.
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare)
    try:
        with interruptible():
            yield executor
    except KeyboardInterrupt:
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def run_jobs(
    jobs: Collection[JobT],
    work: Callable[[JobT], OutcomeT],
    journal: Journal[JobT, OutcomeT],
    executor: Executor,
    report: Callable[[JobT, OutcomeT], None],
) -> None:
    """Do the work of every job, enter its outcome in the journal when it is there, then call `report`.

    Raises what the first failed job raised; what has finished by then is in the journal.
    """
    running = {executor.submit(work, job): job for job in jobs}
    for future in as_completed(running):
        journal.add(running[future], future.result())
        report(running[future], future.result())


def _prepare() -> None:
    import torch
    from flwr.common.logger import FLOWER_LOGGER

    torch.set_num_threads(1)
    FLOWER_LOGGER.setLevel(logging.WARNING)
