import numpy as np
import pytest
from compression_cases import (
    CODEC_NAMES,
    EXACTLY_SPECIFIED,
    STOCHASTIC,
    layouts,
    patient,
    random_update,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st

from fedkron.compression import codec, decode, encode, encode_with_feedback
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, TensorLayout, flatten

every_codec = pytest.mark.parametrize("name", CODEC_NAMES)
LAYOUT = AdapterLayout("", (), (TensorLayout("a", (3, 50)), TensorLayout("b", (7,))))


@patient
@given(layouts(), seeds, st.sampled_from(CODEC_NAMES), st.sampled_from([1e-30, 1e-3, 1e30]))
def test_what_arrives_and_the_residual_add_up_to_what_was_meant(
    layout: AdapterLayout, seed: int, name: str, size: float
) -> None:
    residual = flatten(random_update(layout, seed + 1, size), layout)
    update = random_update(layout, seed, size)
    meant = flatten(update, layout) + residual
    blob, left = encode_with_feedback(update, residual, layout, codec(name), round=5)
    arrived = flatten(decode(blob, layout).update, layout)
    # Within half a step the difference of two floats is exact (Sterbenz); a coarse codec leaves rounding.
    tolerance = 2.0**-22 * np.maximum(np.abs(arrived), np.abs(meant))
    assert np.all(np.abs(arrived.astype(np.float64) + left - meant) <= tolerance)
    if name in {"fp32", "fp16", "int8", "int4", "int8:channel", "int4:channel"}:
        assert np.array_equal(arrived + left, meant)


@pytest.mark.parametrize("name", [*EXACTLY_SPECIFIED, *STOCHASTIC, "ecsq", "ecsq:8"])
def test_the_sum_of_what_arrives_follows_the_sum_of_the_updates_to_within_one_residual(name: str) -> None:
    meant = np.zeros(LAYOUT.size)
    arrived = np.zeros(LAYOUT.size)
    residual = None
    largest = 0.0
    rng = np.random.default_rng(0)
    for round_ in range(100):
        update = random_update(LAYOUT, round_)
        blob, residual = encode_with_feedback(update, residual, LAYOUT, codec(name), round=round_, rng=rng)
        meant += flatten(update, LAYOUT)
        arrived += flatten(decode(blob, LAYOUT).update, LAYOUT)
        largest = max(largest, float(np.abs(flatten(update, LAYOUT)).max()))
        # int4 leaves half a scale, at random up to a whole one; signs leave several times the mean.
        assert np.abs(residual).max() <= largest * {"sign": 6, "ecsq": 1}.get(name, 1 / 3)
        np.testing.assert_allclose(arrived + residual, meant, rtol=0, atol=1e-6 * (round_ + 1) * largest)


@pytest.mark.parametrize("name", ["ecsq:0.3", "ecsq:1"])
def test_below_one_bit_what_had_to_wait_arrives_within_some_rounds(name: str) -> None:
    layout = AdapterLayout("", (), (TensorLayout("a", (40, 50)),))
    rng = np.random.default_rng(0)
    signs = np.where(rng.random((40, 50)) < 0.5, -1e-3, 1e-3).astype(np.float32)
    residual, arrived = None, np.zeros((40, 50))
    for round_ in range(40):
        blob, residual = encode_with_feedback({"a": signs}, residual, layout, codec(name), round=round_)
        arrived += decode(blob, layout).update["a"]
    # A window of a fifth or more comes round every few rounds: no element waits for long.
    np.testing.assert_allclose(arrived, 40 * signs.astype(np.float64), atol=12e-3)


def test_a_constant_far_below_the_scale_is_lost_without_feedback_and_arrives_with_it() -> None:
    update = {"a": np.full((3, 50), 0.01, np.float32), "b": np.zeros(7, np.float32)}
    update["a"][:, 0] = update["a"][:, 14] = 1.0  # every block has a large element
    int4 = codec("int4")
    plain = decode(encode(update, LAYOUT, int4, round=0), LAYOUT).update["a"]
    assert plain[0, 1] == 0
    residual, total = None, np.zeros((3, 50))
    for round_ in range(100):
        blob, residual = encode_with_feedback(update, residual, LAYOUT, int4, round=round_)
        total += decode(blob, LAYOUT).update["a"]
    np.testing.assert_allclose(total, 100 * update["a"].astype(np.float64), atol=0.08)


@every_codec
def test_the_first_round_is_a_plain_payload_and_inputs_are_not_changed(name: str) -> None:
    update = random_update(LAYOUT, 0)
    residual = np.zeros(LAYOUT.size, np.float32)
    blob, left = encode_with_feedback(update, None, LAYOUT, codec(name), round=1)
    assert blob == encode(update, LAYOUT, codec(name), round=1)
    assert encode_with_feedback(update, residual, LAYOUT, codec(name), round=1)[0] == blob
    assert not residual.any()
    assert left.dtype == np.float32
    again = random_update(LAYOUT, 0)
    assert all(np.array_equal(update[name], again[name]) for name in again)


def test_rounding_at_random_draws_from_the_generator_given() -> None:
    update = random_update(LAYOUT, 0)
    rng = np.random.default_rng(7)
    blob, _ = encode_with_feedback(update, None, LAYOUT, codec("int4:stochastic"), round=1, rng=rng)
    rng = np.random.default_rng(7)
    assert blob == encode(update, LAYOUT, codec("int4:stochastic"), round=1, rng=rng)


def test_the_residual_of_another_adapter_is_refused() -> None:
    residual = np.zeros(5, np.float32)
    with pytest.raises(AdapterError, match=r"residual has shape \[5\], the layout needs \[157\]"):
        encode_with_feedback(random_update(LAYOUT, 0), residual, LAYOUT, codec("int8"), round=1)


def test_a_sum_that_overflows_is_refused_by_the_name_of_its_tensor() -> None:
    update = {"a": np.full((3, 50), 3e38, np.float32), "b": np.zeros(7, np.float32)}
    residual = np.full(LAYOUT.size, 3e38, np.float32)
    with pytest.raises(AdapterError, match="tensor 'a' holds inf"):
        encode_with_feedback(update, residual, LAYOUT, codec("fp32"), round=1)
