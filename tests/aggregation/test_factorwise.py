import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from aggregation_cases import delta, kron_module, layout_of, lora_module, mean_delta, random_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import FactorwiseMean
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import State, TensorLayout, flatten

LAYOUT = layout_of(kron_module(), lora_module(), dense=(TensorLayout("head.bias", (3,)),))

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure
weights = st.lists(st.floats(0.01, 1000), min_size=1, max_size=20)
seeds = st.integers(0, 2**32 - 1)


def mean_of(adapters: list[State], weights: list[float]) -> State:
    mean = FactorwiseMean(LAYOUT)
    for adapter, weight in zip(adapters, weights, strict=True):
        mean.add(adapter, weight)
    return mean.finish().adapter


@patient
@given(weights, seeds)
def test_every_tensor_is_its_weighted_average(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(LAYOUT, rng) for _ in weights]
    mean = mean_of(adapters, weights)
    assert list(mean) == [tensor.name for tensor in LAYOUT.tensors]
    for name, tensor in mean.items():
        stacked = np.stack([adapter[name].astype(np.float64) for adapter in adapters])
        magnitude = np.average(np.abs(stacked), axis=0, weights=weights)
        error = np.abs(tensor - np.average(stacked, axis=0, weights=weights))
        assert (error <= 1.3e-6 * magnitude).all()  # that of the sum, and a rounding to float32
        assert tensor.dtype == np.float32


@patient
@given(weights, seeds)
def test_the_order_of_clients_changes_nothing_beyond_rounding(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(LAYOUT, rng) for _ in weights]
    order = rng.permutation(len(weights))
    mean = mean_of(adapters, weights)
    shuffled = mean_of([adapters[k] for k in order], [weights[k] for k in order])
    for name in mean:
        np.testing.assert_allclose(shuffled[name], mean[name], rtol=0, atol=2e-5)


@patient
@given(seeds, st.floats(1e-6, 1e6))
def test_one_client_comes_back_bit_for_bit(seed: int, weight: float) -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(seed))
    mean = mean_of([adapter], [weight])
    assert all(np.array_equal(mean[name], adapter[name]) for name in adapter)


@patient
@given(weights, seeds)
def test_a_flat_vector_counts_as_the_adapter_that_it_is(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(LAYOUT, rng) for _ in weights]
    flat = FactorwiseMean(LAYOUT)
    for adapter, weight in zip(adapters, weights, strict=True):
        flat.add_vector(flatten(adapter, LAYOUT), weight)
    mean, expected = flat.finish().adapter, mean_of(adapters, weights)
    assert all(np.array_equal(mean[name], expected[name]) for name in expected)


def test_nothing_is_projected_and_nothing_is_left_over() -> None:
    mean = FactorwiseMean(LAYOUT)
    mean.add(random_adapter(LAYOUT, np.random.default_rng(0)), 1)
    aggregate = mean.finish()
    assert (aggregate.projection_error, aggregate.terms) == (None, None)


def test_the_product_of_mean_factors_is_not_the_mean_of_the_products() -> None:
    rng = np.random.default_rng(1)
    adapters = [random_adapter(LAYOUT, rng) for _ in range(3)]
    mean = mean_of(adapters, [1, 1, 1])
    for module in LAYOUT.modules:
        truth = mean_delta(adapters, [1, 1, 1], module)
        assert np.linalg.norm(delta(mean, module) - truth) > 0.3 * np.linalg.norm(truth)


def test_memory_does_not_grow_with_clients() -> None:
    layout = layout_of(dense=(TensorLayout("head.weight", (100, 1000)),))
    adapter = random_adapter(layout, np.random.default_rng(2))

    def peak(clients: int) -> int:
        tracemalloc.start()
        mean = FactorwiseMean(layout)
        for _ in range(clients):
            mean.add(adapter, 1)
        mean.finish()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(100) < 1.1 * peak(2)


@pytest.mark.parametrize("weight", [-2.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused_by_value(weight: float) -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(3))
    with pytest.raises(ConfigError, match=f"weight is {weight}"):
        FactorwiseMean(LAYOUT).add(adapter, weight)


def test_no_adapters_at_all_and_no_weight_at_all_are_refused() -> None:
    mean = FactorwiseMean(LAYOUT)
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        mean.finish()
    mean.add(random_adapter(LAYOUT, np.random.default_rng(3)), 0)
    with pytest.raises(ConfigError, match="all weights are zero"):
        mean.finish()


def foreign(adapter: State) -> State:
    return {**adapter, "q.A": adapter["q.A"].T}


def poisoned(adapter: State) -> State:
    return {**adapter, "q.B1": np.full_like(adapter["q.B1"], np.nan)}


def incomplete(adapter: State) -> State:
    return {name: values for name, values in adapter.items() if name != "q.A"}


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (foreign, r"'q\.A' has shape \[2, 4\]"),
        (poisoned, "holds NaN or infinity: element 8 is nan"),
        (incomplete, r"'q\.A' .* is missing"),
    ],
)
def test_an_adapter_that_is_refused_leaves_the_mean_as_it_was(
    spoilt: Callable[[State], State], message: str
) -> None:
    rng = np.random.default_rng(5)
    adapters = [random_adapter(LAYOUT, rng) for _ in range(3)]
    mean = FactorwiseMean(LAYOUT)
    for adapter in adapters[:2]:
        mean.add(adapter, 2)
    with pytest.raises(AdapterError, match=message):
        mean.add(spoilt(adapters[0]), 2)
    mean.add(adapters[2], 2)
    found, expected = mean.finish().adapter, mean_of(adapters, [2, 2, 2])
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
