"""Codes that all nodes can add up: decoding the sum, error feedback, and steps that follow the updates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.errors import AdapterError
from fedkron.secure.codes import best_step, magnitudes, mean_of, quantize, steps_from, steps_of

SIZES = np.array([40, 1, 25], np.int64)
STEPS = np.array([0.1, 3.0, 0.001], np.float32)
LEVELS = st.sampled_from([2, 3, 4, 5, 15, 255])


def vectors(count: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 66)) * np.repeat(STEPS, SIZES) * spread).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(levels=LEVELS, nodes=st.integers(1, 9), spread=st.floats(0.01, 100), seed=st.integers(0, 2**32))
def test_the_mean_of_codes_and_what_they_leave_out_is_the_mean(
    levels: int, nodes: int, spread: float, seed: int
) -> None:
    own = vectors(nodes, seed, spread)
    found = [quantize(vector, SIZES, STEPS, levels) for vector in own]
    assert all(codes.max() < levels and codes.dtype == np.uint8 for codes, _ in found)
    sums = np.sum([codes for codes, _ in found], axis=0, dtype=np.uint32)
    mean = mean_of(sums, SIZES, STEPS, levels, nodes)
    left = np.mean([left for _, left in found], axis=0)
    assert np.allclose(mean + left, own.mean(axis=0), rtol=1e-4, atol=1e-5 * spread * np.repeat(STEPS, SIZES))


@given(levels=LEVELS, seed=st.integers(0, 2**32))
def test_what_is_within_reach_is_off_by_half_a_step_at_most(levels: int, seed: int) -> None:
    reach = (levels / 2) * np.repeat(STEPS, SIZES)
    vector = np.random.default_rng(seed).uniform(-reach, reach).astype(np.float32)
    _, left = quantize(vector, SIZES, STEPS, levels)
    assert (np.abs(left) <= 0.501 * np.repeat(STEPS, SIZES)).all()


@pytest.mark.parametrize("levels", [2, 3, 5, 15, 255])
def test_the_step_has_the_least_error_of_all_for_laplacian_values(levels: int) -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)

    def error(step: float) -> float:
        _, left = quantize(values, np.array([values.size]), np.array([step], np.float32), levels)
        return float(np.mean(left**2))

    best = error(best_step(levels))
    others = [error(best_step(levels) * factor) for factor in (0.5, 0.7, 0.85, 1.2, 1.5, 2)]
    assert best <= min(others) * 1.01


@pytest.mark.parametrize(
    ("levels", "wrong"),
    # Two levels have no zero: with steps that are far too large they send noise.
    [(2, 1e-4), (2, 2), *((levels, wrong) for levels in (3, 5, 15) for wrong in (1e-4, 1e4))],
)
def test_wrong_first_steps_are_made_good_by_feedback(levels: int, wrong: float) -> None:
    """Nodes that move steadily: what arrives catches up with what was meant, from any first step."""
    nodes, rounds = 4, 24
    moves = vectors(nodes, seed=1)
    residuals = np.zeros_like(moves)
    steps = (STEPS * wrong).astype(np.float32)
    arrived = np.zeros(moves.shape[1])
    for _ in range(rounds):
        found = [quantize(own, SIZES, steps, levels) for own in moves + residuals]
        sums = np.sum([codes for codes, _ in found], axis=0, dtype=np.uint32)
        arrived += mean_of(sums, SIZES, steps, levels, nodes)
        scales = np.sum([magnitudes(own, SIZES) for own in moves + residuals], axis=0, dtype=np.uint32)
        steps = steps_from(scales, nodes, levels)
        residuals = np.array([left for _, left in found])
    meant = rounds * moves.mean(axis=0)
    behind = np.linalg.norm(arrived - meant) / np.linalg.norm(moves.mean(axis=0))
    assert behind < 6  # rounds, of 24; without feedback it would be all that clipping has cut


def test_magnitudes_are_a_quarter_of_an_octave_fine_and_their_mean_is_geometric() -> None:
    vector = np.repeat(np.array([0.3, 2e-6, 0.0], np.float32), SIZES)
    codes = magnitudes(vector, SIZES)
    assert codes[2] == 0
    steps = steps_from(codes.astype(np.uint32), 1, 3)
    assert steps[:2] / best_step(3) == pytest.approx([0.3, 2e-6], rel=0.1)
    both = magnitudes(vector, SIZES) + magnitudes(vector * 16, SIZES).astype(np.uint32)
    assert steps_from(both, 2, 3)[0] == pytest.approx(4 * steps[0], rel=0.01)
    assert steps_of(np.array([1.0]), 5) == pytest.approx([best_step(5)])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(AdapterError, match="NaN or infinity"):
        quantize(np.array([bad], np.float32), np.array([1]), np.array([1.0], np.float32), 5)
