"""Adding payloads, compiled and with numpy alone, against `decode_vector` and sums in float64."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from compression_cases import (
    CODEC_NAMES,
    layout_of,
    layouts,
    patient,
    random_update,
    seeds,
    shapes,
)
from hypothesis import given
from hypothesis import strategies as st
from payload_reference import reference_decode, reseal

from benchmarks.fuzzing.mutations import mutant_of
from benchmarks.fuzzing.victims import SMALL, victims
from fedkron.aggregation import FactorwiseMean
from fedkron.compression import codec, encode, encode_vector
from fedkron.compression.accumulate import Opener, accept, decoded
from fedkron.compression.kernels import compiled
from fedkron.compression.payload import decode_vector
from fedkron.errors import AdapterError, ConfigError, FedKronError, PayloadError
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout, Vector

ROOT = Path(__file__).parents[2]
BLOCKWISE = [name for name in CODEC_NAMES if name.startswith("int")]
both_ways = pytest.mark.parametrize("opener", [compiled, decoded])
shares = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-45, 1e-38, 1e30])


def some_sums(size: int, seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def silenced(vector: Vector, seed: int) -> Vector:
    """With runs of zeros that make whole blocks silent, and magnitudes over the range of a float16."""
    rng = np.random.default_rng(seed)
    runs = np.repeat(rng.integers(0, 2, -(-vector.size // 50)), 50)[: vector.size]
    return vector * runs.astype(np.float32)


def same_bits(a: Vector, b: Vector) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@both_ways
@patient
@given(layouts(), st.sampled_from(CODEC_NAMES), seeds, shares)
def test_it_is_the_decoded_vector_times_the_share_bit_for_bit(
    opener: Opener, layout: AdapterLayout, name: str, seed: int, share: float
) -> None:
    vector = np.concatenate(
        [np.empty(0, np.float32), *(t.ravel() for t in random_update(layout, seed).values())]
    )
    blob = encode_vector(silenced(vector, seed), layout, codec(name), round=1)
    header, truth = decode_vector(blob, layout)
    sums = some_sums(layout.size, seed)
    with np.errstate(under="ignore"):
        expected = sums + np.float32(share) * truth
    accepted = accept(blob, layout, opener)
    accepted.add_to(sums, share)
    assert accepted.header == header
    assert same_bits(sums, expected)


@both_ways
@patient
@given(st.lists(shapes, min_size=1, max_size=5), st.sampled_from(BLOCKWISE), seeds)
def test_it_adds_what_the_specification_says(
    opener: Opener, found: list[tuple[int, ...]], name: str, seed: int
) -> None:
    """Odd sizes move the blocks behind them to the high nibble of a byte."""
    tensors = tuple(TensorLayout(f"t{i}", shape) for i, shape in enumerate(found))
    layout = AdapterLayout("", (ModuleLayout("q", "kron_lora", 4.0, (24, 10), tensors),))
    blob = encode(random_update(layout, seed), layout, codec(name), round=1)
    sums = np.zeros(layout.size, np.float32)
    accept(blob, layout, opener).add_to(sums, 1.0)
    assert sums.tolist() == reference_decode(blob, layout)


@both_ways
@pytest.mark.parametrize("name", ["int4", "int8", "int4:channel", "int8:channel", "ecsq"])
@pytest.mark.parametrize("sizes", [(1,), (63,), (64,), (65,), (1, 64, 128), (127, 3, 200_001), (70_000, 7)])
def test_many_clients_have_the_mean_of_float64(opener: Opener, name: str, sizes: tuple[int, ...]) -> None:
    layout = layout_of(*sizes)
    blobs = [encode(random_update(layout, k), layout, codec(name), round=1) for k in range(20)]
    weights = [1.0 + k * 37 % 100 for k in range(20)]
    mean = FactorwiseMean(layout)
    for blob, weight in zip(blobs, weights, strict=True):
        accepted = accept(blob, layout, opener)
        mean.add_with(accepted.add_to, weight, accepted.peak)
    vectors = np.array([decode_vector(blob, layout)[1] for blob in blobs], np.float64)
    found = np.concatenate(list(mean.finish().adapter.values()))
    allowed = 1.3e-6 * np.average(np.abs(vectors), axis=0, weights=weights)
    assert (np.abs(found - np.average(vectors, axis=0, weights=weights)) <= allowed).all()


@both_ways
@patient
@given(layouts(), st.sampled_from(CODEC_NAMES), seeds, st.sampled_from([1e-30, 1e-3, 1e30, 3e38]))
def test_no_element_exceeds_the_peak(
    opener: Opener, layout: AdapterLayout, name: str, seed: int, size: float
) -> None:
    update = {
        tensor: np.clip(values, -3.4e38, 3.4e38, dtype=np.float32)
        for tensor, values in random_update(layout, seed, min(size, 5e37)).items()
    }
    blob = encode(update, layout, codec(name), round=1)
    largest = float(np.abs(decode_vector(blob, layout)[1]).max(initial=0))
    peak = accept(blob, layout, opener).peak
    assert largest <= peak * (1 + 2**-23)
    assert peak <= largest * (1 + 2**-10) or not name.startswith("int")


def refusal(step: Callable[[], object]) -> tuple[type[FedKronError], str] | None:
    try:
        step()
    except FedKronError as error:
        return type(error), str(error)
    return None


def assert_as_decoded(blob: bytes, layout: AdapterLayout, opener: Opener) -> bool:
    """Refused with the words of `decode_vector`, and then no sum has changed, or added. Whether refused."""
    sums = some_sums(layout.size, 3)
    before = sums.copy()
    expected = refusal(lambda: decode_vector(blob, layout))
    assert refusal(lambda: accept(blob, layout, opener).add_to(sums, 0.3)) == expected
    added = before if expected else before + np.float32(0.3) * decode_vector(blob, layout)[1]
    assert same_bits(sums, added)
    return expected is not None


@both_ways
@pytest.mark.filterwarnings("error")
def test_mutants_are_refused_with_the_words_of_decoding_and_change_no_sum(opener: Opener) -> None:
    everybody = victims(SMALL, seed=0)
    blockwise = [victim for victim in everybody if victim.codec.startswith("int")]
    chance = Random(5)
    refused = 0
    for _ in range(3000):
        victim = chance.choice(blockwise)
        mutant = mutant_of(victim, chance.choice(everybody), chance)
        refused += assert_as_decoded(mutant.data, victim.layout, opener)
    assert 1500 < refused < 3000


@both_ways
@pytest.mark.parametrize("name", ["int4", "int8", "int4:channel", "int8:channel"])
def test_every_byte_of_a_body_is_checked(opener: Opener, name: str) -> None:
    """Blocks that start in both nibbles, one that is silent, and a padding nibble."""
    layout = layout_of(3, 66, 5, 1)
    update = random_update(layout, 0)
    update["t2"][:] = 0
    blob = encode(update, layout, codec(name), round=1)
    refused = 0
    for place in range(64, len(blob)):
        for value in (0x00, 0x01, 0x07, 0x08, 0x10, 0x3C, 0x78, 0x80, 0x87, 0x88, 0x98, 0xF0, 0xFF):
            changed = reseal(blob[:place] + bytes([value]) + blob[place + 1 :])
            refused += assert_as_decoded(changed, layout, opener)
    assert refused > 50


REFUSED_SUMS = [
    (np.zeros(70), 1.0, AdapterError, "float64"),
    (np.zeros(69, np.float32), 1.0, AdapterError, r"shape \[69\].*shape \[70\]"),
    (np.zeros((70, 1), np.float32), 1.0, AdapterError, r"shape \[70, 1\]"),
    (np.zeros(140, np.float32)[::2], 1.0, AdapterError, "gaps"),
    (np.broadcast_to(np.float32(0), 70), 1.0, AdapterError, "read-only"),
    (np.zeros(70, np.float32), float("nan"), ConfigError, "share is nan"),
    (np.zeros(70, np.float32), -1e39, ConfigError, r"share is -1e\+39"),
]


@both_ways
@pytest.mark.parametrize(("sums", "share", "error", "message"), REFUSED_SUMS)
def test_sums_of_another_shape_and_shares_beyond_float32_are_refused(
    opener: Opener, sums: Vector, share: float, error: type[Exception], message: str
) -> None:
    layout = layout_of(3, 67)
    accepted = accept(encode(random_update(layout, 0), layout, codec("int4"), round=1), layout, opener)
    with pytest.raises(error, match=message):
        accepted.add_to(sums, share)
    assert not sums.any()


@both_ways
def test_a_refused_payload_leaves_a_mean_as_it_was(opener: Opener) -> None:
    layout = layout_of(65, 10)
    blobs = [encode(random_update(layout, k), layout, codec("int4"), round=1) for k in range(3)]
    damaged = reseal(blobs[1][:-1] + b"\x00")

    def mean_of(payloads: list[bytes]) -> Vector:
        mean = FactorwiseMean(layout)
        for blob in payloads:
            try:
                accepted = accept(blob, layout, opener)
            except PayloadError:
                continue
            mean.add_with(accepted.add_to, 2.0, accepted.peak)
        return np.concatenate(list(mean.finish().adapter.values()))

    assert same_bits(mean_of([blobs[0], damaged, blobs[2]]), mean_of([blobs[0], blobs[2]]))


@both_ways
def test_payloads_near_the_largest_float32_do_not_overflow(opener: Opener) -> None:
    layout = layout_of(70)
    update = {"t0": np.full(70, np.finfo(np.float32).max)}
    accepted = accept(encode(update, layout, codec("int4"), round=1), layout, opener)
    mean = FactorwiseMean(layout)
    for _ in range(40):
        mean.add_with(accepted.add_to, 1.0, accepted.peak)
    sums = np.zeros(70, np.float32)
    accepted.add_to(sums, 1.0)
    assert np.array_equal(mean.finish().adapter["t0"], sums)


def test_an_accepted_payload_is_added_and_a_damaged_one_refused() -> None:
    layout = layout_of(65, 10)
    blob = encode(random_update(layout, 0), layout, codec("int4"), round=7)
    sums = some_sums(layout.size, 1)
    header, truth = decode_vector(blob, layout)
    expected = sums + np.float32(0.25) * truth
    accepted = accept(blob, layout)
    accepted.add_to(sums, 0.25)
    assert accepted.header == header
    assert same_bits(sums, expected)
    with pytest.raises(PayloadError):
        accept(blob[:-1], layout)
    assert same_bits(sums, expected)


ADD_ONE = """
import sys
{first}
import numpy as np
from fedkron.compression import codec, encode_vector
from fedkron.compression.accumulate import accept, fastest
from fedkron.layout import AdapterLayout, TensorLayout
layout = AdapterLayout("", (), (TensorLayout("t", (3001,)),))
vector = np.random.default_rng(0).standard_normal(3001, np.float32)
sums = np.ones(3001, np.float32)
for name in ("int4", "int8"):
    accept(encode_vector(vector, layout, codec(name), round=1), layout).add_to(sums, 0.3)
print(fastest().__name__, sums.tobytes().hex())
"""


def added_in_a_process(root: Path, first: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", ADD_ONE.format(first=first)]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split()


def test_without_numba_and_without_a_folder_for_its_cache_the_bits_are_the_same(tmp_path: Path) -> None:
    found = added_in_a_process(ROOT, "")
    assert found[0] == "compiled"
    assert added_in_a_process(ROOT, "sys.modules['numba'] = None") == ["decoded", found[1]]
    # An installation that cannot be written, of a user without a home.
    copied = tmp_path / "fedkron"
    shutil.copytree(ROOT / "fedkron", copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "compression" / "__pycache__").touch()
    homeless = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/nowhere")
    assert added_in_a_process(tmp_path, "", PYTHONDONTWRITEBYTECODE="1", PYTHONPATH="", **homeless) == found
    assert (copied / "compression" / "__pycache__").is_file()
