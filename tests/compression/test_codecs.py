import numpy as np
import pytest
from compression_cases import CODEC_NAMES, blocks_of, layouts, patient, random_update, seeds
from hypothesis import given
from hypothesis import strategies as st

from fedkron.compression import CODECS, Codec, codec
from fedkron.errors import ConfigError
from fedkron.layout import AdapterLayout, TensorLayout, flatten

LEVELS = {"int8": 127, "int4": 7}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
blockwise = pytest.mark.parametrize("codec", [CODECS[name] for name in LEVELS], ids=LEVELS)


def layout_of(*sizes: int) -> AdapterLayout:
    return AdapterLayout("", (), tuple(TensorLayout(f"t{i}", (size,)) for i, size in enumerate(sizes)))


def round_trip(vector: np.ndarray, layout: AdapterLayout, codec: Codec) -> np.ndarray:
    return codec.dequantize(codec.quantize(vector, layout), layout)


def test_codecs_are_found_by_name_and_have_distinct_wire_ids() -> None:
    assert list(CODECS) == CODEC_NAMES
    assert all(codec(name).name == name for name in CODEC_NAMES)
    assert [codec(name).id for name in CODEC_NAMES] == [0, 1, 2, 3]


def test_an_unknown_codec_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        codec("int5")
    assert str(error.value) == "codec 'int5' does not exist: use one of fp32, fp16, int8, int4"


@patient
@given(layouts(), seeds)
def test_fp32_is_exact(layout: AdapterLayout, seed: int) -> None:
    vector = flatten(random_update(layout, seed), layout)
    assert np.array_equal(round_trip(vector, layout, CODECS["fp32"]), vector)


@patient
@given(layouts(), seeds, st.sampled_from([1e-36, 1e-20, 1e-6, 1.0, 1e6, 1e30]))
def test_fp16_is_within_half_a_unit_of_eleven_bits_whatever_the_size_of_the_update(
    layout: AdapterLayout, seed: int, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    peak = np.abs(vector).max(initial=0)
    error = np.abs(round_trip(vector, layout, CODECS["fp16"]) - vector)
    # Relative 2^-11 for normal halves, half of the smallest half (2^-24) below; the peak is 2^14 to 2^15.
    assert np.all(error <= np.maximum(2.0**-11 * np.abs(vector), 2.0**-25 * peak / 2**14))


@blockwise
@patient
@given(layouts(), seeds, st.sampled_from([1e-30, 1e-6, 1.0, 1e30]))
def test_each_element_is_within_half_of_its_blocks_scale(
    codec: Codec, layout: AdapterLayout, seed: int, size: float
) -> None:
    vector = flatten(random_update(layout, seed, size), layout)
    decoded = round_trip(vector, layout, codec)
    # A scale is its block's peak over the levels, rounded up to a float16 fraction of the largest.
    smallest = np.abs(vector).max(initial=0) / LEVELS[codec.name] * 2.0**-24
    for block in blocks_of(layout):
        exact = np.abs(vector[block]).max() / LEVELS[codec.name]
        scale = max(exact * (1 + 2.0**-10), exact + smallest)
        assert np.all(np.abs(decoded[block] - vector[block]) <= scale / 2 * (1 + 1e-4))


@blockwise
@patient
@given(layouts(), seeds)
def test_quantizing_what_was_decoded_changes_it_by_rounding_alone(
    codec: Codec, layout: AdapterLayout, seed: int
) -> None:
    decoded = round_trip(flatten(random_update(layout, seed), layout), layout, codec)
    peak = np.abs(decoded).max(initial=0)
    assert np.all(np.abs(round_trip(decoded, layout, codec) - decoded) <= 2e-3 * peak)


@blockwise
def test_a_large_tensor_does_not_coarsen_the_small_one_next_to_it(codec: Codec) -> None:
    layout = layout_of(3, 3)
    vector = np.array([1000, -500, 250, 0.001, -0.001, 0.0005], np.float32)
    decoded = round_trip(vector, layout, codec)
    assert np.all(np.abs(decoded - vector)[3:] <= 0.0006 / LEVELS[codec.name])


@every_codec
@pytest.mark.parametrize("filler", [0.0, 1e-45, -1e-40, 2e-38, 1e30, -3.4028235e38])
def test_vectors_of_extreme_numbers_stay_finite_and_near(codec: Codec, filler: float) -> None:
    layout = layout_of(1, 0, 130)
    vector = np.full(131, filler, np.float32)
    decoded = round_trip(vector, layout, codec)
    assert np.isfinite(decoded).all()
    # 1.5e-36: where the scale would be subnormal, a block travels as zeros.
    np.testing.assert_allclose(decoded, vector, rtol=2**-11, atol=1.5e-36)


@every_codec
def test_a_block_of_zeros_between_others_stays_zero(codec: Codec) -> None:
    layout = layout_of(192)
    vector = np.ones(192, np.float32)
    vector[64:128] = 0
    assert np.array_equal(round_trip(vector, layout, codec), vector)


@every_codec
def test_subnormal_next_to_huge_numbers_come_out_finite(codec: Codec) -> None:
    layout = layout_of(64, 64)
    vector = np.concatenate([np.full(64, 3e38), np.full(64, 1e-44)]).astype(np.float32)
    decoded = round_trip(vector, layout, codec)
    np.testing.assert_allclose(decoded, vector, rtol=2**-11, atol=1e-40)


@every_codec
@pytest.mark.parametrize("sizes", [(), (0,), (0, 0), (1,), (0, 1, 0), (63, 64, 65), (65_537, 1)])
def test_decoded_vectors_are_new_writeable_float32_of_the_layouts_size(
    codec: Codec, sizes: tuple[int, ...]
) -> None:
    layout = layout_of(*sizes)
    vector = np.linspace(-1, 1, layout.size, dtype=np.float32)
    body = codec.quantize(vector, layout)
    decoded = codec.dequantize(body, layout)
    assert len(body) == codec.size(layout)
    assert decoded.dtype == np.float32
    assert decoded.shape == (layout.size,)
    decoded[:] = 0
    assert codec.quantize(vector, layout) == body


@blockwise
def test_blocks_are_the_same_where_thousands_are_worked_on_in_runs(codec: Codec) -> None:
    layout = layout_of(*[65] * 1500)  # 3000 blocks: runs of 1024 end in the middle of a tensor
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    decoded = round_trip(vector, layout, codec)
    for block in blocks_of(layout):
        scale = np.abs(vector[block]).max() / LEVELS[codec.name]
        assert np.all(np.abs(decoded[block] - vector[block]) <= scale * 0.51 + 1e-6)
