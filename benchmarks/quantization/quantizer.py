"""A symmetric uniform quantizer of whole factors, and figures of their range."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.typing import NDArray

from fedkron.layout import State

Factor = NDArray[np.float32]

GRANULARITIES: dict[str, int | None] = {"per-tensor": None, "per-channel": 1}
"""The axis of a factor along which all values share a step; None is all of it."""


def steps(factor: Factor, bits: int, granularity: str) -> Factor:
    """Δ = max|w| / (2^(bits−1) − 1) of a factor (rows, columns): (1, 1) per tensor, (rows, 1) per channel."""
    largest = np.abs(factor).max(axis=GRANULARITIES[granularity], keepdims=True)
    return np.asarray(largest / (2 ** (bits - 1) - 1), np.float32)


def quantize(factor: Factor, bits: int, granularity: str) -> Factor:
    """The factor after rounding to the nearest multiple of its step: float32, same shape."""
    step = steps(factor, bits, granularity)
    # A row of zeros has the step 0 and stays as it is.
    levels = np.divide(factor, step, out=np.zeros_like(factor), where=step > 0)
    return np.asarray(np.rint(levels) * step, np.float32)


def max_norm(factor: Factor) -> float:
    """max|w|, the dynamic range that the claim is about."""
    return float(np.abs(factor).max())


def crest(factor: Factor) -> float:
    """max|w| / rms(w): how far the largest value, which sets the step, stands out."""
    return max_norm(factor) / float(np.sqrt(np.square(factor).mean()))


def over_layers(state: State, figure: Callable[[Factor], float]) -> dict[str, float]:
    """Median over the layers of a figure of each factor, by the factor's name (the end of the tensor's)."""
    values: dict[str, list[float]] = {}
    for name, factor in state.items():
        values.setdefault(name.rpartition(".")[2], []).append(figure(factor))
    return {name: median(of_factor) for name, of_factor in values.items()}
