"""Uploads are added up without being decoded: what comes out is the mean of what is in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkron.aggregation import Robust, RobustRule, aggregate
from fedkron.compression import codec, encode
from fedkron.errors import AdapterError, FedKronError, PayloadError
from fedkron.flower.combining import combining
from fedkron.flower.uploads import Packed
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

KRON = ModuleLayout(
    "q",
    "kron_lora",
    2.0,
    (12, 10),
    (TensorLayout("A", (3, 2)), TensorLayout("B1", (4, 2)), TensorLayout("B2", (2, 5))),
)
LAYOUT = AdapterLayout("a base", (KRON,), (TensorLayout("head.bias", (3,)),))


def random_state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape, dtype=np.float32) for t in LAYOUT.tensors}


def packed(seed: int, reference: State, name: str = "int4", *, round_: int = 1) -> Packed:
    payload = encode(random_state(seed), LAYOUT, codec(name), round=round_)
    return Packed(payload, reference, LAYOUT, 1)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["fp32", "int8", "int4", "ecsq", "sign"]),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1), st.integers(1, 50)), min_size=1, max_size=20),
    st.sampled_from(["factorwise", "merged"]),
)
def test_combined_uploads_are_the_aggregate_of_the_adapters_in_them(
    name: str, clients: list[tuple[int, int, int]], way: str
) -> None:
    references = [random_state(1000), random_state(2000)]
    uploads = [packed(seed, references[which], name) for seed, which, _ in clients]
    weights = [weight for _, _, weight in clients]
    stream = combining(way, LAYOUT)
    for upload, weight in zip(uploads, weights, strict=True):
        stream.add(upload, weight)
    expected = aggregate(way, [upload.opened() for upload in uploads], weights, LAYOUT).adapter
    for tensor, values in stream.finish().adapter.items():
        np.testing.assert_allclose(values, expected[tensor], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("way", ["factorwise", "merged"])
@pytest.mark.parametrize("rule", ["clip", "median", "geometric-median", "krum"])
def test_a_robust_rule_gets_the_decoded_adapters_and_what_was_sent(way: str, rule: str) -> None:
    held = random_state(1000)
    uploads = [packed(seed, held) for seed in range(7)]
    stream = combining(way, LAYOUT, RobustRule(rule), held=lambda: held)
    expected = Robust(way, LAYOUT, RobustRule(rule), held)
    for upload in uploads:
        stream.add(upload, 3)
        expected.add(upload.opened(), 1)
    with pytest.raises(PayloadError, match="round 9"):
        stream.add(packed(2, held, round_=9), 1)
    found, truth = stream.finish(), expected.finish()
    assert all(np.array_equal(found.adapter[name], truth.adapter[name]) for name in held)


@pytest.mark.parametrize("way", ["factorwise", "merged"])
def test_refused_upload_changes_nothing(way: str) -> None:
    reference = random_state(1000)
    streams = [combining(way, LAYOUT) for _ in range(2)]
    good = packed(1, reference)
    damaged = Packed(good.payload[:-1] + b"\xff", reference, LAYOUT, 1)
    for upload, said in (
        (damaged, "checksum"),
        (packed(2, reference, round_=9), "round 9, expected round 1"),
    ):
        with pytest.raises(PayloadError, match=said):
            streams[0].add(upload, 5)
    with pytest.raises(FedKronError, match="weight"):
        streams[0].add(good, -1)
    for stream in streams:
        stream.add(good, 2)
        stream.add(packed(3, reference), 3)
    first, second = (stream.finish().adapter for stream in streams)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_nobody_and_too_much_are_errors() -> None:
    with pytest.raises(AdapterError, match="no adapter to aggregate"):
        combining("factorwise", LAYOUT).finish()
    huge = {name: np.full_like(values, 3e38) for name, values in random_state(0).items()}
    stream = combining("factorwise", LAYOUT)
    stream.add(Packed(encode(huge, LAYOUT, codec("fp32"), round=1), huge, LAYOUT, 1), 1)
    with pytest.raises(AdapterError, match="beyond the largest float32"):
        stream.finish()
