from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkron.aggregation.weighted_mean import WeightedMean, largest_magnitude
from fedkron.errors import AdapterError, ConfigError

BOUND = 2.2e-6  # of Σ w·|x| / Σ w, as the docstring says

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure
seeds = st.integers(0, 2**32 - 1)
weights = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=40)
any_float = st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)


def mean_of(vectors: list[np.ndarray], weights: list[float]) -> np.ndarray:
    mean = WeightedMean(vectors[0].size)
    for vector, weight in zip(vectors, weights, strict=True):
        mean.add(vector, weight)
    return mean.finish()


def random_vectors(count: int, size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, np.float32) for _ in range(count)]


def assert_within_bound(actual: np.ndarray, vectors: list[np.ndarray], weights: list[float]) -> None:
    stacked = np.array(vectors, np.float64)
    expected = np.average(stacked, axis=0, weights=weights)
    allowed = BOUND * np.average(np.abs(stacked), axis=0, weights=weights)
    assert (np.abs(actual - expected) <= allowed).all()


@patient
@given(weights, seeds)
def test_it_is_numpys_weighted_average_in_float64(weights: list[float], seed: int) -> None:
    vectors = random_vectors(len(weights), 30, seed)
    mean = mean_of(vectors, weights)
    assert mean.dtype == np.float64
    assert_within_bound(mean, vectors, weights)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_blocks_cover_vectors_of_any_size(size: int) -> None:
    vectors = random_vectors(3, size, 0)
    mean = mean_of(vectors, [1, 2, 3])
    assert mean.shape == (size,)
    assert_within_bound(mean, vectors, [1, 2, 3])


@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_ten_thousand_vectors_stay_near_the_float64_mean(centre: float) -> None:
    rng = np.random.default_rng(0)
    vectors = [np.float32(centre) + rng.standard_normal(50, np.float32) for _ in range(10_000)]
    weights = rng.integers(1, 1000, 10_000).tolist()
    mean = mean_of(vectors, weights)
    assert_within_bound(mean, vectors, weights)
    # Random errors cancel: 9e-8 as the docstring says, with room for the luck of the draw.
    expected = np.average(np.array(vectors, np.float64), axis=0, weights=weights)
    assert np.linalg.norm(mean - expected) < 1.5e-7 * np.linalg.norm(expected)


@patient
@given(hnp.arrays(np.float32, 20, elements=any_float), st.floats(1e-300, 1e300))
def test_one_vector_comes_back_bit_for_bit(vector: np.ndarray, weight: float) -> None:
    assert np.array_equal(mean_of([vector], [weight]).astype(np.float32), vector)


@patient
@given(weights, seeds)
def test_the_order_changes_nothing_beyond_rounding(weights: list[float], seed: int) -> None:
    vectors = random_vectors(len(weights), 30, seed)
    order = np.random.default_rng(seed).permutation(len(weights))
    shuffled = mean_of([vectors[k] for k in order], [weights[k] for k in order])
    magnitude = np.average(np.abs(np.array(vectors, np.float64)), axis=0, weights=weights)
    assert (np.abs(shuffled - mean_of(vectors, weights)) <= 2 * BOUND * magnitude).all()


@patient
@given(weights, seeds, st.integers(-900, 900))
def test_weights_times_a_power_of_two_give_the_same_bits(weights: list[float], seed: int, power: int) -> None:
    vectors = random_vectors(len(weights), 30, seed)
    scaled = [weight * 2.0**power for weight in weights]
    assert np.array_equal(mean_of(vectors, scaled), mean_of(vectors, weights))


@patient
@given(weights, seeds)
def test_a_vector_of_weight_zero_changes_nothing(weights: list[float], seed: int) -> None:
    *vectors, ignored = random_vectors(len(weights) + 1, 30, seed)
    with_it = mean_of([ignored, *vectors, ignored], [0.0, *weights, 0.0])
    assert_within_bound(with_it, vectors, weights)


@pytest.mark.parametrize("second", [1e-30, 1e30, 1e100, 1e300])
def test_weights_of_any_ratio_are_weighed(second: float) -> None:
    vectors = random_vectors(2, 30, 0)
    assert_within_bound(mean_of(vectors, [1.0, second]), vectors, [1.0, second])


def test_vectors_near_the_largest_float32_do_not_overflow() -> None:
    largest = np.full(3, np.finfo(np.float32).max)
    assert np.array_equal(mean_of([largest] * 40, [1.0] * 40).astype(np.float32), largest)


def test_weights_near_the_largest_float64_do_not_overflow() -> None:
    vectors = random_vectors(3, 30, 0)
    assert np.array_equal(mean_of(vectors, [1e308] * 3), mean_of(vectors, [1.0] * 3))


POISONED = np.array([1, 2, np.nan, 4], np.float32)
REFUSED = [
    (POISONED, 1.0, AdapterError, "element 2 is nan"),
    (np.array([1, -np.inf, 0, 0], np.float32), 1.0, AdapterError, "element 1 is -inf"),
    (np.zeros(5, np.float32), 1.0, AdapterError, r"shape \[5\].* shape \[4\]"),
    (np.zeros((2, 2), np.float32), 1.0, AdapterError, r"shape \[2, 2\]"),
    (np.zeros(4), 1.0, AdapterError, "float64"),
    (np.ones(4, np.float32), -2.0, ConfigError, "weight is -2.0"),
    (np.ones(4, np.float32), float("nan"), ConfigError, "weight is nan"),
    (np.ones(4, np.float32), float("inf"), ConfigError, "weight is inf"),
    (np.full(4, 1e30, np.float32), 1e300, ConfigError, r"1e\+300 is too large beside the first one, 2.0"),
]


@pytest.mark.parametrize(("vector", "weight", "error", "message"), REFUSED)
@pytest.mark.parametrize("before", [1, 20])
def test_what_is_refused_leaves_the_mean_as_it_was(
    vector: np.ndarray, weight: float, error: type[Exception], message: str, before: int
) -> None:
    vectors = random_vectors(before, 4, 0)
    mean = WeightedMean(4)
    for good in vectors:
        mean.add(good, 2.0)
    with pytest.raises(error, match=message):
        mean.add(vector, weight)
    mean.add(vectors[0], 3.0)
    assert np.array_equal(mean.finish(), mean_of([*vectors, vectors[0]], [2.0] * before + [3.0]))


def test_a_refused_first_vector_is_none() -> None:
    mean = WeightedMean(4)
    with pytest.raises(AdapterError, match="NaN"):
        mean.add(POISONED, 5.0)
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        mean.finish()
    vector = np.array([1, 2, 3, 4], np.float32)
    mean.add(vector, 0.3)
    assert np.array_equal(mean.finish(), vector)


def test_weights_that_are_all_zero_have_no_mean() -> None:
    mean = WeightedMean(4)
    mean.add(np.ones(4, np.float32), 0.0)
    with pytest.raises(ConfigError, match="all weights are zero"):
        mean.finish()


def add_to(vector: np.ndarray) -> Callable[[np.ndarray, float], None]:
    def accumulate(sums: np.ndarray, share: float) -> None:
        sums += np.float32(share) * vector

    return accumulate


@patient
@given(st.lists(st.sampled_from([0.0, 1.0, 0.3, 1e4, 1e30]), min_size=1, max_size=40), seeds)
def test_a_vector_that_is_not_in_memory_counts_as_one_that_is(weights: list[float], seed: int) -> None:
    weights[0] = 0.7
    vectors = random_vectors(len(weights), 30, seed)
    # Near float32's largest number a vector goes straight to the float64 sum.
    vectors[0] *= np.float32(1e37)
    mean = WeightedMean(30)
    for vector, weight in zip(vectors, weights, strict=True):
        mean.add_with(add_to(vector), weight, float(np.abs(vector).max()))
    assert np.array_equal(mean.finish(), mean_of(vectors, weights))


@pytest.mark.parametrize("before", [0, 1, 15, 20])
def test_an_accumulation_that_is_refused_leaves_the_mean_as_it_was(before: int) -> None:
    vectors = random_vectors(before + 1, 4, 0)

    def refuse(sums: np.ndarray, share: float) -> None:
        raise AdapterError(f"{sums.shape} {share}")

    mean = WeightedMean(4)
    for good in vectors[:before]:
        mean.add(good, 2.0)
    for weight, peak in [(5.0, 1.0), (5.0, 1e38)]:
        with pytest.raises(AdapterError, match=r"\(4,\)"):
            mean.add_with(refuse, weight, peak)
    for peak in (np.nan, np.inf, -1.0):
        with pytest.raises(AdapterError, match=f"peak is {peak}"):
            mean.add_with(add_to(vectors[0]), 5.0, peak)
    mean.add(vectors[-1], 3.0)
    assert np.array_equal(mean.finish(), mean_of(vectors, [2.0] * before + [3.0]))


def test_the_vectors_that_were_added_are_not_kept() -> None:
    vector = np.ones(4, np.float32)
    mean = WeightedMean(4)
    mean.add(vector, 1.0)
    vector[:] = 7
    assert np.array_equal(mean.finish(), np.ones(4))


@patient
@given(hnp.arrays(np.float32, st.integers(0, 50), elements=any_float))
def test_the_largest_magnitude_is_numpys(vector: np.ndarray) -> None:
    assert largest_magnitude(vector) == np.abs(vector).max(initial=0)


@pytest.mark.parametrize("element", [0, 65_535, 65_536, 99_999])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_no_block_hides_a_number_that_is_not_finite(element: int, poison: float) -> None:
    vector = random_vectors(1, 100_000, 0)[0]
    vector[element] = poison
    with pytest.raises(AdapterError, match=f"element {element} is {poison}"):
        largest_magnitude(vector)
