"""How small signed integer codes become bytes: one a byte, or two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedkron.errors import PayloadError

Codes = npt.NDArray[np.int8]


def pack_bytes(codes: Codes) -> bytes:
    """One code a byte, in two's complement."""
    return codes.tobytes()


def unpack_bytes(packed: bytes | memoryview, count: int) -> Codes:
    """Inverse of `pack_bytes` (a view; `count` is the number of bytes)."""
    return np.frombuffer(packed, np.int8, count)


def pack_nibbles(codes: Codes) -> bytes:
    """Two codes a byte, each as `code + 8`, the first in the low nibble; an odd end is padded with zero.

    `codes` has shape (n,), values -8..7; the result has ceil(n / 2) bytes.
    """
    nibbles = np.zeros(codes.size + codes.size % 2, np.uint8)
    np.add(codes, 8, out=nibbles[: codes.size], casting="unsafe")
    # Two nibbles seen as one 16-bit word 0x0h0l: shifting h next to l is SIMD, strided bytes are not.
    words = nibbles.view("<u2")
    words |= words >> 4
    return words.astype(np.uint8).tobytes()


def unpack_nibbles(packed: bytes | memoryview, count: int) -> Codes:
    """Inverse of `pack_nibbles`: `count` codes from ceil(count / 2) bytes.

    Raises `PayloadError` when the padding behind an odd number of codes is not zero.
    """
    words = np.frombuffer(packed, np.uint8).astype("<u2")
    words |= words << 4
    words &= 0x0F0F
    nibbles = words.view(np.uint8)
    if nibbles[count:].any():
        raise PayloadError(
            f"payload's padding nibble is {nibbles[count]} where 0 belongs; ask the sender to encode again"
        )
    nibbles -= 8  # wraps below zero, which as int8 is the negative code
    return nibbles.view(np.int8)[:count]
