"""Sketches against exact inner products, and clusters against groups that were planted."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkron.aggregation.clusters import (
    MAX_WIDTH,
    NO_CLUSTER,
    UpdateSketch,
    centroids_of,
    clusters_of,
    nearest_cluster,
)
from fedkron.errors import AdapterError, ConfigError

SIZE = 40_007  # more than one block, and not a multiple of anything


def gaussian(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def spiked(seed: int) -> np.ndarray:
    """Nearly all of it in a few numbers that lie apart by a power of two, as rows of a matrix do."""
    update = 1e-3 * gaussian(seed)
    update[::4096] = 1
    return update


def planted(groups: list[int], noise: float, seed: int = 0) -> np.ndarray:
    """Updates of any length: the direction of their group, plus noise of `noise` times its norm."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((max(groups) + 1, SIZE))
    updates = [directions[group] + noise * rng.standard_normal(SIZE) for group in groups]
    return np.array([rng.uniform(0.1, 10) * update for update in updates], np.float32)


def sketched(updates: np.ndarray, **options: int) -> np.ndarray:
    sketch = UpdateSketch(updates.shape[1], **options)
    return np.array([sketch.of(update) for update in updates])


# ------------------------------------------------------------------ sketches


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (gaussian(0), gaussian(1)),
        (gaussian(0), gaussian(0) + gaussian(1)),
        (gaussian(0), gaussian(0)),
        (spiked(2), spiked(3)),
    ],
    ids=["unlike", "alike", "equal", "spiked"],
)
def test_inner_products_of_sketches_are_unbiased_and_within_the_stated_variance(
    x: np.ndarray, y: np.ndarray, width: int
) -> None:
    exact = float(x.astype(np.float64) @ y)
    bound = (float(x @ x) * float(y @ y) + exact**2) / width
    sketches = [UpdateSketch(SIZE, width, seed) for seed in range(400)]
    errors = np.array([float(sketch.of(x).astype(np.float64) @ sketch.of(y)) for sketch in sketches]) - exact
    # The mean of 400 draws has a twentieth of their standard deviation; 4.5 of these are one in 150,000.
    assert abs(errors.mean()) < 4.5 * np.sqrt(bound / len(errors))
    # The bound is nearly reached where no number is a large part of the whole.
    assert 0.5 * bound < np.mean(errors**2) < 1.5 * bound


def test_each_number_goes_to_one_entry_added_or_subtracted() -> None:
    sketch = UpdateSketch(SIZE, 64, seed=5)
    places = [0, 1, 32_767, 32_768, SIZE - 1]
    columns = []
    for place in places:
        unit = np.zeros(SIZE, np.float32)
        unit[place] = 1
        columns.append(sketch.of(unit))
        assert np.abs(columns[-1]).sum() == np.abs(columns[-1]).max() == 1
    together = np.zeros(SIZE, np.float32)
    together[places] = [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(sketch.of(together), np.arange(1, 6, dtype=np.float32) @ np.array(columns))


vectors = arrays(np.float32, 300, elements=st.floats(-1000, 1000, width=32))


@settings(deadline=None, max_examples=40)
@given(vectors, vectors, st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_a_sketch_is_linear_and_the_same_each_time(
    x: np.ndarray, y: np.ndarray, width: int, seed: int
) -> None:
    sketch = UpdateSketch(300, width, seed)
    np.testing.assert_allclose(sketch.of(x - 2 * y), sketch.of(x) - 2 * sketch.of(y), rtol=1e-4, atol=0.1)
    assert sketch.of(x).tobytes() == UpdateSketch(300, width, seed).of(x.copy()).tobytes()
    assert sketch.of(x).shape == (width,)
    assert sketch.of(x).dtype == np.float32


def test_another_seed_is_another_map() -> None:
    assert not np.array_equal(UpdateSketch(SIZE, seed=1).of(gaussian(0)), UpdateSketch(SIZE).of(gaussian(0)))


def test_sketching_takes_no_memory_worth_mentioning() -> None:
    update = gaussian(0, size=2_000_000)
    sketch = UpdateSketch(update.size)
    tracemalloc.start()
    kept = sketch.of(update)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept.nbytes == 2**17
    assert peak < update.nbytes / 4


@pytest.mark.parametrize("width", [0, -1, MAX_WIDTH + 1])
def test_a_width_out_of_range_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=f"width {width}"):
        UpdateSketch(10, width)


def test_the_widest_sketch_uses_all_its_entries() -> None:
    # 2^20 draws leave out one of 2^15 entries with a probability of about e^-32.
    assert UpdateSketch(2**20, MAX_WIDTH).of(gaussian(0, 2**20)).all()


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (np.ones(9, np.float32), r"\[9\].*\[10\]"),
        (np.ones((2, 5), np.float32), r"\[2, 5\]"),
        (np.array([1] * 9 + [np.nan], np.float32), "NaN"),
        (np.array([np.inf] * 10, np.float32), "infinity"),
    ],
)
def test_an_update_that_cannot_be_sketched_is_refused(update: np.ndarray, said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        UpdateSketch(10).of(update)


# ------------------------------------------------------------------ clusters

GROUPS = [2, 0, 0, 1, 2, 2, 1, 0, 3, 2, 0, 0]
FIRST_APPEARANCE = [0, 1, 1, 2, 0, 0, 2, 1, 3, 0, 1, 1]


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_exactly_and_numbered_by_first_appearance(noise: float, seed: int) -> None:
    labels = clusters_of(sketched(planted(GROUPS, noise, seed), seed=seed), 4)
    assert labels.tolist() == FIRST_APPEARANCE


def test_opposite_updates_are_unlike() -> None:
    updates = planted([0, 0, 1, 1], 0.5)
    updates[2:] = -updates[:2]
    assert clusters_of(sketched(updates), 2).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11, 12])
def test_another_order_of_clients_gives_the_same_clusters(count: int) -> None:
    sketches = sketched(planted(GROUPS, 1.0))
    labels = clusters_of(sketches, count)
    order = np.random.default_rng(count).permutation(len(GROUPS))
    together = labels[:, None] == labels[None, :]
    permuted = clusters_of(sketches[order], count)
    np.testing.assert_array_equal(permuted[:, None] == permuted[None, :], together[order][:, order])
    # Exactly as many clusters as asked for; a new one has the next number.
    for found in (labels, permuted):
        highest = np.maximum.accumulate(found)
        assert highest[0] == 0
        assert highest[-1] == count - 1
        assert np.diff(highest).max(initial=0) <= 1


def average_linkage(sketches: np.ndarray, count: int) -> list[set[int]]:
    """The definition, step by step."""
    units = sketches / np.linalg.norm(sketches, axis=1, keepdims=True)
    clusters = [{k} for k in range(len(sketches))]
    while len(clusters) > count:
        pairs = [(a, b) for i, a in enumerate(clusters) for b in clusters[:i]]
        a, b = max(pairs, key=lambda pair: np.mean([units[i] @ units[j] for i in pair[0] for j in pair[1]]))
        clusters = [c for c in clusters if c not in (a, b)] + [a | b]
    return clusters


@pytest.mark.parametrize("seed", range(8))
def test_clusters_are_those_of_average_linkage_on_cosines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sketches = rng.standard_normal((10, 3)) * rng.uniform(
        0.1, 10, (10, 1)
    )  # no groups: every choice is close
    for count in range(1, 11):
        labels = clusters_of(sketches, count)
        found = {frozenset(np.flatnonzero(labels == label).tolist()) for label in range(count)}
        assert found == set(map(frozenset, average_linkage(sketches, count)))


def test_equal_updates_still_make_as_many_clusters_as_asked_for() -> None:
    sketches = np.ones((5, 16), np.float32)
    assert set(clusters_of(sketches, 3).tolist()) == {0, 1, 2}


def test_one_client_is_one_cluster() -> None:
    assert clusters_of(np.ones((1, 16), np.float32), 1).tolist() == [0]


def test_a_zero_update_has_no_cluster_and_no_influence() -> None:
    sketches = sketched(planted(GROUPS, 1.0))
    with_zeros = np.insert(sketches, [0, 5, 12], 0, axis=0)
    labels = clusters_of(with_zeros, 4)
    zero = ~with_zeros.any(axis=1)
    assert labels[zero].tolist() == [NO_CLUSTER] * 3
    assert labels[~zero].tolist() == FIRST_APPEARANCE


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_number_of_clusters_that_cannot_be_is_refused(count: int) -> None:
    sketches = np.eye(5, 16, dtype=np.float32)
    sketches[3:] = 0
    with pytest.raises(ConfigError, match=rf"{count} clusters.*3 of 5"):
        clusters_of(sketches, count)


@pytest.mark.parametrize("sketches", [np.ones(4), np.full((3, 4), np.nan)])
def test_sketches_that_are_no_finite_matrix_are_refused(sketches: np.ndarray) -> None:
    with pytest.raises(AdapterError, match="one finite row"):
        clusters_of(sketches, 1)


# ------------------------------------------------------------------ nodes that come later


def test_a_later_node_goes_to_the_cluster_of_its_group() -> None:
    updates = planted([*GROUPS, 0, 1, 2, 3], 1.0)
    sketches = sketched(updates)
    known, later = sketches[: len(GROUPS)], sketches[len(GROUPS) :]
    centroids = centroids_of(known, clusters_of(known, 4))
    later[2] = 0
    assert nearest_cluster(later, centroids).tolist() == [1, 2, NO_CLUSTER, 3]
    assert [nearest_cluster(sketch, centroids) for sketch in later] == [1, 2, NO_CLUSTER, 3]


def test_the_nearest_cluster_is_that_with_the_largest_mean_cosine() -> None:
    rng = np.random.default_rng(0)
    known = rng.standard_normal((9, 16)).astype(np.float32)
    labels = clusters_of(known, 3)
    centroids = centroids_of(known, labels)
    for sketch in rng.standard_normal((50, 16)).astype(np.float32):
        cosines = known @ sketch / np.linalg.norm(known, axis=1) / np.linalg.norm(sketch)
        means = [cosines[labels == label].mean() for label in range(3)]
        assert nearest_cluster(sketch, centroids) == int(np.argmax(means))


def test_zero_updates_do_not_count_in_centroids() -> None:
    known = np.array([[0, 0], [3, 0], [0, 5], [2, 0]], np.float32)
    np.testing.assert_array_equal(centroids_of(known, np.array([NO_CLUSTER, 0, 1, 0])), [[1, 0], [0, 1]])


@pytest.mark.parametrize("labels", [[0, 1], [0, 2, 2], [1, 1, 2]])
def test_labels_of_other_sketches_are_refused(labels: list[int]) -> None:
    with pytest.raises(ConfigError, match="do not belong to 3 sketches"):
        centroids_of(np.eye(3, 4, dtype=np.float32), np.array(labels))


@pytest.mark.parametrize("sketch", [np.ones(3), np.array([1.0, np.nan])])
def test_a_later_sketch_of_another_width_or_not_finite_is_refused(sketch: np.ndarray) -> None:
    with pytest.raises(AdapterError, match=rf"2 finite numbers.*\[{len(sketch)}\]"):
        nearest_cluster(sketch, np.eye(2))
