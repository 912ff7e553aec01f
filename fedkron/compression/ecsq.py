"""Entropy-coded scalar quantization with a dead zone: `ecsq:BITS` and `ecsq:nmse=ERROR`.

A uniform quantizer whose zero interval is wider than the others, each interval reconstructed at its mean
(Sullivan 1996, "Efficient scalar quantization of exponential and Laplacian random variables"), and the codes
entropy-coded. At high rate it needs 0.255 bit more than Shannon's bound, at low rates less (Gish and Pierce
1968). All tensors share one step: that is where the error of the whole vector is smallest for its bits
(reverse water-filling).

Below one bit per parameter it may be better to send a part of the elements well. Then only a window of the
vector is encoded, the one that holds the most energy: with error feedback what had to wait grows until it is
its turn.

Body, little-endian: first element and number of elements of the window, which may go on at the start of the
vector (2 × uint32); the number of levels L (uint16), L + 1 weights (uint16) of the magnitudes 0..L, L
reconstruction values (float32) of the magnitudes 1..L, then the codes as 32-bit words of an ANS coder. Where
all codes are zero the window is empty and nothing follows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from fedkron.compression.body import REMEDY, SMALLEST_NORMAL
from fedkron.compression.entropy import Symbols, ans_decode, ans_encode, quantized_weights
from fedkron.compression.rate import (
    MAX_LEVELS,
    Quantizer,
    plan_for_bits,
    quantizer_for_bits,
    quantizer_for_error,
)
from fedkron.errors import ConfigError, PayloadError
from fedkron.layout import TensorLayout, Vector, elements

USAGE = "ecsq (2 bits), ecsq:BITS (0.1 to 12 bits per parameter), ecsq:nmse=ERROR (1e-6 to 0.9)"

_AT_A_TIME = 1 << 16  # elements: what is being worked on stays in the cache
# No step is near the subnormal numbers, not even in a window that lacks the peak: it has as much energy.
_SMALLEST_PEAK = SMALLEST_NORMAL * MAX_LEVELS * 2.0**20
_WINDOW = struct.Struct("<II")
_ALL_ZERO = _WINDOW.pack(0, 0)
_WINDOW_PLACES = 256
_LARGEST_TABLE = 2 + 2 + 6 * MAX_LEVELS


@dataclass(frozen=True, slots=True)
class EcsqCodec:
    """At most `bits` bits per parameter; where that is None, at most `error` in normalised squared error."""

    name: str
    bits: float | None
    error: float | None = None
    id: int = 6
    state_codec: str = "ecsq:nmse=0.001"

    def sizes(self, tensors: tuple[TensorLayout, ...]) -> range:
        """Bytes of a body: from all zeros to the largest table and 24 bits for each code."""
        return range(_WINDOW.size, _WINDOW.size + _LARGEST_TABLE + 3 * elements(tensors) + 16)

    def quantize(self, vector: Vector, tensors: tuple[TensorLayout, ...], rng: Generator) -> bytes:  # noqa: ARG002
        """Body of a finite float32 vector of these tensors; tiny vectors (below 1e-28) travel as zeros."""
        if max(vector.max(initial=0.0), -vector.min(initial=0.0)) < _SMALLEST_PEAK:
            return _ALL_ZERO
        if self.bits is None:
            quantizer = quantizer_for_error(vector, self.error or 0.0)
            return _encoded(vector, 0, quantizer)
        share, quantizer = plan_for_bits(vector, self.bits)
        start, count = _fullest_window(vector, max(round(share * vector.size), 1))
        if count == vector.size:
            return _encoded(vector, start, quantizer)
        part = np.take(vector, range(start, start + count), mode="wrap")
        return _encoded(part, start, quantizer_for_bits(part, self.bits / share))

    def dequantize(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> Vector:
        """The float32 vector in a body: always finite.

        Raises `PayloadError` for a window, a table or words that `quantize` never writes.
        """
        size = elements(tensors)
        start, count = _WINDOW.unpack_from(body)
        if count > size or start >= max(size, 1) or (count in (0, size) and start):
            raise PayloadError(f"payload's window has {count} of {size} elements from {start} on; {REMEDY}")
        if count == 0:
            if len(body) > _WINDOW.size:
                raise PayloadError(
                    f"payload has {len(body) - _WINDOW.size} bytes behind an empty window; {REMEDY}"
                )
            return np.zeros(size, np.float32)
        part = _decoded(body[_WINDOW.size :], count)
        if count == size:
            return part
        vector = np.zeros(size, np.float32)
        before_end = min(count, size - start)
        vector[start : start + before_end] = part[:before_end]
        vector[: count - before_end] = part[before_end:]
        return vector


def ecsq(option: str) -> EcsqCodec:
    """The codec of an option: "" (2 bits), "1.5" (bits) or "nmse=0.01".

    Raises `ConfigError` for anything else.
    """
    name = f"ecsq:{option}" if option else "ecsq"
    kind, _, number = option.rpartition("=")
    try:
        value = float(number or "2")
    except ValueError:
        value = float("nan")
    if kind == "" and "=" not in option and 0.1 <= value <= 12:
        return EcsqCodec(name, bits=value)
    if kind == "nmse" and 1e-6 <= value <= 0.9:
        return EcsqCodec(name, bits=None, error=value)
    raise ConfigError(f"codec {name!r} does not exist: use {USAGE}")


def _encoded(window: Vector, first: int, quantizer: Quantizer) -> bytes:
    levels = quantizer.levels
    symbols: Symbols = np.empty(window.size, np.int32)
    counts = np.zeros(levels + 1, np.int64)
    sums = np.zeros(levels + 1, np.float64)
    inverse, offset = np.float32(1 / quantizer.step), np.float32(1 - quantizer.dead_zone)
    for start in range(0, window.size, _AT_A_TIME):
        part = window[start : start + _AT_A_TIME]
        magnitudes = np.abs(part)
        codes = np.minimum(magnitudes * inverse + offset, levels).astype(np.intp)
        counts += np.bincount(codes, minlength=levels + 1)
        sums += np.bincount(codes, magnitudes, levels + 1)
        # Two's complement: all ones where the sign bit is set, and (c ^ -1) + 1 = -c.
        negative = part.view(np.int32) >> 31
        signed = symbols[start : start + _AT_A_TIME]
        np.bitwise_xor(codes, negative, out=signed, casting="unsafe")
        signed -= negative
        signed += levels
    levels_used = int(np.flatnonzero(counts)[-1])
    if levels_used == 0:
        return _ALL_ZERO
    symbols -= levels - levels_used
    counts, sums = counts[: levels_used + 1], sums[: levels_used + 1]
    nominal = (np.arange(levels_used + 1) - 0.5 + quantizer.dead_zone) * quantizer.step
    means = np.where(counts > 0, sums / np.maximum(counts, 1), nominal)[1:]
    means = np.maximum(means, SMALLEST_NORMAL)  # without a dead zone the first level may hold zeros only
    weights = quantized_weights(counts)
    head = _WINDOW.pack(first, window.size) + struct.pack("<H", levels_used)
    return b"".join((head, weights.tobytes(), means.astype("<f4").tobytes(), ans_encode(symbols, weights)))


def _decoded(body: memoryview, count: int) -> Vector:
    if len(body) < 2:
        raise PayloadError(f"payload's table is missing; {REMEDY}")
    (levels,) = struct.unpack_from("<H", body)
    words_start = 4 + 6 * levels
    if not 1 <= levels <= MAX_LEVELS or words_start > len(body) or (len(body) - words_start) % 4:
        raise PayloadError(f"payload's table has {levels} levels, its body {len(body)} bytes; {REMEDY}")
    weights = np.frombuffer(body[2 : 4 + 2 * levels], "<u2")
    magnitudes = np.frombuffer(body[4 + 2 * levels : words_start], "<f4").astype(np.float32)
    _check_table(weights, magnitudes)
    symbols = ans_decode(np.frombuffer(body[words_start:], "<u4"), weights, count)
    values = np.concatenate((-magnitudes[::-1], np.zeros(1, np.float32), magnitudes))
    vector = np.empty(count, np.float32)
    counts = np.zeros(values.size, np.int64)
    for start in range(0, count, _AT_A_TIME):
        codes = symbols[start : start + _AT_A_TIME].astype(np.intp)
        counts += np.bincount(codes, minlength=values.size)
        # None is out of range: clipping is merely the fastest of numpy's modes.
        np.take(values, codes, out=vector[start : start + _AT_A_TIME], mode="clip")
    both_signs = counts[levels:] + counts[levels::-1]
    both_signs[0] = counts[levels]
    if not np.array_equal(quantized_weights(both_signs), weights):
        raise PayloadError(f"payload's weights are not those of its codes; {REMEDY}")
    return vector


def _fullest_window(vector: Vector, count: int) -> tuple[int, int]:
    """First element and length of the window of `count` elements with the most energy."""
    if count >= vector.size:
        return 0, vector.size
    starts = np.arange(_WINDOW_PLACES) * vector.size // _WINDOW_PLACES
    energy = np.concatenate(([0.0], np.cumsum(np.square(vector, dtype=np.float64))))
    ends = starts + count
    inside = energy[np.minimum(ends, vector.size)] - energy[starts]
    wrapped = energy[np.maximum(ends - vector.size, 0)]
    return int(starts[np.argmax(inside + wrapped)]), count


def _check_table(weights: npt.NDArray[np.uint16], magnitudes: Vector) -> None:
    if weights[-1] == 0:
        raise PayloadError(f"payload's table gives its last level the weight {weights[-1]}; {REMEDY}")
    if not np.isfinite(magnitudes).all() or magnitudes[0] < SMALLEST_NORMAL:
        raise PayloadError(f"payload's table has a level that is not a positive finite number; {REMEDY}")
    if (np.diff(magnitudes) <= 0).any():
        raise PayloadError(f"payload's table has levels that do not increase; {REMEDY}")
