"""Which quantizer spends the bits best: step and dead zone, found on a sorted sample of the vector.

A dead zone of 0.5 is plain rounding, a larger one saves bits at low rates, 0 has no level at zero: on
updates that are nearly plus or minus one size it becomes their signs and that size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedkron.layout import Vector

MAX_LEVELS = 4095
"""Largest magnitude of a code."""

_SAMPLE = 1 << 16
_DEAD_ZONES = (0.0, 0.2, 0.35, 0.5, 0.55, 0.6, 0.65, 0.7)
_STEEP_RATES = (0.7, 1.02, 1.5)
_HALVINGS = 14  # leave a step that is a ten-thousandth off
_FINEST, _ALL_ZERO = 1 / MAX_LEVELS, 4.0  # steps over the peak
_BITS_PER_LEVEL = 48  # of the table: a weight and a value
_EXACT = 1e-7  # error that only float32 itself would reduce


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Magnitudes in [k − 1 + dead_zone, k + dead_zone) · step have code k, from 1 to `levels`; below is 0."""

    step: float
    dead_zone: float
    levels: int


class Cost(NamedTuple):
    """What a quantizer costs: bits per element, and squared error over the squared norm."""

    bits: float
    error: float


def quantizer_for_bits(vector: Vector, bits: float) -> Quantizer:
    """The quantizer of least error among those that need at most `bits` bits per element, table included.

    `vector` is float32 and not all zero.
    """
    return _best_for_bits(_Sample.of(vector), bits)


def quantizer_for_error(vector: Vector, error: float) -> Quantizer:
    """The quantizer of fewest bits among those whose normalised squared error is at most `error`."""
    return _best_for_error(_Sample.of(vector), error)


def plan_for_bits(vector: Vector, bits: float) -> tuple[float, Quantizer]:
    """Share of the elements to spend `bits` bits per element of the vector on, and a quantizer for them.

    Updates of few local steps are nearly plus or minus one size: a scalar quantizer can tell those apart with
    one bit each, and does badly with less. Then it is better to send a part of the elements well: the
    quantizer on the straight line between nothing (0 bits, error 1) and the rate where the line is steepest.
    """
    sample = _Sample.of(vector)
    rates = [bits, *(rate for rate in _STEEP_RATES if rate > bits)]
    best = {rate: _best_for_bits(sample, rate) for rate in rates}
    steepest = max(rates, key=lambda rate: (1 - sample.cost(best[rate]).error) / rate)
    return bits / steepest, best[steepest]


def _best_for_bits(sample: _Sample, bits: float) -> Quantizer:
    found = sample.search(_ALL_ZERO, _FINEST, lambda cost: cost.bits <= bits)
    best = min(found, key=lambda quantizer: sample.cost(quantizer).error)
    # Where nothing is left to gain, as in an update of plus or minus one size, do not spend the rest.
    return _best_for_error(sample, _EXACT) if sample.cost(best).error <= _EXACT else best


def _best_for_error(sample: _Sample, error: float) -> Quantizer:
    found = sample.search(_FINEST, _ALL_ZERO, lambda cost: cost.error <= error)
    return min(found, key=lambda quantizer: sample.cost(quantizer).bits)


Fits = Callable[[Cost], bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Sorted magnitudes with the running sums of their values: each candidate costs a few bisections."""

    sorted: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    energy: float
    peak: float
    of_elements: int

    @staticmethod
    def of(vector: Vector) -> _Sample:
        # An odd stride does not fall into step with the rows of a matrix.
        sampled = vector[:: (vector.size // _SAMPLE) | 1]
        magnitudes = np.abs(sampled if sampled.any() else vector).astype(np.float64)
        magnitudes.sort()
        sums = np.concatenate(([0.0], np.cumsum(magnitudes)))
        peak = float(max(vector.max(), -vector.min()))
        return _Sample(magnitudes, sums, float(magnitudes @ magnitudes), peak, vector.size)

    def quantizer(self, step: float, dead_zone: float) -> Quantizer:
        levels = int(min(self.peak / step + 1 - dead_zone, MAX_LEVELS))
        return Quantizer(step, dead_zone, levels)

    def cost(self, quantizer: Quantizer) -> Cost:
        levels = np.arange(quantizer.levels)
        thresholds = (levels + quantizer.dead_zone) * quantizer.step
        edges = np.concatenate(([0], np.searchsorted(self.sorted, thresholds), [self.sorted.size]))
        counts = np.diff(edges)
        used = counts > 0
        shares = counts[used] / self.sorted.size
        signs = 1 - counts[0] / self.sorted.size
        # The first level is free: a section of a few elements could never afford it, and never be sent.
        table = _BITS_PER_LEVEL * max(quantizer.levels - 1, 0) / self.of_elements
        kept = np.diff(self.sums[edges])[1:] ** 2 / np.maximum(counts[1:], 1)
        error = 1 - kept.sum() / self.energy
        return Cost(float(-(shares * np.log2(shares)).sum() + signs + table), float(error))

    def search(self, accepted: float, rejected: float, fits: Fits) -> list[Quantizer]:
        """For each dead zone, the quantizer that fits and whose step is nearest to `rejected`.

        `accepted` and `rejected` are steps over the peak; all zeros or the finest step fit at least.
        """
        found = [self._narrowed(zone, accepted, rejected, fits) for zone in _DEAD_ZONES]
        return [quantizer for quantizer in found if fits(self.cost(quantizer))] or found[-1:]

    def _narrowed(self, dead_zone: float, accepted: float, rejected: float, fits: Fits) -> Quantizer:
        """Halve the ratio of two steps again and again."""
        low, high = math.log2(accepted), math.log2(rejected)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if fits(self.cost(self.quantizer(self.peak * 2.0**middle, dead_zone))):
                low = middle
            else:
                high = middle
        return self.quantizer(self.peak * 2.0**low, dead_zone)
