"""The training of a workload and nothing else: bare calls in a loop, in as many processes as a run has.

    python -m benchmarks.scale_study.plain_loop '{"workload": …, "kind": "lora", "workers": 2, "worker": 0}'

prints seconds of training and evaluation as JSON, on the clock and of CPU. It waits for a line on its input
before it begins, so that all processes begin together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.scale_study.workload import Workload

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Pure:
    """Seconds of training and evaluation: on the clock until the last process is done, and CPU of all."""

    wall: float
    train_cpu: float
    evaluate_cpu: float

    @property
    def cpu(self) -> float:
        """CPU seconds of both."""
        return self.train_cpu + self.evaluate_cpu


def measure(workload: Workload, kind: str, workers: int) -> Pure:
    """Train and evaluate as often as a run of this workload does, in so many processes with one thread."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    processes = []
    for worker in range(workers):
        task = {"workload": asdict(workload), "kind": kind, "workers": workers, "worker": worker}
        command = [sys.executable, "-m", __name__, json.dumps(task)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the plain loop of {workload} failed: run {command}")
    started = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in processes]
    wall = time.monotonic() - started
    return Pure(wall, sum(one["train"] for one in found), sum(one["evaluate"] for one in found))


def _loop(workload: Workload, kind: str, workers: int, worker: int) -> None:
    import torch

    from clients import training
    from clients.node import this_node
    from clients.worker import load_worker, tokenized

    settings = workload.settings(Path("unused"), kind=kind)
    loaded = load_worker(settings.base, settings.adapter, settings.device, settings.train.truncation_side)
    # Every round has another set of nodes: taken in turn, each is there as often as by chance.
    visits = [visit % workload.nodes for visit in range(workload.rounds * workload.taking_part)]
    own = visits[worker::workers]
    data = {}
    for number in dict.fromkeys(own):
        node = {"partition-id": number, "num-partitions": workload.nodes}
        task = this_node(node, settings, 0).task
        train, test = (
            tokenized(loaded, texts, settings.train.max_length) for texts in (task.train, task.test)
        )
        data[number] = train, test, len(task.labels)
    torch.manual_seed(0)
    print("ready", flush=True)
    sys.stdin.readline()
    spent = {"train": 0.0, "evaluate": 0.0}
    for visit, number in enumerate(own):
        train, test, labels = data[number]
        began = time.process_time()
        model = loaded.task_model(labels)
        training.train(model, train, settings.train, loaded.pad_id, seed=visit)
        trained = time.process_time()
        training.evaluate(model, test, loaded.pad_id)
        spent["train"] += trained - began
        spent["evaluate"] += time.process_time() - trained
    print(json.dumps(spent))


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    _loop(Workload(**order["workload"]), order["kind"], order["workers"], order["worker"])
