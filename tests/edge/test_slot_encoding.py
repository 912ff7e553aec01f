"""How numbers are written in a slot: decoded as the specification says, they are as near as they can be."""

import numpy as np
import pytest
from edge_cases import BLOCK, slot_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedkron.edge.slot_encoding import encode
from fedkron.errors import AdapterError

NONE = np.empty(0, np.float32)
TINY = 1e-37
"""Below this, float32 itself has few digits left."""

sizes = st.integers(1, 3 * BLOCK + 5)
# Numbers whose squares are too large for float32, or too small, among ordinary ones.
elements = st.one_of([st.floats(-(2.0**e), 2.0**e, width=32) for e in (100, 0, -100)]) | st.just(0.0)
vectors = arrays.arrays(np.float32, sizes, elements=elements) | arrays.arrays(
    np.float32, sizes, elements=st.floats(-1, 1, width=32)
)


def blocks_of(vector: np.ndarray) -> np.ndarray:
    """float64 (blocks, 64), filled up with zeros."""
    padding = -len(vector) % BLOCK
    return np.pad(vector.astype(np.float64), (0, padding)).reshape(-1, BLOCK)


def decoded(vector: np.ndarray, encoding: str) -> np.ndarray:
    slot, floats = encode(vector, NONE, encoding)
    found = {"slot": slot} if floats is None else {"slot": slot, "slot_floats": floats}
    numbers, _ = slot_numbers(found, encoding, 0)
    return numbers


def errors(vector: np.ndarray, encoding: str) -> np.ndarray:
    """Error per element, (blocks, 64)."""
    return np.abs(decoded(vector, encoding).reshape(-1, BLOCK) - blocks_of(vector))


@settings(deadline=None)
@given(vectors)
def test_int8_is_off_by_half_a_step_at_most(vector: np.ndarray) -> None:
    steps = np.abs(blocks_of(vector)).max(1, keepdims=True) / 127
    assert (errors(vector, "int8") <= 0.5001 * steps + TINY).all()


def rounded_to_4_bits(blocks: np.ndarray) -> np.ndarray:
    """The plain way: a step is a seventh of the largest magnitude."""
    steps = np.abs(blocks).max(1, keepdims=True) / 7
    return np.rint(blocks / np.where(steps == 0, 1, steps)) * steps


@settings(deadline=None)
@given(vectors)
def test_int4_is_never_worse_than_plain_rounding(vector: np.ndarray) -> None:
    blocks = blocks_of(vector)
    plain = np.square(rounded_to_4_bits(blocks) - blocks).sum(1)
    ours = np.square(errors(vector, "int4")).sum(1)
    assert (ours <= 1.0001 * plain + BLOCK * TINY**2).all()


def test_int4_is_better_than_plain_rounding_on_normal_numbers() -> None:
    vector = np.random.default_rng(0).standard_normal(100 * BLOCK).astype(np.float32)
    blocks = blocks_of(vector)
    plain = np.square(rounded_to_4_bits(blocks) - blocks).mean()
    assert np.square(errors(vector, "int4")).mean() < 0.9 * plain


@settings(deadline=None)
@given(vectors)
def test_fp32_is_exact_and_fp16_is_numpys_rounding(vector: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(vector, "fp32"), vector)
    small = vector.clip(-60000, 60000)
    np.testing.assert_array_equal(decoded(small, "fp16"), small.astype(np.float16))


@pytest.mark.parametrize("encoding", ["int8", "int4"])
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 1e-15, 1.0, 1e15, 1e25, 3e38])
def test_a_block_of_any_magnitude_keeps_its_largest_element(encoding: str, size: float) -> None:
    vector = np.zeros(2 * BLOCK, np.float32)
    vector[70] = -size
    found = decoded(vector, encoding)
    assert not found[:BLOCK].any()
    assert np.isfinite(found).all()
    assert found[70] == pytest.approx(-size, rel=0.1 if encoding == "int4" else 1e-5, abs=1e-38)


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_blocks_do_not_disturb_each_other(encoding: str) -> None:
    vector = np.random.default_rng(1).standard_normal(3 * BLOCK).astype(np.float32)
    scaled = vector.copy()
    scaled[BLOCK : 2 * BLOCK] *= 1e6
    assert (errors(vector, encoding)[[0, 2]] == errors(scaled, encoding)[[0, 2]]).all()


def test_zeros_stay_zeros() -> None:
    for encoding in "fp32", "fp16", "int8", "int4":
        assert not decoded(np.zeros(100, np.float32), encoding).any()


def test_two_codes_of_four_bits_share_a_byte() -> None:
    """Byte i has element i in its low and element i + n/2 in its high half, each as code + 8."""
    n = 2 * BLOCK
    vector = np.zeros(n, np.float32)
    vector[:BLOCK] = np.arange(BLOCK) % 15 - 7
    vector[BLOCK:] = -vector[:BLOCK]
    slot, floats = encode(vector, NONE, "int4")
    assert (slot.dtype, slot.shape, floats.shape) == (np.uint8, (n // 2,), (2,))
    low, high = (slot & 15).astype(int) - 8, (slot >> 4).astype(int) - 8
    np.testing.assert_allclose(low * floats[0], vector[:BLOCK], atol=0.5)
    np.testing.assert_allclose(high * floats[1], vector[BLOCK:], atol=0.5)


def test_codes_of_eight_bits_are_symmetric() -> None:
    vector = np.array([1.0, -1.0, 0.5, 0.0], np.float32)
    slot, floats = encode(vector, NONE, "int8")
    assert slot.dtype == np.int8
    assert slot[:4].tolist() == [127, -127, 64, 0]
    np.testing.assert_array_equal(floats, np.float32(1) / np.float32(127))


@settings(deadline=None)
@given(vectors, arrays.arrays(np.float32, st.integers(0, 9), elements=st.floats(-9, 9, width=32)))
def test_exact_values_come_last_and_same_numbers_give_same_bytes(
    coded: np.ndarray, exact: np.ndarray
) -> None:
    for encoding in "fp32", "int8", "int4":
        slot, floats = encode(coded, exact, encoding)
        last = slot if floats is None else floats
        np.testing.assert_array_equal(last[len(last) - len(exact) :], exact)
        again, floats_again = encode(coded.copy(), exact.copy(), encoding)
        assert slot.tobytes() == again.tobytes()
        assert floats is None or floats.tobytes() == floats_again.tobytes()


@pytest.mark.parametrize("encoding", ["fp32", "fp16", "int8", "int4"])
def test_numbers_that_are_not_finite_are_refused(encoding: str) -> None:
    for bad in np.nan, np.inf, -np.inf:
        wrong = np.array([1, bad, 2], np.float32)
        for coded, exact in ((wrong, NONE), (np.ones(3, np.float32), wrong)):
            with pytest.raises(AdapterError, match="not finite"):
                encode(coded, exact, encoding)


def test_what_is_too_large_for_float16_is_refused_by_value() -> None:
    for coded, exact in ((np.float32([7e4]), NONE), (NONE, np.float32([-7e4]))):
        with pytest.raises(AdapterError, match=r"7e\+04, too large for float16"):
            encode(coded, exact, "fp16")
