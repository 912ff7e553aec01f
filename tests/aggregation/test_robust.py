"""Robust rules against dense float64, against Flower's own, and against garbage."""

import itertools
import math

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
    random_adapter,
    rearranged,
    relative_distance,
)
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum, MultiKrum
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import ROBUST_RULES, Aggregate, Robust, RobustRule
from fedkron.aggregation.robust_rules import BY_COORDINATE, BY_DISTANCE, geometric_median, squared_distances
from fedkron.aggregation.robust_spaces import ProductSpace, Uploads
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout, flatten, unflatten

patient = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
RULES = ROBUST_RULES[1:]
SPACES = ("factorwise", "merged")
KRON = kron_module(left=(4, 2), d_B2=3, rank=2, d_B1=5, scale=4.0)
LAYOUT = layout_of(KRON, lora_module(scale=0.5), dense=(TensorLayout("head.weight", (3, 7)),))
WILD = layout_of(KRON, krona_module(), lora_module(), dense=(TensorLayout("head.bias", (3,)),))


def robust(  # noqa: PLR0917
    rule: str, space: str, adapters: list[State], held: State, layout: AdapterLayout, attackers: float = 0.2
) -> Aggregate:
    weights = [1.0 + number for number in range(len(adapters))]
    return combined(Robust(space, layout, RobustRule(rule, attackers), held), adapters, weights)


def round_of(layout: AdapterLayout, count: int, seed: int) -> tuple[list[State], State]:
    """Clients, and the adapter that they started from."""
    held = random_adapter(layout, np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    steps = [random_adapter(layout, rng) for _ in range(count)]
    return [{name: held[name] + np.float32(0.3) * step[name] for name in held} for step in steps], held


def dense(adapter: State, layout: AdapterLayout) -> np.ndarray:
    """All ΔW and dense tensors in one vector, float64."""
    parts = [delta(adapter, module) for module in layout.modules]
    parts += [adapter[tensor.name].astype(np.float64) for tensor in layout.dense]
    return np.concatenate([part.ravel() for part in parts])


def vector(adapter: State, layout: AdapterLayout) -> np.ndarray:
    return flatten(adapter, layout).astype(np.float64)


# ---------------------------------------------------------------- the rules by hand, on dense vectors


def by_hand(rule: str, points: np.ndarray, held: np.ndarray, attackers: int) -> np.ndarray:
    """Straight from the papers, float64, on the points themselves."""
    count = len(points)
    if rule == "median":
        return np.median(points, axis=0)
    if rule == "trimmed-mean":
        return np.sort(points, axis=0)[attackers : count - attackers].mean(axis=0)
    if rule == "clip":
        norms = [np.linalg.norm(point - held) for point in points]
        return held + np.mean(
            [min(1, np.median(norms) / norm) * (p - held) for p, norm in zip(points, norms, strict=True)],
            axis=0,
        )
    if rule == "geometric-median":
        centre = points.mean(axis=0)
        for _ in range(5000):
            pull = 1 / np.maximum(np.linalg.norm(points - centre, axis=1), 1e-12)
            centre = pull @ points / pull.sum()
        return centre
    scores = []
    for point in points:
        others = sorted(float(np.sum((point - other) ** 2)) for other in points)[1:]
        scores.append(sum(others[: count - attackers - 2]))
    chosen = np.argsort(scores)[: 1 if rule == "krum" else count - attackers - 2]
    return points[chosen].mean(axis=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("count", "attackers"), [(7, 0.2), (10, 0.3), (4, 0.1)])
def test_on_factors_a_rule_is_the_papers_on_the_vector_of_all_tensors(
    rule: str, count: int, attackers: float
) -> None:
    adapters, held = round_of(WILD, count, count)
    found = robust(rule, "factorwise", adapters, held, WILD, attackers)
    points = np.array([vector(adapter, WILD) for adapter in adapters])
    expected = by_hand(rule, points, vector(held, WILD), math.floor(count * attackers))
    assert relative_distance(vector(found.adapter, WILD), expected) < 1e-6
    assert found.projection_error is None
    assert all(found.adapter[t.name].dtype == np.float32 for t in WILD.tensors)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("count", "attackers"), [(7, 0.2), (10, 0.3)])
def test_on_products_a_rule_is_the_papers_on_all_dense_delta_w_then_projected(
    rule: str, count: int, attackers: float
) -> None:
    adapters, held = round_of(LAYOUT, count, 10 * count)
    found = robust(rule, "merged", adapters, held, LAYOUT, attackers)
    points = np.array([dense(adapter, LAYOUT) for adapter in adapters])
    expected = by_hand(rule, points, dense(held, LAYOUT), math.floor(count * attackers))
    start, lost = 0, 0.0
    for module in LAYOUT.modules:
        d_out, d_in = module.weight_shape
        truth = expected[start : start + d_out * d_in].reshape(d_out, d_in)
        start += d_out * d_in
        tensor = rearranged(truth, grid_of(module))
        nearest = dense_alternation(tensor, 2, leading_left_vector(tensor))
        actual = rearranged(delta(found.adapter, module), grid_of(module))
        assert relative_distance(actual, nearest) < 1e-5
        lost += float(np.sum((tensor - nearest) ** 2))
    np.testing.assert_allclose(found.adapter["head.weight"].ravel(), expected[start:], rtol=1e-5, atol=1e-6)
    assert found.projection_error == pytest.approx(
        math.sqrt(lost) / np.linalg.norm(expected[:start]), rel=1e-5, abs=1e-6
    )


@patient
@given(seeds, st.integers(1, 5))
def test_inner_products_of_updates_are_those_of_the_dense_ones(seed: int, count: int) -> None:
    adapters, held = round_of(WILD, count, seed)
    uploads = Uploads(WILD, flatten(held, WILD), [flatten(adapter, WILD) for adapter in adapters])
    updates = np.array([dense(adapter, WILD) - dense(held, WILD) for adapter in adapters])
    gram = ProductSpace(WILD).gram(uploads)
    np.testing.assert_allclose(gram, updates @ updates.T, rtol=1e-9, atol=1e-9 * np.abs(gram).max())


def test_large_layers_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters, held = round_of(LAYOUT, 5, 3)
    for rule, space in itertools.product(RULES, SPACES):
        whole = robust(rule, space, adapters, held, LAYOUT).adapter
        with monkeypatch.context() as small:
            small.setattr("fedkron.aggregation.robust_spaces._AT_A_TIME", 37)
            pieces = robust(rule, space, adapters, held, LAYOUT).adapter
        for name, values in whole.items():
            np.testing.assert_allclose(pieces[name], values, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- Flower's own


def reply_of(adapter: State, number: int) -> Message:
    arrays = ArrayRecord({name: Array(np.array(values)) for name, values in adapter.items()})
    metrics = MetricRecord({"num-examples": 1.0})
    metadata = Metadata(1, str(number), 1000 + number, 1, "", "1", 0.0, 60.0, "train")
    return make_message(metadata, content=RecordDict({"arrays": arrays, "metrics": metrics}))


@pytest.mark.parametrize(
    ("rule", "strategy"),
    [
        ("median", FedMedian()),
        ("trimmed-mean", FedTrimmedAvg(beta=0.25)),
        ("krum", Krum(num_malicious_nodes=2)),
        ("multi-krum", MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5)),
    ],
)
def test_on_factors_a_rule_that_flower_has_gives_what_flower_gives(rule: str, strategy: FedMedian) -> None:
    adapters, held = round_of(WILD, 9, 5)
    found = robust(rule, "factorwise", adapters, held, WILD, 0.25).adapter
    arrays, _ = strategy.aggregate_train(1, [reply_of(adapter, i) for i, adapter in enumerate(adapters)])
    assert arrays is not None
    for name, values in found.items():
        np.testing.assert_allclose(values, arrays[name].numpy(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- garbage

garbage = st.floats(width=32, allow_nan=False, allow_infinity=False)


def poisoned(adapters: list[State], count: int, layout: AdapterLayout, values: list[float]) -> list[State]:
    """The first so many adapters replaced by garbage."""
    bad = [
        unflatten(np.resize(np.roll(np.array(values, np.float32), i), layout.size), layout)
        for i in range(count)
    ]
    return bad + adapters[count:]


@patient
@given(seeds, st.lists(garbage, min_size=1, max_size=30), st.sampled_from(["median", "trimmed-mean"]))
def test_coordinates_stay_within_those_of_the_honest(seed: int, values: list[float], rule: str) -> None:
    adapters, held = round_of(WILD, 9, seed)
    found = robust(rule, "factorwise", poisoned(adapters, 4, WILD, values), held, WILD, 0.45)
    honest = np.array([vector(adapter, WILD) for adapter in adapters[4:]])
    result = vector(found.adapter, WILD)
    assert np.all(result >= honest.min(axis=0) - 1e-6)
    assert np.all(result <= honest.max(axis=0) + 1e-6)


@patient
@given(seeds, st.lists(garbage, min_size=1, max_size=30), st.sampled_from(["median", "trimmed-mean"]))
def test_coordinates_of_products_stay_within_those_of_the_honest(
    seed: int, values: list[float], rule: str
) -> None:
    layout = layout_of(KRON)
    adapters, held = round_of(layout, 9, seed)
    bad = poisoned(adapters, 4, layout, values)
    found = robust(rule, "merged", bad, held, layout, 0.45).adapter
    points = np.array([dense(adapter, layout) for adapter in bad])
    target = by_hand(rule, points, dense(held, layout), 4)
    honest = np.array([dense(adapter, layout) for adapter in adapters[4:]])
    assert np.all(target >= honest.min(axis=0) - 1e-6)
    assert np.all(target <= honest.max(axis=0) + 1e-6)
    tensor = rearranged(target.reshape(KRON.weight_shape), grid_of(KRON))
    nearest = dense_alternation(tensor, 2, leading_left_vector(tensor))
    # Two local optima may be equally near.
    lost = np.linalg.norm(rearranged(delta(found, KRON), grid_of(KRON)) - tensor)
    assert lost == pytest.approx(np.linalg.norm(nearest - tensor), rel=1e-4, abs=1e-5)


def reach(points: np.ndarray) -> float:
    """Largest distance from the mean."""
    return float(np.linalg.norm(points - points.mean(axis=0), axis=1).max())


@patient
@given(seeds, st.lists(garbage, min_size=1, max_size=30), st.integers(0, 4))
def test_the_geometric_median_stays_as_near_to_the_honest_as_theory_says(
    seed: int, values: list[float], attackers: int
) -> None:
    adapters, held = round_of(WILD, 9, seed)
    found = robust("geometric-median", "factorwise", poisoned(adapters, attackers, WILD, values), held, WILD)
    honest = np.array([vector(adapter, WILD) for adapter in adapters[attackers:]])
    share = attackers / 9
    # Minsker 2015, lemma 2.1: the factor 2(1 − α)/(1 − 2α) around any point.
    bound = 2 * (1 - share) / (1 - 2 * share) * reach(honest)
    assert np.linalg.norm(vector(found.adapter, WILD) - honest.mean(axis=0)) <= 1.01 * bound


@patient
@given(seeds, st.lists(garbage, min_size=1, max_size=30), st.sampled_from(["krum", "multi-krum"]))
def test_whom_krum_chooses_is_near_to_an_honest_one(seed: int, values: list[float], rule: str) -> None:
    adapters, held = round_of(WILD, 9, seed)
    found = robust(rule, "factorwise", poisoned(adapters, 3, WILD, values), held, WILD, 0.34)
    honest = np.array([vector(adapter, WILD) for adapter in adapters[3:]])
    diameter = max(float(np.linalg.norm(a - b)) for a in honest for b in honest)
    # Of the n − f − 2 neighbours of the chosen one an honest one is nearer than this, whoever was chosen.
    bound = math.sqrt(9 - 3 - 2) * diameter
    nearest = np.linalg.norm(honest - vector(found.adapter, WILD), axis=1).min()
    assert nearest <= (1 if rule == "krum" else 2) * bound + 1e-4


@patient
@given(seeds, st.lists(garbage, min_size=1, max_size=30))
def test_clipping_moves_no_further_than_an_honest_client(seed: int, values: list[float]) -> None:
    adapters, held = round_of(WILD, 9, seed)
    found = robust("clip", "factorwise", poisoned(adapters, 4, WILD, values), held, WILD)
    moved = [np.linalg.norm(vector(a, WILD) - vector(held, WILD)) for a in adapters[4:]]
    assert np.linalg.norm(vector(found.adapter, WILD) - vector(held, WILD)) <= max(moved) * (1 + 1e-5)


@pytest.mark.parametrize("size", [1e6, 1e15, 3e38])
@pytest.mark.parametrize("rule", ["geometric-median", "krum", "multi-krum", "median", "trimmed-mean"])
def test_huge_factors_leave_the_merged_adapter_near_to_the_honest(rule: str, size: float) -> None:
    adapters, held = round_of(LAYOUT, 10, 7)
    huge = [{name: np.sign(v) * np.float32(size) for name, v in adapter.items()} for adapter in adapters[:3]]
    found = robust(rule, "merged", huge + adapters[3:], held, LAYOUT, 0.3).adapter
    honest = np.array([dense(adapter, LAYOUT) for adapter in adapters[3:]])
    # The projection may double a distance: it is nearer to what it projects than any honest adapter is.
    bound = 2 * 2 * 0.7 / 0.4 * reach(honest)
    assert np.linalg.norm(dense(found, LAYOUT) - honest.mean(axis=0)) <= bound


@pytest.mark.parametrize("rule", RULES)
def test_factors_of_wild_sizes_with_an_honest_product_do_not_change_the_sizes_of_the_result(
    rule: str,
) -> None:
    layout = layout_of(KRON)
    adapters, held = round_of(layout, 10, 8)
    disguised = [
        adapter
        | {"q.A": adapter["q.A"] * np.float32(2.0**60), "q.B1": adapter["q.B1"] * np.float32(2.0**-60)}
        for adapter in adapters[:3]
    ]
    found = robust(rule, "merged", disguised + adapters[3:], held, layout, 0.3).adapter
    plain = robust(rule, "merged", adapters, held, layout, 0.3).adapter
    assert relative_distance(delta(found, KRON), delta(plain, KRON)) < 1e-5
    for name in ("q.A", "q.B2"):
        norms = [np.linalg.norm(adapter[name]) for adapter in adapters]
        assert min(norms) * 0.999 <= np.linalg.norm(found[name]) <= max(norms) * 1.001


# ---------------------------------------------------------------- who comes when, and what they claim


@patient
@given(seeds, st.sampled_from(RULES), st.sampled_from(SPACES), st.permutations(range(7)))
def test_order_and_claimed_weights_make_no_difference(
    seed: int, rule: str, space: str, order: list[int]
) -> None:
    adapters, held = round_of(LAYOUT, 7, seed)
    first = robust(rule, space, adapters, held, LAYOUT).adapter
    stream = Robust(space, LAYOUT, RobustRule(rule), held)
    for number in order:
        stream.add(adapters[number], 10.0 ** (3 * number))
    second = stream.finish().adapter
    look = vector if space == "factorwise" else dense
    assert relative_distance(look(second, LAYOUT), look(first, LAYOUT)) < 1e-5


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rule", RULES)
def test_clients_that_all_say_the_same_are_believed(rule: str, space: str) -> None:
    adapters, held = round_of(LAYOUT, 1, 4)
    found = robust(rule, space, adapters * 6, held, LAYOUT).adapter
    assert relative_distance(dense(found, LAYOUT), dense(adapters[0], LAYOUT)) < 1e-6
    nothing = robust(rule, space, [held] * 6, held, LAYOUT).adapter
    assert relative_distance(dense(nothing, LAYOUT), dense(held, LAYOUT)) < 1e-6


@pytest.mark.parametrize("rule", [rule for rule in RULES if "krum" not in rule])
def test_one_client_is_believed(rule: str) -> None:
    adapters, held = round_of(LAYOUT, 1, 4)
    for space in SPACES:
        found = robust(rule, space, adapters, held, LAYOUT, 0.4).adapter
        assert relative_distance(dense(found, LAYOUT), dense(adapters[0], LAYOUT)) < 1e-6


def test_an_untrained_adapter_stays_one_that_can_learn() -> None:
    held = random_adapter(LAYOUT, np.random.default_rng(0)) | {"q.B1": np.zeros((3, 2), np.float32)}
    for rule in RULES:
        found = robust(rule, "merged", [held] * 5, held, LAYOUT).adapter
        assert not found["q.B1"].any()
        assert found["q.A"].any()
        assert found["q.B2"].any()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("space", SPACES)
def test_a_refused_adapter_changes_nothing(space: str) -> None:
    adapters, held = round_of(LAYOUT, 5, 2)
    stream = Robust(space, LAYOUT, RobustRule("median"), held)
    for bad, weight, kind, said in (
        (adapters[0] | {"q.A": np.full((4, 2), np.nan, np.float32)}, 1, AdapterError, "NaN or infinity"),
        (adapters[0] | {"q.A": np.zeros((2, 2), np.float32)}, 1, AdapterError, "shape"),
        (adapters[0], -1, ConfigError, "weight is -1"),
        (adapters[0], math.inf, ConfigError, "weight is inf"),
    ):
        with pytest.raises(kind, match=said):
            stream.add(bad, weight)
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        stream.finish()
    for adapter in adapters:
        stream.add(adapter, 1)
    expected = robust("median", space, adapters, held, LAYOUT).adapter
    assert all(np.array_equal(values, expected[name]) for name, values in stream.finish().adapter.items())


@pytest.mark.parametrize("rule", ["krum", "multi-krum"])
def test_krum_refuses_too_few_uploads_and_says_how_many_it_takes(rule: str) -> None:
    adapters, held = round_of(LAYOUT, 10, 2)
    robust(rule, "factorwise", adapters, held, LAYOUT, 0.39)
    with pytest.raises(ConfigError, match="at least 11 uploads to withstand 4 attackers, and there are 10"):
        robust(rule, "factorwise", adapters, held, LAYOUT, 0.4)
    with pytest.raises(ConfigError, match="at least 3 uploads to withstand 0 attackers, and there are 2"):
        robust(rule, "factorwise", adapters[:2], held, LAYOUT, 0.4)


def test_more_garbage_than_a_rule_withstands_is_an_error_where_float32_cannot_hold_it() -> None:
    adapters, held = round_of(LAYOUT, 4, 2)
    held = {name: np.full_like(values, -3e38) for name, values in held.items()}
    huge = {name: np.full_like(values, 3e38) for name, values in held.items()}
    for rule in ("median", "trimmed-mean"):
        with pytest.raises(AdapterError, match="beyond the largest float32"):
            robust(rule, "merged", [huge] * 3 + adapters[:1], held, LAYOUT)


def test_rules_and_spaces_that_do_not_exist_are_refused() -> None:
    held = random_adapter(LAYOUT, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="'mode' does not exist: use one of mean, clip, median"):
        RobustRule("mode")
    for share in (-0.1, 0.5, math.nan):
        with pytest.raises(ConfigError, match="share of attackers"):
            RobustRule("median", share)
    with pytest.raises(ConfigError, match="'krum' is not for aggregation 'stacked'"):
        Robust("stacked", LAYOUT, RobustRule("krum"), held)
    with pytest.raises(ConfigError, match="the mean has aggregators of its own"):
        Robust("merged", LAYOUT, RobustRule("mean"), held)
    odd = AdapterLayout("b", (ModuleLayout("q", "moka", 1.0, (2, 2), (TensorLayout("A", (1,)),)),))
    with pytest.raises(AdapterError, match="'moka'"):
        Robust("merged", odd, RobustRule("krum"), {"q.A": np.zeros(1, np.float32)})


# ---------------------------------------------------------------- the rules alone


def test_every_rule_but_the_mean_is_of_one_family() -> None:
    assert (*BY_COORDINATE, *BY_DISTANCE) == tuple(sorted(RULES, key=[*BY_COORDINATE, *BY_DISTANCE].index))


@pytest.mark.parametrize(
    ("share", "uploads", "tolerated"), [(0.2, 10, 2), (0.2, 9, 1), (0.29, 100, 29), (0, 5, 0)]
)
def test_attackers_are_a_share_of_the_uploads_of_the_round(
    share: float, uploads: int, tolerated: int
) -> None:
    assert RobustRule("krum", share).tolerated(uploads) == tolerated


@patient
@given(seeds, st.integers(3, 12))
def test_the_geometric_median_has_the_least_sum_of_distances(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, 4)) * rng.exponential(size=(count, 1))
    centre = geometric_median(points @ points.T, 0) @ points

    def total(point: np.ndarray) -> float:
        return float(np.linalg.norm(points - point, axis=1).sum())

    others = [centre + size * rng.standard_normal(4) for size in (0.3, 0.03, 0.003) for _ in range(5)]
    assert all(total(centre) <= total(other) * (1 + 1e-5) for other in [*others, *points])
    distances = squared_distances(points @ points.T)
    np.testing.assert_allclose(distances, [[np.sum((a - b) ** 2) for b in points] for a in points], atol=1e-9)
