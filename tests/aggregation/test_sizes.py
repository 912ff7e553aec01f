from dataclasses import replace

import numpy as np
import pytest
from aggregation_cases import (
    delta,
    dense_alternation,
    grid_of,
    kron_module,
    krona_module,
    layout_of,
    leading_left_vector,
    lora_module,
    random_adapter,
    rearranged,
    relative_distance,
    truncated_svd,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import Size, resized, size_name, sized
from fedkron.aggregation.product_mean import tucker_sum
from fedkron.aggregation.products import product_of
from fedkron.aggregation.sizes import coarsened, refined
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, State, TensorLayout

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure
seeds = st.integers(0, 2**32 - 1)

KRON = kron_module(left=(4, 2), d_B2=6, rank=4, d_B1=9)  # d_out = 24
LORA = lora_module(d_out=13, rank=4, d_in=11)
HEAD = TensorLayout("head.weight", (3, 4))
BOTH = layout_of(KRON, LORA, dense=(HEAD,))


def zeroed(adapter: State) -> State:
    """As when training starts."""
    idle = {"q.B1", "v.lora_B"}
    return {name: np.zeros_like(x) if name in idle else x for name, x in adapter.items()}


def best(matrix: np.ndarray, target: AdapterLayout) -> np.ndarray:
    """Van Loan's rearrangement of the nearest product of the target's shapes, all dense."""
    module = target.modules[0]
    tensor = rearranged(matrix, grid_of(module))
    rank = module.factors[1].shape[1]
    if grid_of(module) == (1, 1):
        return truncated_svd(tensor[0], rank)[None]
    return dense_alternation(tensor, rank, leading_left_vector(tensor))


def test_a_sized_layout_has_other_ranks_and_rows_of_a_and_all_else_the_same() -> None:
    small = sized(BOTH, Size(2, 8))
    assert [tensor.shape for tensor in small.tensors] == [(8, 2), (3, 2), (2, 9), (2, 11), (13, 2), (3, 4)]
    assert [m.scale for m in small.modules] == [m.scale for m in BOTH.modules]
    assert [m.weight_shape for m in small.modules] == [m.weight_shape for m in BOTH.modules]
    assert (small.base, small.dense) == (BOTH.base, BOTH.dense)
    assert sized(BOTH, Size(4)) == sized(BOTH, Size(4, 4)) == BOTH


def test_a_state_of_a_sized_layout_is_recognised_by_its_shapes() -> None:
    small = sized(BOTH, Size(2, 8))
    state = random_adapter(small, np.random.default_rng(0))
    assert BOTH.of_state(state) == small
    assert BOTH.of_state(state).contract == small.contract


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(5), r"rank is 5: for module 'q' it may be 1 to 4"),
        (Size(0), r"rank is 0"),
        (Size(2, 5), r"d_A2 is 5, .* d_out = 24 of module 'q': it may be 1, 2, 3, 4, 6, 8, 12, 24"),
        (Size(2, 0), r"d_A2 is 0"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_module_and_what_would(size: Size, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sized(BOTH, size)


def test_rows_of_a_are_refused_where_no_layer_has_an_a() -> None:
    with pytest.raises(ConfigError, match="no layer is kron_lora"):
        sized(layout_of(LORA), Size(2, 4))


def test_kinds_without_sizes_are_refused() -> None:
    with pytest.raises(AdapterError, match="module 'k' has kind 'krona': only kron_lora and lora"):
        sized(layout_of(krona_module()), Size(1))


def test_names_of_sizes_tell_them_apart() -> None:
    assert [size_name(Size(4)), size_name(Size(4, 8))] == ["rank 4", "rank 4, d_A2 8"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_lora_is_the_truncated_svd_of_the_dense_matrix(seed: int, rank: int) -> None:
    layout = layout_of(LORA)
    adapter = random_adapter(layout, np.random.default_rng(seed))
    small = sized(layout, Size(rank))
    truth = truncated_svd(delta(adapter, LORA), rank)
    assert relative_distance(delta(resized(adapter, layout, small), small.modules[0]), truth) < 1e-6


@pytest.mark.parametrize(
    "size", [Size(3), Size(1), Size(4, 2), Size(2, 8), Size(4, 12), Size(3, 6), Size(2, 1), Size(1, 3)]
)
@pytest.mark.parametrize("seed", range(3))
def test_another_size_of_kron_lora_is_as_near_as_a_dense_alternation_comes(seed: int, size: Size) -> None:
    layout = layout_of(KRON)
    adapter = random_adapter(layout, np.random.default_rng(seed))
    target = sized(layout, size)
    module = target.modules[0]
    matrix = delta(adapter, KRON)
    tensor, truth = rearranged(matrix, grid_of(module)), best(matrix, target)
    found = rearranged(delta(resized(adapter, layout, target), module), grid_of(module))
    assert np.linalg.norm(tensor - found) == pytest.approx(np.linalg.norm(tensor - truth), rel=1e-6)


@patient
@given(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), seeds)
def test_refined_and_coarsened_are_the_same_matrix_on_another_grid(rows: int, coarse: int, seed: int) -> None:
    module = kron_module(left=(rows, 2), d_B2=24 // rows, rank=2, d_B1=5, scale=1.0)
    state = random_adapter(layout_of(module), np.random.default_rng(seed))
    fine = int(np.lcm(rows, coarse))
    products = refined(product_of(module, state), fine)
    A, B1, B2 = (factors.astype(np.float64) for factors in (products.A, products.B1, products.B2))
    matrix = delta(state, module)
    np.testing.assert_allclose(
        sum(np.kron(a, b @ c) for a, b, c in zip(A, B1, B2, strict=True)), matrix, atol=1e-6
    )
    total = tucker_sum(module, None, fine)
    total.add(products, 1.0)
    tucker = coarsened(total.total(), coarse)
    assert tucker.grid == (coarse, 2)
    for basis in (tucker.left_columns, tucker.Q1, tucker.Q2):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    terms = (
        np.kron(a, tucker.Q1 @ core @ tucker.Q2.T) for a, core in zip(tucker.left, tucker.core, strict=True)
    )
    np.testing.assert_allclose(sum(terms), matrix, atol=1e-6)


@pytest.mark.parametrize("size", [Size(4), Size(2, 8), Size(1, 2)])
def test_a_smaller_adapter_fits_the_larger_size_exactly_where_only_the_rank_grows(size: Size) -> None:
    small = sized(BOTH, size)
    larger = sized(BOTH, Size(4, size.d_a2))
    adapter = random_adapter(small, np.random.default_rng(1))
    grown = resized(adapter, small, larger)
    for module, wanted in zip(small.modules, larger.modules, strict=True):
        assert relative_distance(delta(grown, wanted), delta(adapter, module)) < 1e-6
    for name in ("q.B2", "v.lora_A"):
        assert np.linalg.matrix_rank(grown[name]) == 4  # all directions can be trained
        norms = np.linalg.norm(grown[name]) / np.sqrt(4), np.linalg.norm(adapter[name]) / np.sqrt(size.rank)
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_there_and_back_again_is_the_small_adapter() -> None:
    small = sized(BOTH, Size(2))
    adapter = random_adapter(small, np.random.default_rng(2))
    back = resized(resized(adapter, small, BOTH, None), BOTH, small, adapter)
    for name, tensor in adapter.items():
        if name not in {"q.B2", "q.B1", "v.lora_A", "v.lora_B"}:
            np.testing.assert_allclose(back[name], tensor, rtol=1e-5, atol=1e-6)
    for module in small.modules:
        assert relative_distance(delta(back, module), delta(adapter, module)) < 1e-6


@pytest.mark.parametrize("size", [Size(2), Size(4, 8), Size(2, 2), Size(3, 6)])
def test_before_the_first_step_a_resized_adapter_is_still_one_that_can_be_trained(size: Size) -> None:
    target = sized(BOTH, size)
    adapter = zeroed(random_adapter(BOTH, np.random.default_rng(3)))
    small = resized(adapter, BOTH, target)
    for module in target.modules:
        assert not delta(small, module).any()
    assert not small["q.B1"].any()
    assert not small["v.lora_B"].any()
    assert np.array_equal(small["q.A"], np.resize(adapter["q.A"], (size.d_a2 or 4, 2)))
    assert np.array_equal(small["q.B2"], adapter["q.B2"][: size.rank])
    assert np.array_equal(small["v.lora_A"], adapter["v.lora_A"][: size.rank])


def test_before_the_first_step_a_grown_adapter_has_new_directions_of_the_same_size() -> None:
    small = sized(BOTH, Size(2))
    adapter = zeroed(random_adapter(small, np.random.default_rng(4)))
    grown = resized(adapter, small, BOTH)
    for name in ("q.B2", "v.lora_A"):
        assert np.array_equal(grown[name][:2], adapter[name])
        np.testing.assert_allclose(grown[name][2:] @ adapter[name].T, 0, atol=1e-5)
        assert np.linalg.norm(grown[name][2:]) == pytest.approx(np.linalg.norm(adapter[name]), rel=1e-5)


@pytest.mark.parametrize("size", [Size(2), Size(4, 8), Size(2, 2), Size(3, 6)])
def test_entries_of_a_and_b2_keep_their_root_mean_square_and_the_sign_of_a(size: Size) -> None:
    target = sized(BOTH, size)
    adapter = random_adapter(BOTH, np.random.default_rng(10))
    small = resized(adapter, BOTH, target)
    for name in ("q.A", "q.B2", "v.lora_A"):
        assert np.mean(small[name] ** 2) == pytest.approx(np.mean(adapter[name] ** 2), rel=1e-5)
    assert np.sum(small["q.A"] * np.resize(adapter["q.A"], small["q.A"].shape)) > 0


def test_factors_are_those_nearest_to_the_reference() -> None:
    target = sized(BOTH, Size(2))
    rng = np.random.default_rng(5)
    adapter, reference = random_adapter(BOTH, rng), random_adapter(target, rng)
    near, own = (resized(adapter, BOTH, target, each) for each in (reference, None))
    for module in target.modules:
        assert relative_distance(delta(near, module), delta(own, module)) < 1e-5
    for name in ("q.A", "q.B2", "v.lora_A"):
        assert np.linalg.norm(near[name]) == pytest.approx(np.linalg.norm(reference[name]), rel=1e-5)
        assert np.sum(near[name] * reference[name]) > 0
    here = np.linalg.norm(near["v.lora_A"] - reference["v.lora_A"])
    for angle in np.linspace(0, 2 * np.pi, 60):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        assert np.linalg.norm(turn @ near["v.lora_A"] - reference["v.lora_A"]) >= here - 1e-5


@pytest.mark.parametrize("name", ["q.A", "q.B2", "v.lora_A"])
def test_a_reference_of_zero_and_rows_of_zero_do_no_harm(name: str) -> None:
    target = sized(BOTH, Size(2, 2))
    adapter = random_adapter(BOTH, np.random.default_rng(6))
    reference = random_adapter(target, np.random.default_rng(7))
    adapter[name][:2] = 0
    reference[name][:] = 0
    found, plain = resized(adapter, BOTH, target, reference), resized(adapter, BOTH, target)
    for module in target.modules:
        assert relative_distance(delta(found, module), delta(plain, module)) < 1e-5
        assert np.isfinite(delta(plain, module)).all()


def test_the_same_size_is_the_same_product_and_the_dense_tensors_are_copies() -> None:
    adapter = random_adapter(BOTH, np.random.default_rng(8))
    same = resized(adapter, BOTH, BOTH)
    for module in BOTH.modules:
        assert relative_distance(delta(same, module), delta(adapter, module)) < 1e-6
    assert list(same) == [tensor.name for tensor in BOTH.tensors]
    assert all(tensor.dtype == np.float32 for tensor in same.values())
    assert np.array_equal(same["head.weight"], adapter["head.weight"])
    assert not np.shares_memory(same["head.weight"], adapter["head.weight"])


def test_states_and_layouts_that_do_not_belong_together_are_refused() -> None:
    small = sized(BOTH, Size(2))
    adapter = random_adapter(BOTH, np.random.default_rng(9))
    with pytest.raises(AdapterError, match=r"'q\.B1' has shape \[6, 4\], the layout says \[6, 2\]"):
        resized(adapter, small, BOTH)
    with pytest.raises(AdapterError, match=r"'q\.B1' has shape \[6, 4\], the layout says \[6, 2\]"):
        resized(adapter, BOTH, small, adapter)
    rescaled = replace(small, modules=(replace(small.modules[0], scale=1.0), small.modules[1]))
    with pytest.raises(AdapterError, match=r"not two sizes of one adapter: 'q' \(kron_lora, scale 4\)"):
        resized(adapter, BOTH, rescaled)
    with pytest.raises(AdapterError, match="not two sizes of one adapter"):
        resized(adapter, BOTH, replace(small, dense=()))
