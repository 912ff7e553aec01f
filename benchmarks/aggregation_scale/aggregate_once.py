"""One aggregation in a process of its own, so that its peak memory is its own: prints its figures as JSON.

`python -m benchmarks.aggregation_scale.aggregate_once FOLDER AGGREGATION CLIENTS`, FOLDER as `clients.save`
writes it. Neither torch nor Flower is loaded.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import psutil

from benchmarks.aggregation_scale.clients import load, weight
from fedkron.aggregation.factorwise import FactorwiseMean
from fedkron.aggregation.registry import aggregator
from fedkron.compression import decode
from fedkron.compression.accumulate import accept, fastest


def main() -> None:
    """Aggregate and print."""
    folder, name, clients = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    layout, blobs = load(folder)
    fastest()  # neither its time nor its memory is that of a client
    before = psutil.Process().memory_info().rss
    checking = adding = 0.0
    start = time.perf_counter()
    everybody = aggregator(name, layout)
    for client in range(clients):
        blob = blobs[client % len(blobs)]
        begun = time.perf_counter()
        if isinstance(everybody, FactorwiseMean):
            accepted = accept(blob, layout)
            checked = time.perf_counter()
            everybody.add_with(accepted.add_to, weight(client), accepted.peak)
        else:
            update = decode(blob, layout).update
            checked = time.perf_counter()
            everybody.add(update, weight(client))
        adding += time.perf_counter() - checked
        checking += checked - begun
    everybody.finish()
    figures = {
        "seconds": time.perf_counter() - start,
        "check_seconds": checking,
        "add_seconds": adding,
        "memory": _peak_memory() - before,
        "process_memory": _peak_memory(),
    }
    print(json.dumps(figures))


def _peak_memory() -> int:
    """Most bytes of memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss goes on from that of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
