"""Block-wise symmetric quantization: `int8` and `int4`.

The flat vector is cut into blocks that never straddle two tensors: of at most 64 elements, or a row of a
tensor each (`:channel`). Each block has one scale, its largest magnitude over the number of levels, and each
element becomes the nearest multiple of it (block-wise absmax quantization: Dettmers et al. 2022, arXiv
2110.02861, section 2.1, with linear levels; per channel: arXiv 2508.01961), or one of the two around it at
random, so that the mean is right (`:stochastic`: Alistarh et al. 2017, arXiv 1610.02132). Without random
rotation: measured updates are no heavier-tailed than a Gaussian.

Body, little-endian: the largest scale (`unit`, float32), one scale a block relative to it (float16 in 0..1),
then the packed codes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from fedkron.compression.body import REMEDY, SMALLEST_NORMAL, Ratios, absolute_scales, checked_scales, exactly
from fedkron.compression.packing import Codes, pack_bytes, pack_nibbles, unpack_bytes, unpack_nibbles
from fedkron.errors import PayloadError
from fedkron.layout import TensorLayout, Vector

BLOCK_SIZE = 64
"""Elements that share one scale."""

_BLOCKS_AT_A_TIME = 1024  # 256 KiB of float32: what is being worked on stays in the cache


def fixed_length(tensor: TensorLayout) -> int:  # noqa: ARG001
    """Block length of `int8` and `int4`: the same for all tensors."""
    return BLOCK_SIZE


def row_length(tensor: TensorLayout) -> int:
    """Block length of the `:channel` codecs: a row of a matrix, all of a vector."""
    return max(tensor.shape[-1] if tensor.shape else 1, 1)


def to_nearest(scaled: Vector, rng: Generator) -> Vector:  # noqa: ARG001
    """Nearest integers, ties to even; in place."""
    return np.rint(scaled, out=scaled)


def at_random(scaled: Vector, rng: Generator) -> Vector:
    """One of the two integers around each element, so that the expectation is the element; in place."""
    scaled += rng.random(scaled.size, np.float32)
    return np.floor(scaled, out=scaled)


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Where the blocks of some tensors lie in the flat vector."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    size: int
    """Elements of all blocks together."""
    spans: tuple[tuple[slice, slice], ...]
    """Runs of blocks, and the elements they cover: each run is worked on in the cache."""

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.starts.size

    def peaks(self, vector: Vector) -> Vector:
        """Largest magnitude in each block, shape (count,)."""
        peaks = np.empty(self.count, np.float32)
        for some, part in self.spans:
            magnitudes = np.abs(vector[part])
            np.maximum.reduceat(magnitudes, self.starts[some] - part.start, out=peaks[some])
        return peaks


class OpenedBody(NamedTuple):
    """A body's scales, shape (blocks.count,), and its codes: still packed, and not checked."""

    blocks: Blocks
    scales: Vector
    packed: memoryview


@dataclass(frozen=True, slots=True)
class BlockwiseCodec:
    """Symmetric integer codes -`levels`..`levels` in `bits` bits, one scale for each block."""

    name: str
    id: int
    bits: int
    levels: int
    pack: Callable[[Codes], bytes]
    unpack: Callable[[memoryview, int], Codes]
    state_codec: str
    block_length: Callable[[TensorLayout], int] = fixed_length
    rounded: Callable[[Vector, Generator], Vector] = to_nearest

    def sizes(self, tensors: tuple[TensorLayout, ...]) -> range:
        """Bytes of a body: unit, scales and codes."""
        blocks = _blocks(tensors, self.block_length)
        return exactly(4 + 2 * blocks.count + -(-blocks.size * self.bits // 8))

    def quantize(self, vector: Vector, tensors: tuple[TensorLayout, ...], rng: Generator) -> bytes:
        """Body of a finite float32 vector of these tensors.

        An element is off by at most half its block's scale (at random: by less than a scale). Blocks whose
        scale would be below the smallest normal float32 number (1.2e-38) travel as zeros: a machine that
        flushes subnormal numbers would decode them otherwise.
        """
        blocks = _blocks(tensors, self.block_length)
        unit, ratios = self._relative_scales(blocks.peaks(vector))
        scales = absolute_scales(unit, ratios)
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
        codes = np.empty(vector.size, np.int8)
        for some, part in blocks.spans:
            scaled = np.repeat(inverse[some], blocks.lengths[some])
            scaled *= vector[part]
            rounded = self.rounded(scaled, rng)
            codes[part] = np.clip(rounded, -self.levels, self.levels, out=rounded)
        return b"".join((struct.pack("<f", unit), ratios.tobytes(), self.pack(codes)))

    def dequantize(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> Vector:
        """The float32 vector in a body: always finite.

        Raises `PayloadError` when the unit, a scale, a code or the padding is one that `quantize` never
        writes.
        """
        blocks, scales, packed = self.opened(body, tensors)
        codes = self.unpack(packed, blocks.size)
        if codes.min(initial=0) < -self.levels:
            element = int(np.argmin(codes))
            raise PayloadError(
                f"code {codes[element]} of element {element} is below -{self.levels}; {REMEDY}"
            )
        if (silent := scales == 0).any() and codes[np.repeat(silent, blocks.lengths)].any():
            raise PayloadError(f"payload has codes that are not 0 in a block whose scale is 0; {REMEDY}")
        vector = np.empty(blocks.size, np.float32)
        for some, part in blocks.spans:
            vector[part] = codes[part]
            vector[part] *= np.repeat(scales[some], blocks.lengths[some])
        return vector

    def opened(self, body: memoryview, tensors: tuple[TensorLayout, ...]) -> OpenedBody:
        """A body taken apart; `PayloadError` when its unit or a scale is one that `quantize` never writes."""
        blocks = _blocks(tensors, self.block_length)
        codes_start = 4 + 2 * blocks.count
        (unit,) = struct.unpack_from("<f", body)
        ratios = np.frombuffer(body[4:codes_start], "<f2")
        scales = checked_scales(unit, ratios, self._largest_unit)
        return OpenedBody(blocks, scales, body[codes_start:])

    def bound(self, body: memoryview) -> float:
        """What no magnitude in a body that `dequantize` takes exceeds, but for a rounding."""
        (unit,) = struct.unpack_from("<f", body)
        return float(unit) * self.levels

    def norm_bound(self, opened: OpenedBody) -> float:
        """What the Euclidean norm of an opened body does not exceed: as if all codes were the largest."""
        largest = opened.scales.astype(np.float64) * self.levels
        return float(np.sqrt(opened.blocks.lengths @ largest**2))

    @property
    def _largest_unit(self) -> float:
        """The largest float32 number whose product with `levels` is still finite."""
        quotient = float(np.finfo(np.float32).max) / self.levels
        nearest = np.float32(quotient)
        return float(nearest if float(nearest) <= quotient else np.nextafter(nearest, np.float32(0)))

    def _relative_scales(self, peaks: Vector) -> tuple[float, Ratios]:
        """The unit, and each block's scale over it: a float16 alone would underflow below 1e-6."""
        peak = float(peaks.max(initial=0.0))
        unit = np.float32(min(peak / self.levels, self._largest_unit))
        if unit < SMALLEST_NORMAL:
            return 0.0, np.zeros(peaks.size, "<f2")
        exact = peaks.astype(np.float64) / peak
        ratios = exact.astype("<f2")
        # Round up, so that no element exceeds `levels` scales: the bits of a float16 count upwards.
        ratios.view("<u2")[ratios < exact] += 1
        ratios[absolute_scales(float(unit), ratios) < SMALLEST_NORMAL] = 0
        return float(unit), ratios


_STATES = "ecsq:nmse=0.001"

INT8 = BlockwiseCodec("int8", 2, 8, 127, pack_bytes, unpack_bytes, "int8")
INT4 = BlockwiseCodec("int4", 3, 4, 7, pack_nibbles, unpack_nibbles, _STATES)
INT8_CHANNEL = replace(INT8, name="int8:channel", id=4, block_length=row_length, state_codec="int8:channel")
INT4_CHANNEL = replace(INT4, name="int4:channel", id=5, block_length=row_length)
# Rounding is the encoder's business: the decoder is that of the codec with the same id.
INT8_STOCHASTIC = replace(INT8, name="int8:stochastic", rounded=at_random)
INT4_STOCHASTIC = replace(INT4, name="int4:stochastic", rounded=at_random)


@lru_cache(maxsize=16)
def _blocks(tensors: tuple[TensorLayout, ...], block_length: Callable[[TensorLayout], int]) -> Blocks:
    sizes = np.array([tensor.size for tensor in tensors], np.int64)
    lengths = np.array([block_length(tensor) for tensor in tensors], np.int64)
    counts = -(-sizes // np.maximum(lengths, 1))
    count = int(counts.sum())
    # The j-th block of a tensor starts j lengths behind the tensor's first element.
    within_tensor = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(np.cumsum(sizes) - sizes, counts) + np.repeat(lengths, counts) * within_tensor
    edges = np.append(starts, sizes.sum())
    spans = tuple(
        (slice(first, last), slice(int(edges[first]), int(edges[last]))) for first, last in _runs(edges)
    )
    return Blocks(starts, np.diff(edges), int(edges[-1]), spans)


def _runs(edges: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of whole blocks with about as many elements as fit into the cache."""
    per_run = BLOCK_SIZE * _BLOCKS_AT_A_TIME
    cuts = np.searchsorted(edges, np.arange(0, int(edges[-1]), per_run))
    marks = np.unique(np.append(cuts, edges.size - 1))
    return list(zip(marks[:-1].tolist(), marks[1:].tolist(), strict=True))
