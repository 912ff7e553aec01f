"""All contestants in the same process, in turns: what slows the machine down slows all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.compression_contest.contestants import Contestant

SAMPLE = 0.02
"""Seconds that a sample takes about: quick calls are repeated, slow ones made once."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a call of one contestant, one value a round."""

    contestant: Contestant
    encode: list[float]
    decode: list[float]


def timed(contestants: Sequence[Contestant], rounds: int, done: Callable[[], None]) -> list[Timing]:
    """Time everybody in each of the rounds, each round in another order; `done` hears about every round."""
    timings = [Timing(contestant, [], []) for contestant in contestants]
    steps = [
        (contestant.threads, step, _repeats(step), seconds)
        for contestant, timing in zip(contestants, timings, strict=True)
        for step, seconds in ((contestant.encode, timing.encode), (contestant.decode, timing.decode))
    ]
    order = random.Random(0)
    for _ in range(rounds):
        for threads, step, repeats, seconds in order.sample(steps, len(steps)):
            torch.set_num_threads(threads)
            seconds.append(_seconds(step, repeats))
        done()
    return timings


def _repeats(step: Callable[[], object]) -> int:
    return max(1, round(SAMPLE / _seconds(step, 1)))


def _seconds(step: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats
