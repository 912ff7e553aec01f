"""Merged tasks against the dense ΔW, and the steps in between against PEFT's own functions."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from aggregation_cases import (
    delta,
    kron_module,
    layout_of,
    lora_module,
    mean_delta,
    neighbours,
    random_adapter,
    relative_distance,
)
from peft.utils import merge_utils

from fedkron.aggregation.elementwise import agreed_mean, dropped, trimmed
from fedkron.aggregation.task_merging import METHODS, delta_cosine, merge_tasks, of_rank
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

KRON = kron_module(left=(4, 2), d_B2=12, rank=3, d_B1=9, scale=0.7)
LORA = lora_module(d_out=14, rank=3, d_in=10, scale=3.0)
KRONA = ModuleLayout("k", "krona", 1.5, (20, 12), (TensorLayout("A", (4, 3)), TensorLayout("B", (5, 4))))
LAYOUT = layout_of(KRON, LORA, KRONA, dense=(TensorLayout("head.weight", (3, 4)),))


def tasks(count: int, seed: int = 0, layout: AdapterLayout = LAYOUT) -> list[State]:
    rng = np.random.default_rng(seed)
    return [random_adapter(layout, rng) for _ in range(count)]


def krona_delta(adapter: State) -> np.ndarray:
    return KRONA.scale * np.kron(adapter["k.A"].astype(np.float64), adapter["k.B"])


def deltas(adapter: State, layout: AdapterLayout = LAYOUT) -> list[np.ndarray]:
    return [krona_delta(adapter) if m.kind == "krona" else delta(adapter, m) for m in layout.modules]


def distance(a: State, b: State, layout: AdapterLayout = LAYOUT) -> float:
    """Of the ΔW, relative, over all modules together."""
    flat = [np.concatenate([d.ravel() for d in deltas(x, layout)]) for x in (a, b)]
    return relative_distance(*flat)


def with_other_factors(adapter: State, seed: int = 0) -> State:
    """The same ΔW, otherwise factored."""
    G = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0] @ np.diag([0.5, 2.0, 7.0])
    inverse = np.linalg.inv(G)
    changed = {
        "q.A": -3 * adapter["q.A"],
        "q.B1": adapter["q.B1"] @ G / -3,
        "q.B2": inverse @ adapter["q.B2"],
        "v.lora_B": adapter["v.lora_B"] @ G,
        "v.lora_A": inverse @ adapter["v.lora_A"],
        "k.A": -adapter["k.A"],
        "k.B": -adapter["k.B"],
    }
    return {**adapter, **{name: values.astype(np.float32) for name, values in changed.items()}}


# ------------------------------------------------------------------ the mean, against dense ΔW


def test_the_mean_of_lora_is_the_truncated_svd_of_the_dense_mean() -> None:
    layout = layout_of(LORA)
    adapters = tasks(4, layout=layout)
    truth = 1.7 * mean_delta(adapters, [1, 2, 3, 4], LORA)
    U, S, Vt = np.linalg.svd(truth)
    merged = merge_tasks(adapters, layout, "mean", weights=[1, 2, 3, 4], scaling=1.7)
    best = (U[:, :3] * S[:3]) @ Vt[:3]
    assert relative_distance(delta(merged.adapter, LORA), best) < 1e-6
    assert merged.projection_error == pytest.approx(np.sqrt(np.sum(S[3:] ** 2) / np.sum(S**2)), rel=1e-6)


def test_the_mean_of_krona_is_the_nearest_kronecker_product_of_the_dense_mean() -> None:
    layout = layout_of(KRONA)
    adapters = tasks(3, layout=layout)
    truth = sum(map(krona_delta, adapters)) / 3
    # Van Loan and Pitsianis: the nearest product is the leading singular pair of the rearranged matrix.
    rearranged = truth.reshape(4, 5, 3, 4).transpose(0, 2, 1, 3).reshape(12, 20)
    S = np.linalg.svd(rearranged, compute_uv=False)
    merged = merge_tasks(adapters, layout, "mean")
    expected = np.sqrt(np.sum(S[1:] ** 2) / np.sum(S**2))
    assert merged.projection_error == pytest.approx(expected, rel=1e-6)
    assert relative_distance(krona_delta(merged.adapter), truth) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 2.0]])
def test_the_projection_error_of_the_mean_is_the_dense_one_over_all_modules(
    weights: list[float] | None,
) -> None:
    adapters = tasks(3)
    merged = merge_tasks(adapters, LAYOUT, "mean", weights=weights)
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    truth = np.concatenate(
        [
            sum(s * d for s, d in zip(shares, each, strict=True)).ravel()
            for each in zip(*map(deltas, adapters), strict=True)
        ]
    )
    found = np.concatenate([d.ravel() for d in deltas(merged.adapter)])
    assert merged.projection_error == pytest.approx(relative_distance(found, truth), rel=1e-5)
    np.testing.assert_allclose(
        merged.adapter["head.weight"],
        np.average([a["head.weight"] for a in adapters], axis=0, weights=shares),
        rtol=1e-5,
    )


def test_no_product_near_the_projected_mean_is_nearer_to_the_dense_mean() -> None:
    layout = layout_of(KRON)
    adapters = neighbours(layout, 3, np.random.default_rng(1))
    truth = mean_delta(adapters, [1, 1, 1], KRON)
    merged = merge_tasks(adapters, layout, "mean").adapter
    here = relative_distance(delta(merged, KRON), truth)
    rng = np.random.default_rng(2)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(30):
            step = {
                name: size * np.abs(x).mean() * rng.standard_normal(x.shape) for name, x in merged.items()
            }
            moved = {name: (x + step[name]).astype(np.float32) for name, x in merged.items()}
            assert relative_distance(delta(moved, KRON), truth) >= here - 1e-7


def test_a_larger_rank_takes_all_of_the_mean_of_lora_and_a_smaller_one_the_best_part() -> None:
    layout = layout_of(LORA)
    adapters = tasks(3, layout=layout)
    truth = mean_delta(adapters, [1, 1, 1], LORA)
    S = np.linalg.svd(truth, compute_uv=False)
    for rank in (1, 2, 5, 9, 12):
        target = of_rank(layout, rank)
        merged = merge_tasks(adapters, layout, "mean", target=target)
        expected = np.sqrt(np.sum(S[rank:] ** 2) / np.sum(S**2))
        assert merged.projection_error == pytest.approx(expected, abs=1e-6)
        assert relative_distance(delta(merged.adapter, target.modules[0]), truth) == pytest.approx(
            expected, abs=1e-6
        )
        assert merged.adapter["v.lora_B"].shape == (14, rank)


def test_the_target_has_its_own_scale() -> None:
    adapters = tasks(2)
    target = replace(LAYOUT, modules=tuple(replace(m, scale=10 * m.scale) for m in LAYOUT.modules))
    ours = merge_tasks(adapters, LAYOUT, "mean")
    theirs = merge_tasks(adapters, LAYOUT, "mean", target=target)
    for module, wanted in zip(LAYOUT.modules[:2], target.modules[:2], strict=True):
        assert relative_distance(delta(theirs.adapter, wanted), delta(ours.adapter, module)) < 1e-6
    assert theirs.projection_error == pytest.approx(ours.projection_error, rel=1e-9)


# ------------------------------------------------------------------ TIES and DARE, against PEFT

CORES = np.random.default_rng(3).standard_normal((4, 2, 7, 5)) * np.array([1, 0.5, 2, 1]).reshape(4, 1, 1, 1)
EQUAL = np.full(4, 0.25)


def peft(function: Callable, cores: np.ndarray, **options: float) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a density of one
        merged = function(list(torch.from_numpy(cores)), torch.ones(len(cores)).double(), **options)
    return merged.numpy()


@pytest.mark.parametrize("density", [1.0, 0.9, 0.5, 0.29, 0.2, 0.015])
def test_ties_is_that_of_peft_on_the_same_numbers(density: float) -> None:
    theirs = peft(merge_utils.ties, CORES, density=density)
    ours = agreed_mean(trimmed(CORES, density), EQUAL)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    assert not np.allclose(ours, CORES.mean(axis=0), atol=1e-3)


def test_ties_gives_a_task_of_weight_two_the_say_of_two() -> None:
    twice = np.concatenate([CORES, CORES[1:2], CORES[2:3], CORES[2:3]])
    theirs = peft(merge_utils.ties, twice, density=0.4)
    ours = agreed_mean(trimmed(CORES, 0.4), np.array([1, 2, 3, 1]) / 7)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_a_number_on_which_the_tasks_are_divided_equally_becomes_zero() -> None:
    cores = np.array([[1.0, -2.0, 0.0, 3.0], [-1.0, 2.0, 0.0, 0.0]])
    np.testing.assert_array_equal(agreed_mean(cores, np.array([0.5, 0.5])), [0, 0, 0, 3])


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_dare_draws_from_the_distribution_of_peft(density: float) -> None:
    rng = np.random.default_rng(4)
    draws = 4000
    ours = np.array([dropped(CORES[:1], density, [rng])[0] for _ in range(draws)])
    torch.manual_seed(4)
    theirs = np.array(
        [peft(merge_utils.dare_linear, CORES[:1], density=density) for _ in range(draws)],
    )
    for sample in (ours, theirs):
        kept = sample != 0
        np.testing.assert_allclose(sample[kept], np.broadcast_to(CORES[0] / density, kept.shape)[kept])
        frequency = kept.mean(axis=0)
        assert np.abs(frequency - density).max() < 4.5 * np.sqrt(density * (1 - density) / draws)
    # Unbiased.
    assert np.abs(ours.mean(axis=0) / CORES[0] - 1).max() < 4.5 * np.sqrt((1 / density - 1) / draws)


def test_dare_ties_is_that_of_peft_on_what_was_not_dropped() -> None:
    rngs = [np.random.default_rng(k) for k in range(4)]
    kept = dropped(CORES, 0.6, rngs)
    np.testing.assert_allclose(agreed_mean(kept, EQUAL), peft(merge_utils.dare_ties, kept, density=1.0))


def core_of(adapter: State, left: np.ndarray, Q1: np.ndarray, Q2: np.ndarray) -> np.ndarray:
    a = left @ adapter["q.A"].astype(np.float64).ravel()
    return np.multiply.outer(a, Q1.T @ adapter["q.B1"] @ adapter["q.B2"] @ Q2)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2])
def test_ties_of_adapters_is_that_of_peft_on_dense_cores_in_the_bases_of_the_hosvd(density: float) -> None:
    layout = layout_of(KRON)
    adapters = tasks(2, seed=5, layout=layout)
    # The HOSVD of the dense, rearranged ΔW of all tasks as one tensor (K, d_A, d_B2, d_B1).
    dense = np.array([delta(a, KRON) / KRON.scale for a in adapters])
    tensor = dense.reshape(2, 4, 12, 2, 9).transpose(0, 1, 3, 2, 4).reshape(2, 8, 12, 9)
    bases = []
    for axis in (1, 2, 3):
        U, S, _ = np.linalg.svd(np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1), False)
        bases.append(U[:, 1e-6 * S[0] < S])
    left, Q1, Q2 = bases
    assert (left.shape, Q1.shape, Q2.shape) == ((8, 2), (12, 6), (9, 6))
    cores = np.array([core_of(a, left.T, Q1, Q2) for a in adapters])
    core = peft(merge_utils.ties, cores, density=density)
    truth = np.einsum("ai,bj,ck,ijk->abc", left, Q1, Q2, core)
    merged = merge_tasks(adapters, layout, "ties", density=density)
    found = delta(merged.adapter, KRON) / KRON.scale
    rearranged = found.reshape(4, 12, 2, 9).transpose(0, 2, 1, 3).reshape(8, 12, 9)
    assert relative_distance(rearranged, truth) == pytest.approx(merged.projection_error, rel=1e-5)
    # In as many ranks as it takes, nothing but the single A is in the way of an exact result.
    U, S, _ = np.linalg.svd(truth.reshape(8, -1), full_matrices=False)
    whole = merge_tasks(adapters, layout, "ties", density=density, target=of_rank(layout, 6))
    assert whole.projection_error == pytest.approx(np.sqrt(np.sum(S[1:] ** 2) / np.sum(S**2)), rel=1e-5)


# ------------------------------------------------------------------ laws that hold for all methods


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_of_density_one_stays_what_it_is(method: str) -> None:
    (adapter,) = tasks(1)
    merged = merge_tasks([adapter], LAYOUT, method, density=1.0)
    assert distance(merged.adapter, adapter) < 1e-6
    assert merged.projection_error < 1e-6
    assert list(merged.adapter) == [tensor.name for tensor in LAYOUT.tensors]
    for tensor in LAYOUT.tensors:
        assert merged.adapter[tensor.name].shape == tensor.shape
        assert merged.adapter[tensor.name].dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
def test_equal_adapters_of_density_one_stay_what_they_are(method: str) -> None:
    (adapter,) = tasks(1)
    merged = merge_tasks([adapter, with_other_factors(adapter), adapter], LAYOUT, method, density=1.0)
    assert distance(merged.adapter, adapter) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_tasks_does_not_matter(method: str, seed: int) -> None:
    adapters = tasks(4, seed)
    merged = merge_tasks(adapters, LAYOUT, method, weights=[1, 2, 3, 1])
    order = [2, 0, 3, 1]
    other = merge_tasks([adapters[k] for k in order], LAYOUT, method, weights=[3, 1, 1, 2])
    assert distance(other.adapter, merged.adapter) < 1e-5
    assert other.projection_error == pytest.approx(merged.projection_error, rel=1e-6)


@pytest.mark.parametrize("method", ["mean", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_how_a_task_is_factored_does_not_matter(method: str, seed: int) -> None:
    adapters = tasks(3, seed)
    merged = merge_tasks(adapters, LAYOUT, method)
    other = merge_tasks([adapters[0], with_other_factors(adapters[1], seed), adapters[2]], LAYOUT, method)
    assert distance(other.adapter, merged.adapter) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_task_of_weight_two_counts_like_two_and_one_of_weight_zero_not_at_all(method: str) -> None:
    a, b, c = tasks(3)
    weighted = merge_tasks([a, b, c], LAYOUT, method, weights=[20, 10, 0])
    repeated = merge_tasks([a, a, b], LAYOUT, method)
    assert distance(weighted.adapter, repeated.adapter) < 1e-5


@pytest.mark.parametrize("method", ["mean", "ties"])
def test_larger_tasks_make_a_larger_merge_of_the_same_direction(method: str) -> None:
    adapters = tasks(3)
    scaled = [{**a, **{n: 5 * a[n] for n in ("q.B1", "v.lora_B", "k.B")}} for a in adapters]
    merged = merge_tasks(adapters, LAYOUT, method).adapter
    for larger in (
        merge_tasks(scaled, LAYOUT, method).adapter,
        merge_tasks(adapters, LAYOUT, method, scaling=5.0).adapter,
    ):
        for found, expected in zip(deltas(larger), deltas(merged), strict=True):
            assert relative_distance(found, 5 * expected) < 1e-5


def test_dare_draws_by_its_seed_and_the_same_each_time() -> None:
    adapters = tasks(3)
    first, again, other = (merge_tasks(adapters, LAYOUT, "dare", seed=seed).adapter for seed in (1, 1, 2))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert distance(first, other) > 0.1


def test_dare_is_the_mean_in_the_mean_over_seeds() -> None:
    layout = layout_of(LORA)
    adapters = tasks(2, layout=layout)
    target = of_rank(layout, 10)  # nothing is projected away
    truth = mean_delta(adapters, [1, 1], LORA)
    draws = [merge_tasks(adapters, layout, "dare", seed=seed, target=target).adapter for seed in range(400)]
    found = np.array([delta(draw, target.modules[0]) for draw in draws])
    # At density ½ a task's squared error is its squared norm, and the mean of two has a quarter of the sum.
    variance = sum(np.linalg.norm(delta(a, LORA)) ** 2 for a in adapters) / 4
    squared = np.mean(np.sum((found - truth) ** 2, axis=(1, 2)))
    assert squared == pytest.approx(variance, rel=0.1)
    assert np.linalg.norm(found.mean(axis=0) - truth) ** 2 < 1.5 * variance / len(draws)


@pytest.mark.parametrize("method", METHODS)
def test_tasks_that_have_not_been_trained_stay_untrained_and_trainable(method: str) -> None:
    adapters = tasks(3)
    for adapter in adapters:
        for name in ("q.B1", "v.lora_B", "k.B"):
            adapter[name][:] = 0
    merged = merge_tasks(adapters, LAYOUT, method)
    assert all(not d.any() for d in deltas(merged.adapter))
    assert merged.projection_error == 0
    assert merged.adapter["q.B2"].any()
    assert merged.adapter["q.A"].any()


def test_tasks_that_cancel_leave_nothing_not_even_rounding_errors() -> None:
    layout = layout_of(KRON, LORA)
    (adapter,) = tasks(1, layout=layout)
    # With terms in another order, the sums cancel but for the last bit of a float64.
    order = [2, 0, 1]
    opposite = {
        "q.A": adapter["q.A"],
        "q.B1": -adapter["q.B1"][:, order],
        "q.B2": adapter["q.B2"][order],
        "v.lora_A": adapter["v.lora_A"][order],
        "v.lora_B": -adapter["v.lora_B"][:, order],
    }
    merged = merge_tasks([adapter, opposite], layout, "mean")
    assert all(not d.any() for d in deltas(merged.adapter, layout))
    assert merged.projection_error == 0


@pytest.mark.parametrize("rank", [1, 2, 3, 6, 20])
def test_b2_keeps_the_size_of_its_rows_at_any_rank(rank: int) -> None:
    layout = layout_of(KRON)
    adapters = tasks(2, layout=layout)
    merged = merge_tasks(adapters, layout, "mean", target=of_rank(layout, rank)).adapter
    row = np.mean([np.linalg.norm(adapter["q.B2"]) for adapter in adapters]) / np.sqrt(3)
    norms = np.linalg.norm(merged["q.B2"], axis=1)
    if rank <= 6:  # two tasks have that many directions
        np.testing.assert_allclose(norms, row, rtol=1e-5)
    assert np.linalg.norm(merged["q.A"]) == pytest.approx(
        np.mean([np.linalg.norm(adapter["q.A"]) for adapter in adapters]), rel=1e-5
    )
    assert np.isfinite(norms).all()


def test_ties_leaves_more_of_a_small_task_than_the_mean_where_others_are_zero() -> None:
    # Tasks that do not meet in any direction: the mean divides each by three, TIES by nothing.
    module = lora_module(d_out=9, rank=3, d_in=9, scale=2.0)
    layout = layout_of(module)
    adapters = []
    for k in range(3):
        adapter = {"v.lora_A": np.zeros((3, 9), np.float32), "v.lora_B": np.zeros((9, 3), np.float32)}
        adapter["v.lora_B"][3 * k, 0] = adapter["v.lora_A"][0, 3 * k] = 1 + k
        adapters.append(adapter)
    total = sum(delta(adapter, module) for adapter in adapters)
    for method, expected in (("mean", total / 3), ("ties", total)):
        merged = merge_tasks(adapters, layout, method, density=1.0).adapter
        np.testing.assert_allclose(delta(merged, module), expected, atol=1e-5)


def test_inputs_stay_as_they_were() -> None:
    adapters = tasks(3)
    copies = [{name: values.copy() for name, values in adapter.items()} for adapter in adapters]
    for method in METHODS:
        merge_tasks(adapters, LAYOUT, method)
    for adapter, copy in zip(adapters, copies, strict=True):
        assert all(np.array_equal(adapter[name], copy[name]) for name in copy)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 8, 20])
def test_another_rank_changes_shapes_but_not_layers_nor_scales(rank: int) -> None:
    layout = layout_of(KRON, LORA, dense=LAYOUT.dense)
    target = of_rank(layout, rank)
    shapes = {tensor.name: tensor.shape for tensor in target.tensors}
    assert shapes == {
        "q.A": (4, 2),
        "q.B1": (12, rank),
        "q.B2": (rank, 9),
        "v.lora_A": (rank, 10),
        "v.lora_B": (14, rank),
        "head.weight": (3, 4),
    }
    assert [module.scale for module in target.modules] == [0.7, 3.0]
    assert of_rank(target, 3) == layout


# ------------------------------------------------------------------ how much of a task is left


def test_the_cosine_of_two_adapters_is_that_of_their_dense_deltas() -> None:
    layout = layout_of(KRON, LORA)
    small = of_rank(layout, 2)
    a, b = tasks(1, layout=layout)[0], tasks(1, seed=1, layout=small)[0]
    x, y = (np.concatenate([d.ravel() for d in deltas(s, each)]) for s, each in ((a, layout), (b, small)))
    exact = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert delta_cosine(a, layout, b, small) == pytest.approx(exact, rel=1e-9)
    assert delta_cosine(a, layout, a, layout) == pytest.approx(1)
    krona = layout_of(KRONA)
    c, d = tasks(2, layout=krona)
    expected = (
        np.sum(krona_delta(c) * krona_delta(d))
        / np.linalg.norm(krona_delta(c))
        / np.linalg.norm(krona_delta(d))
    )
    assert delta_cosine(c, krona, d, krona) == pytest.approx(expected)


def test_the_cosine_with_an_untrained_adapter_is_zero() -> None:
    layout = layout_of(KRON)
    a, b = tasks(2, layout=layout)
    b["q.B1"][:] = 0
    assert delta_cosine(a, layout, b, layout) == 0


# ------------------------------------------------------------------ what is refused

MOKA = ModuleLayout("m", "moka", 1.0, (4, 4), (TensorLayout("A", (2, 2)),))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "slerp"}, "'slerp' does not exist: use one of mean, ties"),
        ({"density": 0.0}, "density is 0.0"),
        ({"density": 1.1}, "density is 1.1"),
        ({"density": float("nan")}, "density is nan"),
        ({"scaling": 0.0}, "scaling is 0.0"),
        ({"scaling": float("inf")}, "scaling is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"weights": [1.0]}, "1 weights for 2 adapters"),
        ({"weights": [1.0, -1.0]}, "weight is -1.0"),
        ({"weights": [0.0, 0.0]}, "all weights are zero"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        merge_tasks(tasks(2), LAYOUT, **options)


def test_adapters_that_cannot_be_merged_are_refused() -> None:
    good, bad = tasks(2)
    with pytest.raises(AdapterError, match="no adapter"):
        merge_tasks([], LAYOUT)
    with pytest.raises(AdapterError, match=r"'q\.A'.* missing"):
        merge_tasks([good, {name: x for name, x in bad.items() if name != "q.A"}], LAYOUT)
    bad["v.lora_A"][0, 0] = np.nan
    with pytest.raises(AdapterError, match="NaN"):
        merge_tasks([good, bad], LAYOUT)
    layout = layout_of(MOKA)
    with pytest.raises(AdapterError, match=r"'m' has kind 'moka'.*kron_lora, lora, krona"):
        merge_tasks(tasks(2, layout=layout), layout)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (layout_of(KRON, LORA), "'k' is not the same"),
        (layout_of(replace(KRON, path="other"), LORA, KRONA), "'q' is not the same"),
        (layout_of(kron_module(left=(2, 2), d_B2=24, rank=3, d_B1=9), LORA, KRONA), "'q' is not the same"),
        (layout_of(KRON, LORA, KRONA), "trained in full"),
        (replace(LAYOUT, base="cd" * 32), "other bases"),
    ],
)
def test_a_target_that_is_no_other_size_of_the_adapters_is_refused(target: AdapterLayout, said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        merge_tasks(tasks(2), LAYOUT, target=target)


def test_a_rank_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank is 0"):
        of_rank(LAYOUT, 0)
    with pytest.raises(AdapterError, match=r"'k' has kind 'krona': only kron_lora and lora"):
        of_rank(LAYOUT, 2)
