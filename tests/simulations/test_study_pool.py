"""A study that is ended by a signal leaves no process behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

PROGRAM = """
import time
from simulations.study.pool import processes

if __name__ == "__main__":
    with processes(2) as executor:
        jobs = [executor.submit(time.sleep, 600) for _ in range(2)]
        while not all(job.running() for job in jobs):
            time.sleep(0.01)
        print("working", flush=True)
        jobs[0].result()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_study_and_all_its_workers(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as study:
        assert study.stdout is not None
        while study.stdout.readline() != "working\n":
            assert study.poll() is None
        children = psutil.Process(study.pid).children(recursive=True)
        study.send_signal(number)
        assert study.wait(30) != 0
    _, alive = psutil.wait_procs(children, timeout=30)
    assert len(children) >= 2
    assert not alive
