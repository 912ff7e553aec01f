"""Payloads straight into a sum, without a vector of each in memory: what a server does with thousands.

A payload is checked first, as `decode_vector` checks it, and added afterwards, when nothing can be refused
any more. Bodies of `int8` and `int4` are added by compiled loops (`fedkron.compression.kernels`) where numba is
installed (`fedkron[fast]`). Everything else is decoded. Both give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from fedkron.compression.blockwise import BlockwiseCodec
from fedkron.compression.codecs import Codec
from fedkron.compression.payload import Body, Header, checked_bodies
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, Vector, elements

_AT_A_TIME = 1 << 16  # elements: what is being worked on, three times 256 KiB, stays in the cache


class Addend(Protocol):
    """A body that has passed every check."""

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
    sections: tuple[tuple[slice, Addend], ...]

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
        if not abs(share) <= np.finfo(np.float32).max:
            raise ConfigError(f"share is {share}: use a finite float32 number")
        for part, addend in self.sections:
            addend.add_to(sums[part], np.float32(share))


def add_decoded(blob: bytes, layout: AdapterLayout, sums: Vector, share: float) -> Header:
    """Check a payload as `decode_vector` does, then sums += share · its vector, shape (layout.size,).

    Raises what `decode_vector` and `Accepted.add_to` raise; `sums` is as before then.
    """
    accepted = accept(blob, layout)
    accepted.add_to(sums, share)
    return accepted.header


def accept(blob: bytes, layout: AdapterLayout, opener: Opener | None = None) -> Accepted:
    """Check a payload as `decode_vector` does: the same errors. `opener` is `fastest()` without another.

    The payload's bytes must not change before it is added.
    """
    opener = opener or fastest()
    header, codec, bodies = checked_bodies(blob, layout)
    sections = []
    peak, start = 0.0, 0
    for body in bodies:
        addend = opener(codec, body)
        end = start + elements(body.tensors)
        sections.append((slice(start, end), addend))
        peak = max(peak, _peak(codec, body, addend))
        start = end
    return Accepted(header, start, peak, tuple(sections))
