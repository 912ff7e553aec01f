"""Time and memory for more and more clients, each number in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Growth:
    """One aggregation from the first payload to the mean.

    `check_seconds` are those before anything is added, decoding included where there is any. `memory` is the
    peak in bytes above what the process had before the first client (interpreter, libraries, compiled loops,
    payloads), `process_memory` all of it.
    """

    aggregation: str
    codec: str
    layers: int
    clients: int
    seconds: float
    check_seconds: float
    add_seconds: float
    memory: int
    process_memory: int
    clients_per_second: float


def measured(folder: Path, aggregation: str, codec: str, layers: int, clients: int) -> Growth:
    """Aggregate the payloads in a folder (`clients.save`) once, in a new process on one core."""
    command = [sys.executable, "-m", "benchmarks.aggregation_scale.aggregate_once"]
    arguments = [str(folder), aggregation, str(clients)]
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=os.environ | one_thread, stdout=subprocess.PIPE, check=True
    )
    figures = json.loads(done.stdout)
    pace = clients / figures["seconds"]
    return Growth(aggregation, codec, layers, clients, **figures, clients_per_second=pace)
