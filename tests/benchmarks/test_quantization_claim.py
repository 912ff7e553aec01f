"""The quantizer of the study, and what it concludes from paired figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.quantization.comparison import finding, means, verdict
from benchmarks.quantization.quantizer import GRANULARITIES, Factor, crest, quantize, steps

factors = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-8, 8, width=16)
)
relaxed = settings(max_examples=50, deadline=None)
bits = st.sampled_from([2, 3, 4, 8])
granularities = st.sampled_from(list(GRANULARITIES))


@relaxed
@given(factors, bits, granularities)
def test_rounding_moves_no_value_by_more_than_half_a_step(
    factor: Factor, bits: int, granularity: str
) -> None:
    step = steps(factor, bits, granularity)
    moved = np.abs(quantize(factor, bits, granularity) - factor)
    assert (moved <= step / 2 + 1e-5 * np.abs(factor).max()).all()


@relaxed
@given(factors, bits)
def test_a_factor_takes_no_more_values_than_its_bits_allow_and_keeps_its_extremes(
    factor: Factor, bits: int
) -> None:
    rounded = quantize(factor, bits, "per-tensor")
    assert len(np.unique(rounded)) <= 2**bits - 1
    assert np.abs(rounded).max() == pytest.approx(np.abs(factor).max(), rel=1e-6)


@relaxed
@given(factors, bits)
def test_per_channel_is_per_tensor_on_every_row(factor: Factor, bits: int) -> None:
    rows = [quantize(row[None], bits, "per-tensor") for row in factor]
    np.testing.assert_array_equal(quantize(factor, bits, "per-channel"), np.concatenate(rows))


@relaxed
@given(factors, bits, granularities, st.integers(-6, 6))
def test_the_relative_error_does_not_depend_on_the_scale_of_a_factor(
    factor: Factor, bits: int, granularity: str, exponent: int
) -> None:
    scale = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        quantize(scale * factor, bits, granularity), scale * quantize(factor, bits, granularity)
    )


def test_two_bits_leave_three_levels() -> None:
    factor = np.array([[-1.0, -0.6, -0.4], [0.0, 0.4, 0.9]], np.float32)
    np.testing.assert_array_equal(quantize(factor, 2, "per-tensor"), [[-1, -1, 0], [0, 0, 1]])


def test_steps_are_one_per_factor_or_one_per_row() -> None:
    factor = np.array([[7.0, -14.0], [0.0, 3.5]], np.float32)
    np.testing.assert_array_equal(steps(factor, 4, "per-tensor"), [[2.0]])
    np.testing.assert_array_equal(steps(factor, 4, "per-channel"), [[2.0], [0.5]])


def test_the_crest_of_a_single_spike_is_the_root_of_the_size() -> None:
    spike = np.zeros((4, 4), np.float32)
    spike[1, 2] = -3
    assert crest(spike) == pytest.approx(4.0)


def test_a_finding_needs_six_tasks_that_agree_or_a_clear_majority() -> None:
    assert finding([-1.0, -1.1, -0.9, -1.2, -0.8, -1.0]) == "for"
    assert finding([1.0, 1.1, 0.9, 1.2, 0.8, 1.0]) == "against"
    assert finding([1.0, 1.1, 0.9, 1.2, 0.8]) == "undecided"
    assert finding([-1.0, 1.1, -0.2, 0.9, -0.7, 1.3]) == "undecided"
    assert finding([0.1, 0.1, 0.1, 0.0, 0.0, 0.0]) == "undecided"
    assert finding([0.0] * 6) == "undecided"


@relaxed
@given(st.integers(0, 9), st.integers(0, 9))
def test_for_values_of_one_size_a_finding_is_the_binomial_sign_test(losses: int, wins: int) -> None:
    count = losses + wins
    assume(count > 0)
    most = max(losses, wins)
    tail = sum(math.comb(count, agreeing) for agreeing in range(most, count + 1)) / 2**count
    expected = "undecided" if 2 * tail > 0.05 else "for" if wins > losses else "against"
    assert finding([0.3] * losses + [-0.3] * wins) == expected


def pair(task: str, seed: int, **changed: float) -> dict[str, object]:
    ways = ("8 bits per-tensor", "4 bits per-tensor")
    ratios = ["step", "step B1/lora_B", "step B2/lora_A", *(f"error {way}" for way in ways)]
    differences = ["accuracy", *(f"points {way}" for way in ways)]
    equal = dict.fromkeys(ratios, 1.0) | dict.fromkeys(differences, 0.0)
    return {"task": task, "seed": seed, **equal, **changed}


def test_means_weigh_tasks_alike_and_average_ratios_geometrically() -> None:
    pairs = [pair("one", 0, step=2.0), pair("one", 1, step=8.0), pair("two", 0)]
    assert means(pairs)["step"] == pytest.approx(2.0)
    pairs = [pair("one", 0, **{"points 8 bits per-tensor": 3.0}), pair("two", 0)]
    assert means(pairs)["points 8 bits per-tensor"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, "undecided about"),
        ({"step": 0.5}, "for"),
        ({"error 4 bits per-tensor": 1.5}, "against"),
        ({"step": 0.5, "points 4 bits per-tensor": 2.0}, "against and for"),
    ],
)
def test_the_verdict_follows_the_figures(changed: dict[str, float], word: str) -> None:
    pairs = [pair(task, 0, **changed) for task in "abcdef"]
    assert verdict(pairs).startswith(f"The figures are {word} the claim")
