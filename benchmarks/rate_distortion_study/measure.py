"""Bits and error of a compressor on an update, and the fewest bits that the error needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.rate_distortion_study.compressors import Compressor
from benchmarks.rate_distortion_study.updates import Origin, Update, Updates
from fedkron.layout import AdapterLayout, Vector


@dataclass(frozen=True)
class Shape:
    """What the values of an update look like."""

    origin: Origin
    parameters: int
    rms: float
    kurtosis: float


@dataclass(frozen=True)
class Point:
    """One compressor on one update: bits per parameter, headers included, and normalised squared error."""

    origin: Origin
    compressor: str
    bits: float
    error: float

    @property
    def gap(self) -> float:
        """Bits per parameter beyond Shannon's bound for a Gaussian; -inf where nothing was lost."""
        return self.bits - gaussian_bits(self.error)


def gaussian_bits(error: float) -> float:
    """Shannon's rate-distortion function of a memoryless Gaussian source (1959), in bits per value.

    R(D) = ½·log2(σ²/D), 0 from D = σ² on; `error` is D/σ². Of all sources with this variance the Gaussian
    needs the most bits, so that another one may be coded with less.
    """
    if error == 0:
        return math.inf
    return max(0.5 * math.log2(1 / error), 0.0)


def normalised_error(vector: Vector, decoded: Vector) -> float:
    """‖x − x̂‖² / ‖x‖², summed in float64."""
    exact = vector.astype(np.float64)
    lost = exact - decoded
    return float(lost @ lost) / float(exact @ exact)


def shape(update: Update) -> Shape:
    """Root mean square and kurtosis E[x⁴]/E[x²]² (3 for a Gaussian, 1 for one magnitude with two signs)."""
    squares = np.square(update.vector.astype(np.float64))
    power = float(squares.mean())
    kurtosis = float(np.square(squares).mean()) / power**2
    return Shape(update.origin, update.vector.size, math.sqrt(power), kurtosis)


def measured(
    updates: Updates, compressors: Mapping[str, Compressor], done: Callable[[], None]
) -> Iterator[Point]:
    """Every compressor on every update; `done` hears about each update."""
    for update in updates.updates:
        layout = updates.layouts[update.origin.kind]
        for name, compress in compressors.items():
            yield point(update, layout, name, compress)
        done()


def point(update: Update, layout: AdapterLayout, name: str, compress: Compressor) -> Point:
    """One compressor on one update."""
    size, decoded = compress(update.vector, layout)
    error = normalised_error(update.vector, decoded)
    return Point(update.origin, name, 8 * size / update.vector.size, error)
