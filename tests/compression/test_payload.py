import hashlib
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from compression_cases import (
    CODEC_NAMES,
    ECSQ,
    EXACTLY_SPECIFIED,
    WIRE_IDS,
    layout_of,
    layouts,
    patient,
    random_update,
    seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from payload_reference import reference_decode, reference_payload, reseal

from fedkron.compression import Header, Kind, codec, decode, encode, inspect_header, payload_sizes
from fedkron.compression.payload import decode_vector
from fedkron.errors import (
    AdapterError,
    ChecksumError,
    ConfigError,
    ContractError,
    NonFiniteError,
    PayloadError,
    TrailingBytesError,
    TruncatedPayloadError,
    UnknownCodecError,
    UnknownVersionError,
)
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

every_codec = pytest.mark.parametrize("name", CODEC_NAMES)
names = st.sampled_from(CODEC_NAMES)

FACTORS = (TensorLayout("A", (3,)), TensorLayout("B1", (2, 35)))
HEAD = (TensorLayout("head.bias", (5,)),)
# Blocks of 3, 64 and 6, rows of 3, 35 and 35; then, on their own, the five of the head.
LAYOUT = AdapterLayout("00" * 32, (ModuleLayout("q", "kron_lora", 4.0, (24, 10), FACTORS),), HEAD)
UPDATE = {
    "q.A": np.array([7.0, -3.25, 0.75], np.float32),
    "q.B1": (np.arange(70, dtype=np.float32).reshape(2, 35) - 20) / 9,
    "head.bias": np.array([0.5, -0.25, 0, 0.125, -0.5], np.float32),
}

GOLDEN = {
    "int4": (
        "464b524e020300002f000000000000000900000000000000b41189178553d7a40f43ba4f0df1acab4eb79718142ba926"
        "66c643470cf5846503000000fa1a8fd40000803f003c7639393a5f595555666666777777888888989999a9aaaababbbb"
        "cbccccdcddddedeeeefeffeffeff0f2549923d003c5fa801"
    ),
    "sign": (
        "464b524e0207000012000000000000000700000000000000b41189178553d7a40f43ba4f0df1acab4eb79718142ba926"
        "66c643470cf5846503000000243a948eabaa6a40003cf838faff7f00000000000000cdcc8c3e003c12"
    ),
    "ecsq": (
        "464b524e0206000026000000000000001600000000000000b41189178553d7a40f43ba4f0df1acab4eb79718142ba926"
        "66c643470cf584650300000080c2126c00000000490000000100ffffd292a3e064407c90e3d8040c7b9c9a7e0517fb77"
        "fd102e00000000000000050000000100ffffffbf5555d53eab66e606"
    ),
    "ecsq:0.3": (
        "464b524e020600001a000000000000001600000000000000b41189178553d7a40f43ba4f0df1acab4eb79718142ba926"
        "66c643470cf584650300000088afeb11350000001500000001000000ffff5c6c9040000080ffff0f0000000000000100"
        "000001000000ffff0000003f00008000"
    ),
    "ecsq:1": (
        "464b524e0206000022000000000000001600000000000000b41189178553d7a40f43ba4f0df1acab4eb79718142ba926"
        "66c643470cf5846503000000b3707662000000004900000001000000ffff456e1540000080ff06001305001080000100"
        "0000000000000500000001000000ffffcdcc8c3e03008006"
    ),
}
"""Payloads of UPDATE, round 3: written by the reference where it can write them. They never change."""

GOLDEN_HASHES = {
    "fp32": "46aecb6724f2c7573f954b49e7cc8433066659cbd487c5a90f11e6df9bd21ec5",
    "fp16": "cf041f6154f16198a959270d9f586950413489b400a2b77679aa75678be7bcff",
    "int8": "840017d1c23384babc7db7c8650b32103b3a6b00f97c498a2cc0d46c6ffefad4",
    "int8:channel": "0e3cc6ee7c5e550f8c6557c5c08f11320e26387ae18b65a3fcc4c277fa14d96e",
    "int4:channel": "23bbc8a3ece1c99b00c65f569874618d37756738bdc7a091764435b1311ef4db",
    "int8:stochastic": "8ba4dae6df4bd4a3d14fa47bdf42b04fab5e9163a031f6014d4184c014b8b94f",
    "int4:stochastic": "efefcb983db52ddca636cf6b004d54ea050d6212d02bcaae4460ccbf65d81c41",
    "ecsq:8": "cd0b58663a67669954800255a741708174cefbefd3e52772609b537166b03aea",
    "ecsq:nmse=0.01": "ee813704e214cdc51a8f371b4607b0b3a8e98849b393352b6dd2dd4a44a11327",
    "ecsq:nmse=1e-6": "e06dfa395016225dedbc8112cd04bc3fd0e411fa28b09292eeb44d29dd054af0",
}
"""SHA-256 of the longer ones."""


@pytest.mark.parametrize("name", EXACTLY_SPECIFIED)
def test_the_payload_is_byte_for_byte_the_one_of_the_specification(name: str) -> None:
    assert encode(UPDATE, LAYOUT, codec(name), round=3) == reference_payload(UPDATE, LAYOUT, name, 3)


@pytest.mark.parametrize(("name", "golden"), GOLDEN.items())
def test_short_payloads_never_change_their_bytes(name: str, golden: str) -> None:
    assert encode(UPDATE, LAYOUT, codec(name), round=3).hex() == golden


@pytest.mark.parametrize(("name", "golden"), GOLDEN_HASHES.items())
def test_long_payloads_never_change_their_bytes(name: str, golden: str) -> None:
    assert hashlib.sha256(encode(UPDATE, LAYOUT, codec(name), round=3)).hexdigest() == golden


def test_each_codec_has_a_payload_that_never_changes() -> None:
    assert set(GOLDEN) | set(GOLDEN_HASHES) == set(CODEC_NAMES)


@pytest.mark.parametrize(("name", "golden"), GOLDEN.items())
def test_the_reference_reads_in_a_payload_what_the_decoder_reads(name: str, golden: str) -> None:
    blob = bytes.fromhex(golden)
    _, vector = decode_vector(blob, LAYOUT)
    assert vector.tolist() == reference_decode(blob, LAYOUT)
    assert blob[5] == WIRE_IDS[name]


@patient
@given(
    layouts(),
    seeds,
    st.sampled_from(EXACTLY_SPECIFIED),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-38, 1e-3, 1e30]),
)
def test_any_update_becomes_the_bytes_of_the_specification(
    layout: AdapterLayout, seed: int, name: str, round_: int, size: float
) -> None:
    update = random_update(layout, seed, size)
    kind = Kind(round_ % 3)
    blob = encode(update, layout, codec(name), round=round_, kind=kind)
    assert blob == reference_payload(update, layout, name, round_, int(kind))


@patient
@given(layouts(), seeds, names, st.sampled_from([1e-38, 1e-3, 1e30]))
def test_the_reference_decodes_any_payload_to_the_same_numbers(
    layout: AdapterLayout, seed: int, name: str, size: float
) -> None:
    blob = encode(random_update(layout, seed, size), layout, codec(name), round=0)
    assert decode_vector(blob, layout)[1].tolist() == reference_decode(blob, layout)


@pytest.mark.parametrize("name", EXACTLY_SPECIFIED)
@pytest.mark.parametrize("filler", [0.0, 1e-45, 1.2e-38, 3e-36, 1e30, -3.4028235e38])
def test_extreme_numbers_become_the_bytes_of_the_specification(name: str, filler: float) -> None:
    update = {
        "q.A": np.full(3, filler, np.float32),
        "q.B1": np.full((2, 35), filler / 3, np.float32),
        "head.bias": np.full(5, -filler / 2, np.float32),
    }
    assert encode(update, LAYOUT, codec(name), round=0) == reference_payload(update, LAYOUT, name, 0)


@patient
@given(layouts(), seeds, names, st.integers(0, 2**32 - 1), st.sampled_from(Kind))
def test_a_payload_decodes_to_finite_tensors_of_the_layout_and_tells_codec_kind_and_round(
    layout: AdapterLayout, seed: int, name: str, round_: int, kind: Kind
) -> None:
    blob = encode(random_update(layout, seed), layout, codec(name), round=round_, kind=kind)
    decoded = decode(blob, layout)
    assert (decoded.kind, decoded.round) == (kind, round_)
    assert codec(decoded.codec).id == codec(name).id
    assert {name: x.shape for name, x in decoded.update.items()} == {t.name: t.shape for t in layout.tensors}
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in decoded.update.values())


@patient
@given(layouts(), seeds, names)
def test_the_sizes_of_a_payload_are_known_without_encoding(
    layout: AdapterLayout, seed: int, name: str
) -> None:
    blob = encode(random_update(layout, seed), layout, codec(name), round=0)
    assert len(blob) in payload_sizes(layout, codec(name))
    assert name in ECSQ or len(payload_sizes(layout, codec(name))) == 1


@every_codec
def test_encoding_twice_gives_the_same_bytes_and_leaves_the_update_alone(name: str) -> None:
    copy = {name: tensor.copy() for name, tensor in UPDATE.items()}
    assert encode(UPDATE, LAYOUT, codec(name), round=1) == encode(copy, LAYOUT, codec(name), round=1)
    assert all(np.array_equal(UPDATE[name], copy[name]) for name in copy)


@every_codec
def test_the_header_can_be_read_without_a_layout(name: str) -> None:
    blob = encode(UPDATE, LAYOUT, codec(name), round=42, kind=Kind.STATE)
    factors, dense = struct.unpack_from("<QQ", blob, 8)
    (checksum,) = struct.unpack_from("<I", blob, 60)
    known_as = inspect_header(blob).codec
    assert codec(known_as).id == codec(name).id
    assert inspect_header(blob) == Header(2, known_as, "STATE", 42, factors, dense, LAYOUT.contract, checksum)
    assert len(blob) == 64 + factors + dense


@every_codec
def test_what_is_in_one_section_does_not_change_the_other(name: str) -> None:
    other = UPDATE | {"head.bias": np.full(5, 1e30, np.float32)}
    ours, theirs = (encode(update, LAYOUT, codec(name), round=3) for update in (UPDATE, other))
    (factors,) = struct.unpack_from("<Q", ours, 8)
    assert ours[64 : 64 + factors] == theirs[64 : 64 + factors]
    assert ours[64 + factors :] != theirs[64 + factors :]


@every_codec
def test_a_section_without_tensors_has_an_empty_body(name: str) -> None:
    only_dense, only_factors = replace(LAYOUT, modules=()), replace(LAYOUT, dense=())
    factors = {n: UPDATE[n] for n in ("q.A", "q.B1")}
    head = {"head.bias": UPDATE["head.bias"]}
    first, second = struct.unpack_from("<QQ", encode(factors, only_factors, codec(name), round=3), 8)
    assert (first > 0, second) == (True, 0)
    first, second = struct.unpack_from("<QQ", encode(head, only_dense, codec(name), round=3), 8)
    assert (first, second > 0) == (0, True)
    empty = AdapterLayout("", ())
    blob = encode({}, empty, codec(name), round=0)
    assert len(blob) == 64
    assert decode(blob, empty).update == {}


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@every_codec
def test_an_update_that_is_not_finite_is_refused_by_the_name_of_its_tensor(name: str, poison: float) -> None:
    layout = AdapterLayout(
        "", (), (TensorLayout("a", (2,)), TensorLayout("e", (0,)), TensorLayout("b", (2,)))
    )
    update = {"a": np.ones(2, np.float32), "e": np.ones(0, np.float32), "b": np.ones(2, np.float32)}
    update["b"][0] = poison
    with pytest.raises(AdapterError, match=f"tensor 'b' holds {poison}"):
        encode(update, layout, codec(name), round=0)


def test_an_update_of_another_layout_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"'head\.bias' of the adapter's layout is missing"):
        encode({n: UPDATE[n] for n in ("q.A", "q.B1")}, LAYOUT, codec("int8"), round=0)


@pytest.mark.parametrize("round_", [-1, 2**32])
def test_a_round_that_does_not_fit_is_refused(round_: int) -> None:
    with pytest.raises(ConfigError, match=f"round {round_} does not fit"):
        encode(UPDATE, LAYOUT, codec("int8"), round=round_)


def test_rounding_at_random_draws_from_the_generator_given() -> None:
    layout = layout_of(300)
    update = random_update(layout, 1)

    def blob(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return encode(update, layout, codec("int4:stochastic"), round=0, rng=rng)

    assert blob(1) == blob(1) != blob(2)
    assert encode(update, layout, codec("int4:stochastic"), round=0) == blob(0)


# Rejection: one payload changed in one place, its checksum made right again.


def changed(offset: int, replacement: bytes, name: str = "int4") -> bytes:
    blob = encode(UPDATE, LAYOUT, codec(name), round=3)
    return reseal(blob[:offset] + replacement + blob[offset + len(replacement) :])


@pytest.mark.parametrize("length", [0, 1, 4, 63])
def test_bytes_too_few_for_a_header_are_refused(length: int) -> None:
    with pytest.raises(TruncatedPayloadError, match=f"^{length} bytes are too few"):
        decode(encode(UPDATE, LAYOUT, codec("int4"), round=3)[:length], LAYOUT)


@every_codec
def test_every_truncation_and_every_extension_is_refused_as_such(name: str) -> None:
    blob = encode(UPDATE, LAYOUT, codec(name), round=3)
    for length in range(len(blob)):
        with pytest.raises(TruncatedPayloadError):
            decode(blob[:length], LAYOUT)
    for extra in (b"\0", b"\xff", bytes(64), blob):
        with pytest.raises(TrailingBytesError):
            decode(blob + extra, LAYOUT)


@pytest.mark.parametrize(
    ("offset", "replacement", "error", "message"),
    [
        (0, b"PK\x03\x04", PayloadError, r"starts with b'PK\\x03\\x04', a payload with b'FKRN'"),
        (4, b"\x01", UnknownVersionError, "payload version 1 is not known"),
        (4, b"\x03", UnknownVersionError, "payload version 3 is not known"),
        (5, b"\x08", UnknownCodecError, r"payload uses codec 8, known are 0 \(fp32\)"),
        (5, b"\xff", UnknownCodecError, "payload uses codec 255"),
        (6, b"\x03", PayloadError, "payload has kind 3"),
        (7, b"\x80", PayloadError, "reserved bits 0x80"),
        (8, struct.pack("<Q", 48), TruncatedPayloadError, "body has 56 bytes, its header says 57"),
        (8, struct.pack("<Q", 46), TrailingBytesError, "body has 56 bytes, its header says 55"),
        (16, struct.pack("<Q", 10), TruncatedPayloadError, "body has 56 bytes, its header says 57"),
        (16, struct.pack("<Q", 2**64 - 1), TruncatedPayloadError, "its header says 18446744073709551662"),
        (8, struct.pack("<QQ", 48, 8), PayloadError, "body of the factors has 48 bytes, int4 makes 47 to 47"),
        (8, struct.pack("<QQ", 0, 56), PayloadError, "body of the factors has 0 bytes"),
    ],
)
def test_a_header_field_that_is_wrong_is_refused_by_its_value(
    offset: int, replacement: bytes, error: type[PayloadError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        decode(changed(offset, replacement), LAYOUT)
    assert type(caught.value) is error


def test_a_body_of_another_codecs_length_is_refused() -> None:
    with pytest.raises(PayloadError, match="body of the factors has 47 bytes, int8 makes 83 to 83"):
        decode(changed(5, b"\x02"), LAYOUT)


def test_another_contract_is_refused_as_such() -> None:
    other = replace(LAYOUT, base="11" * 32)
    with pytest.raises(ContractError, match=f"{LAYOUT.contract[:12]}….*{other.contract[:12]}…"):
        decode(encode(UPDATE, LAYOUT, codec("int4"), round=3), other)


@every_codec
def test_every_bit_that_flips_is_noticed(name: str) -> None:
    blob = bytearray(encode(UPDATE, LAYOUT, codec(name), round=3))
    for bit in range(8 * len(blob)):
        blob[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError) as caught:
            decode(bytes(blob), LAYOUT)
        if bit // 8 in range(24, len(blob)):
            assert type(caught.value) is ChecksumError
        blob[bit // 8] ^= 1 << bit % 8


FACTOR_BODY = 64
INT4_HEAD = 64 + 47


@pytest.mark.parametrize(
    ("name", "offset", "replacement", "message"),
    [
        ("fp32", 64 + 4 * 3, struct.pack("<f", float("nan")), r"tensor 'q\.B1' holds nan"),
        ("fp32", 64, struct.pack("<f", float("-inf")), r"tensor 'q\.A' holds -inf"),
        ("fp32", 64 + 4 * 73, struct.pack("<f", float("inf")), r"tensor 'head\.bias' holds inf"),
        ("fp16", 64 + 4, struct.pack("<e", float("inf")), r"tensor 'q\.A' holds inf"),
        ("fp16", 64 + 4, struct.pack("<e", float("nan")), r"tensor 'q\.A' holds nan"),
        ("fp16", 64, struct.pack("<f", 2.0**127), r"tensor 'q\.A' holds inf"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_decodes_to_nan_or_infinity_is_refused_by_the_name_of_its_tensor(
    name: str, offset: int, replacement: bytes, message: str
) -> None:
    with pytest.raises(NonFiniteError, match=message):
        decode(changed(offset, replacement, name), LAYOUT)


@pytest.mark.parametrize(
    ("name", "offset", "replacement", "message"),
    [
        ("fp16", 64, struct.pack("<f", 3.0), "unit is 3.0, fp16 needs a power of two"),
        ("fp16", 64, struct.pack("<f", float("nan")), "unit is nan"),
        ("fp16", 64, struct.pack("<f", -1.0), "unit is -1.0"),
        ("fp16", 64, struct.pack("<f", 0.0), "unit is 0.0"),
        ("fp16", 64, struct.pack("<f", 2.0**-126), "unit is 1.17.*e-38, fp16 needs a power of two from"),
        ("int8", 64, struct.pack("<f", float("nan")), "unit nan is not in 0.."),
        ("int8", 64, struct.pack("<f", float("inf")), "unit inf is not in 0.."),
        ("int4", 64, struct.pack("<f", -1.0), "unit -1.0 is not in 0.."),
        ("int4", 64, struct.pack("<f", -0.0), "unit -0.0 is not in 0.."),
        ("int4", 64, struct.pack("<f", 3e38), r"unit 3\.\d+e\+38 is not in 0\.\."),
        ("int4", 64, struct.pack("<f", 0.0), "largest relative scale is 1.0 where the unit is 0.0"),
        ("int4", 64, struct.pack("<f", 1e-39), r"scale 1\.0+\d*e-39 of block 0 is subnormal"),
        ("int4", 68, struct.pack("<e", -0.5), "relative scale -0.5 of block 0 is not in 0..1"),
        ("int4", 68, struct.pack("<e", 0.5), r"largest relative scale is 0\.\d+ where the unit is 1.0"),
        ("int4", 70, struct.pack("<e", float("nan")), "relative scale nan of block 1"),
        ("int4", 70, struct.pack("<e", 0), "codes that are not 0 in a block whose scale is 0"),
        ("int8", 72, struct.pack("<e", float("inf")), "relative scale inf of block 2"),
        ("int8", 72, struct.pack("<e", 1.001), r"relative scale 1\.\d+ of block 2 is not in 0\.\.1"),
        ("int8", 74 + 5, b"\x80", "code -128 of element 5 is below -127"),
        ("int8:channel", 74 + 5, b"\x80", "code -128 of element 5 is below -127"),
        ("int4", 74, b"\x80", "code -8 of element 0 is below -7"),
        ("int4", 74, b"\x08", "code -8 of element 1 is below -7"),
        ("int4", 110, b"\x18", "padding nibble is 1 where 0 belongs"),
        ("int4:channel", 110, b"\x18", "padding nibble is 1 where 0 belongs"),
        ("int4", INT4_HEAD, struct.pack("<f", float("nan")), "unit nan is not in 0.."),
        ("sign", 64, struct.pack("<f", float("nan")), "unit nan is not in 0.."),
        ("sign", 64, struct.pack("<f", float("inf")), "unit inf is not in 0.."),
        ("sign", 64, struct.pack("<f", -1.0), "unit -1.0 is not in 0.."),
        ("sign", 66 + 2, struct.pack("<e", -1.0), "relative scale -1.0 of block 0 is not in 0..1"),
        ("sign", 70, struct.pack("<e", 0), "negative sign in a tensor whose scale is 0"),
        ("sign", 64 + 8 + 9, b"\x02", "padding bits are not 0"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_number_that_no_encoder_writes_is_refused_by_its_value(
    name: str, offset: int, replacement: bytes, message: str
) -> None:
    with pytest.raises(PayloadError, match=message):
        decode(changed(offset, replacement, name), LAYOUT)


@every_codec
def test_lengths_that_lie_do_not_make_the_decoder_allocate(name: str) -> None:
    blob = encode(UPDATE, LAYOUT, codec(name), round=3)
    lies = [reseal(blob[:offset] + b"\xff" * 8 + blob[offset + 8 :]) for offset in (8, 16)]
    tracemalloc.start()
    for lie in lies:
        with pytest.raises(PayloadError):
            decode(lie, LAYOUT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@settings(patient, max_examples=200)
@given(st.binary(max_size=200), st.booleans(), names)
def test_bytes_that_are_no_payload_raise_nothing_but_payload_errors(
    noise: bytes, begins_well: bool, name: str
) -> None:
    blob = encode(UPDATE, LAYOUT, codec(name), round=3)
    with pytest.raises(PayloadError):
        decode(reseal(blob[:64] + noise) if begins_well and noise != blob[64:] else noise, LAYOUT)
