"""Memory of more and more adapters, in a process of its own: prints bytes by number of adapters as JSON.

`python -m benchmarks.edge_peers.hold WAY MODEL ADAPTERS NUMBER…`: WAY is `fedkron`, MODEL a bundle and
ADAPTERS a folder of device adapters; or `onnxruntime`, a graph, and a folder of `.onnx_adapter` files. Each
adapter answers once: memory that was only reserved would not count. torch is not loaded.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

TASK = "trec"


def main() -> None:
    """Load, answer and print."""
    way, model, adapters = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    numbers = [int(number) for number in sys.argv[4:]]
    hold = {"fedkron": _fedkron, "onnxruntime": _onnxruntime}[way](model)
    files = sorted(adapters.iterdir())
    memory, held = {}, 0
    for number in numbers:
        for path in files[held:number]:
            hold(path)
        held = number
        gc.collect()
        memory[number] = psutil.Process().memory_info().rss
    print(json.dumps(memory))


def _fedkron(folder: Path) -> Callable[[Path], None]:
    from fedkron.edge.runtime import Bundle

    bundle = Bundle.open(folder, threads=1)

    def hold(path: Path) -> None:
        bundle.load(path, path.stem)
        bundle.predict(["word"], TASK, adapter=path.stem)

    return hold


def _onnxruntime(graph: Path) -> Callable[[Path], None]:
    from onnxruntime import LoraAdapter, RunOptions

    from fedkron.edge.session import open_session

    session = open_session(graph, 1)
    ids = np.ones((1, 3), np.int64)
    held = []

    def hold(path: Path) -> None:
        adapter, options = LoraAdapter(), RunOptions()
        adapter.Load(str(path))
        options.add_active_adapter(adapter)
        held.append(adapter)
        session.run(None, {"input_ids": ids, "attention_mask": ids}, options)

    return hold


if __name__ == "__main__":
    main()
