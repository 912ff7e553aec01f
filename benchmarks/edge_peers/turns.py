"""Contestants timed in one process and in turns, so that whatever slows the machine down slows all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.adapter_contest.timing import Seconds, Spread

Step = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds of all contestants, and counted calls of each in a round."""

    rounds: int
    calls: int


def in_turns(steps: Mapping[str, Step], effort: Effort) -> Seconds:
    """Median seconds of a call of each step in each round, every round in another order.

    The first call of a turn is not counted: it finds the weights of another contestant in the cache.
    """
    order = random.Random(0)
    seconds: Seconds = {name: [] for name in steps}
    for step in steps.values():
        step()  # the very first call is mostly set-up
    for _ in range(effort.rounds):
        for name in order.sample(list(steps), len(steps)):
            seconds[name].append(_turn(steps[name], effort.calls))
    return seconds


def changing(same: Callable[[int], object], several: int, effort: Effort) -> Spread:
    """Seconds that a call costs more when it uses another adapter than the call before.

    `same(i)` is a call with adapter i. Each adapter in turn is used twice; the difference of the two is
    taken, and the median of a round's differences is a round's figure.
    """
    same(0)
    rounds = []
    for _ in range(effort.rounds):
        differences = []
        for adapter in [*range(1, several), 0]:
            call = partial(same, adapter)
            first, second = _seconds(call), _seconds(call)
            differences.append(first - second)
        rounds.append(statistics.median(differences))
    return Spread.of(rounds)


def each(step: Callable[[int], object], several: int, effort: Effort) -> Spread:
    """Seconds of a step that is done for 0 … several - 1 in every round, a round's figure being the mean."""
    rounds = []
    for _ in range(effort.rounds):
        start = time.perf_counter()
        for index in range(several):
            step(index)
        rounds.append((time.perf_counter() - start) / several)
    return Spread.of(rounds)


def _turn(step: Step, calls: int) -> float:
    step()
    return statistics.median(_seconds(step) for _ in range(calls))


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
