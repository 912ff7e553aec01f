"""What the bodies of several codecs have in common: their sizes, and scales relative to one unit."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedkron.errors import PayloadError
from fedkron.layout import Vector

SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
REMEDY = "ask the sender to encode again"

Ratios = npt.NDArray[np.float16]

_EXPONENT_BIAS = np.uint32((127 - 15) << 23)
_SMALLEST_NORMAL_HALF = 0x0400  # float16 bits of 2^-14
_ONE = 0x3C00  # float16 bits of 1.0; every larger pattern is above one, negative, infinite or NaN


def exactly(size: int) -> range:
    """The possible sizes of a body that has only one."""
    return range(size, size + 1)


def absolute_scales(unit: float, ratios: Ratios) -> Vector:
    """float32 scales, as encoder and decoder both have to compute them."""
    bits = ratios.view("<u2")
    # The bits of a float16 in 0..1 are those of the float32 after a shift and another bias of the exponent:
    # four times as fast as numpy's conversion. Subnormal ones are multiples of 2^-24.
    words = bits.astype(np.uint32)
    words <<= 13
    words += _EXPONENT_BIAS
    scales = words.view(np.float32)
    small = bits < _SMALLEST_NORMAL_HALF
    np.multiply(bits, np.float32(2.0**-24), out=scales, where=small, casting="unsafe")
    scales *= np.float32(unit)
    return scales


def checked_scales(unit: float, ratios: Ratios, largest_unit: float) -> Vector:
    """The scales of a body, as `absolute_scales`.

    Raises `PayloadError` for what no encoder writes: a unit outside of 0..`largest_unit` (NaN is), a ratio
    outside of 0..1, a unit that is not the largest scale (the same scales could be written in many ways),
    or a subnormal scale.
    """
    if not 0 <= unit <= largest_unit or math.copysign(1, unit) < 0:
        raise PayloadError(f"payload's unit {unit} is not in 0..{largest_unit}; {REMEDY}")
    bits = ratios.view("<u2")  # in 0..1 they count upwards as the numbers do, and are faster
    if (beyond := bits > _ONE).any():
        index = int(np.argmax(beyond))
        raise PayloadError(f"relative scale {ratios[index]} of block {index} is not in 0..1; {REMEDY}")
    if bits.max(initial=0) != (_ONE if unit > 0 else 0):
        largest = ratios.max(initial=0)
        raise PayloadError(f"largest relative scale is {largest} where the unit is {unit}; {REMEDY}")
    scales = absolute_scales(unit, ratios)
    if (tiny := (scales < SMALLEST_NORMAL) & (bits > 0)).any():
        index = int(np.argmax(tiny))
        raise PayloadError(f"scale {scales[index]} of block {index} is subnormal; {REMEDY}")
    return scales
