import random
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from compression_cases import (
    CODEC_NAMES,
    HEADER,
    layouts,
    patient,
    random_update,
    reference_payload,
    reseal,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st

from fedkron.compression import CODECS, Codec, Header, decode, encode, inspect_header, payload_size
from fedkron.errors import AdapterError, ConfigError, ContractError, PayloadError
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
codecs = st.sampled_from(list(CODECS.values()))

FACTORS = (TensorLayout("A", (3,)), TensorLayout("B1", (2, 35)))
# Blocks of 3, 64 and 6.
LAYOUT = AdapterLayout("00" * 32, (ModuleLayout("q", "kron_lora", 4.0, (24, 10), FACTORS),))
UPDATE = {
    "q.A": np.array([7.0, -3.25, 0.75], np.float32),
    "q.B1": (np.arange(70, dtype=np.float32).reshape(2, 35) - 20) / 9,
}
GOLDEN = (  # written by reference_payload, not by encode
    "464b524e0103000049000000000000002f000000000000000dbff9566d606ff8c6fc9144d263036bc04eaa6c3061793d"
    "65ecca1150d781ff03000000715b66960000803f003c7639393a5f595555666666777777888888989999a9aaaababbbb"
    "cbccccdcddddedeeeefeffeffeff0f"
)


@every_codec
def test_the_payload_is_byte_for_byte_the_one_of_the_specification(codec: Codec) -> None:
    assert encode(UPDATE, LAYOUT, codec, round=3) == reference_payload(UPDATE, LAYOUT, codec.name, 3)


def test_an_int4_payload_never_changes_its_bytes() -> None:
    assert encode(UPDATE, LAYOUT, CODECS["int4"], round=3).hex() == GOLDEN


@patient
@given(layouts(), seeds, codecs, st.integers(0, 2**32 - 1), st.sampled_from([1e-38, 1e-3, 1e30]))
def test_any_update_becomes_the_bytes_of_the_specification(
    layout: AdapterLayout, seed: int, codec: Codec, round_: int, size: float
) -> None:
    update = random_update(layout, seed, size)
    blob = encode(update, layout, codec, round=round_)
    assert blob == reference_payload(update, layout, codec.name, round_)


@every_codec
@pytest.mark.parametrize("filler", [0.0, 1e-45, 1.2e-38, 3e-36, 1e30, -3.4028235e38])
def test_extreme_numbers_become_the_bytes_of_the_specification(codec: Codec, filler: float) -> None:
    update = {"q.A": np.full(3, filler, np.float32), "q.B1": np.full((2, 35), filler / 3, np.float32)}
    assert encode(update, LAYOUT, codec, round=0) == reference_payload(update, LAYOUT, codec.name, 0)


@patient
@given(layouts(), seeds, codecs, st.integers(0, 2**32 - 1))
def test_a_payload_decodes_to_finite_tensors_of_the_layout_and_tells_codec_and_round(
    layout: AdapterLayout, seed: int, codec: Codec, round_: int
) -> None:
    decoded = decode(encode(random_update(layout, seed), layout, codec, round=round_), layout)
    assert (decoded.codec, decoded.round) == (codec.name, round_)
    assert {name: x.shape for name, x in decoded.update.items()} == {t.name: t.shape for t in layout.tensors}
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in decoded.update.values())


@patient
@given(layouts(), seeds, codecs)
def test_payload_size_is_known_without_encoding(layout: AdapterLayout, seed: int, codec: Codec) -> None:
    blob = encode(random_update(layout, seed), layout, codec, round=0)
    assert payload_size(layout, codec) == len(blob)


@every_codec
def test_encoding_twice_gives_the_same_bytes_and_leaves_the_update_alone(codec: Codec) -> None:
    copy = {name: tensor.copy() for name, tensor in UPDATE.items()}
    assert encode(UPDATE, LAYOUT, codec, round=1) == encode(copy, LAYOUT, codec, round=1)
    assert all(np.array_equal(UPDATE[name], copy[name]) for name in copy)


@every_codec
def test_the_header_can_be_read_without_a_layout(codec: Codec) -> None:
    blob = encode(UPDATE, LAYOUT, codec, round=42)
    checksum = HEADER.unpack_from(blob)[-1]
    assert inspect_header(blob) == Header(1, codec.name, 42, 73, len(blob) - 64, LAYOUT.contract, checksum)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@every_codec
def test_an_update_that_is_not_finite_is_refused_by_the_name_of_its_tensor(
    codec: Codec, poison: float
) -> None:
    layout = AdapterLayout(
        "", (), (TensorLayout("a", (2,)), TensorLayout("e", (0,)), TensorLayout("b", (2,)))
    )
    update = {"a": np.ones(2, np.float32), "e": np.ones(0, np.float32), "b": np.ones(2, np.float32)}
    update["b"][0] = poison
    with pytest.raises(AdapterError, match=f"tensor 'b' holds {poison}"):
        encode(update, layout, codec, round=0)


def test_an_update_of_another_layout_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"'q\.B1' of the adapter's layout is missing"):
        encode({"q.A": UPDATE["q.A"]}, LAYOUT, CODECS["int8"], round=0)


@pytest.mark.parametrize("round_", [-1, 2**32])
def test_a_round_that_does_not_fit_is_refused(round_: int) -> None:
    with pytest.raises(ConfigError, match=f"round {round_} does not fit"):
        encode(UPDATE, LAYOUT, CODECS["int8"], round=round_)


# Rejection: one payload changed in one place, its checksum made right again.


def changed(offset: int, replacement: bytes, codec: str = "int4") -> bytes:
    blob = encode(UPDATE, LAYOUT, CODECS[codec], round=3)
    return reseal(blob[:offset] + replacement + blob[offset + len(replacement) :])


@pytest.mark.parametrize("length", [0, 1, 4, 63])
def test_bytes_too_few_for_a_header_are_refused(length: int) -> None:
    with pytest.raises(PayloadError, match=f"^{length} bytes are too few"):
        decode(encode(UPDATE, LAYOUT, CODECS["int4"], round=3)[:length], LAYOUT)


@pytest.mark.parametrize(
    ("offset", "replacement", "message"),
    [
        (0, b"PK\x03\x04", r"starts with b'PK\\x03\\x04', a payload with b'FKRN'"),
        (4, b"\x02", "payload version 2 is not known"),
        (5, b"\x04", r"payload uses codec 4, known are 0 \(fp32\)"),
        (6, b"\x00\x80", "reserved bits 0x8000"),
        (8, struct.pack("<Q", 74), "payload says 74 elements, its contract has 73"),
        (16, struct.pack("<Q", 48), "is truncated: its body has 47 bytes, its header says 48"),
        (16, struct.pack("<Q", 46), "has trailing bytes: its body has 47 bytes, its header says 46"),
    ],
)
def test_a_header_field_that_is_wrong_is_refused_by_its_value(
    offset: int, replacement: bytes, message: str
) -> None:
    with pytest.raises(PayloadError, match=message):
        decode(changed(offset, replacement), LAYOUT)


def test_a_body_of_another_codecs_length_is_refused() -> None:
    with pytest.raises(PayloadError, match="body has 47 bytes, int8 makes 83"):
        decode(changed(5, b"\x02"), LAYOUT)


def test_another_contract_is_refused_as_such() -> None:
    other = replace(LAYOUT, base="11" * 32)
    with pytest.raises(ContractError, match=f"{LAYOUT.contract[:12]}….*{other.contract[:12]}…"):
        decode(encode(UPDATE, LAYOUT, CODECS["int4"], round=3), other)


@pytest.mark.parametrize("offset", [56, 60, 64, 110])
def test_a_damaged_byte_shows_in_the_checksum(offset: int) -> None:
    blob = bytearray(encode(UPDATE, LAYOUT, CODECS["int4"], round=3))
    blob[offset] ^= 1
    with pytest.raises(PayloadError, match="checksum"):
        decode(bytes(blob), LAYOUT)


@pytest.mark.parametrize(
    ("codec", "offset", "replacement", "message"),
    [
        ("fp32", 64 + 4 * 3, struct.pack("<f", float("nan")), r"tensor 'q\.B1' holds nan"),
        ("fp32", 64, struct.pack("<f", float("-inf")), r"tensor 'q\.A' holds -inf"),
        ("fp16", 64 + 4, struct.pack("<e", float("inf")), r"tensor 'q\.A' holds inf"),
        ("fp16", 64 + 4, struct.pack("<e", float("nan")), r"tensor 'q\.A' holds nan"),
        ("fp16", 64, struct.pack("<f", 2.0**127), r"tensor 'q\.A' holds inf"),
        ("fp16", 64, struct.pack("<f", 3.0), "unit is 3.0, fp16 needs a power of two"),
        ("fp16", 64, struct.pack("<f", float("nan")), "unit is nan"),
        ("fp16", 64, struct.pack("<f", -1.0), "unit is -1.0"),
        ("fp16", 64, struct.pack("<f", 0.0), "unit is 0.0"),
        ("int8", 64, struct.pack("<f", float("nan")), "unit nan is not in 0.."),
        ("int8", 64, struct.pack("<f", float("inf")), "unit inf is not in 0.."),
        ("int4", 64, struct.pack("<f", -1.0), "unit -1.0 is not in 0.."),
        ("int4", 64, struct.pack("<f", 3e38), r"unit 3\.\d+e\+38 is not in 0\.\."),
        ("int4", 68, struct.pack("<e", -0.5), "relative scale -0.5 of block 0 is not in 0..1"),
        ("int4", 70, struct.pack("<e", float("nan")), "relative scale nan of block 1"),
        ("int8", 72, struct.pack("<e", float("inf")), "relative scale inf of block 2"),
        ("int8", 72, struct.pack("<e", 1.001), r"relative scale 1\.\d+ of block 2 is not in 0\.\.1"),
        ("int8", 74 + 5, b"\x80", "code -128 of element 5 is below -127"),
        ("int4", 74, b"\x80", "code -8 of element 0 is below -7"),
        ("int4", 74, b"\x08", "code -8 of element 1 is below -7"),
        ("int4", 110, b"\x18", "padding nibble is 1 where 0 belongs"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_number_that_no_encoder_writes_is_refused_by_its_value(
    codec: str, offset: int, replacement: bytes, message: str
) -> None:
    with pytest.raises(PayloadError, match=message):
        decode(changed(offset, replacement, codec), LAYOUT)


@every_codec
def test_lengths_that_lie_do_not_make_the_decoder_allocate(codec: Codec) -> None:
    blob = encode(UPDATE, LAYOUT, codec, round=3)
    lies = [reseal(blob[:offset] + b"\xff" * 8 + blob[offset + 8 :]) for offset in (8, 16)]
    tracemalloc.start()
    for lie in lies:
        with pytest.raises(PayloadError):
            decode(lie, LAYOUT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def mutated(blob: bytes, chance: random.Random) -> bytes:
    """One to three random changes: bits, bytes, runs, cuts, insertions, moves."""
    data = bytearray(blob)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.randint(1, 16))
        noise = chance.randbytes(chance.randint(1, 16))
        match chance.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at:end] = noise[: end - at]
            case 2:
                data[at:end] = bytes(end - at)
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = noise
            case 5:
                data[at:end] = data[: end - at]
    return bytes(data)


@every_codec
@pytest.mark.filterwarnings("error")
def test_no_mutated_payload_is_accepted_and_none_breaks_the_decoder(codec: Codec) -> None:
    chance = random.Random(codec.id)
    blob = encode(UPDATE, LAYOUT, codec, round=3)
    victims = [victim for _ in range(1000) if (victim := mutated(blob, chance)) != blob]
    assert len(victims) > 800
    for victim in victims:
        with pytest.raises((PayloadError, ContractError)):
            decode(victim, LAYOUT)


@every_codec
@pytest.mark.filterwarnings("error")
def test_a_mutated_body_with_a_right_checksum_is_refused_or_decodes_to_finite_tensors(codec: Codec) -> None:
    chance = random.Random(100 + codec.id)
    blob = encode(UPDATE, LAYOUT, codec, round=3)
    accepted = 0
    for _ in range(1000):
        body = mutated(blob[64:], chance)[: len(blob) - 64].ljust(len(blob) - 64, b"\x7f")
        try:
            decoded = decode(reseal(blob[:64] + body), LAYOUT)
        except PayloadError:
            continue
        accepted += 1
        assert {name: tensor.shape for name, tensor in decoded.update.items()} == {
            "q.A": (3,),
            "q.B1": (2, 35),
        }
        assert all(np.isfinite(tensor).all() for tensor in decoded.update.values())
    assert 0 < accepted < 1000


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_a_payload_of_no_tensors_at_all_round_trips(name: str) -> None:
    layout = AdapterLayout("", ())
    assert decode(encode({}, layout, CODECS[name], round=0), layout).update == {}
