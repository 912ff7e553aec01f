import numpy as np
import pytest
from aggregation_cases import (
    combined,
    delta,
    kron_module,
    krona_module,
    layout_of,
    lora_module,
    mean_delta,
    merged_mean,
    neighbours,
    random_adapter,
    relative_distance,
    terms_delta,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import Aggregate, MergedExact
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

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


def assert_exact(
    result: Aggregate, adapters: list[State], weights: list[float], layout: AdapterLayout
) -> None:
    for module in layout.modules:
        whole = delta(result.adapter, module) + terms_delta(result.terms, module)
        mean = mean_delta(adapters, weights, module)
        scale = sum(w * np.linalg.norm(delta(a, module)) for a, w in zip(adapters, weights, strict=True))
        assert np.linalg.norm(whole - mean) <= 1e-6 * scale / sum(weights)


@patient
@given(modules, st.integers(1, 6), seeds)
def test_adapter_and_terms_together_are_the_mean(module: ModuleLayout, count: int, seed: int) -> None:
    layout = layout_of(module)
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(layout, rng) for _ in range(count)]
    weights = rng.uniform(0.5, 2, count).tolist()
    assert_exact(combined(MergedExact(layout), adapters, weights), adapters, weights, layout)


@pytest.mark.parametrize("count", [2, 5, 40, 120])
def test_terms_are_exact_for_few_clients_and_for_many(count: int) -> None:
    rng = np.random.default_rng(count)
    adapters, weights = neighbours(LAYOUT, count, rng), rng.uniform(0.5, 2, count).tolist()
    assert_exact(combined(MergedExact(LAYOUT), adapters, weights), adapters, weights, LAYOUT)


def test_the_adapter_is_the_merged_one_with_its_projection_error() -> None:
    adapters = neighbours(LAYOUT, 4, np.random.default_rng(1))
    exact = combined(MergedExact(LAYOUT), adapters, [1, 2, 3, 4])
    merged = merged_mean(adapters, [1, 2, 3, 4], LAYOUT)
    assert all(np.array_equal(exact.adapter[name], merged.adapter[name]) for name in merged.adapter)
    assert exact.projection_error == merged.projection_error
    lost = sum(np.linalg.norm(terms_delta(exact.terms, module)) ** 2 for module in LAYOUT.modules)
    whole = sum(np.linalg.norm(mean_delta(adapters, [1, 2, 3, 4], m)) ** 2 for m in LAYOUT.modules)
    assert np.sqrt(lost / whole) == pytest.approx(merged.projection_error, rel=1e-5)


def test_terms_have_the_names_shapes_and_dtype_that_everybody_folds_into_the_base() -> None:
    adapters = neighbours(LAYOUT, 4, np.random.default_rng(2))
    terms = combined(MergedExact(LAYOUT), adapters, [1] * 4).terms
    assert terms is not None
    assert list(terms) == [f"{path}.terms.{name}" for path in "qvk" for name in ("A", "B1", "B2")]
    for path, grid, (d_B2, d_B1) in [("q", (4, 2), (12, 9)), ("v", (1, 1), (13, 11)), ("k", (4, 2), (3, 5))]:
        A, B1, B2 = (terms[f"{path}.terms.{name}"] for name in ("A", "B1", "B2"))
        count, rank = len(A), B2.shape[1]
        assert count > 0
        assert (A.shape, B1.shape, B2.shape) == ((count, *grid), (count, d_B2, rank), (count, rank, d_B1))
        assert {A.dtype, B1.dtype, B2.dtype} == {np.dtype(np.float32)}


def test_of_two_exact_forms_the_smaller_one_travels() -> None:
    module = kron_module(left=(4, 2), d_B2=12, rank=3, d_B1=9)
    layout = layout_of(module)
    rng = np.random.default_rng(3)
    own, tucker_rank = 8 + 3 * (12 + 9), 9
    for count in (2, 5, 16, 40):
        adapters = [random_adapter(layout, rng) for _ in range(count)]
        terms = combined(MergedExact(layout), adapters, [1] * count).terms
        assert terms is not None
        of_clients = (count + 1) * own
        of_sum = min(count, 8) * (8 + min(3 * count, tucker_rank) * (12 + 9))
        assert sum(tensor.size for tensor in terms.values()) == min(of_clients, of_sum)


def test_lora_terms_are_the_residuals_truncated_svd_of_the_least_rank() -> None:
    module = lora_module(d_out=13, rank=2, d_in=11)
    layout = layout_of(module)
    adapters = neighbours(layout, 3, np.random.default_rng(4))
    result = combined(MergedExact(layout), adapters, [1, 1, 1])
    assert result.terms is not None
    mean = mean_delta(adapters, [1, 1, 1], module)
    S = np.linalg.svd(mean, compute_uv=False)
    rest = np.linalg.svd(terms_delta(result.terms, module), compute_uv=False)
    assert result.terms["v.terms.B2"].shape == (1, 4, 11)  # 3 clients of rank 2, less the adapter's 2
    np.testing.assert_allclose(rest[:4], S[2:6], rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_one_client_and_clients_that_agree_need_no_terms(count: int) -> None:
    adapter = random_adapter(LAYOUT, np.random.default_rng(5))
    result = combined(MergedExact(LAYOUT), [adapter] * count, [2.0] * count)
    assert result.terms is None
    for module in LAYOUT.modules:
        assert relative_distance(delta(result.adapter, module), delta(adapter, module)) < 1e-6


def test_a_module_in_which_clients_agree_is_left_out_of_the_terms() -> None:
    a, b = neighbours(LAYOUT, 2, np.random.default_rng(6))
    b |= {name: tensor for name, tensor in a.items() if name.startswith("v.")}
    result = combined(MergedExact(LAYOUT), [a, b], [1, 2])
    assert result.terms is not None
    assert {name.partition(".")[0] for name in result.terms} == {"q", "k"}
    assert_exact(result, [a, b], [1, 2], LAYOUT)


def test_before_the_first_step_there_are_no_terms() -> None:
    adapters = neighbours(LAYOUT, 3, np.random.default_rng(7))
    for adapter in adapters:
        for name in ("q.B1", "v.lora_B", "k.B"):
            adapter[name] = np.zeros_like(adapter[name])
    result = combined(MergedExact(LAYOUT), adapters, [1, 2, 3])
    assert result.terms is None
    assert result.projection_error == 0


def test_clients_that_cancel_leave_neither_product_nor_terms() -> None:
    layout = layout_of(kron_module())
    adapter = random_adapter(layout, np.random.default_rng(8))
    result = combined(MergedExact(layout), [adapter, {**adapter, "q.B1": -adapter["q.B1"]}], [1, 1])
    assert result.terms is None
    assert not delta(result.adapter, layout.modules[0]).any()


def test_the_order_of_clients_does_not_matter() -> None:
    adapters, weights = neighbours(LAYOUT, 5, np.random.default_rng(9)), [1.0, 2.0, 3.0, 4.0, 5.0]
    forward = combined(MergedExact(LAYOUT), adapters, weights)
    backward = combined(MergedExact(LAYOUT), adapters[::-1], weights[::-1])
    for module in LAYOUT.modules:
        expected = terms_delta(forward.terms, module)
        assert relative_distance(terms_delta(backward.terms, module), expected) < 1e-5


def test_where_directions_are_cut_off_the_clients_own_products_keep_the_terms_exact() -> None:
    layout = layout_of(kron_module(d_B2=14, rank=2, d_B1=13))
    adapters = neighbours(layout, 12, np.random.default_rng(10))
    result = combined(MergedExact(layout, max_rank=4), adapters, [1.0] * 12)
    assert_exact(result, adapters, [1.0] * 12, layout)
    assert result.projection_error is not None
    assert result.projection_error > 1.01 * merged_mean(adapters, [1] * 12, layout).projection_error


def test_what_is_kept_of_200_clients_is_not_more_than_of_60() -> None:
    layout = layout_of(kron_module(d_B2=40, rank=4, d_B1=36), lora_module(d_out=40, rank=4, d_in=36))
    rng = np.random.default_rng(11)
    merging, sizes = MergedExact(layout, max_rank=16), []
    for _ in range(200):
        merging.add(random_adapter(layout, rng), 1.0)
        sizes.append(merging.size)
    # The clients' own products go when a Tucker form of 8 terms of rank 16 would have fewer numbers.
    assert max(sizes) < 2 * 8 * (8 + 16 * (40 + 36))
    assert max(sizes[60:]) <= max(sizes[:60])
    result = merging.finish()
    assert result.terms is not None
    assert result.terms["q.terms.A"].shape == (8, 4, 2)


def test_a_kind_that_is_not_one_product_is_refused_by_the_name_of_the_way() -> None:
    layout = layout_of(ModuleLayout("q", "moka", 1.0, (4, 4), (TensorLayout("gates", (4,)),)))
    with pytest.raises(AdapterError, match=r"module 'q' has kind 'moka', merged_exact aggregation knows"):
        MergedExact(layout)
