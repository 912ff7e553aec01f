import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from aggregation_cases import (
    combined,
    delta,
    dense_alternation,
    factorwise_mean,
    grid_of,
    kron_module,
    krona_module,
    layout_of,
    leading_left_vector,
    lora_module,
    mean_delta,
    merged_mean,
    neighbours,
    random_adapter,
    rearranged,
    relative_distance,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import MergedMean
from fedkron.aggregation.products import product_shapes
from fedkron.aggregation.projection import Loss, relative_error
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import ModuleLayout, TensorLayout

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 7)
ranks = st.integers(1, 4)
scales = st.sampled_from([0.25, 1.0, 4.0])
kron_modules = st.builds(
    kron_module, left=st.tuples(sides, sides), d_B2=sides, rank=ranks, d_B1=sides, scale=scales
)
krona_modules = st.builds(krona_module, left=st.tuples(sides, sides), d_B2=sides, d_B1=sides, scale=scales)
lora_modules = st.builds(lora_module, d_out=sides, rank=ranks, d_in=sides, scale=scales)


@patient
@given(st.one_of(kron_modules, lora_modules), seeds)
def test_one_client_is_the_identity_on_its_product(module: ModuleLayout, seed: int) -> None:
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(seed))
    merged = merged_mean([adapter], [5], layout)
    assert relative_distance(delta(merged.adapter, module), delta(adapter, module)) < 1e-6
    assert merged.projection_error < 1e-6


@patient
@given(st.one_of(kron_modules, lora_modules), seeds, st.integers(2, 4))
def test_clients_that_are_all_the_same_keep_their_product(
    module: ModuleLayout, seed: int, count: int
) -> None:
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(seed))
    merged = merged_mean([adapter] * count, [1] * count, layout)
    assert relative_distance(delta(merged.adapter, module), delta(adapter, module)) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_kron_projection_agrees_with_dense_alternation_in_van_loans_rearrangement(seed: int) -> None:
    module = kron_module(left=(4, 2), d_B2=12, rank=3, d_B1=9)
    layout = layout_of(module)
    adapters = neighbours(layout, 4, np.random.default_rng(seed), spread=0.6)
    weights = [1.0, 2.0, 3.0, 4.0]
    tensor = rearranged(mean_delta(adapters, weights, module), grid_of(module))
    truth = dense_alternation(tensor, 3, leading_left_vector(tensor))
    merged = merged_mean(adapters, weights, layout)
    assert relative_distance(rearranged(delta(merged.adapter, module), grid_of(module)), truth) < 1e-6
    expected_error = np.linalg.norm(tensor - truth) / np.linalg.norm(tensor)
    assert merged.projection_error == pytest.approx(expected_error, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_random_start_of_a_dense_alternation_finds_a_better_projection(seed: int) -> None:
    module = kron_module(left=(4, 2), d_B2=7, rank=2, d_B1=6)
    layout = layout_of(module)
    rng = np.random.default_rng(seed)
    adapters = neighbours(layout, 5, rng)
    tensor = rearranged(mean_delta(adapters, [1] * 5, module), grid_of(module))
    rivals = [dense_alternation(tensor, 2, rng.standard_normal(8)) for _ in range(8)]
    best = min(np.linalg.norm(tensor - rival) for rival in rivals) / np.linalg.norm(tensor)
    assert merged_mean(adapters, [1] * 5, layout).projection_error <= best * (1 + 1e-6)


@patient
@given(lora_modules, st.integers(1, 4), seeds)
def test_lora_projection_is_the_truncated_svd_of_the_dense_mean(
    module: ModuleLayout, count: int, seed: int
) -> None:
    layout = layout_of(module)
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(layout, rng) for _ in range(count)]
    weights = rng.uniform(0.5, 2, count).tolist()
    mean = mean_delta(adapters, weights, module)
    rank = module.factors[0].shape[0]
    S = np.linalg.svd(mean, compute_uv=False)
    expected = np.sqrt(np.sum(S[rank:] ** 2) / np.sum(S**2))
    merged = merged_mean(adapters, weights, layout)
    assert merged.projection_error == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # Eckart and Young: at this distance and this rank, it is the optimum.
    assert relative_distance(delta(merged.adapter, module), mean) == pytest.approx(expected, abs=1e-6)


@patient
@given(st.lists(st.one_of(kron_modules, lora_modules), min_size=1, max_size=3), st.integers(1, 4), seeds)
def test_projection_error_is_the_dense_figure_over_all_modules(
    modules: list[ModuleLayout], count: int, seed: int
) -> None:
    modules = [replace(module, path=f"layer.{i}") for i, module in enumerate(modules)]
    layout = layout_of(*modules)
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(layout, rng) for _ in range(count)]
    weights = rng.uniform(0.5, 2, count).tolist()
    merged = merged_mean(adapters, weights, layout)
    means = [mean_delta(adapters, weights, module) for module in modules]
    lost = sum(np.linalg.norm(m - delta(merged.adapter, p)) ** 2 for m, p in zip(means, modules, strict=True))
    whole = sum(np.linalg.norm(m) ** 2 for m in means)
    assert merged.projection_error == pytest.approx(np.sqrt(lost / whole), abs=1e-5)


def test_lora_clients_of_small_total_rank_merge_exactly_where_factor_means_do_not() -> None:
    module = lora_module(d_out=12, rank=6, d_in=10)
    layout = layout_of(module)
    rng = np.random.default_rng(0)
    adapters = [random_adapter(layout, rng) for _ in range(3)]
    for adapter in adapters:
        adapter["v.lora_B"][:, 2:] = 0  # rank 2 each, 6 together
    truth = mean_delta(adapters, [1, 2, 3], module)
    merged = merged_mean(adapters, [1, 2, 3], layout)
    assert relative_distance(delta(merged.adapter, module), truth) < 1e-6
    assert merged.projection_error < 1e-6
    assert relative_distance(delta(factorwise_mean(adapters, [1, 2, 3], layout), module), truth) > 0.1


@pytest.mark.parametrize("module", [kron_module(d_B2=12, d_B1=9), lora_module()])
@pytest.mark.parametrize("seed", range(5))
def test_merged_is_nearer_to_the_mean_product_than_the_factor_mean_is(
    module: ModuleLayout, seed: int
) -> None:
    layout = layout_of(module)
    adapters = neighbours(layout, 4, np.random.default_rng(seed))
    truth = mean_delta(adapters, [1] * 4, module)
    merged = relative_distance(delta(merged_mean(adapters, [1] * 4, layout).adapter, module), truth)
    naive = relative_distance(delta(factorwise_mean(adapters, [1] * 4, layout), module), truth)
    assert merged < naive


@pytest.mark.parametrize("rank_of_clients", [1, 2])
@pytest.mark.parametrize("module", [kron_module(d_B2=12, rank=4, d_B1=9), lora_module(rank=4)])
def test_the_order_of_clients_does_not_matter(module: ModuleLayout, rank_of_clients: int) -> None:
    layout = layout_of(module)
    adapters = neighbours(layout, 2, np.random.default_rng(7))
    tall = module.tensor_name("B1" if module.kind == "kron_lora" else "lora_B")
    for adapter in adapters:
        adapter[tall][:, rank_of_clients:] = 0
    forward = merged_mean(adapters, [1, 2], layout)
    backward = merged_mean(adapters[::-1], [2, 1], layout)
    for name, tensor in forward.adapter.items():
        np.testing.assert_allclose(tensor, backward.adapter[name], rtol=1e-4, atol=1e-5)
    assert forward.projection_error == pytest.approx(backward.projection_error, abs=1e-7)


def test_a_client_of_weight_two_counts_like_two_clients_and_one_of_weight_zero_not_at_all() -> None:
    layout = layout_of(kron_module(d_B2=12, d_B1=9), lora_module())
    a, b, c = neighbours(layout, 3, np.random.default_rng(8))
    weighted = merged_mean([a, b, c], [20, 10, 0], layout).adapter
    repeated = merged_mean([a, a, b], [1, 1, 1], layout).adapter
    for module in layout.modules:
        assert relative_distance(delta(weighted, module), delta(repeated, module)) < 1e-6


def test_before_the_first_step_every_b1_is_zero_and_the_factor_mean_comes_back() -> None:
    layout = layout_of(kron_module(), lora_module())
    rng = np.random.default_rng(9)
    adapters = [random_adapter(layout, rng) for _ in range(3)]
    for adapter in adapters:
        adapter["q.B1"][:] = 0
        adapter["v.lora_B"][:] = 0
    merged = merged_mean(adapters, [1, 2, 3], layout)
    for name, tensor in factorwise_mean(adapters, [1, 2, 3], layout).items():
        np.testing.assert_allclose(merged.adapter[name], tensor, rtol=1e-6, atol=1e-7)
    assert merged.projection_error == 0


@pytest.mark.parametrize("flipped", ["A", "B1", "B2"])
def test_clients_that_cancel_leave_a_product_of_zero_that_can_still_be_trained(flipped: str) -> None:
    module = kron_module()
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(10))
    opposite = {**adapter, f"q.{flipped}": -adapter[f"q.{flipped}"]}
    merged = merged_mean([adapter, opposite], [1, 1], layout)
    assert np.linalg.norm(delta(merged.adapter, module)) == 0
    assert merged.projection_error == 0
    assert sum(not tensor.any() for tensor in merged.adapter.values()) == 1  # two zero factors are dead


def test_products_that_cancel_while_their_factors_do_not_leave_a_product_of_zero() -> None:
    module = kron_module()
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(11))
    opposite = {**adapter, "q.B1": -2 * adapter["q.B1"], "q.B2": adapter["q.B2"] / 2}
    merged = merged_mean([adapter, opposite], [1, 1], layout)
    assert np.linalg.norm(delta(merged.adapter, module)) == 0
    assert merged.adapter["q.A"].any()
    assert merged.adapter["q.B2"].any()


def test_a_mean_of_lower_rank_is_exact_and_b2_keeps_all_its_directions() -> None:
    module = kron_module(d_B2=12, rank=4, d_B1=9)
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(12))
    adapter["q.B1"][:, 1:] = 0
    other = {**adapter, "q.B1": 3 * adapter["q.B1"]}
    merged = merged_mean([adapter, other], [1, 1], layout)
    assert relative_distance(delta(merged.adapter, module), 2 * delta(adapter, module)) < 1e-6
    assert np.linalg.cond(merged.adapter["q.B2"]) < 1.001
    assert np.linalg.norm(merged.adapter["q.B2"]) == pytest.approx(np.linalg.norm(adapter["q.B2"]), rel=1e-5)


@pytest.mark.parametrize(("d_out", "d_in"), [(2, 9), (9, 2), (1, 1)])
def test_a_rank_above_the_layers_sides_is_no_trouble(d_out: int, d_in: int) -> None:
    module = lora_module(d_out=d_out, rank=5, d_in=d_in)
    layout = layout_of(module)
    rng = np.random.default_rng(13)
    adapters = [random_adapter(layout, rng) for _ in range(3)]
    merged = merged_mean(adapters, [1, 1, 1], layout)
    assert relative_distance(delta(merged.adapter, module), mean_delta(adapters, [1, 1, 1], module)) < 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_factors_keep_the_clients_sizes_and_signs(seed: int) -> None:
    module = kron_module(d_B2=12, rank=3, d_B1=9)
    layout = layout_of(module)
    adapters = neighbours(layout, 4, np.random.default_rng(seed))
    shares = [0.1, 0.2, 0.3, 0.4]
    merged = merged_mean(adapters, shares, layout).adapter
    for name in ("q.A", "q.B2"):
        size = np.average([np.linalg.norm(a[name]) for a in adapters], weights=shares)
        assert np.linalg.norm(merged[name]) == pytest.approx(size, rel=1e-5)
    assert np.sum(merged["q.A"] * factorwise_mean(adapters, shares, layout)["q.A"]) > 0


def test_no_rotation_brings_b2_nearer_to_the_clients_mean() -> None:
    module = lora_module(d_out=12, rank=3, d_in=9)
    layout = layout_of(module)
    rng = np.random.default_rng(15)
    adapters = neighbours(layout, 4, rng)
    wide = merged_mean(adapters, [1] * 4, layout).adapter["v.lora_A"]
    mean = factorwise_mean(adapters, [1] * 4, layout)["v.lora_A"]
    here = np.linalg.norm(wide - mean)
    for size in (0.01, 1.0):
        for _ in range(50):
            rotation = np.linalg.qr(np.eye(3) + size * rng.standard_normal((3, 3)))[0]
            rotation *= np.sign(np.diag(rotation))  # QR of nearly one is nearly one, up to signs
            assert np.linalg.norm(rotation @ wide - mean) >= here - 1e-6


def test_b2s_that_nearly_cancel_do_not_blow_b1_up() -> None:
    module = kron_module(d_B2=12, rank=3, d_B1=9)
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(16))
    opposite = {**adapter, "q.B1": -adapter["q.B1"], "q.B2": np.float32(-0.999999) * adapter["q.B2"]}
    merged = merged_mean([adapter, opposite], [1, 1], layout).adapter
    assert relative_distance(delta(merged, module), delta(adapter, module)) < 1e-5
    assert np.linalg.norm(merged["q.B1"]) < 3 * np.linalg.norm(adapter["q.B1"])


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_factors_of_any_size_stay_finite_and_exact(size: float) -> None:
    module = kron_module(d_B2=12, rank=3, d_B1=9)
    layout = layout_of(module)
    adapter = random_adapter(layout, np.random.default_rng(17))
    adapter["q.B1"] *= np.float32(size)
    merged = merged_mean([adapter], [1], layout).adapter
    assert relative_distance(delta(merged, module), delta(adapter, module)) < 1e-6


def test_dense_tensors_become_their_weighted_mean_and_inputs_stay_as_they_were() -> None:
    layout = layout_of(kron_module(), dense=(TensorLayout("head.weight", (3, 4)),))
    adapters = neighbours(layout, 2, np.random.default_rng(18))
    copies = [{n: x.copy() for n, x in a.items()} for a in adapters]
    merged = merged_mean(adapters, [3, 1], layout).adapter
    expected = 0.75 * adapters[0]["head.weight"] + 0.25 * adapters[1]["head.weight"]
    np.testing.assert_allclose(merged["head.weight"], expected, rtol=1e-5, atol=1e-6)
    assert list(merged) == [tensor.name for tensor in layout.tensors]
    assert all(tensor.dtype == np.float32 for tensor in merged.values())
    for adapter, copy in zip(adapters, copies, strict=True):
        assert all(np.array_equal(adapter[name], copy[name]) for name in copy)


def test_the_same_input_gives_the_same_bytes() -> None:
    layout = layout_of(kron_module(d_B2=12, d_B1=9), lora_module())
    adapters = neighbours(layout, 3, np.random.default_rng(19))
    first, second = (merged_mean(adapters, [1, 2, 3], layout) for _ in range(2))
    assert all(first.adapter[n].tobytes() == second.adapter[n].tobytes() for n in first.adapter)
    assert first.projection_error == second.projection_error


def test_merging_a_large_layer_takes_far_less_memory_than_its_delta() -> None:
    layout = layout_of(kron_module(left=(16, 2), d_B2=256, rank=4, d_B1=2048))  # ΔW in float64: 134 MB
    adapters = neighbours(layout, 3, np.random.default_rng(20))
    tracemalloc.start()
    merged_mean(adapters, [1, 1, 1], layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@patient
@given(krona_modules, seeds, st.integers(1, 4))
def test_krona_projection_is_the_leading_singular_pair_of_the_dense_rearranged_mean(
    module: ModuleLayout, seed: int, count: int
) -> None:
    layout = layout_of(module)
    rng = np.random.default_rng(seed)
    adapters = [random_adapter(layout, rng) for _ in range(count)]
    weights = rng.uniform(0.5, 2, count).tolist()
    mean = mean_delta(adapters, weights, module)
    blocks = grid_of(module)[0] * grid_of(module)[1]
    S = np.linalg.svd(rearranged(mean, grid_of(module)).reshape(blocks, -1), compute_uv=False)
    expected = np.sqrt(np.sum(S[1:] ** 2) / np.sum(S**2))
    merged = merged_mean(adapters, weights, layout)
    assert merged.projection_error == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert relative_distance(delta(merged.adapter, module), mean) == pytest.approx(expected, abs=1e-6)


def test_where_the_rank_does_not_bind_the_projection_is_the_svd_of_the_dense_rearranged_mean() -> None:
    module = kron_module(left=(4, 2), d_B2=5, rank=4, d_B1=4)
    layout = layout_of(module)
    adapters = neighbours(layout, 6, np.random.default_rng(22), spread=0.8)
    weights = [1, 2, 3, 1, 2, 3]
    mean = mean_delta(adapters, weights, module)
    S = np.linalg.svd(rearranged(mean, (4, 2)).reshape(8, -1), compute_uv=False)
    merged = merged_mean(adapters, weights, layout)
    assert merged.projection_error == pytest.approx(np.sqrt(np.sum(S[1:] ** 2) / np.sum(S**2)), rel=1e-6)


MIXED = layout_of(
    kron_module(d_B2=12, rank=3, d_B1=9), lora_module(), krona_module(), dense=(TensorLayout("head", (3, 4)),)
)


def test_weights_one_and_three_are_four_clients_three_of_them_equal() -> None:
    a, b = neighbours(MIXED, 2, np.random.default_rng(23))
    weighted, repeated = merged_mean([a, b], [1, 3], MIXED), merged_mean([b, a, b, b], [1] * 4, MIXED)
    for name, tensor in weighted.adapter.items():
        np.testing.assert_allclose(tensor, repeated.adapter[name], rtol=1e-4, atol=1e-5)
    assert weighted.projection_error == pytest.approx(repeated.projection_error, rel=1e-6)


def test_adapters_folded_in_one_by_one_or_all_at_once_make_the_same_mean() -> None:
    adapters = neighbours(MIXED, 7, np.random.default_rng(24))
    weights = [3, 1, 4, 1, 5, 9, 2]
    at_once = combined(MergedMean(MIXED), adapters, weights)  # 128 columns are not reached
    # Of at most 12 directions a side nothing is cut off, but four adapters of rank 3 make a batch.
    in_batches = combined(MergedMean(MIXED, max_rank=12), adapters, weights)
    for name, tensor in at_once.adapter.items():
        np.testing.assert_allclose(in_batches.adapter[name], tensor, rtol=1e-5, atol=1e-6)
    assert in_batches.projection_error == pytest.approx(at_once.projection_error, rel=1e-9)


@pytest.mark.parametrize("max_rank", [3, 6, 9])
@pytest.mark.parametrize("seed", range(4))
def test_the_reported_error_of_a_truncated_sum_is_an_upper_bound(seed: int, max_rank: int) -> None:
    layout = layout_of(kron_module(d_B2=14, rank=3, d_B1=13), lora_module(d_out=16, d_in=15))
    adapters = neighbours(layout, 20, np.random.default_rng(seed), spread=0.5)
    weights = np.random.default_rng(seed).uniform(0.5, 2, 20).tolist()
    merged = combined(MergedMean(layout, max_rank), adapters, weights)
    means = [mean_delta(adapters, weights, module) for module in layout.modules]
    lost = sum(
        np.linalg.norm(mean - delta(merged.adapter, module)) ** 2
        for mean, module in zip(means, layout.modules, strict=True)
    )
    actual = np.sqrt(lost / sum(np.linalg.norm(mean) ** 2 for mean in means))
    assert merged.projection_error is not None
    assert actual < merged.projection_error < 30 * actual
    exact = merged_mean(adapters, weights, layout).projection_error
    assert exact is not None
    assert exact <= actual * (1 + 1e-6)


@pytest.mark.parametrize("d_B1", [2, 5])
def test_of_krona_whose_b_has_full_rank_nothing_is_cut_off(d_B1: int) -> None:
    module = krona_module(d_B2=3, d_B1=d_B1)
    layout = layout_of(module)
    adapters = neighbours(layout, 9, np.random.default_rng(30))
    few, all_ = (
        combined(MergedMean(layout, max_rank=1), adapters, [1] * 9),
        merged_mean(adapters, [1] * 9, layout),
    )
    assert relative_distance(delta(few.adapter, module), delta(all_.adapter, module)) < 1e-6
    assert few.projection_error == pytest.approx(all_.projection_error, rel=1e-9)
    assert product_shapes(module) == ((4, 2), (3, d_B1), min(3, d_B1))  # the smaller identity


@patient
@given(seeds, st.integers(1, 3), st.floats(0, 2))
def test_a_relative_error_is_an_upper_bound_whatever_was_cut_off(
    seed: int, modules: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    losses, lost, whole = [], 0.0, 0.0
    for _ in range(modules):
        seen, found, unseen = rng.standard_normal((3, 2))
        unseen *= size
        scale, cut = rng.uniform(0.5, 2), np.linalg.norm(unseen) * rng.uniform(1, 1.5)
        losses.append(Loss(scale, float(np.linalg.norm(seen - found)), float(np.linalg.norm(seen)), cut))
        lost += scale**2 * np.sum((seen + unseen - found) ** 2)
        whole += scale**2 * np.sum((seen + unseen) ** 2)
    assert np.sqrt(lost / whole) <= relative_error(losses) * (1 + 1e-12)
    if size == 0:
        assert np.sqrt(lost / whole) == pytest.approx(relative_error(losses))


def test_the_bound_is_reached_where_what_was_cut_off_points_against_the_rest() -> None:
    seen, found, unseen = np.array([3.0, 4.0]), np.array([3.6, 4.8]), np.array([-1.2, -1.6])
    true = seen + unseen
    loss = Loss(0.5, float(np.linalg.norm(seen - found)), float(np.linalg.norm(seen)), 2.0)
    expected = np.linalg.norm(true - found) / np.linalg.norm(true)
    assert relative_error([loss]) == pytest.approx(expected)
    assert relative_error([Loss(0.5, 0.0, 5.0, 5.0)]) == np.inf  # the mean may be zero


def test_what_is_kept_of_200_clients_is_not_more_than_of_20() -> None:
    layout = layout_of(kron_module(d_B2=64, rank=4, d_B1=48), lora_module(d_out=60, rank=4, d_in=50))
    rng = np.random.default_rng(25)
    merging = MergedMean(layout, max_rank=16)
    sizes = []
    for _ in range(200):
        merging.add(random_adapter(layout, rng), rng.uniform(1, 9))
        sizes.append(merging.size)
    assert max(sizes[20:]) <= max(sizes[:20])
    cores = 8 * 16**2 + 16**2
    bases = 16 * (64 + 48 + 60 + 50) + 8 * 8 + 1
    assert min(sizes) > 0
    assert max(sizes) < cores + bases + 4 * layout.size  # less than a batch of four is pending


def test_a_refused_adapter_or_weight_leaves_the_mean_as_it_was() -> None:
    good = neighbours(MIXED, 2, np.random.default_rng(26))
    poisoned = {**good[0], "q.B1": np.full_like(good[0]["q.B1"], np.nan)}
    foreign = {**good[0], "q.A": good[0]["q.A"].T}
    merging = MergedMean(MIXED)
    merging.add(good[0], 2)
    for adapter, weight, error in [
        (poisoned, 1, AdapterError),
        (foreign, 1, AdapterError),
        (good[1], -1, ConfigError),
        (good[1], float("nan"), ConfigError),
        (good[1], float("inf"), ConfigError),
    ]:
        with pytest.raises(error):
            merging.add(adapter, weight)
    merging.add(good[1], 1)
    result, expected = merging.finish(), merged_mean(good, [2, 1], MIXED)
    assert all(np.array_equal(result.adapter[name], expected.adapter[name]) for name in expected.adapter)


def test_what_was_handed_in_may_be_overwritten_afterwards() -> None:
    adapters = neighbours(MIXED, 2, np.random.default_rng(27))
    expected = merged_mean(adapters, [1, 2], MIXED).adapter
    buffer = {name: np.empty_like(tensor) for name, tensor in adapters[0].items()}
    merging = MergedMean(MIXED)
    for adapter, weight in zip(adapters, [1, 2], strict=True):
        for name, tensor in adapter.items():
            buffer[name][...] = tensor
        merging.add(buffer, weight)
    result = merging.finish().adapter
    assert all(np.array_equal(result[name], expected[name]) for name in expected)


def test_without_clients_or_with_weights_of_zero_only_there_is_no_mean() -> None:
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        MergedMean(MIXED).finish()
    with pytest.raises(ConfigError, match="all weights are zero"):
        combined(MergedMean(MIXED), neighbours(MIXED, 2, np.random.default_rng(28)), [0, 0])


def test_weights_near_the_largest_float_do_not_overflow() -> None:
    adapters = neighbours(MIXED, 2, np.random.default_rng(29))
    huge, even = (merged_mean(adapters, [weight] * 2, MIXED).adapter for weight in (1e307, 1.0))
    assert all(np.array_equal(huge[name], even[name]) for name in even)


@pytest.mark.parametrize("kind", ["adakron", "moka", "ia3"])
def test_a_kind_that_is_not_one_product_is_refused_before_anybody_trains(kind: str) -> None:
    layout = layout_of(ModuleLayout("q", kind, 1.0, (4, 4), (TensorLayout("scale", (4,)),)))
    with pytest.raises(AdapterError, match=rf"module 'q' has kind '{kind}'.*kron_lora, lora.*factorwise"):
        MergedMean(layout)
