import numpy as np
import pytest
from aggregation_cases import delta, kron_module, layout_of, lora_module, mean_delta, random_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import factorwise_mean
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import TensorLayout

LAYOUT = layout_of(kron_module(), lora_module(), dense=(TensorLayout("head.bias", (3,)),))


patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure


@patient
@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_every_tensor_is_its_weighted_average(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(LAYOUT, rng) for _ in weights]
    mean = factorwise_mean(adapters, weights, LAYOUT)
    assert list(mean) == [tensor.name for tensor in LAYOUT.tensors]
    for name, tensor in mean.items():
        stacked = np.stack([adapter[name].astype(np.float64) for adapter in adapters])
        np.testing.assert_allclose(tensor, np.average(stacked, axis=0, weights=weights), rtol=1e-5, atol=1e-6)
        assert tensor.dtype == np.float32


def test_one_client_comes_back_bit_for_bit() -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(0))
    mean = factorwise_mean([adapter], [0.3], LAYOUT)
    assert all(np.array_equal(mean[name], adapter[name]) for name in adapter)


def test_the_product_of_mean_factors_is_not_the_mean_of_the_products() -> None:
    rng = np.random.default_rng(1)
    adapters = [random_adapter(LAYOUT, rng) for _ in range(3)]
    mean = factorwise_mean(adapters, [1, 1, 1], LAYOUT)
    for module in LAYOUT.modules:
        truth = mean_delta(adapters, [1, 1, 1], module)
        assert np.linalg.norm(delta(mean, module) - truth) > 0.3 * np.linalg.norm(truth)


def test_weights_near_the_largest_float_do_not_overflow() -> None:
    rng = np.random.default_rng(2)
    adapters = [random_adapter(LAYOUT, rng) for _ in range(2)]
    huge = factorwise_mean(adapters, [1e308, 1e308], LAYOUT)
    even = factorwise_mean(adapters, [1, 1], LAYOUT)
    assert all(np.array_equal(huge[name], even[name]) for name in even)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 2 adapters"),
        ([1.0, -2.0], "weight 1 is -2.0"),
        ([float("nan"), 1.0], "weight 0 is nan"),
        ([1.0, float("inf")], "weight 1 is inf"),
        ([0.0, 0.0], "all weights are zero"),
    ],
)
def test_weights_that_cannot_be_normalised_are_refused_by_value(weights: list[float], message: str) -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(3))
    with pytest.raises(ConfigError, match=message):
        factorwise_mean([adapter, adapter], weights, LAYOUT)


def test_no_adapters_at_all_are_refused() -> None:
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        factorwise_mean([], [], LAYOUT)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_adapter_with_a_number_that_is_not_finite_is_refused_by_its_index(poison: float) -> None:
    rng = np.random.default_rng(4)
    adapters = [random_adapter(LAYOUT, rng) for _ in range(3)]
    adapters[1]["q.B1"][0, 0] = poison
    with pytest.raises(AdapterError, match="adapter 1 holds NaN or infinity"):
        factorwise_mean(adapters, [1, 1, 1], LAYOUT)


def test_an_adapter_of_another_layout_is_refused_and_names_the_tensor() -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(5))
    foreign = {**adapter, "q.A": adapter["q.A"].T}
    with pytest.raises(AdapterError, match=r"'q\.A' has shape \[2, 4\]"):
        factorwise_mean([adapter, foreign], [1, 1], LAYOUT)
