import math
import struct
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from compression_cases import ECSQ, patient, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from payload_reference import EcsqBody, reference_ecsq_body, reference_weights

from fedkron.compression import codec
from fedkron.errors import PayloadError
from fedkron.layout import TensorLayout, Vector

# 8 bytes of window, 2 of the number of levels, 8 of the zero's and the first level's weight and value, and
# what the coder's state needs beyond the codes' entropy.
OVERHEAD = 8 + 2 + 8 + 8
RNG = np.random.default_rng(0)  # not drawn from


def vector_of(size: int) -> tuple[TensorLayout, ...]:
    return (TensorLayout("t", (size,)),)


def encoded(vector: Vector, name: str) -> bytes:
    return codec(name).quantize(vector, vector_of(vector.size), RNG)


def decoded(body: bytes, size: int) -> Vector:
    return codec("ecsq").dequantize(memoryview(body), vector_of(size))


def error_of(vector: Vector, received: Vector) -> float:
    """Squared error over squared norm."""
    exact = vector.astype(np.float64)
    return float(np.sum((exact - received) ** 2) / np.sum(exact**2))


def bits_of(body: bytes, vector: Vector) -> float:
    return 8 * len(body) / vector.size


def gaussian(size: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


KINDS = ("gaussian", "signs", "sparse signs", "outliers", "cauchy", "one element", "constant", "half zeros")


def vector_like(kind: str, size: int, seed: int, scale: float) -> Vector:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(size)
    with np.errstate(under="ignore"):
        shape = {
            "gaussian": normal,
            "signs": np.sign(normal),
            "sparse signs": np.sign(normal) * (rng.random(size) < 0.1),
            "outliers": np.where(rng.random(size) < 0.01, 1e6, 1) * normal,
            "cauchy": rng.standard_cauchy(size),
            "one element": (np.arange(size) == rng.integers(max(size, 1))).astype(float),
            "constant": np.ones(size),
            "half zeros": np.where(np.arange(size) % 2, normal, 0),
        }[kind]
        peak = np.abs(shape).max(initial=0) or 1
        return (shape / peak * scale).astype(np.float32)


vectors = st.builds(
    vector_like,
    st.sampled_from(KINDS),
    st.integers(0, 700),
    seeds,
    st.sampled_from([1e-38, 1e-27, 1e-3, 3.4028235e38]),
)


@settings(patient, max_examples=150)
@given(vectors, st.sampled_from(ECSQ))
def test_the_reference_reads_the_same_numbers_and_writes_the_same_bytes(vector: Vector, name: str) -> None:
    body = encoded(vector, name)
    parsed = EcsqBody.read(body, vector.size)
    assert decoded(body, vector.size).tolist() == parsed.values(vector.size)
    if parsed.codes:
        assert reference_ecsq_body(parsed.first, parsed.levels, parsed.codes) == body
    else:
        assert body == bytes(8)


@settings(patient, max_examples=150)
@given(vectors, st.sampled_from(ECSQ))
def test_codes_keep_order_and_sign_and_each_level_is_the_mean_of_its_elements(
    vector: Vector, name: str
) -> None:
    parsed = EcsqBody.read(encoded(vector, name), vector.size)
    window = [float(vector[(parsed.first + i) % vector.size]) for i in range(len(parsed.codes))]
    members: dict[int, list[float]] = {}
    for x, code in zip(window, parsed.codes, strict=True):
        members.setdefault(abs(code), []).append(abs(x))
        assert code * x >= 0
        assert code >= 0 or x < 0
    groups = [members[k] for k in sorted(members)]
    assert all(max(low) < min(high) for low, high in pairwise(groups))
    for k, group in members.items():
        if k:
            mean = max(math.fsum(group) / len(group), 2.0**-126)
            assert parsed.levels[k - 1] == pytest.approx(mean, rel=2.0**-23)


@patient
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=300), st.integers(0, 5))
def test_any_codes_written_by_the_reference_are_read_as_they_are(codes: list[int], spare: int) -> None:
    top = max(map(abs, codes))
    if top == 0:
        return
    levels = [float(k + 1) for k in range(top)]
    body = reference_ecsq_body(0, levels, codes)
    padded = len(codes) + spare
    assert decoded(body, padded).tolist() == [float(code) for code in codes] + [0.0] * spare


@pytest.mark.parametrize("bits", [0.1, 0.3, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_a_limit(kind: str, bits: float) -> None:
    vector = vector_like(kind, 60_000, 1, 1.0)
    body = encoded(vector, f"ecsq:{bits}")
    # The coder's 24-bit probabilities come from 16-bit weights: that costs up to a thousandth.
    assert len(body) <= 1.002 * bits * vector.size / 8 + OVERHEAD


@pytest.mark.parametrize("size", [150_001, 400_000])
def test_bits_are_a_limit_where_only_a_sample_is_looked_at(size: int) -> None:
    vector = gaussian(size) * np.exp(gaussian(size, 1))
    for bits in (0.5, 1, 2, 4):
        assert bits_of(encoded(vector, f"ecsq:{bits}"), vector) == pytest.approx(bits, rel=0.02)


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_a_limit(kind: str, error: float) -> None:
    vector = vector_like(kind, 60_000, 1, 1e-3)
    received = decoded(encoded(vector, f"ecsq:nmse={error}"), vector.size)
    assert error_of(vector, received) <= error * 1.001


@pytest.mark.parametrize("error", [0.1, 0.01, 1e-3])
def test_the_error_is_kept_where_only_a_sample_is_looked_at_and_not_by_waste(error: float) -> None:
    vector = gaussian(300_000)
    received = decoded(encoded(vector, f"ecsq:nmse={error}"), vector.size)
    assert 0.9 * error <= error_of(vector, received) <= 1.03 * error


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_gaussians_come_near_to_shannons_bound(bits: float) -> None:
    vector = gaussian(60_000)
    body = encoded(vector, f"ecsq:{bits}")
    bound = 0.5 * math.log2(1 / error_of(vector, decoded(body, vector.size)))
    assert bound < bits_of(body, vector) <= bound + 0.35


def test_more_bits_leave_less_error() -> None:
    vector = gaussian(20_000) ** 3
    errors = [
        error_of(vector, decoded(encoded(vector, f"ecsq:{bits}"), vector.size))
        for bits in (0.2, 0.5, 1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("name", ["ecsq", "ecsq:1", "ecsq:12", "ecsq:nmse=1e-6"])
def test_plus_or_minus_one_size_needs_one_bit_and_loses_nothing(name: str) -> None:
    vector = np.where(gaussian(50_000) < 0, -0.01, 0.01).astype(np.float32)
    body = encoded(vector, name)
    assert np.array_equal(decoded(body, vector.size), vector)
    assert bits_of(body, vector) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["ecsq", "ecsq:4", "ecsq:12", "ecsq:nmse=1e-6"])
def test_few_elements_that_are_not_zero_need_their_entropy_and_lose_nothing(name: str) -> None:
    vector = vector_like("sparse signs", 50_000, 3, 0.01)
    counts = np.array(list(Counter(vector.tolist()).values())) / vector.size
    entropy = float(-(counts * np.log2(counts)).sum())
    body = encoded(vector, name)
    assert np.array_equal(decoded(body, vector.size), vector)
    assert bits_of(body, vector) == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize(("name", "size"), [("ecsq", 1), ("ecsq:1", 3), ("ecsq:0.1", 10), ("ecsq:0.3", 50)])
def test_with_what_was_left_out_added_the_next_time_even_a_small_section_arrives(
    name: str, size: int
) -> None:
    vector = np.where(gaussian(size) < 0, -1, 1).astype(np.float32) * np.linspace(
        1, 2, size, dtype=np.float32
    )
    residual = np.zeros(size, np.float32)
    for _ in range(80):
        meant = residual + vector
        residual = meant - decoded(encoded(meant, name), size)
    assert np.abs(residual).max() < 25  # where nothing arrives it is 80 to 160


# The window.


def test_below_one_bit_a_window_holds_the_most_energy_and_the_rest_waits() -> None:
    size = 25_600
    vector = np.where(gaussian(size) < 0, -1e-3, 1e-3).astype(np.float32)
    vector[7_000:13_000] *= 2
    body = encoded(vector, "ecsq:0.2")
    first, count = struct.unpack_from("<II", body)
    received = decoded(body, size)
    assert first % 100 == 0
    assert 0.1 * size < count < 0.3 * size
    assert not received[:first].any()
    assert not received[first + count :].any()
    np.testing.assert_allclose(received[first : first + count], vector[first : first + count], rtol=1e-6)
    energy = [np.sum(np.take(vector, range(s, s + count), mode="wrap") ** 2) for s in range(0, size, 100)]
    assert energy[first // 100] == pytest.approx(max(energy))


def test_the_window_goes_on_at_the_start_of_the_vector() -> None:
    size = 25_600
    vector = np.where(gaussian(size) < 0, -1e-3, 1e-3).astype(np.float32)
    vector[:2_000] *= 3
    vector[-2_500:] *= 3
    body = encoded(vector, "ecsq:0.15")
    first, count = struct.unpack_from("<II", body)
    received = decoded(body, size)
    end = first + count - size
    assert first > size - 3_000
    assert end > 0
    assert not received[end:first].any()
    np.testing.assert_array_equal(np.sign(received[:end]), np.sign(vector[:end]))
    np.testing.assert_array_equal(np.sign(received[first:]), np.sign(vector[first:]))


@patient
@given(st.integers(1, 40), st.data())
def test_a_window_lies_exactly_where_it_says(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    first = data.draw(st.integers(0, size - 1)) if count < size else 0
    codes = data.draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    codes[0] = 3
    expected = [0.0] * size
    for i, code in enumerate(codes):
        expected[(first + i) % size] = code / 2
    assert decoded(reference_ecsq_body(first, [0.5, 1.0, 1.5], codes), size).tolist() == expected


def test_energy_that_the_sample_misses_is_sent_all_the_same() -> None:
    vector = np.zeros(400_000, np.float32)
    vector[[1, 2, 200_002]] = 1, -1, 1
    for name in ("ecsq", "ecsq:0.1", "ecsq:nmse=0.01"):
        received = decoded(encoded(vector, name), vector.size)
        assert received[[1, 2]].tolist() == [1, -1]


def test_zeros_and_nothing_have_an_empty_window() -> None:
    for size in (0, 1, 70, 100_000):
        for name in ECSQ:
            assert encoded(np.zeros(size, np.float32), name) == bytes(8)
        assert decoded(bytes(8), size).tolist() == [0.0] * size


# What no encoder writes.

CODES = [1, -2, 0, 0, 1, 0, 2, 0, -1, 0]
LEVELS = [0.5, 1.5]
BODY = reference_ecsq_body(3, LEVELS, CODES)
SIZE = 20


def with_words(codes: list[int], weights: list[int], levels: list[float]) -> bytes:
    """A body with the reference's words for `codes`, under a table that may be another one."""
    right = reference_ecsq_body(0, levels, codes)
    start = 10 + 2 * len(weights)
    return right[:10] + struct.pack(f"<{len(weights)}H", *weights) + right[start:]


def edited(offset: int, replacement: bytes) -> bytes:
    return BODY[:offset] + replacement + BODY[offset + len(replacement) :]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (edited(0, struct.pack("<I", SIZE)), "window has 10 of 20 elements from 20 on"),
        (edited(0, struct.pack("<I", 2**32 - 1)), "elements from 4294967295 on"),
        (edited(4, struct.pack("<I", SIZE + 1)), "window has 21 of 20 elements"),
        (edited(4, struct.pack("<I", 2**32 - 1)), "window has 4294967295 of 20 elements"),
        (edited(4, struct.pack("<I", SIZE)), "window has 20 of 20 elements from 3 on"),
        (edited(4, struct.pack("<I", 0)), "window has 0 of 20 elements from 3 on"),
        (bytes(8) + BODY[8:], "bytes behind an empty window"),
        (BODY[:8], "table is missing"),
        (BODY[:9], "table is missing"),
        (edited(8, struct.pack("<H", 0)), "table has 0 levels"),
        (edited(8, struct.pack("<H", 4096)), "table has 4096 levels"),
        (edited(8, struct.pack("<H", 65535)), "table has 65535 levels"),
        (BODY[:-1], "table has 2 levels, its body"),
        (BODY[:14], "table has 2 levels, its body"),
        (edited(14, bytes(2)), "gives its last level the weight 0"),
        (edited(16, struct.pack("<f", math.nan)), "not a positive finite number"),
        (edited(20, struct.pack("<f", math.inf)), "not a positive finite number"),
        (edited(16, struct.pack("<f", -1.0)), "not a positive finite number"),
        (edited(16, struct.pack("<f", 0.0)), "not a positive finite number"),
        (edited(16, struct.pack("<f", 1e-39)), "not a positive finite number"),
        (edited(16, struct.pack("<f", 1.5)), "levels that do not increase"),
        (edited(16, struct.pack("<f", 2.0)), "levels that do not increase"),
        (BODY + bytes(4), "last word is zero"),
        (BODY + b"\1\0\0\0", "words are not those of 10 codes"),
        (BODY[:-4], "words are not those of 10 codes"),
        (edited(4, struct.pack("<I", 9)), "words are not those of 9 codes"),
        (edited(10, struct.pack("<H", 65534)), "words are not those of|weights are not those of"),
        (edited(12, struct.pack("<H", 0)), "words are not those of|weights are not those of"),
    ],
)
def test_a_body_that_no_encoder_writes_is_refused_by_what_is_wrong(body: bytes, message: str) -> None:
    assert decoded(BODY, SIZE)[3] == 0.5
    with pytest.raises(PayloadError, match=message):
        decoded(body, SIZE)


def test_weights_that_are_not_those_of_the_codes_are_refused() -> None:
    codes = [1, -1, 0, 0]
    assert reference_weights(codes, 1) == [65535, 32768]
    # Twice as likely or half as likely: the words change, the codes do not. Only one table may say them.
    other = reference_ecsq_body(0, [1.0], [1, -1, 0, 0, 0, 0, 0, 0])
    words = EcsqBody.read(other, 8)
    assert words.weights != reference_weights(codes, 1)
    body = other[:4] + struct.pack("<I", 4) + other[8:]
    with pytest.raises(PayloadError, match=r"words are not those of|weights are not those of"):
        decoded(body, 8)


@settings(patient, max_examples=300)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
    st.lists(st.integers(0, 65535), min_size=2, max_size=4),
    st.integers(1, 12),
)
def test_whatever_words_are_accepted_are_those_of_the_codes_they_mean(
    words: list[int], weights: list[int], count: int
) -> None:
    levels = [float(k) for k in range(1, len(weights))]
    body = (
        struct.pack("<IIH", 0, count, len(levels))
        + struct.pack(f"<{len(weights)}H", *weights)
        + struct.pack(f"<{len(levels)}f", *levels)
        + struct.pack(f"<{len(words)}I", *words)
    )
    try:
        values = decoded(body, count)
    except PayloadError:
        return
    assert reference_ecsq_body(0, levels, [int(x) for x in values]) == body
