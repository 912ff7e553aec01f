"""A cache with an end: what is kept, what goes first, and that its bytes are counted right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkron.bounded_cache import BoundedCache


def test_result_is_made_once_and_given_to_all_that_ask_for_the_same() -> None:
    made: list[str] = []

    def make() -> bytes:
        made.append("x")
        return b"1234"

    cache: BoundedCache[str, bytes] = BoundedCache(10, len)
    assert cache.get("a", make) is cache.get("a", make)
    assert len(made) == 1


def test_what_fails_is_not_kept() -> None:
    cache: BoundedCache[str, bytes] = BoundedCache(10, len)

    def broken() -> bytes:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            cache.get("a", broken)
    assert cache.get("a", lambda: b"right") == b"right"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=60), st.integers(0, 12))
def test_it_never_holds_more_than_it_may_and_never_mixes_up_keys(
    asked: list[tuple[int, int]], capacity: int
) -> None:
    cache: BoundedCache[tuple[int, int], bytes] = BoundedCache(capacity, len)
    recent: list[tuple[int, int]] = []  # a plain model of it, the latest last
    for key in asked:
        hit = key in recent
        made: list[bytes] = []
        number, size = key
        found = cache.get(key, lambda n=number, s=size, m=made: m.append(b"") or bytes([n]) * s)
        assert found == bytes([number]) * size
        assert bool(made) != hit
        recent = [*(other for other in recent if other != key), key]
        while sum(size for _, size in recent) > capacity:
            recent.pop(0)
        assert cache.bytes == sum(size for _, size in recent) <= capacity
