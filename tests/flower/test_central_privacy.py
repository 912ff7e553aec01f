"""Central privacy: what one node can do to the aggregate, and how much noise is really in it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fedkron.aggregation import AGGREGATIONS
from fedkron.errors import ConfigError, PayloadError, RunError
from fedkron.flower.admission import Origin
from fedkron.flower.alternating import ALTERNATING
from fedkron.flower.central_privacy import (
    COUNT_NOISE,
    CentralPrivacy,
    adaptive_clipping,
    fixed_clipping,
    private,
)
from fedkron.flower.global_adapter import ARRAYS, Answer, GlobalAdapter
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import AdapterLayout, State, TensorLayout, flatten, unflatten
from fedkron.privacy import epsilon

NORM = 2.0
DELTA = 1e-5
LAYOUT = AdapterLayout("a base", (), (TensorLayout("one", (300, 100)), TensorLayout("two", (10_000,))))
MAKE = {"fixed": fixed_clipping, "adaptive": adaptive_clipping}


class Given:
    """An upload that is open."""

    def __init__(self, state: State) -> None:
        self.state = state

    def opened(self) -> State:
        return self.state


class Refused:
    """An upload that turns out to be damaged when it is opened."""

    def opened(self) -> State:
        raise PayloadError("it is damaged")


def vector(seed: int, norm: float) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(LAYOUT.size)
    return (norm / np.linalg.norm(drawn) * drawn).astype(np.float32)


START = vector(99, 50.0)


def held(privacy: CentralPrivacy) -> GlobalAdapter:
    adapter = private(privacy)(LAYOUT, "factorwise")
    adapter.adopt(1, to_arrays(unflatten(START, LAYOUT)))
    return adapter


def answers(updates: Sequence[np.ndarray], weights: Sequence[float]) -> list[Answer]:
    return [
        Answer(Origin("", i, i), {ARRAYS: Given(unflatten(START + update, LAYOUT))}, weight)
        for i, (update, weight) in enumerate(zip(updates, weights, strict=True))
    ]


def combined(privacy: CentralPrivacy, asked: Sequence[Answer]) -> np.ndarray:
    return flatten(held(privacy).combine(asked).adapter, LAYOUT)


def clipped_mean(updates: Sequence[np.ndarray], norm: float = NORM) -> np.ndarray:
    wide = [np.asarray(update, np.float64) for update in updates]
    return np.mean([u * min(1, norm / max(np.linalg.norm(u), 1e-300)) for u in wide], axis=0)


# ------------------------------------------------------------------ one node


@pytest.mark.parametrize("huge", [1e3, 1e20, 1e34])
@pytest.mark.parametrize("kind", MAKE)
def test_a_huge_update_with_a_huge_weight_moves_the_mean_by_its_share_of_the_norm(
    kind: str, huge: float
) -> None:
    quiet = [vector(i, 0.5) for i in range(4)]
    silent = combined(MAKE[kind](NORM, 0.0, DELTA), answers([*quiet, vector(7, 1.0) * 0], [1.0] * 5))
    loud = combined(MAKE[kind](NORM, 0.0, DELTA), answers([*quiet, vector(7, 1.0) * huge], [1.0] * 4 + [1e9]))
    assert np.linalg.norm(loud.astype(np.float64) - silent) == pytest.approx(NORM / 5, rel=1e-3)


def test_all_tensors_are_clipped_together_to_the_mean_by_hand() -> None:
    updates = [vector(i, norm) for i, norm in enumerate((0.1, 1.9, 2.1, 40.0))]
    found = combined(fixed_clipping(NORM, 0.0, DELTA), answers(updates, [1, 5, 2, 9]))
    np.testing.assert_allclose(found - START, clipped_mean(updates), atol=1e-6)


def test_a_node_that_learnt_nothing_is_one_of_the_mean() -> None:
    updates = [np.zeros(LAYOUT.size, np.float32), vector(1, 1.0)]
    for make in MAKE.values():
        found = combined(make(NORM, 0.0, DELTA), answers(updates, [1, 1]))
        np.testing.assert_allclose(found - START, updates[1] / 2, atol=1e-6)


# ------------------------------------------------------------------ noise


def noise_in(found: np.ndarray, updates: Sequence[np.ndarray]) -> np.ndarray:
    return found.astype(np.float64) - START - clipped_mean(updates)


def deviations_off(noise: np.ndarray, deviation: float) -> float:
    """By how many standard errors the sample's variance is off, were it Gaussian noise of this deviation."""
    return float((noise.var() / deviation**2 - 1) / math.sqrt(2 / noise.size))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_noise_has_the_deviation_that_was_promised_for_those_who_answered(count: int) -> None:
    updates = [vector(i, 3.0) for i in range(count)]
    noise = noise_in(combined(fixed_clipping(NORM, 1.5, DELTA), answers(updates, [1] * count)), updates)
    promised = 1.5 * NORM / count
    assert abs(deviations_off(noise, promised)) < 5
    assert abs(noise.mean()) < 5 * promised / math.sqrt(noise.size)
    # Fourth moment of a Gaussian, whose standard error is √(96/n).
    assert abs(np.mean((noise / promised) ** 4) - 3) < 5 * math.sqrt(96 / noise.size)
    # No number tells of its neighbour.
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 5 / math.sqrt(noise.size)


def test_a_refused_upload_loses_no_round_and_no_noise() -> None:
    updates = [vector(i, 3.0) for i in range(3)]
    bad: Mapping[int, dict] = {
        10: {ARRAYS: Refused()},
        11: {ARRAYS: Given(unflatten(START * np.nan, LAYOUT))},
        12: {ARRAYS: Given({"one": np.zeros((300, 100), np.float32)})},
    }
    adapter = held(fixed_clipping(NORM, 1.0, DELTA))
    asked = [*answers(updates, [1] * 3), *(Answer(Origin("", n, n), u, 1.0) for n, u in bad.items())]
    result = adapter.combine(asked)
    assert set(result.refused) == set(bad)
    assert "damaged" in result.refused[10]
    assert "NaN" in result.refused[11]
    assert abs(deviations_off(noise_in(flatten(result.adapter, LAYOUT), updates), NORM / 3)) < 5
    with pytest.raises(RunError, match="all 1 uploads were refused"):
        adapter.combine(asked[-1:])


def test_noise_is_another_one_each_time_whatever_seed_was_set_and_the_seed_goes_on() -> None:
    asked = answers([vector(0, 1.0)], [1])
    found, after = [], []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002
        found.append(combined(fixed_clipping(NORM, 1.0, DELTA), asked))
        after.append(np.random.uniform(size=3))  # noqa: NPY002
    assert abs(np.corrcoef(found[0] - START, found[1] - START)[0, 1]) < 5 / math.sqrt(LAYOUT.size)
    np.testing.assert_array_equal(after[0], after[1])
    np.testing.assert_array_equal(after[0], np.random.RandomState(0).uniform(size=3))


# ------------------------------------------------------------------ adaptive clipping


@pytest.mark.parametrize("begin", [0.2, 40.0])
def test_adaptive_norm_goes_to_the_median_of_the_norms(begin: float) -> None:
    norms = np.linspace(2, 4, 41)
    privacy = adaptive_clipping(begin, 0.1, DELTA)
    trained = [START + vector(i, norm) for i, norm in enumerate(norms)]
    for _ in range(60):
        privacy.release(START, trained)
    assert privacy.clipping_norm == pytest.approx(3.0, abs=0.4)


def test_adaptive_noise_fits_the_norm_that_was_clipped_to_and_both_releases_are_paid_for() -> None:
    updates = [vector(i, 30.0) for i in range(2)]  # all clipped: the norm of the next round is another one
    noise = 1.2
    privacy = adaptive_clipping(NORM, noise, DELTA)
    # Andrew et al. 2021, theorem 1: the updates' own multiplier.
    of_updates = (noise**-2 - (2 * COUNT_NOISE * noise) ** -2) ** -0.5
    for _ in range(3):
        norm = privacy.clipping_norm
        adapter = held(privacy)
        found = flatten(adapter.combine(answers(updates, [1, 1])).adapter, LAYOUT)
        off = found.astype(np.float64) - START - clipped_mean(updates, norm)
        assert abs(deviations_off(off, of_updates * norm / 2)) < 5
        assert privacy.clipping_norm != norm
    spent = [privacy.charge([1, 2]) for _ in range(4)]
    assert spent[-1].epsilon == epsilon([of_updates, COUNT_NOISE * noise] * 4, DELTA)
    alone = epsilon([noise] * 4, DELTA)
    assert alone is not None
    assert alone < spent[-1].epsilon < 1.03 * alone


# ------------------------------------------------------------------ what does not go


@pytest.mark.parametrize("aggregation", [*sorted(set(AGGREGATIONS) - {"factorwise"}), ALTERNATING])
def test_other_means_are_refused(aggregation: str) -> None:
    with pytest.raises(ConfigError, match=aggregation):
        private(fixed_clipping(NORM, 1.0, DELTA))(LAYOUT, aggregation)


def test_what_is_held_is_what_nodes_are_sent() -> None:
    sent = held(fixed_clipping(NORM, 1.0, DELTA)).sent(1)
    np.testing.assert_array_equal(flatten(to_state(sent.records[ARRAYS]), LAYOUT), START)
