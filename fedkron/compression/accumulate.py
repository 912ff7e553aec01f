"""Payloads straight into a sum, without a vector of each in memory: what a server does with thousands.

A payload is checked first, as `decode_vector` checks it, and added afterwards, when nothing can be refused
any more. Bodies of `int8` and `int4`, `:channel` too, are added by compiled loops (`kernels`) where numba is
installed (`fedkron[fast]`). Everything else is decoded. Both give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Protocol

import numpy as np

from fedkron.compression.blockwise import BlockwiseCodec
from fedkron.compression.codecs import Codec
from fedkron.compression.payload import Body, Header, checked_bodies
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, Vector

_LARGEST_SHARE = float(np.finfo(np.float32).max)
_AT_A_TIME = 1 << 16  # elements: what is being worked on, three times 256 KiB, stays in the cache


class Addend(Protocol):
    """A body that has passed every check."""

    @property
    def size(self) -> int:
        """Elements of its vector."""

    @property
    def peak(self) -> float:
        """No element's magnitude is larger, but for one rounding of float32."""

    @property
    def norm(self) -> float:
        """The Euclidean norm of its vector; of a block-wise codec's the bound that its scales give."""

    def add_to(self, sums: Vector, share: np.float32) -> None:
        """sums += share · vector in float32, product by product; `sums` is contiguous, of its size."""


Opener = Callable[[Codec, Body], Addend]
"""Checks a body as the codec's `dequantize` does, with the same errors, and makes it an addend."""


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """A payload that has passed every check of `decode_vector`, ready to be added."""

    header: Header
    size: int
    """Elements of its vector."""
    peak: float
    """No element's magnitude is larger, but for one rounding of float32."""
    parts: tuple[slice, ...]
    addends: tuple[Addend, ...]
    """Of each section, at its part of the vector."""

    @property
    def norm(self) -> float:
        """The Euclidean norm of its vector, or a bound of it: one measure for all payloads of a codec."""
        return math.hypot(*(addend.norm for addend in self.addends))

    def add_to(self, sums: Vector, share: float) -> None:
        """sums += share · vector: every product is rounded to float32, and every sum.

        Where `share` times `peak` brings a sum near float32's largest number it becomes infinite.

        Raises `AdapterError` when `sums` is not a contiguous float32 vector of `size` elements that can be
        written, `ConfigError` when `share` is not a finite float32 number. `sums` is as before then.
        """
        if sums.dtype != np.float32 or sums.shape != (self.size,):
            raise AdapterError(
                f"sums are {sums.dtype} of shape {list(sums.shape)}, "
                f"this payload needs float32 of shape [{self.size}]"
            )
        if not (sums.flags.c_contiguous and sums.flags.writeable):
            raise AdapterError("sums are a view with gaps, or read-only: give a vector of their own")
        if not abs(share) <= _LARGEST_SHARE:
            raise ConfigError(f"share is {share}: use a finite float32 number")
        for part, addend in zip(self.parts, self.addends, strict=True):
            addend.add_to(sums[part], np.float32(share))


def accept(blob: bytes, layout: AdapterLayout, opener: Opener | None = None) -> Accepted:
    """Check a payload as `decode_vector` does: the same errors. `opener` is `fastest()` without another.

    The payload's bytes must not change before it is added.
    """
    header, codec, bodies = checked_bodies(blob, layout)
    # Only block-wise codecs have kernels: a run with another one does not wait for them to be compiled.
    opener = opener or (fastest() if isinstance(codec, BlockwiseCodec) else decoded)
    addends = tuple(opener(codec, body) for body in bodies)
    ends = list(accumulate(addend.size for addend in addends))
    parts = tuple(map(slice, [0, *ends], ends))
    peak = max((addend.peak for addend in addends), default=0.0)
    return Accepted(header, layout.size, peak, parts, addends)


@cache
def fastest() -> Opener:
    """`kernels.compiled` where numba is installed, else `decoded`. The first call may have to compile."""
    try:
        from fedkron.compression.kernels import compiled
    except ImportError:
        return decoded
    return compiled


def decoded(codec: Codec, body: Body) -> Addend:
    """The addend of any codec, with numpy alone: the vector itself."""
    vector = codec.dequantize(*body)
    if isinstance(codec, BlockwiseCodec):
        return _DecodedBody(vector, codec.bound(body.data), codec.norm_bound(codec.opened(*body)))
    peak = float(max(vector.max(initial=0), -vector.min(initial=0)))
    return _DecodedBody(vector, peak, float(np.linalg.norm(vector.astype(np.float64))))


@dataclass(frozen=True, slots=True, eq=False)
class _DecodedBody:
    vector: Vector
    peak: float
    norm: float

    @property
    def size(self) -> int:
        return self.vector.size

    def add_to(self, sums: Vector, share: np.float32) -> None:
        product = np.empty(min(self.size, _AT_A_TIME), np.float32)
        for start in range(0, self.size, _AT_A_TIME):
            part = self.vector[start : start + _AT_A_TIME]
            sums[start : start + part.size] += np.multiply(part, share, out=product[: part.size])
