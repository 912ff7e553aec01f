"""Packed sums against numpy's: no carry, no wrap, for any levels, nodes and lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.errors import SecurityError
from fedkron.secure.packing import packing


@settings(max_examples=60, deadline=None)
@given(
    levels=st.sampled_from([2, 3, 5, 15, 255, 256]),
    nodes=st.integers(1, 40),
    count=st.integers(0, 70),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_words_add_up_to_the_sum_of_numbers(
    levels: int, nodes: int, count: int, extreme: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    how = packing(levels, nodes)
    lowest = levels - 1 if extreme else 0
    numbers = rng.integers(lowest, levels, (nodes, count), np.uint8)
    words = np.zeros(how.words(count), np.uint64)
    masks = np.zeros_like(words)
    for own in numbers:
        mask = rng.integers(0, 2**64, words.size, np.uint64)
        masks += mask
        # As it travels: only word_bytes of each masked word.
        octets = how.to_bytes(how.pack(own) + mask)
        assert len(octets) == how.size(count)
        words += how.from_bytes(octets)
    assert np.array_equal(how.unpack(words - masks, count), numbers.sum(axis=0, dtype=np.uint32))


@pytest.mark.parametrize("levels", [2, 3, 5, 15, 255, 256])
@pytest.mark.parametrize("nodes", [1, 3, 4, 8, 16, 32, 1000])
def test_no_other_word_size_would_take_fewer_bytes(levels: int, nodes: int) -> None:
    how = packing(levels, nodes)
    base = nodes * (levels - 1) + 1
    assert how.base == base
    assert base**how.digits <= 2 ** (8 * how.word_bytes)
    best = min(
        8 * size / digits
        for size in range(1, 9)
        for digits in range(1, 65)
        if base**digits <= 2 ** (8 * size)
    )
    assert how.bits == pytest.approx(best)
    assert np.log2(base) <= how.bits


@pytest.mark.parametrize(
    ("nodes", "levels", "times", "of"),
    [(4, 5, 1.01, 4.25), (8, 5, 1.2, 4.25), (16, 3, 1.2, 4.25), (32, 2, 1.2, 4.25), (4, 255, 1.22, 8.25)],
)
def test_what_masking_costs_over_codes_of_fixed_width(
    nodes: int, levels: int, times: float, of: float
) -> None:
    assert packing(levels, nodes).bits <= times * of


def test_what_nobody_packed_is_found_out() -> None:
    how = packing(5, 4)
    with pytest.raises(SecurityError, match="is none"):
        how.unpack(np.full(2, 2**64 - 1, np.uint64), 2 * how.digits)
    with pytest.raises(SecurityError, match="is none"):  # a number behind the last
        how.unpack(how.pack(np.array([1, 1, 1])), 2)


@pytest.mark.parametrize(("levels", "nodes"), [(1, 4), (5, 0), (255, 2**25)])
def test_sums_that_fit_nowhere_are_refused(levels: int, nodes: int) -> None:
    with pytest.raises(SecurityError, match="do not fit"):
        packing(levels, nodes)
