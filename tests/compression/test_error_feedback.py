import numpy as np
import pytest
from compression_cases import layouts, patient, random_update, seeds
from hypothesis import given
from hypothesis import strategies as st

from fedkron.compression import CODECS, Codec, decode, encode, encode_with_feedback
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, TensorLayout, flatten

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
LAYOUT = AdapterLayout("", (), (TensorLayout("a", (3, 50)), TensorLayout("b", (7,))))


@patient
@given(layouts(), seeds, st.sampled_from(list(CODECS.values())), st.sampled_from([1e-30, 1e-3, 1e30]))
def test_what_arrives_and_the_residual_add_up_exactly_to_what_was_meant(
    layout: AdapterLayout, seed: int, codec: Codec, size: float
) -> None:
    residual = flatten(random_update(layout, seed + 1, size), layout)
    update = random_update(layout, seed, size)
    meant = flatten(update, layout) + residual
    blob, left = encode_with_feedback(update, residual, layout, codec, 5)
    arrived = decode(blob, layout)
    assert np.array_equal(flatten(arrived.update, layout) + left, meant)
    assert arrived.round == 5


@every_codec
def test_the_sum_of_what_arrives_follows_the_sum_of_the_updates_to_within_one_residual(codec: Codec) -> None:
    meant = np.zeros(LAYOUT.size)
    arrived = np.zeros(LAYOUT.size)
    residual = None
    largest = 0.0
    for round_ in range(200):
        update = random_update(LAYOUT, round_)
        blob, residual = encode_with_feedback(update, residual, LAYOUT, codec, round_)
        meant += flatten(update, LAYOUT)
        arrived += flatten(decode(blob, LAYOUT).update, LAYOUT)
        largest = max(largest, float(np.abs(flatten(update, LAYOUT)).max()))
        assert np.abs(residual).max() <= largest / 7  # of int4, the coarsest, half a scale or little more
        np.testing.assert_allclose(arrived + residual, meant, rtol=0, atol=1e-6 * (round_ + 1) * largest)


def test_a_constant_far_below_the_scale_is_lost_without_feedback_and_arrives_with_it() -> None:
    update = {"a": np.full((3, 50), 0.01, np.float32), "b": np.zeros(7, np.float32)}
    update["a"][:, 0] = update["a"][:, 14] = 1.0  # every block has a large element
    codec = CODECS["int4"]
    plain = decode(encode(update, LAYOUT, codec, round=0), LAYOUT).update["a"]
    assert plain[0, 1] == 0
    residual, total = None, np.zeros((3, 50))
    for round_ in range(100):
        blob, residual = encode_with_feedback(update, residual, LAYOUT, codec, round_)
        total += decode(blob, LAYOUT).update["a"]
    np.testing.assert_allclose(total, 100 * update["a"].astype(np.float64), atol=0.08)


@every_codec
def test_the_first_round_is_a_plain_payload_and_inputs_are_not_changed(codec: Codec) -> None:
    update = random_update(LAYOUT, 0)
    residual = np.zeros(LAYOUT.size, np.float32)
    blob, left = encode_with_feedback(update, None, LAYOUT, codec, 1)
    assert blob == encode(update, LAYOUT, codec, round=1)
    assert encode_with_feedback(update, residual, LAYOUT, codec, 1)[0] == blob
    assert not residual.any()
    assert left.dtype == np.float32
    again = random_update(LAYOUT, 0)
    assert all(np.array_equal(update[name], again[name]) for name in again)


def test_the_residual_of_another_adapter_is_refused() -> None:
    residual = np.zeros(5, np.float32)
    with pytest.raises(AdapterError, match=r"residual has shape \[5\], the layout needs \[157\]"):
        encode_with_feedback(random_update(LAYOUT, 0), residual, LAYOUT, CODECS["int8"], 1)


def test_a_sum_that_overflows_is_refused_by_the_name_of_its_tensor() -> None:
    update = {"a": np.full((3, 50), 3e38, np.float32), "b": np.zeros(7, np.float32)}
    residual = np.full(LAYOUT.size, 3e38, np.float32)
    with pytest.raises(AdapterError, match="tensor 'a' holds inf"):
        encode_with_feedback(update, residual, LAYOUT, CODECS["fp32"], 1)
