"""The shared state: what is published, followed and refused, against sums of decoded payloads in numpy."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
from compression_cases import patient
from hypothesis import given
from hypothesis import strategies as st
from payload_reference import reseal

from fedkron.compression import HEADER_SIZE, Kind, codec, decode, encode_vector, inspect_header
from fedkron.compression.shared_state import DIGEST_SIZE, NOTHING, Chain, Held, SharedState, digest_of, follow
from fedkron.errors import (
    AdapterError,
    ChecksumError,
    ContractError,
    FedKronError,
    NonFiniteError,
    PayloadError,
    UnknownStateError,
)
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout, Vector, flatten

FACTORS = (TensorLayout("A", (4, 2)), TensorLayout("B1", (24, 8)), TensorLayout("B2", (8, 31)))
MODULES = (ModuleLayout("query", "kron_lora", 4.0, (96, 62), FACTORS),)
LAYOUT = AdapterLayout(
    "ab" * 32, MODULES, (TensorLayout("head.weight", (3, 20)), TensorLayout("head.bias", (3,)))
)
CODECS = ["fp32", "fp16", "int8", "int4", "int4:stochastic", "ecsq", "ecsq:0.5", "ecsq:nmse=0.05", "sign"]
WHOLE = HEADER_SIZE + 4 * LAYOUT.size  # bytes of the state in float32


def target(seed: int, size: float = 1.0, *, near: Vector | None = None) -> Vector:
    noise = np.random.default_rng(seed).standard_normal(LAYOUT.size, dtype=np.float32)
    return np.float32(size) * noise + (np.float32(0) if near is None else near)


def published(name: str, *targets: Vector) -> SharedState:
    shared = SharedState(LAYOUT, codec(name))
    for number, vector in enumerate(targets):
        shared.publish(vector, round=number)
    return shared


def decoded(payload: bytes) -> Vector:
    return flatten(decode(payload, LAYOUT).update, LAYOUT)


def sums(payloads: tuple[bytes, ...]) -> list[Vector]:
    """The states that payloads lead to: float32 sums from the left."""
    return list(accumulate(map(decoded, payloads), lambda held, change: (held + change).astype(np.float32)))


def weight(chain: Chain) -> int:
    return sum(map(len, chain.payloads))


def same(first: Vector, second: Vector) -> bool:
    """Equal in every bit, the sign of zeros included."""
    return first.dtype == second.dtype == np.float32 and first.tobytes() == second.tobytes()


# ------------------------------------------------------------------ publish and follow


@pytest.mark.parametrize("name", CODECS)
def test_state_is_the_float32_sum_of_what_the_payloads_decode_to(name: str) -> None:
    shared = published(name)
    seen: list[bytes] = []
    digest = None
    for number in range(6):
        shared.publish(target(number, near=target(99)), round=number)
        chain = shared.way_from(digest)
        seen += chain.payloads
        digest = shared.held.digest
        assert len(seen) == number + 1
        header = inspect_header(seen[-1])
        assert (header.kind, header.round) == ("CHANGE" if number else "STATE", number)
        assert same(shared.held.vector, sums(tuple(seen))[-1])


def test_digest_names_contract_and_vector() -> None:
    vector = target(0)
    contract = bytes.fromhex(LAYOUT.contract)
    bytes_ = vector.astype("<f4").tobytes()
    expected = hashlib.blake2b(contract + bytes_, digest_size=DIGEST_SIZE).digest()
    assert digest_of(vector, LAYOUT) == expected
    assert digest_of(-0.0 * vector, LAYOUT) != digest_of(0.0 * vector, LAYOUT)
    assert digest_of(vector, replace(LAYOUT, base="cd" * 32)) != expected
    shared = published("int4", vector)
    assert shared.held.digest == digest_of(shared.held.vector, LAYOUT)


ABSENT, FOLLOWS, UNHEARD, RESTARTS = range(4)
"""What a client does in a round: nothing; follow; follow, but the server does not hear of it; lose all."""

rounds = st.lists(
    st.tuples(
        st.integers(0, 30),  # few seeds, so that targets come back
        st.sampled_from([0.0, 1e-3, 1.0]),
        st.tuples(*[st.sampled_from([ABSENT, FOLLOWS, UNHEARD, RESTARTS])] * 3),
    ),
    min_size=1,
    max_size=12,
)


@patient
@given(st.sampled_from(CODECS), rounds)
def test_whoever_follows_has_the_state_bit_for_bit_whatever_was_missed(
    name: str, rounds: list[tuple[int, float, tuple[int, ...]]]
) -> None:
    shared = published(name)
    steps: list[tuple[bytes, bytes]] = []  # kept from the start, by one who never misses anything
    last: bytes | None = None
    clients: dict[int, Held | None] = {}
    known: dict[int, bytes] = {}
    for number, (seed, size, actions) in enumerate(rounds):
        shared.publish(target(seed, size, near=target(99)), round=number)
        step = shared.way_from(last)
        steps += zip((last or NOTHING, *step.digests[1:]), step.payloads, strict=False)
        last = shared.held.digest
        assert same(shared.held.vector, sums(tuple(payload for _, payload in steps))[-1])
        for client, action in enumerate(actions):
            if action == ABSENT:
                continue
            if action == RESTARTS:
                clients[client] = None
            chain = shared.way_from(known.get(client))
            assert weight(chain) == least_weight(steps, known.get(client), last) <= WHOLE
            try:
                clients[client] = follow(clients.get(client), chain, LAYOUT)
            except UnknownStateError:
                assert action == RESTARTS
                assert chain.digests[0] == known[client]
                clients[client] = follow(None, shared.way_from(None), LAYOUT)
            assert same(clients[client].vector, shared.held.vector)
            assert clients[client].digest == last
            if action != UNHEARD:
                known[client] = last


def least_weight(steps: list[tuple[bytes, bytes]], digest: bytes | None, now: bytes) -> int:
    """Bytes of the cheapest of: the changes since the state, all from the first state on, the whole state."""
    if digest == now:
        return 0
    ways = [
        sum(len(payload) for _, payload in steps[i:])
        for i, (before, _) in enumerate(steps)
        if before in (digest, NOTHING)
    ]
    return min([*ways, WHOLE])


def test_same_target_twice_costs_nothing() -> None:
    shared = published("int4", target(0), target(1))
    held = shared.held
    shared.publish(target(1), round=2)
    assert shared.held is held
    assert shared.target == digest_of(target(1), LAYOUT) != held.digest
    assert shared.way_from(held.digest) == Chain((held.digest,))
    assert follow(held, shared.way_from(held.digest), LAYOUT) is held


def test_what_all_have_already_costs_nothing() -> None:
    shared = published("int4", target(0), target(1))
    held = shared.held
    shared.publish(held.vector.copy(), round=2)
    assert shared.held is held
    assert shared.target == held.digest


# ------------------------------------------------------------------ error feedback of the server


@pytest.mark.parametrize(("name", "left"), [("int4", 1e-3), ("ecsq", 1e-3), ("ecsq:0.5", 0.2), ("sign", 0.2)])
def test_state_comes_ever_closer_to_a_target_that_hardly_moves(name: str, left: float) -> None:
    shared = published(name, target(0))
    goal = target(1)
    errors = [np.linalg.norm(goal - shared.held.vector)]
    for number in range(20):
        goal = target(100 + number, 1e-6, near=goal)
        shared.publish(goal, round=number + 1)
        errors.append(np.linalg.norm(goal - shared.held.vector))
    assert all(later < 1.01 * earlier for earlier, later in pairwise(errors) if later > 1e-3)
    assert errors[-1] < left * errors[0]


@pytest.mark.parametrize("name", CODECS)
def test_what_was_sent_and_what_is_left_add_up_to_the_target(name: str) -> None:
    shared = published(name)
    payloads: list[bytes] = []
    digest = None
    for number in range(10):
        goal = target(number)
        shared.publish(goal, round=number)
        payloads += shared.way_from(digest).payloads[-1:]
        digest = shared.held.digest
    sent = np.sum([decoded(payload).astype(np.float64) for payload in payloads], axis=0)
    left = goal.astype(np.float64) - shared.held.vector
    assert len(payloads) == 10
    np.testing.assert_allclose(sent + left, goal, atol=1e-4)


# ------------------------------------------------------------------ which way


def test_changes_go_to_who_has_a_state_and_all_from_the_first_state_to_who_has_none() -> None:
    shared = published("int4", target(0))
    states = [shared.held.digest]
    for number in range(1, 4):
        shared.publish(target(number, 0.1, near=target(0)), round=number)
        states.append(shared.held.digest)
    everything = shared.way_from(None)
    assert everything.digests == (NOTHING, *states)
    assert weight(everything) <= WHOLE
    for place, digest in enumerate(states):
        assert shared.way_from(digest) == Chain(tuple(states[place:]), everything.payloads[place + 1 :])
    assert shared.way_from(bytes(DIGEST_SIZE)) == everything


def test_way_does_not_go_round_where_a_state_has_come_back() -> None:
    ones = np.ones(LAYOUT.size, np.float32)  # steps of one are exact in the sign codec
    shared = published("sign", ones, 2 * ones, ones)
    before = shared.held
    assert same(before.vector, ones)
    shared.publish(3 * ones, round=3)
    chain = shared.way_from(before.digest)
    assert len(chain.payloads) == 1
    assert same(follow(before, chain, LAYOUT).vector, 3 * ones)


def test_whole_state_in_float32_goes_to_who_is_too_far_behind() -> None:
    shared = published("int4", target(0))
    first = shared.held.digest
    for number in range(1, 20):
        shared.publish(target(number), round=number)
    whole = Chain((NOTHING, shared.held.digest), shared.way_from(None).payloads)
    for digest in (None, first, bytes(DIGEST_SIZE)):
        assert shared.way_from(digest) == whole
    (payload,) = whole.payloads
    assert (inspect_header(payload).codec, len(payload)) == ("fp32", WHOLE)
    assert same(decoded(payload), shared.held.vector)
    assert same(follow(None, whole, LAYOUT).vector, shared.held.vector)


def test_changes_that_cost_more_than_the_state_are_forgotten() -> None:
    shared = published("int4", target(0))
    for number in range(1, 100):
        shared.publish(target(number), round=number)
    shared.way_from(None)
    assert len(pickle.dumps(shared)) < 4 * WHOLE  # held, whole, and changes


@pytest.mark.parametrize("place", range(4))
def test_client_that_has_a_state_inside_the_way_goes_on_from_there(place: int) -> None:
    shared = published("int4", target(0))
    clients = [follow(None, shared.way_from(None), LAYOUT)]
    for number in range(1, 4):
        shared.publish(target(number), round=number)
        clients.append(follow(clients[-1], shared.way_from(clients[-1].digest), LAYOUT))
    chain = shared.way_from(None)
    # What leads to the state that it has need not even be readable.
    damaged = replace(chain, payloads=(b"?",) * (place + 1) + chain.payloads[place + 1 :])
    assert same(follow(clients[place], damaged, LAYOUT).vector, shared.held.vector)


# ------------------------------------------------------------------ what is refused

BEFORE = published("fp32", target(0))
AFTER = published("fp32", target(0), target(1))
(CHANGE,) = AFTER.way_from(BEFORE.held.digest).payloads
STATE = BEFORE.way_from(None).payloads[0]
THERE = AFTER.held.digest
HERE = BEFORE.held.digest


def of_kind(kind: Kind, layout: AdapterLayout = LAYOUT) -> bytes:
    return encode_vector(decoded(CHANGE), layout, codec("fp32"), round=1, kind=kind)


def tampered(payload: bytes) -> bytes:
    return payload[:-4] + bytes([payload[-4] ^ 1]) + payload[-3:]


REFUSED: dict[str, tuple[Chain, type[FedKronError], str]] = {
    "a change of another state": (
        Chain((bytes(DIGEST_SIZE), THERE), (CHANGE,)),
        UnknownStateError,
        f"is one of state {bytes(DIGEST_SIZE).hex()}, this node has {HERE.hex()}; send it the whole",
    ),
    "another state without any payload": (Chain((THERE,)), UnknownStateError, "send it the whole state"),
    "a change that leads elsewhere": (
        Chain((HERE, bytes(DIGEST_SIZE)), (CHANGE,)),
        UnknownStateError,
        f"leads to state {THERE.hex()}, it should be {bytes(DIGEST_SIZE).hex()}",
    ),
    "a second change that leads elsewhere": (
        Chain((HERE, THERE, bytes(DIGEST_SIZE)), (CHANGE, CHANGE)),
        UnknownStateError,
        f"it should be {bytes(DIGEST_SIZE).hex()}",
    ),
    "a whole state that is another one": (
        Chain((NOTHING, THERE), (STATE,)),
        UnknownStateError,
        f"it should be {THERE.hex()}",
    ),
    "an update in the place of a change": (
        Chain((HERE, THERE), (of_kind(Kind.UPDATE),)),
        PayloadError,
        "is a UPDATE, a CHANGE belongs here",
    ),
    "a state in the place of a change": (
        Chain((HERE, THERE), (of_kind(Kind.STATE),)),
        PayloadError,
        "is a STATE, a CHANGE belongs here",
    ),
    "a change in the place of a state": (
        Chain((NOTHING, THERE), (CHANGE,)),
        PayloadError,
        "is a CHANGE, a STATE belongs here",
    ),
    "a payload without a digest": (Chain((HERE,), (CHANGE,)), PayloadError, "1 payloads need as many"),
    "a digest without a payload": (Chain((HERE, THERE)), PayloadError, "0 payloads need as many"),
    "no digest at all": (Chain(()), PayloadError, "0 payloads need as many"),
    "a flipped bit": (Chain((HERE, THERE), (tampered(CHANGE),)), ChecksumError, "checksum"),
    "a flipped bit with the right checksum": (
        Chain((HERE, THERE), (reseal(tampered(CHANGE)),)),
        UnknownStateError,
        f"it should be {THERE.hex()}",
    ),
    "a change for another base": (
        Chain((HERE, THERE), (of_kind(Kind.CHANGE, replace(LAYOUT, base="cd" * 32)),)),
        ContractError,
        "contract",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_client_keeps_what_it_has_where_it_refuses(name: str) -> None:
    chain, error, said = REFUSED[name]
    held = follow(None, BEFORE.way_from(None), LAYOUT)
    with pytest.raises(error) as caught:
        follow(held, chain, LAYOUT)
    assert said in str(caught.value)
    assert same(held.vector, BEFORE.held.vector)
    assert held.digest == HERE
    assert same(follow(held, AFTER.way_from(HERE), LAYOUT).vector, AFTER.held.vector)


def test_client_that_has_nothing_refuses_a_change() -> None:
    with pytest.raises(UnknownStateError, match="this node has none; send it the whole state"):
        follow(None, AFTER.way_from(HERE), LAYOUT)


def test_change_beyond_the_largest_float32_is_refused() -> None:
    huge = np.full(LAYOUT.size, 3e38, np.float32)
    held = follow(None, published("fp32", huge).way_from(None), LAYOUT)
    change = encode_vector(huge, LAYOUT, codec("fp32"), round=1, kind=Kind.CHANGE)
    with pytest.raises(NonFiniteError, match=r"'query\.A' holds inf after this change"):
        follow(held, Chain((held.digest, THERE), (change,)), LAYOUT)
    assert same(held.vector, huge)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("targets", [(), (target(0),), (target(0), target(1))])
def test_target_that_is_not_finite_is_refused_and_changes_nothing(bad: float, targets: tuple[Vector]) -> None:
    shared, twin = published("int4", *targets), published("int4", *targets)
    diverged = target(2)
    diverged[9] = bad
    with pytest.raises(AdapterError, match=rf"tensor 'query.B1' holds {bad} in the global adapter"):
        shared.publish(diverged, round=3)
    for one in (shared, twin):
        one.publish(target(3), round=4)
    assert same(shared.held.vector, twin.held.vector)
    assert shared.way_from(None) == twin.way_from(None)


def test_target_that_quantization_takes_beyond_the_largest_float32_changes_nothing() -> None:
    # The sign codec moves every element of a tensor by the mean: the first one would overflow.
    high = np.full(LAYOUT.size, 1e37, np.float32)
    high[0] = 3.3e38
    higher = np.full(LAYOUT.size, 2e38, np.float32)
    higher[0] = 3.4e38
    shared, twin = published("sign", high), published("sign", high)
    with pytest.raises(FedKronError, match=r"'query\.A' holds inf"):
        shared.publish(higher, round=1)
    for one in (shared, twin):
        one.publish(target(3), round=2)
    assert same(shared.held.vector, twin.held.vector)
    assert shared.way_from(None) == twin.way_from(None)


# ------------------------------------------------------------------ nobody writes to a state

HOLDERS: dict[str, Callable[[], Held]] = {
    "the server, first state": lambda: published("fp32", target(0)).held,
    "the server, after a change": lambda: published("fp32", target(0), target(1)).held,
    "a client, first state": lambda: follow(None, BEFORE.way_from(None), LAYOUT),
    "a client, after a change": lambda: follow(
        follow(None, BEFORE.way_from(None), LAYOUT), AFTER.way_from(HERE), LAYOUT
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_held_vector_is_read_only(name: str) -> None:
    held = HOLDERS[name]()
    with pytest.raises(ValueError, match="read-only"):
        held.vector[0] = 1


def test_state_does_not_change_with_the_target_that_was_published() -> None:
    goal = target(0)
    shared = published("fp32", goal)
    goal += 1
    assert same(shared.held.vector, target(0))
    assert shared.held.digest == digest_of(target(0), LAYOUT)
