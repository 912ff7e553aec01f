"""Signs and one scale for each tensor: `sign`, one bit an element.

The scale is the mean magnitude, which among all multiples of the signs is nearest to the tensor (signSGD
with scale and error feedback: Karimireddy et al. 2019, arXiv 1901.09847, section 3). It is a biased codec
that loses a third of the energy of a Gaussian: use it with error feedback.

Body, little-endian: the largest scale (`unit`, float32), one scale a tensor relative to it (float16 in
0..1), then the signs, eight a byte, the first in the lowest bit, 1 for negative.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from fedkron.compression.body import REMEDY, SMALLEST_NORMAL, absolute_scales, checked_scales, exactly
from fedkron.errors import PayloadError
from fedkron.layout import TensorLayout, Vector, elements

_AT_A_TIME = 1 << 16  # elements: what is being worked on stays in the cache
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class SignCodec:
    """One sign an element, one scale a tensor."""

    name: str = "sign"
    id: int = 7
    state_codec: str = "ecsq:nmse=0.001"

    def sizes(self, tensors: tuple[TensorLayout, ...]) -> range:
        """Bytes of a body: unit, scales and signs."""
        return exactly(4 + 2 * len(tensors) + -(-elements(tensors) // 8))

    def quantize(self, vector: Vector, tensors: tuple[TensorLayout, ...], rng: Generator) -> bytes:  # noqa: ARG002
        """Body of a finite float32 vector of these tensors; tensors with tiny scales travel as zeros."""
        sizes = _sizes(tensors)
        means = np.zeros(len(tensors), np.float64)
        starts = np.cumsum(sizes) - sizes
        if vector.size:
            filled = sizes > 0  # reduceat gives the next tensor's first element for an empty one
            means[filled] = _sums(vector, starts[filled]) / sizes[filled]
        unit = np.float32(means.max(initial=0.0))
        if unit < SMALLEST_NORMAL:
            unit, ratios = np.float32(0), np.zeros(len(tensors), "<f2")
        else:
            ratios = np.minimum(means / float(unit), 1).astype("<f2")
            ratios[absolute_scales(float(unit), ratios) < SMALLEST_NORMAL] = 0
        # A tensor without a scale has no signs either: nobody could tell them from others.
        signs = np.packbits((vector < 0) & np.repeat(ratios > 0, sizes), bitorder="little")
        return b"".join((struct.pack("<f", unit), ratios.tobytes(), signs.tobytes()))

    def dequantize(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> Vector:
        """The float32 vector in a body: always finite.

        Raises `PayloadError` when the unit, a scale or the padding is one that `quantize` never writes.
        """
        signs_start = 4 + 2 * len(tensors)
        (unit,) = struct.unpack_from("<f", body)
        ratios = np.frombuffer(body[4:signs_start], "<f2")
        scales = checked_scales(unit, ratios, _LARGEST)
        size = elements(tensors)
        signs = np.unpackbits(np.frombuffer(body[signs_start:], np.uint8), bitorder="little")
        if signs[size:].any():
            raise PayloadError(f"payload's padding bits are not 0; {REMEDY}")
        vector = np.repeat(scales, _sizes(tensors))
        if signs[:size][vector == 0].any():
            raise PayloadError(f"payload has a negative sign in a tensor whose scale is 0; {REMEDY}")
        # The sign is the top bit of a float32: set it where it belongs.
        bits = vector.view(np.uint32)
        for start in range(0, size, _AT_A_TIME):
            part = slice(start, min(start + _AT_A_TIME, size))
            tops = signs[part].astype(np.uint32)
            tops <<= 31
            bits[part] |= tops
        return vector


def _sums(vector: Vector, starts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray:
    """Sum of the magnitudes from each start to the next."""
    sums = np.empty(starts.size, np.float64)
    edges = np.append(starts, vector.size)
    marks = np.unique(np.append(np.searchsorted(edges, np.arange(0, vector.size, _AT_A_TIME)), starts.size))
    for first, last in pairwise(marks):
        magnitudes = np.abs(vector[edges[first] : edges[last]]).astype(np.float64)
        np.add.reduceat(magnitudes, edges[first:last] - edges[first], out=sums[first:last])
    return sums


def _sizes(tensors: tuple[TensorLayout, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([tensor.size for tensor in tensors], np.int64)


SIGN = SignCodec()
