"""One job in this process: the real programs of server and nodes, then the adapters that they have made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clients.node import Node, this_node
from fedkron.exchange import AdapterFile, load_adapter
from fedkron.rundir import ADAPTER, group_directory
from fedkron.runlog import read_run
from fedkron.settings import TASK_GROUPS, AdapterSettings, Settings
from simulations.groups_study.heads import accuracies
from simulations.groups_study.jobs import AS_TRAINED, Job, Outcome
from simulations.groups_study.mergings import mergings
from simulations.study.programs import RUN_ID, run_programs, written_outcome


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when any node fails.
    """
    started = time.perf_counter()
    load = job.workload
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(folder)
        run = run_programs(settings, load.clients, (load, job.seed))
        outcome = _with_adapters(run, nodes_of(settings, load.clients), settings)
        return replace(outcome, seconds=time.perf_counter() - started)


def nodes_of(settings: Settings, count: int) -> list[Node]:
    """All nodes of a run, with the data that they had."""
    return [
        this_node({"partition-id": number, "num-partitions": count}, settings, RUN_ID)
        for number in range(count)
    ]
