"""Where a node's time goes: the real programs in one process, under a profiler that counts CPU time.

    python -m benchmarks.scale_study.pieces '{"nodes": 6, …}'

prints, as JSON, CPU milliseconds per node and round by what they are for.
"""

from __future__ import annotations

import cProfile
import json
import logging
import pstats
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.scale_study.workload import Workload

NODES = 12
"""So many are enough to see what the first and what the others of a task cost."""

PIECES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "training": (("clients/training.py", "train"),),
    "evaluation": (("clients/training.py", "evaluate"),),
    "head alone": (("clients/app.py", "_head_only_accuracy"),),
    "data": (("clients/node.py", "_data"),),
    "tokens": (("clients/batches.py", "tokenize"),),
    "base and attaching": (("clients/worker.py", "load_worker"),),
    "decoding": (("fedkron/flower/client_mod.py", "decode_record"),),
    "encoding": (("fedkron/flower/client_mod.py", "encode_record"),),
    "state kept on disk": (("fedkron/flower/durable_state.py", "_keep"),),
    "head file": (("clients/app.py", "_keep_head"),),
    "all of a node": (("simulations/in_process.py", "_answer"),),
    "server, messages out": (("fedkron/flower/grid.py", "_publish"), ("fedkron/flower/grid.py", "_encoded")),
    "server, replies in": (("fedkron/flower/grid.py", "pull_messages"),),
    "server, end of round": (
        ("fedkron/flower/strategy.py", "aggregate_train"),
        ("fedkron/flower/strategy.py", "aggregate_evaluate"),
    ),
}
"""Functions by what they are for; a function that is called by another of the list is in both."""


def pieces(workload: Workload) -> dict[str, float]:
    """CPU milliseconds per node and round of `NODES` nodes that have as much to do as those of `workload`."""
    from flwr.app import Context, RecordDict

    import clients.app
    import server.app
    from fedkron.settings import run_config
    from simulations.in_process import InProcessGrid

    logging.getLogger("flwr").setLevel(logging.ERROR)
    small = replace(workload, nodes=min(NODES, workload.nodes), fraction=1.0, rounds=2)
    with TemporaryDirectory() as folder:
        settings = replace(small.settings(Path(folder)), partition=workload.settings(Path(folder)).partition)
        config = run_config(settings)
        profile = cProfile.Profile(time.process_time)
        grid = InProcessGrid(clients.app.app, small.nodes, config)
        profile.enable()
        server.app.app(grid, Context(1, 1, {}, RecordDict(), config))
        profile.disable()
    spent: dict[tuple[str, str], float] = {}
    for (file, _, name), (_, _, _, seconds, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for place in (file[-len(known) :] for known, _ in _places()):
            spent[place, name] = max(spent.get((place, name), 0.0), seconds)
    visits = small.nodes * small.rounds
    return {
        piece: 1000 * sum(spent.get(place, 0.0) for place in places) / visits
        for piece, places in PIECES.items()
    }


def _places() -> list[tuple[str, str]]:
    return [place for places in PIECES.values() for place in places]


if __name__ == "__main__":
    print(json.dumps(pieces(Workload(**json.loads(sys.argv[1])))))
