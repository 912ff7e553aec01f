"""Block-wise symmetric quantization: `int8` and `int4`.

The flat vector is cut into blocks of at most 64 elements that never straddle two tensors. Each block has
one scale, its largest magnitude over the number of levels, and each element becomes the nearest multiple
of it (block-wise absmax quantization: Dettmers et al. 2022, arXiv 2110.02861, section 2.1, with linear
levels). Without random rotation: measured updates are no heavier-tailed than a Gaussian.

Body, little-endian: the payload's largest scale (`unit`, float32), one scale a block relative to it
(float16 in 0..1), then the packed codes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedkron.compression.packing import Codes, pack_bytes, pack_nibbles, unpack_bytes, unpack_nibbles
from fedkron.errors import PayloadError
from fedkron.layout import AdapterLayout, Vector

BLOCK_SIZE = 64
"""Elements that share one scale."""

_BLOCKS_AT_A_TIME = 1024  # 256 KiB of float32: what is being worked on stays in the cache
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
_ONE = 0x3C00  # float16 bits of 1.0; every larger pattern is above one, negative, infinite or NaN


@dataclass(frozen=True, slots=True)
class BlockwiseCodec:
    """Symmetric integer codes -`levels`..`levels` in `bits` bits, one scale for each block."""

    name: str
    id: int
    bits: int
    levels: int
    pack: Callable[[Codes], bytes]
    unpack: Callable[[bytes | memoryview, int], Codes]

    def size(self, layout: AdapterLayout) -> int:
        """Bytes of a body: unit, scales and codes."""
        return 4 + 2 * _blocks(layout).count + -(-layout.size * self.bits // 8)

    def quantize(self, vector: Vector, layout: AdapterLayout) -> bytes:
        """Body of a finite float32 vector of `layout.size` elements.

        An element is off by at most half its block's scale. Blocks whose scale would be below the
        smallest normal float32 number (1.2e-38) travel as zeros: a machine that flushes subnormal numbers
        would decode them otherwise.
        """
        blocks = _blocks(layout)
        unit, ratios = self._relative_scales(blocks.peaks(vector))
        scales = ratios.astype(np.float32) * unit
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
        codes = np.empty(layout.size, np.int8)
        for some, elements in blocks.spans:
            scaled = np.repeat(inverse[some], blocks.lengths[some])
            scaled *= vector[elements]
            codes[elements] = np.rint(scaled, out=scaled)
        return b"".join((struct.pack("<f", unit), ratios.tobytes(), self.pack(codes)))

    def dequantize(self, body: bytes | memoryview, layout: AdapterLayout) -> Vector:
        """The float32 vector in a body of `size(layout)` bytes: always finite.

        Raises `PayloadError` when the unit, a scale, a code or the padding is one that `quantize` never
        writes.
        """
        blocks = _blocks(layout)
        codes_start = 4 + 2 * blocks.count
        (unit,) = struct.unpack_from("<f", body)
        ratios = np.frombuffer(memoryview(body)[4:codes_start], "<f2")
        codes = self.unpack(memoryview(body)[codes_start:], layout.size)
        self._check(unit, ratios, codes)
        scales = ratios.astype(np.float32) * np.float32(unit)
        vector = np.empty(layout.size, np.float32)
        for some, elements in blocks.spans:
            np.multiply(codes[elements], np.repeat(scales[some], blocks.lengths[some]), out=vector[elements])
        return vector

    @property
    def _largest_unit(self) -> float:
        """The largest float32 number whose product with `levels` is still finite."""
        quotient = float(np.finfo(np.float32).max) / self.levels
        nearest = np.float32(quotient)
        return float(nearest if float(nearest) <= quotient else np.nextafter(nearest, np.float32(0)))

    def _relative_scales(self, peaks: Vector) -> tuple[np.float32, npt.NDArray[np.float16]]:
        """The unit, and each block's scale over it: a float16 alone would underflow below 1e-6."""
        peak = float(peaks.max(initial=0.0))
        unit = np.float32(min(peak / self.levels, self._largest_unit))
        if unit < _SMALLEST_NORMAL:
            return np.float32(0), np.zeros(peaks.size, "<f2")
        exact = peaks.astype(np.float64) / peak
        ratios = exact.astype("<f2")
        # Round up, so that no element exceeds `levels` scales: the bits of a float16 count upwards.
        ratios.view("<u2")[ratios < exact] += 1
        ratios[ratios.astype(np.float32) * unit < _SMALLEST_NORMAL] = 0
        return unit, ratios

    def _check(self, unit: float, ratios: npt.NDArray[np.float16], codes: Codes) -> None:
        remedy = "ask the sender to encode again"
        if not 0 <= unit <= self._largest_unit:
            raise PayloadError(f"payload's unit {unit} is not in 0..{self._largest_unit}; {remedy}")
        if (beyond := ratios.view("<u2") > _ONE).any():
            block = int(np.argmax(beyond))
            raise PayloadError(f"relative scale {ratios[block]} of block {block} is not in 0..1; {remedy}")
        if codes.min(initial=0) < -self.levels:
            element = int(np.argmin(codes))
            raise PayloadError(
                f"code {codes[element]} of element {element} is below -{self.levels}; {remedy}"
            )


INT8 = BlockwiseCodec("int8", 2, 8, 127, pack_bytes, unpack_bytes)
INT4 = BlockwiseCodec("int4", 3, 4, 7, pack_nibbles, unpack_nibbles)


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Where a layout's blocks lie in the flat vector."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    spans: tuple[tuple[slice, slice], ...]
    """Runs of blocks, and the elements they cover: each run is worked on in the cache."""

    @property
    def count(self) -> int:
        return self.starts.size

    def peaks(self, vector: Vector) -> Vector:
        """Largest magnitude in each block, shape (count,)."""
        peaks = np.empty(self.count, np.float32)
        for some, elements in self.spans:
            magnitudes = np.abs(vector[elements])
            np.maximum.reduceat(magnitudes, self.starts[some] - elements.start, out=peaks[some])
        return peaks


@lru_cache(maxsize=16)
def _blocks(layout: AdapterLayout) -> _Blocks:
    sizes = np.array([tensor.size for tensor in layout.tensors], np.int64)
    counts = -(-sizes // BLOCK_SIZE)
    count = int(counts.sum())
    # The j-th block of a tensor starts 64·j behind the tensor's first element.
    within_tensor = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(np.cumsum(sizes) - sizes, counts) + BLOCK_SIZE * within_tensor
    edges = np.append(starts, layout.size)
    spans = tuple(
        (slice(first, last), slice(int(edges[first]), int(edges[last])))
        for first in range(0, count, _BLOCKS_AT_A_TIME)
        for last in (min(first + _BLOCKS_AT_A_TIME, count),)
    )
    return _Blocks(starts, np.diff(edges), spans)
