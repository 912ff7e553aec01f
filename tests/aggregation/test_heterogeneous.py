import numpy as np
import pytest
from aggregation_cases import (
    combined,
    delta,
    dense_alternation,
    grid_of,
    kron_module,
    krona_module,
    layout_of,
    leading_left_vector,
    lora_module,
    merged_mean,
    neighbours,
    random_adapter,
    rearranged,
    relative_distance,
    truncated_svd,
)

from fedkron.aggregation import Aggregate, Heterogeneous, Size, resized, sized
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, State, TensorLayout

KRON = kron_module(left=(4, 2), d_B2=6, rank=4, d_B1=9)  # d_out = 24
LORA = lora_module(d_out=13, rank=4, d_in=11)
HEAD = TensorLayout("head.weight", (3, 4))
BOTH = layout_of(KRON, LORA, dense=(HEAD,))
SHAPES = {tensor.name: tensor.shape for tensor in BOTH.tensors}
SIZES = [Size(4), Size(2), Size(4, 8), Size(1, 2), Size(3, 6)]

Sent = list[tuple[AdapterLayout, State]]


def sent_in(sizes: list[Size], held: State, layout: AdapterLayout) -> Sent:
    layouts = [sized(layout, size) for size in sizes]
    return [(each, resized(held, layout, each)) for each in layouts]


def moved(state: State, rng: np.random.Generator, by: float = 0.3) -> State:
    return {n: x + np.float32(by) * rng.standard_normal(x.shape).astype(np.float32) for n, x in state.items()}


def wanted(
    held: State, sent: Sent, returned: list[State], weights: list[float], layout: AdapterLayout
) -> list[np.ndarray]:
    """G + Σ w·(X - T) / Σ w of each module, dense; client k has the k-th size."""
    sums = [delta(held, module) for module in layout.modules]
    for (size, received), adapter, weight in zip(sent, returned, weights, strict=True):
        for index, module in enumerate(size.modules):
            update = delta(adapter, module) - delta(received, module)
            sums[index] = sums[index] + weight / sum(weights) * update
    return sums


def test_updates_of_all_sizes_are_averaged_and_projected_as_the_dense_computation_does() -> None:
    rng = np.random.default_rng(0)
    held = random_adapter(BOTH, rng)
    sent = sent_in(SIZES, held, BOTH)
    returned, weights = [moved(state, rng) for _, state in sent], [1.0, 2.0, 3.0, 4.0, 5.0]
    result = combined(Heterogeneous(BOTH, held, sent), returned, weights)
    kron, lora = wanted(held, sent, returned, weights, BOTH)

    assert relative_distance(delta(result.adapter, LORA), truncated_svd(lora, 4)) < 1e-5
    tensor = rearranged(kron, grid_of(KRON))
    truth = dense_alternation(tensor, 4, leading_left_vector(tensor))
    found = rearranged(delta(result.adapter, KRON), grid_of(KRON))
    assert np.linalg.norm(tensor - found) == pytest.approx(np.linalg.norm(tensor - truth), rel=1e-6)

    lost = sum(
        np.linalg.norm(mean - delta(result.adapter, module)) ** 2
        for mean, module in zip([kron, lora], BOTH.modules, strict=True)
    )
    expected = np.sqrt(lost / (np.linalg.norm(kron) ** 2 + np.linalg.norm(lora) ** 2))
    assert result.projection_error == pytest.approx(expected, rel=1e-5)
    heads = [adapter["head.weight"] for adapter in returned]
    np.testing.assert_allclose(
        result.adapter["head.weight"], np.average(heads, axis=0, weights=weights), rtol=1e-5, atol=1e-6
    )
    assert list(result.adapter) == [tensor.name for tensor in BOTH.tensors]
    assert all(tensor.dtype == np.float32 for tensor in result.adapter.values())


@pytest.mark.parametrize("also_sent", [[], [Size(2), Size(4, 8)]])
def test_clients_of_one_size_make_the_merged_mean(also_sent: list[Size]) -> None:
    adapters = neighbours(BOTH, 4, np.random.default_rng(1))
    held = neighbours(BOTH, 1, np.random.default_rng(1))[0]
    ours = combined(Heterogeneous(BOTH, held, sent_in(also_sent, held, BOTH)), adapters, [1, 2, 3, 4])
    merged = merged_mean(adapters, [1, 2, 3, 4], BOTH)
    for name, tensor in merged.adapter.items():
        np.testing.assert_allclose(ours.adapter[name], tensor, rtol=1e-4, atol=1e-5)
    assert ours.projection_error == pytest.approx(merged.projection_error, rel=1e-6)


def test_one_client_of_the_global_size_is_the_identity() -> None:
    rng = np.random.default_rng(2)
    held, adapter = random_adapter(BOTH, rng), random_adapter(BOTH, rng)
    result = combined(Heterogeneous(BOTH, held, sent_in([Size(2)], held, BOTH)), [adapter], [7])
    for module in BOTH.modules:
        assert relative_distance(delta(result.adapter, module), delta(adapter, module)) < 1e-6
    assert result.projection_error == pytest.approx(0, abs=1e-6)


def test_the_order_of_clients_does_not_matter_and_weights_one_and_three_are_four_clients() -> None:
    rng = np.random.default_rng(3)
    held = random_adapter(BOTH, rng)
    sent = sent_in([Size(4), Size(2, 8)], held, BOTH)
    a, b = (moved(state, rng) for _, state in sent)
    weighted = combined(Heterogeneous(BOTH, held, sent), [a, b], [1, 3])
    repeated = combined(Heterogeneous(BOTH, held, sent[::-1]), [b, a, b, b], [1] * 4)
    for module in BOTH.modules:
        assert relative_distance(delta(repeated.adapter, module), delta(weighted.adapter, module)) < 1e-5
    assert repeated.projection_error == pytest.approx(weighted.projection_error, rel=1e-5)


def test_a_lossy_downlink_is_reckoned_with_what_clients_did_receive_is_what_they_start_from() -> None:
    rng = np.random.default_rng(4)
    held = random_adapter(BOTH, rng)
    received = moved(held, rng, 0.05)
    result = combined(Heterogeneous(BOTH, held, [(BOTH, received)]), [received], [1])
    for module in BOTH.modules:
        assert relative_distance(delta(result.adapter, module), delta(held, module)) < 1e-6


def test_ranks_do_not_collapse_when_clients_return_what_they_got_as_they_do_in_a_mean_of_adapters() -> None:
    sizes, weights = [Size(4), Size(2), Size(1)], [1.0, 2.0, 2.0]
    start = random_adapter(layout_of(LORA), np.random.default_rng(5))
    layout, held = layout_of(LORA), start
    naive = delta(start, LORA)
    for _ in range(30):
        sent = sent_in(sizes, held, layout)
        held = combined(Heterogeneous(layout, held, sent), [state for _, state in sent], weights).adapter
        padded = [truncated_svd(naive, size.rank) for size in sizes]
        naive = truncated_svd(np.average(padded, axis=0, weights=weights), 4)
    before, after, collapsed = (
        np.linalg.svd(matrix, compute_uv=False)[:4]
        for matrix in (delta(start, LORA), delta(held, LORA), naive)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert relative_distance(delta(held, LORA), delta(start, LORA)) < 1e-5
    assert collapsed[0] == pytest.approx(before[0])
    assert (collapsed[1:] < 1e-5 * before[1:]).all()


def test_kron_lora_of_several_ranks_and_grids_does_not_collapse_either() -> None:
    layout = layout_of(KRON)
    start = held = random_adapter(layout, np.random.default_rng(6))
    for _ in range(30):
        sent = sent_in([Size(2, 8), Size(1), Size(4, 2)], held, layout)
        held = combined(Heterogeneous(layout, held, sent), [state for _, state in sent], [1, 2, 3]).adapter
    assert relative_distance(delta(held, KRON), delta(start, KRON)) < 1e-5


def trained(state: State, layout: AdapterLayout, target: np.ndarray) -> State:
    """The only module's factors after one step of alternating least squares on ‖ΔW - target‖."""
    (module,) = layout.modules
    lora_B = target @ np.linalg.pinv(module.scale * state["v.lora_A"].astype(np.float64))
    lora_A = np.linalg.pinv(module.scale * lora_B) @ target
    return {"v.lora_A": lora_A.astype(np.float32), "v.lora_B": lora_B.astype(np.float32)}


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 3, 6]])
def test_a_federation_of_mixed_ranks_learns_a_target_of_the_largest_rank(weights: list[float]) -> None:
    rng = np.random.default_rng(7)
    layout = layout_of(LORA)
    U, V = np.linalg.qr(rng.standard_normal((13, 4)))[0], np.linalg.qr(rng.standard_normal((11, 4)))[0]
    target = (U * [8.0, 6.0, 4.0, 2.0]) @ V.T
    held = random_adapter(layout, rng)
    held["v.lora_B"][:] = 0
    for _ in range(150):
        sent = sent_in([Size(4), Size(2), Size(1)], held, layout)
        returned = [trained(state, size, target) for size, state in sent]
        held = combined(Heterogeneous(layout, held, sent), returned, weights).adapter
    assert relative_distance(delta(held, LORA), target) < 1e-4
    # A mean of adapters would stay away from it for ever, though each client held its best approximation.
    padded = np.average([truncated_svd(target, rank) for rank in (4, 2, 1)], axis=0, weights=weights)
    assert relative_distance(padded, target) > 0.2


def test_when_no_client_of_the_global_size_takes_part_factors_are_those_nearest_to_the_ones_held() -> None:
    rng = np.random.default_rng(8)
    held = random_adapter(BOTH, rng)
    sent = sent_in([Size(2)], held, BOTH)
    result = combined(Heterogeneous(BOTH, held, sent), [moved(sent[0][1], rng, 0.01)], [1]).adapter
    assert np.sum(result["q.A"] * held["q.A"]) > 0
    for name in ("q.A", "q.B2", "v.lora_A"):
        assert np.linalg.norm(result[name]) == pytest.approx(np.linalg.norm(held[name]), rel=1e-5)
    for name in ("q.B2", "v.lora_A"):  # no rotation is nearer: the condition of orthogonal Procrustes
        product = held[name].astype(np.float64) @ result[name].T
        np.testing.assert_allclose(product, product.T, atol=1e-4)
        assert np.linalg.eigvalsh(product).min() > 0


def test_the_first_round_starts_from_a_product_of_zero() -> None:
    rng = np.random.default_rng(9)
    held = random_adapter(BOTH, rng)
    held["q.B1"][:] = 0
    held["v.lora_B"][:] = 0
    sent = sent_in(SIZES, held, BOTH)
    idle = combined(Heterogeneous(BOTH, held, sent), [state for _, state in sent], [1] * 5).adapter
    for name in held:
        np.testing.assert_allclose(idle[name], held[name], rtol=1e-6, atol=1e-7)
    returned = [moved(state, rng, 0.1) for _, state in sent]
    result = combined(Heterogeneous(BOTH, held, sent), returned, [1] * 5)
    lora = wanted(held, sent, returned, [1] * 5, BOTH)[1]
    assert relative_distance(delta(result.adapter, LORA), truncated_svd(lora, 4)) < 1e-5


def test_what_is_kept_of_200_clients_is_not_more_than_of_40_and_the_reported_error_is_an_upper_bound() -> (
    None
):
    layout = layout_of(kron_module(left=(4, 2), d_B2=32, rank=4, d_B1=30))
    rng = np.random.default_rng(10)
    held = random_adapter(layout, rng)
    sent = sent_in([Size(4), Size(2), Size(2, 8)], held, layout)
    merging, sizes, returned = Heterogeneous(layout, held, sent, max_rank=12), [], []
    for number in range(200):
        returned.append(moved(sent[number % 3][1], rng))
        merging.add(returned[-1], 1.0)
        sizes.append(merging.size)
    assert max(sizes[40:]) <= max(sizes[:40])
    result = merging.finish()
    received = [sent[number % 3] for number in range(200)]
    (mean,) = wanted(held, received, returned, [1.0] * 200, layout)
    actual = relative_distance(delta(result.adapter, layout.modules[0]), mean)
    assert result.projection_error is not None
    assert actual < result.projection_error


def refusing(
    error: type[Exception], message: str, merging: Heterogeneous, adapter: State, weight: float
) -> None:
    with pytest.raises(error, match=message):
        merging.add(adapter, weight)


def test_a_refused_adapter_or_weight_leaves_everything_as_it_was() -> None:
    rng = np.random.default_rng(11)
    held = random_adapter(BOTH, rng)
    sent = sent_in([Size(2), Size(1)], held, BOTH)
    a, b = moved(held, rng), moved(sent[0][1], rng)
    poisoned = {**b, "q.B1": np.full_like(b["q.B1"], np.inf)}
    merging = Heterogeneous(BOTH, held, sent)
    refusing(AdapterError, "NaN or infinity", merging, poisoned, 1)
    merging.add(a, 1)
    refusing(AdapterError, "NaN or infinity", merging, poisoned, 1)
    refusing(AdapterError, r"none of the 3 sizes.*'q' has A \[4, 2\], B1 \[6, 3\]", merging,
             random_adapter(sized(BOTH, Size(3)), rng), 1)  # fmt: skip
    refusing(AdapterError, "none of the 3 sizes", merging, {n: x for n, x in b.items() if n != "q.A"}, 1)
    refusing(AdapterError, "'foreign' is not part", merging, {**b, "foreign": b["q.A"]}, 1)
    for weight in (-1.0, float("nan"), float("inf")):
        refusing(ConfigError, "weight is", merging, b, weight)
    merging.add(b, 2)
    result, expected = merging.finish(), combined(Heterogeneous(BOTH, held, sent), [a, b], [1, 2])
    assert all(np.array_equal(result.adapter[name], expected.adapter[name]) for name in expected.adapter)


def finished(layout: AdapterLayout, adapters: list[State], weights: list[float]) -> Aggregate:
    return combined(
        Heterogeneous(layout, random_adapter(layout, np.random.default_rng(12))), adapters, weights
    )


def test_without_clients_or_with_weights_of_zero_only_there_is_no_mean() -> None:
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        finished(BOTH, [], [])
    merging = Heterogeneous(BOTH, random_adapter(BOTH, np.random.default_rng(15)))
    poisoned = {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()}
    refusing(AdapterError, "NaN or infinity", merging, poisoned, 1)
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        merging.finish()
    with pytest.raises(ConfigError, match="all weights are zero"):
        finished(BOTH, [random_adapter(BOTH, np.random.default_rng(13))], [0])


def test_kinds_without_sizes_and_states_that_do_not_fit_are_refused_at_once() -> None:
    rng = np.random.default_rng(14)
    krona = layout_of(krona_module())
    with pytest.raises(AdapterError, match="module 'k' has kind 'krona': only kron_lora and lora"):
        Heterogeneous(krona, random_adapter(krona, rng))
    held = random_adapter(BOTH, rng)
    small = sized(BOTH, Size(2))
    with pytest.raises(AdapterError, match=r"'q\.B1' has shape"):
        Heterogeneous(BOTH, held, [(small, held)])
    with pytest.raises(AdapterError, match=r"'q\.B1' has shape"):
        Heterogeneous(BOTH, random_adapter(small, rng), [])
