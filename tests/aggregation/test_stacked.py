import numpy as np
import pytest
from aggregation_cases import (
    combined,
    delta,
    factorwise_mean,
    kron_module,
    krona_module,
    layout_of,
    lora_module,
    mean_delta,
    neighbours,
    random_adapter,
    relative_distance,
    terms_delta,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import Stacked
from fedkron.errors import AdapterError
from fedkron.layout import ModuleLayout, TensorLayout

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 7)
modules = st.one_of(
    st.builds(kron_module, left=st.tuples(sides, sides), d_B2=sides, rank=st.integers(1, 4), d_B1=sides),
    st.builds(lora_module, d_out=sides, rank=st.integers(1, 4), d_in=sides),
    st.builds(krona_module, left=st.tuples(sides, sides), d_B2=sides, d_B1=sides),
)

LAYOUT = layout_of(
    kron_module(d_B2=12, rank=3, d_B1=9),
    lora_module(d_out=13, d_in=11),
    krona_module(),
    dense=(TensorLayout("head.weight", (3, 4)),),
)
IDLE = ("q.B1", "v.lora_B", "k.B")


@patient
@given(modules, st.integers(1, 6), seeds)
def test_the_terms_are_the_mean_scale_included(module: ModuleLayout, count: int, seed: int) -> None:
    layout = layout_of(module)
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(layout, rng) for _ in range(count)]
    weights = rng.uniform(0.5, 2, count).tolist()
    result = combined(Stacked(layout), adapters, weights)
    mean = mean_delta(adapters, weights, module)
    size = sum(w * np.linalg.norm(delta(a, module)) for a, w in zip(adapters, weights, strict=True))
    assert np.linalg.norm(terms_delta(result.terms, module) - mean) <= 1e-6 * size / sum(weights)
    assert not delta(result.adapter, module).any()
    assert result.projection_error is None


def test_training_starts_anew_from_mean_a_and_b2_and_the_mean_of_what_is_dense() -> None:
    adapters = neighbours(LAYOUT, 4, np.random.default_rng(1))
    result = combined(Stacked(LAYOUT), adapters, [1, 2, 3, 4]).adapter
    mean = factorwise_mean(adapters, [1, 2, 3, 4], LAYOUT)
    assert list(result) == list(mean)
    for name, tensor in mean.items():
        expected = np.zeros_like(tensor) if name in IDLE else tensor
        assert np.array_equal(result[name], expected), name
        assert result[name].dtype == np.float32


@pytest.mark.parametrize("count", [1, 4, 40, 120])
def test_few_clients_come_as_they_are_and_many_in_the_smaller_form_of_their_sum(count: int) -> None:
    rng = np.random.default_rng(count)
    module = kron_module(d_B2=12, rank=3, d_B1=9)
    layout = layout_of(module)
    adapters = [random_adapter(layout, rng) for _ in range(count)]
    terms = combined(Stacked(layout), adapters, [1] * count).terms
    assert terms is not None
    of_sum = min(count, 8) * (8 + min(3 * count, 9) * (12 + 9))
    assert sum(tensor.size for tensor in terms.values()) == min(count * (8 + 3 * (12 + 9)), of_sum)
    assert relative_distance(terms_delta(terms, module), mean_delta(adapters, [1] * count, module)) < 1e-6


def test_weights_one_and_three_are_four_clients_three_of_them_equal_in_any_order() -> None:
    a, b = neighbours(LAYOUT, 2, np.random.default_rng(2))
    weighted, repeated = (
        combined(Stacked(LAYOUT), [a, b], [1, 3]),
        combined(Stacked(LAYOUT), [b, a, b, b], [1] * 4),
    )
    for module in LAYOUT.modules:
        expected = terms_delta(weighted.terms, module)
        assert relative_distance(terms_delta(repeated.terms, module), expected) < 1e-6


def test_clients_that_have_learnt_nothing_or_cancel_leave_no_terms() -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(3))
    opposite = adapter | {name: -adapter[name] for name in IDLE}
    assert combined(Stacked(LAYOUT), [adapter, opposite], [2, 2]).terms is None
    idle = adapter | {name: np.zeros_like(adapter[name]) for name in IDLE}
    assert combined(Stacked(LAYOUT), [idle, idle], [1, 2]).terms is None


def test_what_many_clients_lose_in_a_bounded_number_of_directions_is_reported_as_an_upper_bound() -> None:
    module = lora_module(d_out=40, rank=2, d_in=36)
    layout = layout_of(module)
    adapters = neighbours(layout, 60, np.random.default_rng(4))
    stacking = Stacked(layout, max_rank=8)
    kept = []
    for adapter in adapters:
        stacking.add(adapter, 1.0)
        kept.append(stacking.size)
    result = stacking.finish()
    assert max(kept[15:]) <= max(kept[:15])
    actual = relative_distance(terms_delta(result.terms, module), mean_delta(adapters, [1] * 60, module))
    assert result.projection_error is not None
    assert 1e-3 < actual < result.projection_error


def test_a_kind_that_is_not_one_product_is_refused_by_the_name_of_the_way() -> None:
    layout = layout_of(ModuleLayout("q", "adakron", 1.0, (4, 4), (TensorLayout("gates", (4,)),)))
    with pytest.raises(AdapterError, match=r"module 'q' has kind 'adakron', stacked aggregation knows"):
        Stacked(layout)


def test_where_directions_are_cut_off_the_clients_own_products_are_exact_and_nothing_is_lost() -> None:
    module = kron_module(d_B2=14, rank=2, d_B1=13)
    layout = layout_of(module)
    adapters = neighbours(layout, 12, np.random.default_rng(5))
    result = combined(Stacked(layout, max_rank=4), adapters, [1.0] * 12)
    assert (
        relative_distance(terms_delta(result.terms, module), mean_delta(adapters, [1.0] * 12, module)) < 1e-6
    )
    assert result.projection_error is None
