"""Small numbers that are added up, many in a word: sums never wrap, and a mask may be any word.

A word holds `digits` numbers in base q = n·(levels − 1) + 1, where each of at most n nodes puts in numbers
below `levels`. No sum of them reaches q: adding words is adding digits, without a carry, and q**digits fits
into the word. So masks are added to whole words, modulo 2**64: uniform words taken as they come from a stream
cipher hide the numbers perfectly, with nothing to reject and no bias, and there are `digits` times fewer of
them than numbers.

On the wire a word has as many bytes (1 to 8) as take the least for a number; arithmetic modulo 2**64 is
arithmetic modulo any smaller power of two, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedkron.errors import SecurityError

WORD = np.dtype("<u8")
Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.integer]

MAX_BASE = 2**32
"""Of numbers: 16 million nodes with 255 levels."""


@dataclass(frozen=True)
class Packing:
    """How numbers lie in words: `digits` of them, in base `base`, in `word_bytes` bytes."""

    base: int
    digits: int
    word_bytes: int

    @property
    def bits(self) -> float:
        """Bits a number takes on the wire."""
        return 8 * self.word_bytes / self.digits

    def words(self, count: int) -> int:
        """How many words so many numbers take."""
        return -(-count // self.digits)

    def size(self, count: int) -> int:
        """How many bytes so many numbers take."""
        return self.words(count) * self.word_bytes

    def pack(self, numbers: Numbers) -> Words:
        """Words of numbers, which have to be below the number of levels."""
        length = self.words(numbers.size)
        words = np.zeros(length, np.uint64)
        # Number i of a word is number i · length + its place: slices that lie together are added fastest.
        for digit in reversed(range(self.digits)):
            part = numbers[digit * length : (digit + 1) * length]
            words *= np.uint64(self.base)
            words[: part.size] += part.astype(np.uint64)
        return words

    def unpack(self, words: Words, count: int) -> npt.NDArray[np.uint32]:
        """The `count` numbers, or sums of numbers, in words; `SecurityError` for what nobody packed."""
        words = words & np.uint64((1 << 8 * self.word_bytes) - 1)
        numbers = np.empty((self.digits, words.size), np.uint32)
        for digit in range(self.digits):
            words, numbers[digit] = np.divmod(words, np.uint64(self.base))
        if words.any() or numbers.reshape(-1)[count:].any():
            raise SecurityError(
                "the sum of the uploads is none: a node has masked something else than its codes"
            )
        return numbers.reshape(-1)[:count]

    def to_bytes(self, words: Words) -> bytes:
        """Words as they travel."""
        octets = words.astype(WORD, copy=False).view(np.uint8).reshape(-1, WORD.itemsize)
        return octets[:, : self.word_bytes].tobytes()

    def from_bytes(self, data: bytes) -> Words:
        """Inverse of `to_bytes`, modulo 2**(8 · word_bytes)."""
        octets = np.zeros((len(data) // self.word_bytes, WORD.itemsize), np.uint8)
        octets[:, : self.word_bytes] = np.frombuffer(data, np.uint8).reshape(-1, self.word_bytes)
        return octets.view(WORD).reshape(-1).astype(np.uint64, copy=False)


@lru_cache
def packing(levels: int, nodes: int) -> Packing:
    """The packing that takes the fewest bytes for the sum of `nodes` numbers below `levels`.

    Raises `SecurityError` for sums that no word holds.
    """
    base = nodes * (levels - 1) + 1
    if levels < 2 or nodes < 1 or base > MAX_BASE:
        raise SecurityError(f"{nodes} nodes with {levels} levels: sums up to {base} do not fit")
    found = []
    for size in range(1, WORD.itemsize + 1):
        digits = 0
        while base ** (digits + 1) <= 1 << 8 * size:
            digits += 1
        if digits:
            found.append(Packing(base, digits, size))
    return min(found, key=lambda one: (one.bits, one.word_bytes))
