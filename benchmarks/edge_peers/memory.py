"""Resident memory of adapters that are loaded at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedkron.edge.device_adapter import save_device_adapter
from fedkron.edge.runtime import DEFAULT, Bundle

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Held:
    """Bytes of a process with so many adapters, and for each since the number before (None at first)."""

    name: str
    adapters: int
    file_bytes: int
    process_bytes: int
    bytes_per_adapter: float | None


def varied(bundle: Path, folder: Path, number: int) -> None:
    """Device adapters with other content, but the form and the size of the bundle's own."""
    opened = Bundle.open(bundle, threads=1)
    own = opened.adapters[DEFAULT]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(number):
        path = folder / f"a{index:04}.safetensors"
        arrays = {name: rng.permutation(array) for name, array in own.arrays.items()}
        save_device_adapter(path, replace(own, name=path.stem, arrays=arrays))


def held(name: str, way: str, model: Path, adapters: Path, numbers: Sequence[int]) -> list[Held]:
    """One process that loads more and more adapters of a folder, see `benchmarks.edge_peers.hold`."""
    command = [sys.executable, "-m", "benchmarks.edge_peers.hold", way, str(model), str(adapters)]
    done = subprocess.run(
        [*command, *map(str, numbers)], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, check=True
    )
    memory = {int(number): size for number, size in json.loads(done.stdout).items()}
    each: list[float | None] = [None]
    for (few, less), (many, more) in pairwise(memory.items()):
        each.append((more - less) / (many - few))
    size = next(adapters.iterdir()).stat().st_size
    return [
        Held(name, number, size, total, marginal)
        for (number, total), marginal in zip(memory.items(), each, strict=True)
    ]
