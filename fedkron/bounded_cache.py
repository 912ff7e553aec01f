"""Results that are kept as long as there is room: what was used last stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Remembers results of a pure function by their keys, up to `capacity` bytes.

    Where one process serves many nodes, they often ask for the same. A key must name all that a result
    depends on, by content: then nobody can get what belongs to somebody else. `size_of` tells the bytes of a
    result; nobody may write to one.
    """

    def __init__(self, capacity: int, size_of: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._size_of = size_of
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The result for a key, made now unless it is kept; raises what `make` raises."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = make()
        self._kept[key] = made
        self._bytes += self._size_of(made)
        while self._bytes > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= self._size_of(oldest)
        return made

    @property
    def bytes(self) -> int:
        """What is kept at the moment."""
        return self._bytes
