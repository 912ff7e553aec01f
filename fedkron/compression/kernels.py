"""The loops that add packed codes of block-wise codecs to a sum, compiled by numba.

numba is optional, so this module is only imported where it is tried (`accumulate.fastest`). It compiles on
import and keeps the machine code for the next process: in `__pycache__` beside this file, else in the user's
cache folder (NUMBA_CACHE_DIR comes before both). Where no folder can be written, every process compiles.

Every operation is rounded to float32, in the order of `BlockwiseCodec.dequantize` and a multiply-add: without
`fastmath` LLVM neither reorders nor fuses them, so that the bits are those of numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt

from fedkron.compression.accumulate import Addend, decoded
from fedkron.compression.blockwise import BlockwiseCodec, OpenedBody
from fedkron.compression.codecs import Codec
from fedkron.compression.payload import Body
from fedkron.layout import Vector

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_BYTES = nb.types.Array(nb.uint8, 1, "C", readonly=True)
_ZERO = np.float32(8)  # the nibble of code 0; to subtract it as a float is exact, and faster
_PLACES, _SCALES = nb.int64[::1], nb.float32[::1]


def _compiled(signature: Any) -> Callable[[_Function], _Function]:  # noqa: ANN401
    def compile_(function: _Function) -> _Function:
        try:
            kernel: _Function = nb.njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder for the machine code, or a full disk
            kernel = nb.njit(signature, nogil=True)(function)
        return kernel

    return compile_


@_compiled(nb.boolean(_BYTES, _PLACES, _PLACES, _SCALES))
def are_nibbles(packed: Bytes, starts: Places, lengths: Places, scales: Vector) -> bool:
    """Whether these are nibbles of codes -7..7, all 0 where the scale is 0, with 0 as padding."""
    smallest = np.uint8(15)
    size = starts[-1] + lengths[-1] if starts.size else 0
    for i in range(size // 2):
        smallest = min(smallest, np.uint8(packed[i] & 15), np.uint8(packed[i] >> 4))
    if smallest == 0 or (size % 2 and not 0 < packed[size // 2] <= 15):
        return False
    for block in range(starts.size):
        if scales[block] == 0:
            for i in range(starts[block], starts[block] + lengths[block]):
                if (packed[i >> 1] >> (i & 1) * 4) & 15 != 8:
                    return False
    return True


@_compiled(nb.boolean(_BYTES, _PLACES, _PLACES, _SCALES))
def are_bytes(packed: Bytes, starts: Places, lengths: Places, scales: Vector) -> bool:
    """Whether these are codes -127..127 in two's complement, all 0 where the scale is 0."""
    smallest = np.int8(0)
    for i in range(packed.size):
        smallest = min(smallest, np.int8(packed[i]))
    if smallest == -128:
        return False
    for block in range(starts.size):
        if scales[block] == 0:
            for i in range(starts[block], starts[block] + lengths[block]):
                if packed[i] != 0:
                    return False
    return True


@_compiled(nb.void(_BYTES, _PLACES, _PLACES, _SCALES, nb.float32, nb.float32[::1]))
def add_nibbles(  # noqa: PLR0917
    packed: Bytes, starts: Places, lengths: Places, scales: Vector, share: np.float32, sums: Vector
) -> None:
    """sums += share · (scale · code), two codes a byte, each as `code + 8`, the first in the low nibble."""
    for block in range(starts.size):
        scale, start, end = scales[block], starts[block], starts[block] + lengths[block]
        if start & 1:
            sums[start] += share * (scale * (np.float32(packed[start >> 1] >> 4) - _ZERO))
            start += 1
        # Slices of whole bytes: LLVM makes SIMD of them, and not of single nibbles.
        pairs = (end - start) >> 1
        some, codes = sums[start : start + 2 * pairs], packed[start >> 1 : (start >> 1) + pairs]
        for i in range(pairs):
            some[2 * i] += share * (scale * (np.float32(codes[i] & 15) - _ZERO))
            some[2 * i + 1] += share * (scale * (np.float32(codes[i] >> 4) - _ZERO))
        if (end - start) & 1:
            sums[end - 1] += share * (scale * (np.float32(packed[end >> 1] & 15) - _ZERO))


@_compiled(nb.void(_BYTES, _PLACES, _PLACES, _SCALES, nb.float32, nb.float32[::1]))
def add_bytes(  # noqa: PLR0917
    packed: Bytes, starts: Places, lengths: Places, scales: Vector, share: np.float32, sums: Vector
) -> None:
    """sums += share · (scale · code), one code a byte in two's complement."""
    for block in range(starts.size):
        scale, start, end = scales[block], starts[block], starts[block] + lengths[block]
        some, codes = sums[start:end], packed[start:end]
        for i in range(end - start):
            some[i] += share * (scale * np.float32(np.int8(codes[i])))


_KERNELS = {4: (are_nibbles, add_nibbles), 8: (are_bytes, add_bytes)}


def compiled(codec: Codec, body: Body) -> Addend:
    """The addend of any codec; that of a block-wise one is its packed codes.

    The kernels only tell that a body is right: what is wrong with another one, `dequantize` tells.
    """
    if isinstance(codec, BlockwiseCodec):
        opened = codec.opened(*body)
        are_right, add = _KERNELS[codec.bits]
        packed = np.frombuffer(opened.packed, np.uint8)
        if are_right(packed, opened.blocks.starts, opened.blocks.lengths, opened.scales):
            return _PackedBody(opened, packed, add, codec.bound(body.data), codec.norm_bound(opened))
    return decoded(codec, body)


@dataclass(frozen=True, slots=True, eq=False)
class _PackedBody:
    opened: OpenedBody
    packed: Bytes
    add: Callable[..., None]
    peak: float
    norm: float

    @property
    def size(self) -> int:
        return self.opened.blocks.size

    def add_to(self, sums: Vector, share: np.float32) -> None:
        blocks, scales, _ = self.opened
        self.add(self.packed, blocks.starts, blocks.lengths, scales, share, sums)
