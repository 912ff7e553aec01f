"""What compiled loops cost before the first client: import of numba, and compilation, once on a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]

_START = """
import json, time
import psutil
import fedkron.compression.accumulate as accumulate
process = psutil.Process()
memory, start = process.memory_info().rss, time.perf_counter()
accumulate.fastest()
print(json.dumps([time.perf_counter() - start, process.memory_info().rss - memory]))
"""


@dataclass(frozen=True)
class FirstUse:
    """Seconds until the loops are there, for the first process on a machine and a later one; its bytes."""

    first_seconds: float
    later_seconds: float
    later_memory: int


def first_use() -> FirstUse:
    """In two new processes that share an empty cache folder."""
    with TemporaryDirectory() as folder:
        (first, _), (later, memory) = (_started(folder) for _ in range(2))
    return FirstUse(first, later, memory)


def _started(cache: str) -> tuple[float, int]:
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", _START]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory
