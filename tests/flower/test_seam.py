"""The seam between Flower and the codec: any strategy, any app, and what happens to bad messages."""

import tracemalloc
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from federation_cases import ObservedGrid, wire_size
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg, Strategy
from seam_cases import (
    SHAPES,
    MuteGrid,
    State,
    examples_of,
    initial,
    pull,
    random_state,
    record,
    state_of,
    third_party_app,
)

from fedkron.compression import HEADER_SIZE, Kind, codec, decode, encode, payload_sizes
from fedkron.compression.shared_state import DIGEST_SIZE, SharedState
from fedkron.errors import AdapterError, ConfigError, ContractError, FedKronError, PayloadError, RunError
from fedkron.flower import REJECTED_UPLOAD, CompressedGrid, compressed_exchange
from fedkron.flower.wire import (
    LAYOUT,
    MAX_LAYOUT_BYTES,
    PAYLOAD,
    ROUND,
    STATES,
    UNKNOWN_STATE,
    UPLOAD_CODEC,
    Broadcast,
    deflated,
    pack_broadcast,
    unpack_broadcast,
)
from fedkron.layout import AdapterLayout, flatten
from fedkron.ledger import Ledger, read_ledger
from simulations.in_process import InProcessGrid

LAYOUT_OF_ARRAYS = AdapterLayout.of_arrays(initial())
NODES = 4


def run(strategy: Strategy, grid: object, rounds: int = 3) -> State:
    return state_of(strategy.start(grid, record(initial()), num_rounds=rounds).arrays)


def on_the_seam(upload: str, broadcast: str, **options: object) -> CompressedGrid:
    app = third_party_app([compressed_exchange], **options)
    return CompressedGrid(ObservedGrid(app, NODES, {}), upload=upload, broadcast=broadcast)


def train_messages(state: State, nodes: Iterable[int], round_: int = 1) -> list[Message]:
    config = ConfigRecord({"server-round": round_})
    return [Message(RecordDict({"arrays": record(state), "config": config}), node, "train") for node in nodes]


# ------------------------------------------------------------------ any app, any strategy


@pytest.mark.parametrize(
    ("upload", "broadcast"), [("int4", "int8"), ("int8", "int4"), ("fp16", "fp16"), ("ecsq:3", "ecsq:3")]
)
def test_quantized_federation_ends_close_to_the_plain_one_and_pays_for_payloads_only(
    upload: str, broadcast: str
) -> None:
    plain = run(FedAvg(), InProcessGrid(third_party_app([]), NODES, {}), rounds=8)
    grid = on_the_seam(upload, broadcast)
    compressed = run(FedAvg(), grid, rounds=8)
    start = np.linalg.norm(initial()["weight"] - plain["weight"])
    for name in SHAPES:
        assert compressed[name].shape == SHAPES[name]
    assert np.linalg.norm(compressed["weight"] - plain["weight"]) < 0.05 * start
    updates, changes, states = (
        payload_sizes(LAYOUT_OF_ARRAYS, codec(name))
        for name in (upload, broadcast, codec(broadcast).state_codec)
    )
    assert len(grid.ledger.transfers) == 8 * NODES * 4
    for transfer in grid.ledger.transfers:
        size = transfer.payload_bytes
        match transfer.phase, transfer.direction, transfer.round:
            case "train", "up", _:
                assert size in updates
            case "train", "down", 1:
                assert size - DIGEST_SIZE - len(deflated(LAYOUT_OF_ARRAYS)) in states
            case "train", "down", _:
                assert size == DIGEST_SIZE  # the nodes have it since they evaluated it
            case "evaluate", "down", _:
                assert size - 2 * DIGEST_SIZE in changes
            case _:
                assert size == 0


def test_messages_with_different_arrays_each_keep_their_own() -> None:
    grid = on_the_seam("fp32", "fp32", learn=lambda received, _: received)
    ones, twos = ({name: np.full(shape, n, np.float32) for name, shape in SHAPES.items()} for n in (1, 2))
    messages = train_messages(ones, [1000]) + train_messages(twos, [1001])
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
    assert state_of(replies[1000].content["arrays"])["weight"].max() == 1
    assert state_of(replies[1001].content["arrays"])["weight"].min() == 2


def test_messages_without_arrays_pass_unchanged() -> None:
    app = third_party_app([compressed_exchange])

    @app.query()
    def query(message: Message, context: Context) -> Message:  # noqa: ARG001
        return Message(message.content, reply_to=message)

    grid = CompressedGrid(InProcessGrid(app, 1, {}))
    question = RecordDict({"question": ConfigRecord({"text": "how are you?"})})
    (reply,) = grid.send_and_receive([Message(question, 1000, "query")])
    assert reply.content["question"] == ConfigRecord({"text": "how are you?"})
    assert {transfer.payload_bytes for transfer in grid.ledger.transfers} == {0}


# ------------------------------------------------------------------ error feedback


def send(grid: CompressedGrid, state: State, round_: int) -> State:
    """What the server has decoded from node 1000, minus what it had sent."""
    (reply,) = grid.send_and_receive(train_messages(state, [1000], round_))
    return {n: values - state[n] for n, values in state_of(reply.content["arrays"]).items()}


def test_what_quantization_leaves_out_is_kept_on_the_node_and_sent_later() -> None:
    step = {name: values * np.float32(1e-2) for name, values in initial().items()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    app = third_party_app(
        [compressed_exchange], learn=lambda received, _: {name: received[name] + step[name] for name in step}
    )
    inner = InProcessGrid(app, 1, {})
    grid = CompressedGrid(inner, upload="int4", broadcast="fp32")
    rounds = 12
    arrived = [send(grid, zeros, round_ + 1)["weight"] for round_ in range(rounds)]
    meant = rounds * step["weight"]
    largest_residual = np.abs(step["weight"]).max() / 7  # one step of the coarsest 4-bit scale
    assert np.abs(arrived[0] - step["weight"]).max() > 1e-4
    assert np.abs(np.sum(arrived, axis=0) - meant).max() < 1.5 * largest_residual
    kept = np.frombuffer(inner.contexts[1000].state["fedkron.residual.arrays"]["residual"], np.float32)
    residual = kept[: step["weight"].size].reshape(SHAPES["weight"])
    np.testing.assert_allclose(np.sum(arrived, axis=0) + residual, meant, atol=1e-5)


def test_residual_of_another_contract_is_dropped() -> None:
    def grid() -> CompressedGrid:
        app = third_party_app(
            [compressed_exchange],
            learn=lambda received, _: {name: values * np.float32(0.9) for name, values in received.items()},
        )
        return CompressedGrid(InProcessGrid(app, 1, {}), upload="int4", broadcast="fp32")

    # As many elements, so that only the contract tells that the residual does not belong here.
    renamed = {f"other {name}": values for name, values in initial().items()}
    used = grid()
    send(used, initial(), 1)
    fresh = send(grid(), renamed, 1)
    for name, values in send(used, renamed, 2).items():
        np.testing.assert_array_equal(values, fresh[name])
    # The same contract again does not bring it back, and it does matter where it is kept.
    again = send(used, renamed, 3)
    assert any(not np.array_equal(again[name], fresh[name]) for name in renamed)


# ------------------------------------------------------------------ the ledger


def test_ledger_counts_the_bytes_that_were_on_the_wire(tmp_path) -> None:  # noqa: ANN001
    inner = ObservedGrid(third_party_app([compressed_exchange]), NODES, {})
    path = tmp_path / "ledger.jsonl"
    grid = CompressedGrid(inner, upload="int4", broadcast="int8", ledger=Ledger(path))
    run(FedAvg(), grid, rounds=2)
    transfers = grid.ledger.transfers
    assert read_ledger(path) == transfers
    seen = {
        direction: [(m.metadata.message_type, wire_size(m)) for m in messages]
        for direction, messages in (("down", inner.down), ("up", inner.up))
    }
    assert len(transfers) == 2 * 2 * 2 * NODES
    for direction, expected in seen.items():
        entries = [transfer for transfer in transfers if transfer.direction == direction]
        assert [(entry.phase, entry.message_bytes) for entry in entries] == expected
    assert {entry.node for entry in transfers} == {str(1000 + node) for node in range(NODES)}
    assert {entry.round for entry in transfers} == {1, 2}
    assert all(0 < entry.message_bytes - entry.payload_bytes < 3000 for entry in transfers)


def test_baseline_is_the_arrays_in_float32_where_there_are_no_factors() -> None:
    grid = on_the_seam("int4", "int8")
    run(FedAvg(), grid, rounds=1)
    raw = 4 * sum(values.size for values in initial().values())
    with_arrays = {(t.phase, t.direction): t.baseline_bytes for t in grid.ledger.transfers}
    assert with_arrays == {
        ("train", "down"): raw,
        ("train", "up"): raw,
        ("evaluate", "down"): raw,
        ("evaluate", "up"): 0,
    }


# ------------------------------------------------------------------ refused uploads

EVIL = 1000 + NODES - 1


def payload(reply: Message) -> bytes:
    return reply.content["arrays"][PAYLOAD]


def put(reply: Message, blob: object) -> None:
    reply.content["arrays"] = ConfigRecord({PAYLOAD: blob})


def flip_a_byte(reply: Message) -> None:
    blob = bytearray(payload(reply))
    blob[HEADER_SIZE + 5] ^= 1
    put(reply, bytes(blob))


def other_contract(reply: Message) -> None:
    layout = AdapterLayout("another base", (), LAYOUT_OF_ARRAYS.dense)
    put(reply, encode(initial(), layout, codec("fp32"), round=1))


def other_round(reply: Message) -> None:
    update = decode(payload(reply), LAYOUT_OF_ARRAYS).update
    put(reply, encode(update, LAYOUT_OF_ARRAYS, codec("fp32"), round=7))


def change_of_the_shared_state(reply: Message) -> None:
    update = decode(payload(reply), LAYOUT_OF_ARRAYS).update
    put(reply, encode(update, LAYOUT_OF_ARRAYS, codec("fp32"), round=1, kind=Kind.CHANGE))


def other_key(reply: Message) -> None:
    reply.content["elsewhere"] = reply.content.pop("arrays")


def uncompressed(reply: Message) -> None:
    reply.content["arrays"] = record(pull(initial(), NODES - 1))


def uncompressed_beside_the_payload(reply: Message) -> None:
    reply.content["more"] = record(pull(initial(), NODES - 1))


SPOILED: dict[str, tuple[Callable[[Message], None], str]] = {
    "a flipped byte": (flip_a_byte, "checksum"),
    "a truncated payload": (lambda reply: put(reply, payload(reply)[:-3]), "truncated"),
    "an empty payload": (lambda reply: put(reply, b""), "too few"),
    "a payload of text": (lambda reply: put(reply, "FKRN"), "should be bytes, it is str"),
    "a payload that is a list": (lambda reply: put(reply, [1, 2, 3]), "should be bytes, it is list"),
    "payloads in a list": (lambda reply: put(reply, [payload(reply)]), "should be bytes, it is list"),
    "a change of the shared state": (change_of_the_shared_state, "is a CHANGE, an upload is an UPDATE"),
    "another contract": (other_contract, "contract"),
    "another round": (other_round, "payload is of round 7, expected round 1"),
    "another key": (other_key, "'elsewhere' answers nothing that was sent"),
    "no compression": (uncompressed, "uncompressed"),
    "arrays beside the payload": (uncompressed_beside_the_payload, "uncompressed"),
}


def with_an_evil_node(spoil: Callable[[Message], None]) -> CompressedGrid:
    def evil_mod(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        if context.node_id == EVIL and message.metadata.message_type == "train":
            spoil(reply)
        return reply

    app = third_party_app([evil_mod, compressed_exchange])
    return CompressedGrid(InProcessGrid(app, NODES, {}), upload="fp32", broadcast="fp32")


@pytest.mark.parametrize("name", SPOILED)
def test_upload_that_is_not_admitted_reaches_the_strategy_as_an_error(name: str) -> None:
    spoil, said = SPOILED[name]
    grid = with_an_evil_node(spoil)
    replies = list(grid.send_and_receive(train_messages(initial(), list(grid.get_node_ids()))))
    refused = [reply for reply in replies if reply.has_error()]
    assert [reply.metadata.src_node_id for reply in refused] == [EVIL]
    assert refused[0].error.code == REJECTED_UPLOAD
    assert f"upload of node {EVIL} in round 1 refused: " in refused[0].error.reason
    assert said in refused[0].error.reason
    assert len(replies) == NODES


def fedavg_of_the_good_nodes(rounds: int) -> State:
    state = initial()
    weights = [examples_of(partition) for partition in range(NODES - 1)]
    for _ in range(rounds):
        trained = [pull(state, partition) for partition in range(NODES - 1)]
        state = {
            name: np.average([t[name] for t in trained], axis=0, weights=weights).astype(np.float32)
            for name in state
        }
    return state


@pytest.mark.parametrize("name", SPOILED)
def test_refused_uploads_leave_the_global_arrays_as_if_their_node_were_not_there(name: str) -> None:
    arrays = run(FedAvg(), with_an_evil_node(SPOILED[name][0]), rounds=1)
    expected = fedavg_of_the_good_nodes(rounds=1)
    for array in SHAPES:
        np.testing.assert_allclose(arrays[array], expected[array], rtol=1e-5, atol=1e-6)


def test_update_that_would_overflow_float32_is_refused() -> None:
    huge = {name: np.full(shape, 3e38, np.float32) for name, shape in SHAPES.items()}

    def add_as_much_again(reply: Message) -> None:
        put(reply, encode(huge, LAYOUT_OF_ARRAYS, codec("fp32"), round=1))

    grid = with_an_evil_node(add_as_much_again)
    replies = list(grid.send_and_receive(train_messages(huge, list(grid.get_node_ids()))))
    (refused,) = [reply for reply in replies if reply.has_error()]
    assert "takes tensor 'weight' beyond the largest float32" in refused.error.reason


LEARNERS: dict[str, tuple[Callable[[State], State], str]] = {
    "integer arrays": (
        lambda received: {**received, "weight": received["weight"].astype(np.int64)},
        "array 'weight' is int64",
    ),
    "a missing array": (lambda received: {"weight": received["weight"]}, "is missing"),
    "an unknown array": (lambda received: {**received, "steps": received["bias"]}, "'steps' is not part of"),
    "another shape": (lambda received: {**received, "bias": received["bias"][:1]}, "has shape [1]"),
    "NaN": (lambda received: {**received, "bias": received["bias"] * np.nan}, "'bias' holds nan"),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_arrays_that_cannot_be_compressed_fail_on_their_own_node_with_the_reason(name: str) -> None:
    spoil, said = LEARNERS[name]

    def learn(received: State, partition: int) -> State:
        trained = pull(received, partition)
        return spoil(trained) if partition == NODES - 1 else trained

    grid = on_the_seam("fp32", "fp32", learn=learn)
    replies = list(grid.send_and_receive(train_messages(initial(), list(grid.get_node_ids()))))
    (failed,) = [reply for reply in replies if reply.has_error()]
    assert failed.metadata.src_node_id == EVIL
    assert said in failed.error.reason


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"steps": np.arange(3)}, "array 'steps' is int64"),
        ({"weight": np.array([1.0, np.inf], np.float32)}, "holds inf"),
    ],
)
def test_arrays_that_cannot_be_compressed_stop_the_server_before_anything_is_sent(
    arrays: State, said: str
) -> None:
    inner = ObservedGrid(third_party_app([compressed_exchange]), NODES, {})
    grid = CompressedGrid(inner)
    with pytest.raises(AdapterError) as caught:
        grid.send_and_receive(train_messages(arrays, [1000, 1001]))
    assert said in str(caught.value)
    assert inner.down == []


def test_unknown_codecs_are_refused_when_the_grid_is_made() -> None:
    inner = InProcessGrid(third_party_app([]), 1, {})
    with pytest.raises(ConfigError, match="int5"):
        CompressedGrid(inner, upload="int5")
    with pytest.raises(ConfigError, match="int2"):
        CompressedGrid(inner, broadcast="int2")


# ------------------------------------------------------------------ damaged broadcasts


def deep_json() -> bytes:
    return zlib.compress(b"[" * 200_000)


def packed() -> dict[str, object]:
    """A whole state, as a node gets it with its first message."""
    shared = SharedState(LAYOUT_OF_ARRAYS, codec("int8"))
    shared.publish(flatten(initial(), LAYOUT_OF_ARRAYS), round=1)
    return dict(pack_broadcast(Broadcast(shared.way_from(None), LAYOUT_OF_ARRAYS, 1, codec("int4"))))


def test_broadcast_arrives_as_it_was_packed() -> None:
    shared = SharedState(LAYOUT_OF_ARRAYS, codec("int4"))
    shared.publish(flatten(initial(), LAYOUT_OF_ARRAYS), round=0)
    first = shared.held.digest
    shared.publish(flatten(random_state(1), LAYOUT_OF_ARRAYS), round=1)
    ways = [shared.way_from(digest) for digest in (None, first, shared.held.digest)]
    assert [len(way.payloads) for way in ways] == [2, 1, 0]
    for way in ways:
        for layout in (LAYOUT_OF_ARRAYS, None):
            broadcast = Broadcast(way, layout, 7, codec("ecsq:1.5"))
            assert unpack_broadcast(pack_broadcast(broadcast)) == broadcast


DAMAGED: dict[str, tuple[dict[str, object], type[FedKronError]]] = {
    "a layout that is text": ({LAYOUT: "layout"}, PayloadError),
    "a layout that is not deflated": ({LAYOUT: b"layout"}, PayloadError),
    "a layout that is cut off": ({LAYOUT: packed()[LAYOUT][:-8]}, PayloadError),
    "a layout that is not JSON": ({LAYOUT: zlib.compress(b"layout")}, ContractError),
    "a layout that is not UTF-8": ({LAYOUT: zlib.compress(b"\xff\xfe")}, ContractError),
    "a layout that is a number": ({LAYOUT: zlib.compress(b"7")}, ContractError),
    "a layout of another version": (
        {LAYOUT: zlib.compress(LAYOUT_OF_ARRAYS.to_json().replace('"version":2', '"version":9').encode())},
        ContractError,
    ),
    "a layout that is nested too deep": ({LAYOUT: deep_json()}, ContractError),
    "the layout of other arrays": (
        {LAYOUT: zlib.compress(AdapterLayout.of_arrays({"w": initial()["bias"]}).to_json().encode())},
        ContractError,
    ),
    "a payload that is a number": ({PAYLOAD: 7}, PayloadError),
    "a payload that is not in a list": ({PAYLOAD: packed()[PAYLOAD][0]}, PayloadError),
    "payloads that are numbers": ({PAYLOAD: [7]}, PayloadError),
    "a payload that is cut off": ({PAYLOAD: [packed()[PAYLOAD][0][:-1]]}, PayloadError),
    "an update in place of the state": (
        {PAYLOAD: [encode(initial(), LAYOUT_OF_ARRAYS, codec("int8"), round=1)]},
        PayloadError,
    ),
    "neither payloads nor states": ({PAYLOAD: [], STATES: b""}, PayloadError),
    "fewer states than payloads": ({PAYLOAD: packed()[PAYLOAD] * 2}, PayloadError),
    "more states than payloads": ({STATES: packed()[STATES] * 3}, PayloadError),
    "a state that is cut off": ({STATES: packed()[STATES][:-1]}, PayloadError),
    "a state that is text": ({STATES: "state"}, PayloadError),
    "a round that is text": ({ROUND: "1"}, PayloadError),
    "an upload codec that is a number": ({UPLOAD_CODEC: 4}, PayloadError),
    "an upload codec that is not known": ({UPLOAD_CODEC: "int5"}, ConfigError),
}


def deliver(content: dict[str, object]) -> tuple[Message, RecordDict]:
    """Hand a broadcast to the client's mod; its answer, and what it keeps. The app must not be reached."""

    def app(message: Message, context: Context) -> Message:  # noqa: ARG001
        raise AssertionError("the app was called")

    InProcessGrid(third_party_app([]), 1, {})  # messages can be made only within a run
    message = Message(RecordDict({"arrays": ConfigRecord(content)}), 1000, "train")
    context = Context(1, 1000, {}, RecordDict(), {})
    return compressed_exchange(message, context, app), context.state


@pytest.mark.parametrize("name", DAMAGED)
def test_client_refuses_a_broadcast_with(name: str) -> None:
    damage, error = DAMAGED[name]
    with pytest.raises(error):
        deliver(packed() | damage)


@pytest.mark.parametrize("missing", [STATES, ROUND, UPLOAD_CODEC])
def test_client_refuses_a_broadcast_that_lacks_a_field(missing: str) -> None:
    content = packed()
    del content[missing]
    with pytest.raises(PayloadError, match=missing):
        deliver(content)


NOT_FOR_A_NEW_NODE: dict[str, tuple[dict[str, object], str]] = {
    "the layout is left out": ({LAYOUT: None}, "has no layout yet"),
    "nothing has changed": ({PAYLOAD: []}, "this node has none"),
    "it is a change": ({STATES: bytes(16) + packed()[STATES]}, f"is one of state {bytes(16).hex()}"),
    "the payload leads elsewhere": ({STATES: bytes(16)}, f"it should be {bytes(16).hex()}"),
}


@pytest.mark.parametrize("name", NOT_FOR_A_NEW_NODE)
def test_new_node_asks_for_the_whole_state_and_keeps_nothing_when(name: str) -> None:
    changes, said = NOT_FOR_A_NEW_NODE[name]
    content = {key: value for key, value in (packed() | changes).items() if value is not None}
    reply, kept = deliver(content)
    assert reply.error.code == UNKNOWN_STATE
    assert said in reply.error.reason
    assert "send" in reply.error.reason
    assert not kept


def test_client_does_not_inflate_a_zip_bomb() -> None:
    bomb = zlib.compress(b" " * (16 * MAX_LAYOUT_BYTES), 9)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="larger than"):
            deliver(packed() | {LAYOUT: bomb})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_LAYOUT_BYTES


def test_client_refuses_arrays_that_the_server_did_not_send() -> None:
    def renamed(message: Message, context: Context, call_next: Callable) -> Message:
        reply = call_next(message, context)
        reply.content["model"] = reply.content.pop("arrays")
        return reply

    app = third_party_app([compressed_exchange], train_mods=[renamed])
    grid = CompressedGrid(InProcessGrid(app, 1, {}))
    (reply,) = grid.send_and_receive(train_messages(initial(), [1000]))
    assert "'model'" in reply.error.reason
    assert "['arrays']" in reply.error.reason


# ------------------------------------------------------------------ messages that get lost


class RefusingGrid(InProcessGrid):
    """Does not take messages for the last node, as Flower marks it: None instead of an id."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str | None] = []
        for message in messages:
            ids += [None] if message.metadata.dst_node_id == EVIL else super().push_messages([message])
        return ids


class FullGrid(InProcessGrid):
    """Takes no message at all: Flower's answer to a request that is too large."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002
        return []


def test_silent_node_is_left_behind_at_the_timeout_and_its_late_reply_is_ignored() -> None:
    inner = MuteGrid(third_party_app([compressed_exchange]), NODES, {})
    grid = CompressedGrid(inner, poll_interval=0.01)
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive(train_messages(initial(), nodes), timeout=0.05))
    assert sorted(reply.metadata.src_node_id for reply in replies) == nodes[:-1]
    replies = list(grid.send_and_receive(train_messages(initial(), nodes, round_=2), timeout=5.0))
    assert sorted(reply.metadata.src_node_id for reply in replies) == nodes
    assert not any(reply.has_error() for reply in replies)
    # Whoever asks for the late reply gets it undecoded: nothing remembers any more what it answers.
    late, inner.late = inner.late, frozenset()
    (reply,) = grid.pull_messages(late)
    assert not reply.content.array_records
    uploads = [transfer for transfer in grid.ledger.transfers if transfer.direction == "up"]
    assert [transfer.round for transfer in uploads] == [1, 1, 1, 2, 2, 2, 2]


def test_message_that_flower_does_not_take_is_not_waited_for_nor_counted() -> None:
    grid = CompressedGrid(RefusingGrid(third_party_app([compressed_exchange]), NODES, {}))
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive(train_messages(initial(), nodes)))
    assert sorted(reply.metadata.src_node_id for reply in replies) == nodes[:-1]
    assert str(EVIL) not in {transfer.node for transfer in grid.ledger.transfers}


def test_flower_taking_no_messages_ends_with_the_reason() -> None:
    grid = CompressedGrid(FullGrid(third_party_app([compressed_exchange]), NODES, {}))
    with pytest.raises(RunError, match="pushed 0 of 4 messages"):
        grid.send_and_receive(train_messages(initial(), list(grid.get_node_ids())))


class LosingGrid(InProcessGrid):
    """The last node has gone: the SuperLink answers in its place, and signs with its own id."""

    def _answer(self, message: Message) -> Message:
        if message.metadata.dst_node_id != EVIL:
            return super()._answer(message)
        reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply


def test_a_node_that_has_gone_is_named_though_the_superlink_answers_for_it() -> None:
    grid = CompressedGrid(LosingGrid(third_party_app([compressed_exchange]), NODES, {}))
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive(train_messages(initial(), nodes)))
    assert sorted(reply.metadata.src_node_id for reply in replies) == nodes
    assert [r.metadata.src_node_id for r in replies if r.has_error()] == [EVIL]
