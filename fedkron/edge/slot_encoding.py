"""How numbers are written in a slot: float32, float16, or 8- or 4-bit codes with a scale per block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedkron.errors import AdapterError
from fedkron.layout import Vector

BLOCK = 64
"""Consecutive elements with one scale."""

Codes = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Encoding:
    """One way to write a slot: the dtype of the graph's input, and the parts of it that an element takes.

    `codes_per_element` is 0 where the elements are numbers, not codes.
    """

    dtype: str
    codes_per_element: float = 0


ENCODINGS = {
    "fp32": Encoding("float32"),
    "fp16": Encoding("float16"),
    "int8": Encoding("int8", 1),
    "int4": Encoding("uint8", 0.5),
}


def encode(coded: Vector, exact: Vector, encoding: str) -> tuple[Codes, Vector | None]:
    """Slot, and scales followed by the exact values for encodings that have codes.

    `coded` and `exact` are float32 vectors. fp32 and fp16: one vector of both. int8: q = round(x / s) in
    [−127, 127], s = max|x| / 127 per block of 64. int4: q in [−8, 7] with the scale of least squared error,
    which may be negative; byte i has q + 8 of element i in its low nibble and of element i + n/2 in its
    high one. Raises `AdapterError` for values that are not finite, or too large for float16.
    """
    if not (np.isfinite(coded).all() and np.isfinite(exact).all()):
        raise AdapterError("the adapter has values that are not finite: train it again")
    if encoding in ("fp32", "fp16"):
        return _numbers(np.concatenate([coded, exact]), encoding), None
    blocks = np.zeros((-(-len(coded) // BLOCK), BLOCK), np.float32)
    blocks.reshape(-1)[: len(coded)] = coded
    codes, scales = _int8(blocks) if encoding == "int8" else _int4(blocks)
    return codes, np.concatenate([scales, exact], dtype=np.float32)


def _numbers(values: Vector, encoding: str) -> Codes:
    with np.errstate(over="ignore"):
        numbers = values.astype(ENCODINGS[encoding].dtype)
    if not np.isfinite(numbers).all():
        raise AdapterError(f"the adapter has {np.abs(values).max():.3g}, too large for float16: use fp32")
    return numbers


def _int8(blocks: npt.NDArray[np.float32]) -> tuple[Codes, Vector]:
    scales = np.abs(blocks).max(1) / np.float32(127)
    codes = np.rint(blocks / _divisors(scales)[:, None]).clip(-127, 127).astype(np.int8)
    return codes.ravel(), scales


def _int4(blocks: npt.NDArray[np.float32]) -> tuple[Codes, Vector]:
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    # In units of the extreme no square is too large, or too small, for float32.
    units = blocks / _divisors(extreme)[:, None]
    best, steps = np.full((2, len(blocks)), np.inf, np.float32)
    # The code -8 is there for one sign only: a negative scale gives it to the block's extreme.
    for tried in np.linspace(-8.5, -5.5, 13, dtype=np.float32):
        error = np.square(np.rint(units * tried).clip(-8, 7) / tried - units).sum(1)
        steps = np.where(error < best, tried, steps)
        best = np.minimum(error, best)
    scales = extreme / steps
    codes = np.rint(units * steps[:, None]).clip(-8, 7) + 8
    low, high = codes.astype(np.uint8).reshape(2, -1)
    return low | high << 4, scales


def _divisors(scales: Vector) -> Vector:
    """Scales, with 1 where a block is all zeros, or so small that its scale is."""
    return np.where(scales == 0, np.float32(1), scales)
