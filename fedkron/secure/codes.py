"""Integer codes with steps that all nodes share, so that the sum of codes is the code of the sum.

A tensor with step Δ and `levels` values is sent as codes c = 0 … levels − 1, which stand for (c − (levels −
1) / 2) · Δ. What rounding and clipping leave out goes into the next upload (error feedback), wrong steps
included.

Steps follow the updates: every node also sends, masked like its codes, how large its own update is, as the
logarithm of the mean magnitude of each tensor in quarters of an octave. The server learns the sum of those
over the nodes, which is the geometric mean of magnitudes, and the next round's steps are made from that.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedkron.errors import AdapterError
from fedkron.layout import Vector

MIN_LEVELS, MAX_LEVELS = 2, 255

SCALE_LEVELS = 256
_QUARTERS, _LOWEST = 4, -48
"""Magnitudes from 2**-48 to 2**15.75, in steps of 2**0.25."""

Codes = npt.NDArray[np.uint8]
Sizes = npt.NDArray[np.int64]


def quantize(vector: Vector, sizes: Sizes, steps: Vector, levels: int) -> tuple[Codes, Vector]:
    """Codes of a vector of tensors of these sizes, and what they leave out.

    Raises `AdapterError` for a vector with NaN or infinity.
    """
    if not np.isfinite(vector).all():
        raise AdapterError("the update, with what earlier rounds left out, holds NaN or infinity")
    step = np.repeat(steps, sizes)
    middle = np.float32((levels - 1) / 2)
    with np.errstate(over="ignore"):  # is clipped
        places = np.rint(vector / step + middle)
    codes = np.clip(places, 0, levels - 1).astype(np.uint8)
    return codes, vector - (codes - middle) * step


def mean_of(sums: npt.NDArray[np.uint32], sizes: Sizes, steps: Vector, levels: int, nodes: int) -> Vector:
    """The mean of what the codes of so many nodes stand for, from the sums of codes; float32."""
    centred = sums.astype(np.float64) - nodes * (levels - 1) / 2
    return (centred * np.repeat(steps, sizes) / nodes).astype(np.float32)


def magnitudes(vector: Vector, sizes: Sizes) -> Codes:
    """How large each tensor's elements are in the mean, as a code on a logarithmic scale."""
    parts = np.split(np.abs(vector), np.cumsum(sizes)[:-1])
    means = np.array([part.mean(dtype=np.float64) for part in parts])
    with np.errstate(divide="ignore"):
        places = np.rint(_QUARTERS * (np.log2(means) - _LOWEST))
    codes: Codes = np.clip(places, 0, SCALE_LEVELS - 1).astype(np.uint8)
    return codes


def steps_from(sums: npt.NDArray[np.uint32], nodes: int, levels: int) -> Vector:
    """Steps for tensors from the sums of their magnitude codes over so many nodes."""
    return steps_of(np.exp2(sums / nodes / _QUARTERS + _LOWEST), levels)


def steps_of(means: npt.NDArray[np.float64], levels: int) -> Vector:
    """Steps for tensors whose elements have these mean magnitudes."""
    return (best_step(levels) * means).astype(np.float32)


@lru_cache
def best_step(levels: int) -> float:
    """The step with the least squared error for Laplacian values of mean magnitude 1.

    What is left over of earlier rounds makes the values of a round heavier in the tail than a Gaussian.
    """
    values = np.arange(0.0025, 30, 0.005)  # the positive half; the other is the same
    density = np.exp(-values)
    middle = (levels - 1) / 2

    def error(step: float) -> float:
        codes = np.clip(np.rint(values / step + middle), 0, levels - 1)
        return float(np.average((values - (codes - middle) * step) ** 2, weights=density))

    steps: list[float] = np.geomspace(2 / levels**1.2, 8 / levels**0.5, 400).tolist()
    return min(steps, key=error)
