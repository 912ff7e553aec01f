"""Floating-point codecs: `fp32` (exact) and `fp16` (half the bytes, about three decimal digits)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from fedkron.compression.body import exactly
from fedkron.compression.finite import first_nonfinite
from fedkron.errors import NonFiniteError, PayloadError
from fedkron.layout import TensorLayout, Vector, elements

_LARGEST = 65504 * 2.0**112  # the largest float32 number with the eleven significant bits of a float16
_SMALLEST_EXPONENT = -125  # the smallest float16 times it is the smallest float32: none of them gets lost


@dataclass(frozen=True, slots=True)
class Float32Codec:
    """The vector as it is: little-endian float32, nothing lost."""

    name: str = "fp32"
    id: int = 0
    state_codec: str = "fp32"

    def sizes(self, tensors: tuple[TensorLayout, ...]) -> range:
        """Bytes of a body: four an element."""
        return exactly(4 * elements(tensors))

    def quantize(self, vector: Vector, tensors: tuple[TensorLayout, ...], rng: Generator) -> bytes:  # noqa: ARG002
        """Body of a finite float32 vector of these tensors."""
        return vector.astype("<f4", copy=False).tobytes()

    def dequantize(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> Vector:
        """The vector in a body. Raises `NonFiniteError` on NaN or infinity."""
        return _finite(np.frombuffer(body, "<f4").astype(np.float32), tensors)


@dataclass(frozen=True, slots=True)
class Float16Codec:
    """Half precision, relative to one power of two for the whole payload.

    Body: the power of two (float32), then the elements divided by it (float16). Plain float16 would lose
    the small updates of a low learning rate (it underflows from 6e-5 on) and cannot hold anything beyond
    65504; dividing by a power of two is exact and brings the largest element just below 2^15.
    """

    name: str = "fp16"
    id: int = 1
    state_codec: str = "fp16"

    def sizes(self, tensors: tuple[TensorLayout, ...]) -> range:
        """Bytes of a body: the power of two, and two bytes an element."""
        return exactly(4 + 2 * elements(tensors))

    def quantize(self, vector: Vector, tensors: tuple[TensorLayout, ...], rng: Generator) -> bytes:  # noqa: ARG002
        """Body of a finite float32 vector of these tensors."""
        peak = max(vector.max(initial=0.0), -vector.min(initial=0.0))
        exponent = max(math.frexp(peak)[1] - 15, _SMALLEST_EXPONENT)
        clipped = np.clip(vector, -_LARGEST, _LARGEST)  # beyond, a half rounds up to 2^128, which is infinite
        halves = (clipped * np.float32(2.0**-exponent)).astype("<f2")
        return struct.pack("<f", 2.0**exponent) + halves.tobytes()

    def dequantize(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> Vector:
        """The vector in a body.

        Raises `PayloadError` when the first number is not a power of two, `NonFiniteError` on NaN or
        infinity.
        """
        (unit,) = struct.unpack_from("<f", body)
        if math.frexp(unit)[0] != 0.5 or unit < 2.0**_SMALLEST_EXPONENT:
            raise PayloadError(
                f"payload's unit is {unit}, fp16 needs a power of two from 2^{_SMALLEST_EXPONENT} on; "
                "ask the sender to encode again"
            )
        halves = np.frombuffer(body[4:], "<f2")
        with np.errstate(over="ignore", invalid="ignore"):  # a hostile body overflows: refused below
            vector = halves.astype(np.float32) * np.float32(unit)
        return _finite(vector, tensors)


def _finite(vector: Vector, tensors: tuple[TensorLayout, ...]) -> Vector:
    if found := first_nonfinite(vector, tensors):
        raise NonFiniteError(f"{found} in this payload; drop it, its sender's training has diverged")
    return vector


FP32 = Float32Codec()
FP16 = Float16Codec()
