import numpy as np
import pytest
from compression_cases import (
    CODEC_NAMES,
    ECSQ,
    STOCHASTIC,
    WIRE_IDS,
    blocks_of,
    layout_of,
    layouts,
    patient,
    random_update,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st

from fedkron.compression import Codec, codec
from fedkron.compression.codecs import codec_of_id
from fedkron.errors import ConfigError, UnknownCodecError
from fedkron.layout import AdapterLayout, TensorLayout, flatten

LEVELS = {"int8": 127, "int4": 7}
NEAREST = ["int8", "int4", "int8:channel", "int4:channel"]
EXTREMES = [0.0, 1e-45, -1e-40, 2e-38, 1e30, -3.4028235e38]

every_codec = pytest.mark.parametrize("name", CODEC_NAMES)
blockwise = pytest.mark.parametrize("name", NEAREST)
stochastic = pytest.mark.parametrize("name", STOCHASTIC)


def levels_of(name: str) -> int:
    return LEVELS[name.partition(":")[0]]


def quantized(vector: np.ndarray, tensors: tuple[TensorLayout, ...], codec: Codec, seed: int = 0) -> bytes:
    return codec.quantize(vector, tensors, np.random.default_rng(seed))


def round_trip(vector: np.ndarray, layout: AdapterLayout, name: str, seed: int = 0) -> np.ndarray:
    body = quantized(vector, layout.tensors, codec(name), seed)
    return codec(name).dequantize(memoryview(body), layout.tensors)


@pytest.mark.parametrize(("name", "number"), WIRE_IDS.items())
def test_codecs_are_found_by_name_and_their_bodies_by_wire_id(name: str, number: int) -> None:
    assert codec(name).name == name
    assert codec(name).id == number
    assert codec_of_id(number).id == number
    assert codec(codec(name).state_codec).name == codec(name).state_codec


def test_an_unknown_codec_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^codec 'int5' does not exist: use one of fp32; fp16; ") as error:
        codec("int5")
    for known in ("int8, int8:channel, int8:stochastic", "int4:stochastic", "ecsq:BITS", "sign"):
        assert known in str(error.value)


@pytest.mark.parametrize("name", ["int8:5", "fp32:x", "sign:2", "int4:channel:stochastic"])
def test_an_unknown_option_is_answered_with_those_of_the_family(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'? does not exist: use {name.partition(':')[0]}"):
        codec(name)


@pytest.mark.parametrize(
    "option",
    [
        *("0", "0.09", "12.1", "-2", "nan", "inf", "two", "2 bits", "bits=2", "=2"),
        *("nmse", "nmse=", "nmse=0", "nmse=0.91", "nmse=nan", "nmse=1e-7", "2=nmse", "nmse=nmse=0.1"),
    ],
)
def test_bits_or_an_error_that_do_not_exist_are_answered_with_those_that_do(option: str) -> None:
    with pytest.raises(ConfigError) as error:
        codec(f"ecsq:{option}")
    assert str(error.value) == (
        f"codec 'ecsq:{option}' does not exist: use ecsq (2 bits), ecsq:BITS (0.1 to 12 bits per parameter), "
        "ecsq:nmse=ERROR (1e-6 to 0.9)"
    )


def test_an_unknown_wire_id_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownCodecError, match=r"codec 8, known are 0 \(fp32\), .*, 6 \(ecsq\), 7 \(sign\)"):
        codec_of_id(8)


@patient
@given(layouts(), seeds, st.sampled_from(CODEC_NAMES), st.sampled_from([1e-38, 1e-3, 1e30]))
def test_a_body_has_one_of_the_sizes_foretold_and_decodes_to_finite_new_float32(
    layout: AdapterLayout, seed: int, name: str, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    body = quantized(vector, layout.tensors, codec(name))
    assert len(body) in codec(name).sizes(layout.tensors)
    if name not in ECSQ:
        assert len(codec(name).sizes(layout.tensors)) == 1
    decoded = codec(name).dequantize(memoryview(body), layout.tensors)
    assert decoded.dtype == np.float32
    assert decoded.shape == vector.shape
    assert np.isfinite(decoded).all()


@patient
@given(layouts(), seeds)
def test_fp32_is_exact(layout: AdapterLayout, seed: int) -> None:
    vector = flatten(random_update(layout, seed), layout)
    assert np.array_equal(round_trip(vector, layout, "fp32"), vector)


@patient
@given(layouts(), seeds, st.sampled_from([1e-36, 1e-20, 1e-6, 1.0, 1e6, 1e30]))
def test_fp16_is_within_half_a_unit_of_eleven_bits_whatever_the_size_of_the_update(
    layout: AdapterLayout, seed: int, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    peak = np.abs(vector).max(initial=0)
    error = np.abs(round_trip(vector, layout, "fp16") - vector)
    # Relative 2^-11 for normal halves, half of the smallest half (2^-24) below; the peak is 2^14 to 2^15.
    assert np.all(error <= np.maximum(2.0**-11 * np.abs(vector), 2.0**-25 * peak / 2**14))


@blockwise
@patient
@given(layouts(), seeds, st.sampled_from([1e-30, 1e-6, 1.0, 1e30]))
def test_each_element_is_within_half_of_its_blocks_scale(
    name: str, layout: AdapterLayout, seed: int, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    check_steps(vector, round_trip(vector, layout, name), layout, name, steps=0.5)


@stochastic
@patient
@given(layouts(), seeds, st.sampled_from([1e-30, 1e-6, 1.0, 1e30]))
def test_each_element_rounded_at_random_is_within_its_blocks_scale(
    name: str, layout: AdapterLayout, seed: int, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    check_steps(vector, round_trip(vector, layout, name, seed), layout, name, steps=1)


def check_steps(
    vector: np.ndarray, decoded: np.ndarray, layout: AdapterLayout, name: str, steps: float
) -> None:
    # A scale is its block's peak over the levels, rounded up to a float16 fraction of the largest.
    smallest = np.abs(vector).max(initial=0) / levels_of(name) * 2.0**-24
    for block in blocks_of(layout.tensors, name):
        exact = np.abs(vector[block]).max() / levels_of(name)
        scale = max(exact * (1 + 2.0**-10), exact + smallest)
        assert np.all(np.abs(decoded[block] - vector[block]) <= scale * steps * (1 + 1e-4))


@pytest.mark.parametrize("name", NEAREST)
@patient
@given(layouts(), seeds)
def test_quantizing_what_was_decoded_changes_it_by_rounding_alone(
    name: str, layout: AdapterLayout, seed: int
) -> None:
    decoded = round_trip(flatten(random_update(layout, seed), layout), layout, name)
    peak = np.abs(decoded).max(initial=0)
    assert np.all(np.abs(round_trip(decoded, layout, name) - decoded) <= 2e-3 * peak)


@blockwise
def test_a_large_tensor_does_not_coarsen_the_small_one_next_to_it(name: str) -> None:
    vector = np.array([1000, -500, 250, 0.001, -0.001, 0.0005], np.float32)
    decoded = round_trip(vector, layout_of(3, 3), name)
    assert np.all(np.abs(decoded - vector)[3:] <= 0.0006 / levels_of(name))


@pytest.mark.parametrize("name", ["int8:channel", "int4:channel"])
def test_a_large_row_does_not_coarsen_the_small_one_below_it(name: str) -> None:
    layout = AdapterLayout("", (), (TensorLayout("t", (2, 3)),))
    vector = np.array([1000, -500, 250, 0.001, -0.001, 0.0005], np.float32)
    decoded = round_trip(vector, layout, name)
    assert np.all(np.abs(decoded - vector)[3:] <= 0.0006 / levels_of(name))


@pytest.mark.parametrize("name", ["fp32", "fp16", *NEAREST, *STOCHASTIC, "sign"])
@pytest.mark.parametrize("filler", EXTREMES)
def test_vectors_of_extreme_numbers_stay_finite_and_near(name: str, filler: float) -> None:
    vector = np.full(131, filler, np.float32)
    decoded = round_trip(vector, layout_of(1, 0, 130), name)
    assert np.isfinite(decoded).all()
    # 1.5e-36: where the scale would be subnormal, a block travels as zeros.
    np.testing.assert_allclose(decoded, vector, rtol=2**-11, atol=1.5e-36)


@pytest.mark.parametrize("name", ECSQ)
@pytest.mark.parametrize("filler", EXTREMES)
def test_ecsq_of_extreme_numbers_stays_finite_and_keeps_each_element_or_leaves_it_out(
    name: str, filler: float
) -> None:
    vector = np.full(1310, filler, np.float32)
    decoded = round_trip(vector, layout_of(1, 0, 1309), name)
    sent = decoded[decoded != 0]
    # All elements are the same, so that one level says all; tiny vectors travel as zeros.
    assert sent.size >= (0.2 * vector.size if abs(filler) > 1e-28 else 0)
    np.testing.assert_allclose(sent, np.full(sent.size, filler), rtol=1e-6)


@pytest.mark.parametrize("name", ["fp32", "fp16", *NEAREST, *STOCHASTIC])
def test_a_block_of_zeros_between_others_stays_zero(name: str) -> None:
    vector = np.ones(192, np.float32)
    vector[64:128] = 0
    layout = AdapterLayout("", (), (TensorLayout("t", (3, 64)),))
    assert np.array_equal(round_trip(vector, layout, name), vector)


@every_codec
def test_subnormal_next_to_huge_numbers_come_out_finite(name: str) -> None:
    vector = np.concatenate([np.full(640, 3e38), np.full(640, 1e-44)]).astype(np.float32)
    decoded = round_trip(vector, layout_of(640, 640), name)
    if name not in {"ecsq:0.3", "ecsq:1"}:  # too few bits for all of the large elements
        np.testing.assert_allclose(decoded, vector, rtol=2**-11, atol=2e-38)
    assert np.isfinite(decoded).all()


@every_codec
@pytest.mark.parametrize("sizes", [(0,), (0, 0), (1,), (0, 1, 0), (63, 64, 65), (65_537, 1)])
def test_decoded_vectors_are_new_and_writeable(name: str, sizes: tuple[int, ...]) -> None:
    layout = layout_of(*sizes)
    vector = np.linspace(-1, 1, layout.size, dtype=np.float32)
    body = quantized(vector, layout.tensors, codec(name))
    decoded = codec(name).dequantize(memoryview(body), layout.tensors)
    assert decoded.shape == (layout.size,)
    decoded[:] = 0
    assert quantized(vector, layout.tensors, codec(name)) == body


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_blocks_are_the_same_where_thousands_are_worked_on_in_runs(name: str) -> None:
    layout = layout_of(*[65] * 1500)  # 3000 blocks: runs of 1024 end in the middle of a tensor
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    decoded = round_trip(vector, layout, name)
    for block in blocks_of(layout.tensors, name):
        scale = np.abs(vector[block]).max() / levels_of(name)
        assert np.all(np.abs(decoded[block] - vector[block]) <= scale * 0.51 + 1e-6)


def test_rows_longer_than_what_is_worked_on_at_a_time_have_one_scale_each() -> None:
    layout = AdapterLayout("", (), (TensorLayout("t", (2, 70_000)), TensorLayout("u", (3, 5))))
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    vector[70_000:140_000] *= 1e-3
    decoded = round_trip(vector, layout, "int8:channel")
    assert len(quantized(vector, layout.tensors, codec("int8:channel"))) == 4 + 2 * 5 + layout.size
    for block in blocks_of(layout.tensors, "int8:channel"):
        scale = np.abs(vector[block]).max() / 127
        assert np.all(np.abs(decoded[block] - vector[block]) <= scale * 0.51 + 1e-6)


@patient
@given(layouts(), seeds, st.sampled_from([1e-6, 1.0, 1e30]))
def test_sign_is_the_multiple_of_each_tensors_signs_that_is_nearest_to_it(
    layout: AdapterLayout, seed: int, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    decoded = round_trip(vector, layout, "sign")
    largest = max(
        (np.abs(vector[b]).mean() for b in blocks_of(layout.tensors, "sign") if vector[b].size), default=0
    )
    for tensor in blocks_of(layout.tensors, "sign"):
        signs = np.where(vector[tensor] < 0, -1.0, 1.0)
        nearest = (vector[tensor] @ signs) / max(signs.size, 1) * signs
        np.testing.assert_allclose(decoded[tensor], nearest, rtol=2**-10, atol=2.0**-24 * largest)


@stochastic
def test_rounding_at_random_is_right_on_average(name: str) -> None:
    draws = 400
    layout = layout_of(640)
    vector = np.random.default_rng(1).standard_normal(640).astype(np.float32)
    generator = np.random.default_rng(2)
    rounder = codec(name)
    received = [
        rounder.dequantize(memoryview(rounder.quantize(vector, layout.tensors, generator)), layout.tensors)
        for _ in range(draws)
    ]
    off = np.mean(received, axis=0, dtype=np.float64) - vector
    for block in blocks_of(layout.tensors, name):
        scale = np.abs(vector[block]).max() / levels_of(name)
        # A draw's standard deviation is scale · √(p(1 − p)), at most half a scale: six sigma of the mean.
        assert np.abs(off[block]).max() <= 6 * 0.5 * scale / np.sqrt(draws)
    assert np.abs(off).max() > 0
    assert len({r.tobytes() for r in received}) == draws


@stochastic
def test_rounding_at_random_is_repeatable_and_speaks_the_language_of_rounding_to_nearest(name: str) -> None:
    layout = layout_of(640)
    vector = np.random.default_rng(1).standard_normal(640).astype(np.float32)
    family = codec(name.partition(":")[0])
    body = quantized(vector, layout.tensors, codec(name), seed=5)
    assert body == quantized(vector, layout.tensors, codec(name), seed=5)
    assert body != quantized(vector, layout.tensors, codec(name), seed=6)
    assert body[:24] == quantized(vector, layout.tensors, family)[:24]  # unit and scales
    decoded = round_trip(vector, layout, name, seed=5)
    assert np.array_equal(family.dequantize(memoryview(body), layout.tensors), decoded)
    assert np.array_equal(codec_of_id(family.id).dequantize(memoryview(body), layout.tensors), decoded)
