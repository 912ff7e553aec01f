"""Everybody in the same process, in turns: what slows the machine down slows all."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from benchmarks.aggregation_scale.clients import weight
from benchmarks.aggregation_scale.models import WEIGHT
from fedkron.aggregation.factorwise import FactorwiseMean
from fedkron.compression.accumulate import Opener, accept, decoded
from fedkron.compression.kernels import compiled
from fedkron.compression.payload import decode_vector, inspect_header
from fedkron.layout import AdapterLayout, Vector

FEW, MANY = 1, 9
"""Replies for Flower: the difference is the time of `MANY - FEW` clients, without what any number costs."""

BLOCK = 1 << 16
PASSES = 16

NUMPY, BLOCKS, TORCH = "numpy, in one go", "numpy, in blocks", "torch, fused"

COMPILED, NUMPY_ONLY = "numba", "numpy"
WAYS: dict[str, Opener] = {COMPILED: compiled, NUMPY_ONLY: decoded}

Seconds = dict[str, list[float]]
"""Seconds of each step for one client (or one pass), one value a round."""


@dataclass(frozen=True)
class Contest:
    """The times of all: `codecs` by codec, way and part, `passes` by way, `flower` by `few` and `many`."""

    codecs: dict[tuple[str, str], Seconds]
    passes: Seconds
    flower: Seconds

    @property
    def flower_client(self) -> list[float]:
        """Seconds that one more client takes Flower."""
        both = zip(self.flower["few"], self.flower["many"], strict=True)
        return [(many - few) / (MANY - FEW) for few, many in both]

    def limit(self) -> str:
        """The fastest of numpy's multiply-add passes."""
        return min((NUMPY, BLOCKS), key=lambda name: sorted(self.passes[name])[len(self.passes[name]) // 2])


def contestants(codecs: Iterable[str]) -> list[tuple[str, str]]:
    """Codecs and ways of those that are timed: a compiled way where a codec has one, and numpy's."""
    return [(name, way) for name in codecs for way in WAYS if way == NUMPY_ONLY or name.startswith("int")]


def contest(
    layout: AdapterLayout,
    payloads: Mapping[str, Sequence[bytes]],
    reply: RecordDict,
    rounds: int,
    done: Callable[[], None],
) -> Contest:
    """Time everybody in each of the rounds, each round in another order, after one that is not counted."""
    steps: dict[tuple[str, Hashable], Callable[[], dict[str, float]]] = {}
    for name, way in contestants(payloads):
        steps["codecs", (name, way)] = _stream(layout, payloads[name], WAYS[way]).__next__
    vector = decode_vector(next(iter(payloads.values()))[0], layout)[1]
    for name, step in _passes(vector).items():
        steps["passes", name] = lambda step=step: {"pass": _seconds(step) / PASSES}
    for name, count in (("few", FEW), ("many", MANY)):
        replies = [reply] * count
        steps["flower", name] = lambda replies=replies: {
            "all": _seconds(lambda: aggregate_arrayrecords(replies, WEIGHT))
        }
    found: dict[tuple[str, Hashable], Seconds] = {key: defaultdict(list) for key in steps}
    order = random.Random(0)
    for number in range(rounds + 1):
        for key in order.sample(list(steps), len(steps)):
            for part, seconds in steps[key]().items():
                if number:
                    found[key][part].append(seconds)
        done()
    return Contest(
        {name: dict(parts) for (what, name), parts in found.items() if what == "codecs"},
        {name: parts["pass"] for (what, name), parts in found.items() if what == "passes"},
        {name: parts["all"] for (what, name), parts in found.items() if what == "flower"},
    )


def _stream(layout: AdapterLayout, blobs: Sequence[bytes], opener: Opener) -> Iterator[dict[str, float]]:
    """A mean that goes on from round to round; each time all payloads once, their headers once more."""
    mean = FactorwiseMean(layout)
    client = 0
    while True:
        seconds: dict[str, float] = defaultdict(float)
        for blob in blobs:
            begun = time.perf_counter()
            accepted = accept(blob, layout, opener)
            checked = time.perf_counter()
            mean.add_with(accepted.add_to, weight(client), accepted.peak)
            added = time.perf_counter()
            inspect_header(blob)
            seconds["header"] += time.perf_counter() - added
            seconds["add"] += added - checked
            seconds["check"] += checked - begun
            client += 1
        yield {part: total / len(blobs) for part, total in seconds.items()}


def _passes(vector: Vector) -> dict[str, Callable[[], None]]:
    """acc += w·x over a float32 accumulator in place, `PASSES` times."""
    total, product, factor = np.zeros_like(vector), np.empty_like(vector), np.float32(0.37)
    tensors = torch.zeros(vector.size), torch.from_numpy(vector)

    def in_one_go() -> None:
        for _ in range(PASSES):
            np.multiply(vector, factor, out=product)
            np.add(total, product, out=total)

    def in_blocks() -> None:
        for _ in range(PASSES):
            for start in range(0, vector.size, BLOCK):
                sums = total[start : start + BLOCK]
                some = np.multiply(vector[start : start + BLOCK], factor, out=product[: sums.size])
                np.add(sums, some, out=sums)

    def fused() -> None:
        for _ in range(PASSES):
            tensors[0].add_(tensors[1], alpha=0.37)

    return {NUMPY: in_one_go, BLOCKS: in_blocks, TORCH: fused}


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
