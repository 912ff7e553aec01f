"""Contestants timed in the same process, in turns, so that whatever slows the machine down slows all."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SAMPLE = 2e-3
"""Seconds that a single sample should take at least: quick steps are repeated."""
MAX_REPEATS = 50
MAX_ROUNDS = 40
MIN_ROUNDS = 5
LONG_ROUND = 4.0
"""Seconds from which on a round is so long that `FEW_ROUNDS` are enough."""
FEW_ROUNDS = 3

Seconds = dict[str, list[float]]
"""Time of a step of each contestant, one value a round."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least two values."""
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    def __str__(self) -> str:
        spread = f" ({self.lower:.2f}–{self.upper:.2f})" if self.lower < self.upper else ""
        return f"{self.median:.2f}{spread}"


def ratio(seconds: Seconds, name: str, to: str) -> Spread:
    """Time of one contestant over that of another, taken round by round."""
    return Spread.of([a / b for a, b in zip(seconds[name], seconds[to], strict=True)])


def interleaved(steps: Mapping[str, Callable[[], None]], device: torch.device, budget: float) -> Seconds:
    """Rounds of all steps in turn, each round in another order, for about `budget` seconds.

    At least `MIN_ROUNDS`, after two that are not counted; `FEW_ROUNDS` in all when a round is long.
    """
    names = list(steps)
    order = random.Random(0)

    def timed_round(repeats: int) -> dict[str, float]:
        return {name: _time(steps[name], repeats, device) for name in order.sample(names, len(names))}

    first = timed_round(1)
    if sum(first.values()) > LONG_ROUND:
        rounds = [first, *(timed_round(1) for _ in range(FEW_ROUNDS - 1))]
    else:
        # The very first call is mostly set-up, and says little about the next ones.
        repeats = min(MAX_REPEATS, max(1, round(SAMPLE / min(timed_round(1).values()))))
        rounds = []
        end = time.perf_counter() + budget
        while len(rounds) < MIN_ROUNDS or (len(rounds) < MAX_ROUNDS and time.perf_counter() < end):
            rounds.append(timed_round(repeats))
    return {name: [one[name] for one in rounds] for name in names}


def _time(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
