"""The way down: whatever goes wrong, server and nodes have the same adapter bit for bit, or the node asks."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import uuid4

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy
from seam_cases import SHAPES, State, initial, pull, random_state, record, state_of, third_party_app

from fedkron.compression import codec, decode, inspect_header, payload_sizes
from fedkron.compression.shared_state import DIGEST_SIZE, digest_of
from fedkron.flower import CompressedGrid, compressed_exchange
from fedkron.flower.wire import LAYOUT, PAYLOAD, STATES, UNKNOWN_STATE, deflated, is_packed
from fedkron.layout import AdapterLayout, Vector, flatten
from simulations.in_process import InProcessGrid

LAYOUT_OF_ARRAYS = AdapterLayout.of_arrays(initial())
NODES = 6
AWAY, JOINS = 1001, 1100
AWAY_IN = range(10, 32)
"""Rounds in which the node `AWAY` cannot be reached."""
JOIN_IN = (15, 40)
"""Rounds in which a new node joins."""


def flat(state: State) -> Vector:
    return flatten(state, AdapterLayout.of_arrays(state))


def kept(context: Context, key: str = "arrays") -> tuple[bytes, bytes]:
    """The state that a node has: vector and digest."""
    shared = context.state[f"fedkron.shared.{key}"]
    return shared["vector"], shared["digest"]


def assert_same_state(grid: CompressedGrid, context: Context, key: str = "arrays") -> None:
    state = grid.shared_state(key)
    vector, digest = kept(context, key)
    assert vector == flat(state).tobytes()
    assert digest == digest_of(flat(state), AdapterLayout.of_arrays(state))


def round_of(message: Message) -> int:
    return message.content["config"]["server-round"]


def unavailable(message: Message) -> Message:
    """What Flower answers in the place of a node from which nothing comes."""
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)


# ------------------------------------------------------------------ fifty rounds in which much goes wrong

FAULTS = ["none"] * 7 + ["unreachable", "reply lost", "fails after it stored the state", "restarted"]


class FaultyGrid(InProcessGrid):
    """Nodes drop out, restart, fail, join late; one is away for long. Keeps the books of every node."""

    def __init__(self, seed: int, nodes: int = NODES) -> None:
        super().__init__(third_party_app([compressed_exchange], learn=self.learn), nodes, {})
        self.rng = np.random.default_rng(seed)
        self.happened: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.faults: dict[int, str] = {}
        self.asking: set[int] = set()
        self.failing: set[int] = set()
        self.uploads: dict[int, bytes] = {}
        self.meant: dict[int, Vector] = {}
        self.sent: dict[int, Vector] = {}

    def learn(self, received: State, partition: int) -> State:
        if partition in self.failing:
            raise RuntimeError("out of memory")
        trained = pull(received, partition)
        self.meant[partition] = self.meant.get(partition, 0.0) + (flat(trained) - flat(received))
        return trained

    def join(self, node: int) -> None:
        config = {"partition-id": node - 1000, "num-partitions": NODES}
        self.contexts.setdefault(node, Context(1, node, config, RecordDict(), {}))

    def restart(self, node: int) -> None:
        self.contexts[node].state = RecordDict()
        self.meant.pop(node - 1000, None)
        self.sent.pop(node - 1000, None)

    def fault(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        if node in self.asking:  # what it asked for arrives
            self.asking.discard(node)
            return self.faults[node]
        for number, joins in enumerate(JOIN_IN):
            if round_of(message) >= joins:
                self.join(JOINS + number)
        away = node == AWAY and round_of(message) in AWAY_IN
        fault = "unreachable" if away else str(self.rng.choice(FAULTS))
        if fault == "restarted":
            self.restart(node)
        self.happened[fault] += 1
        self.faults[node] = fault
        return fault

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            fault = self.fault(message)
            message.metadata.__dict__["_message_id"] = str(uuid4())
            if fault == "unreachable":
                self._replies[message.metadata.message_id] = unavailable(message)
            else:
                self.deliver(message, fault)
            ids.append(message.metadata.message_id)
        return ids

    def deliver(self, message: Message, fault: str) -> None:
        node = message.metadata.dst_node_id
        self.ways[way_of(message)] += 1
        if fault == "fails after it stored the state":
            self.failing.add(node - 1000)
        super().push_messages([message])
        self.failing.discard(node - 1000)
        reply = self._replies[message.metadata.message_id]
        if reply.has_error():
            if reply.error.code == UNKNOWN_STATE:
                self.happened["asked for the whole state"] += 1
                self.asking.add(node)
        elif "arrays" in reply.content:
            self.uploads[node] = reply.content["arrays"][PAYLOAD]
            update = decode(self.uploads[node], LAYOUT_OF_ARRAYS).update
            self.sent[node - 1000] = self.sent.get(node - 1000, 0.0) + flat(update)
        if fault == "reply lost":
            self.asking.discard(node)
            self._replies[message.metadata.message_id] = unavailable(message)


def way_of(message: Message, key: str = "arrays") -> str:
    """What a broadcast carries, in words."""
    blobs = message.content[key][PAYLOAD]
    if not blobs:
        return "nothing"
    first = inspect_header(blobs[0])
    if first.kind == "CHANGE":
        return "a change" if len(blobs) == 1 else "changes"
    return "the whole state" if len(blobs) == 1 else "the first state and changes"


class CheckedGrid(CompressedGrid):
    """After each exchange: nobody who answered has drifted, and the strategy sees what the nodes sent."""

    answers = 0

    def __init__(self, grid: FaultyGrid, **options: object) -> None:
        super().__init__(grid, **options)
        self.faulty = grid

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        sent = {m.metadata.dst_node_id: state_of(m.content["arrays"]) for m in messages}
        replies = list(super().send_and_receive(messages, timeout=timeout))
        assert sorted(reply.metadata.src_node_id for reply in replies) == sorted(sent)
        for reply in replies:
            node = reply.metadata.src_node_id
            # Who restarted is served in the same round.
            assert reply.has_error() <= (self.faulty.faults[node] not in ("none", "restarted"))
            # What no node has sent cost nothing.
            self.answers += not reply.has_error() or reply.error.code != ErrorCode.NODE_UNAVAILABLE
            if reply.has_error():
                continue
            assert_same_state(self, self.faulty.contexts[node])
            if "arrays" in reply.content:
                update = decode(self.faulty.uploads[node], LAYOUT_OF_ARRAYS).update
                seen = state_of(reply.content["arrays"])
                for name, values in seen.items():
                    reference = sent[node][name].astype(np.float32)  # FedAdam's own arrays are float64
                    np.testing.assert_array_equal(values, reference + update[name])
        return replies


LONG_RUNS: dict[str, tuple[Callable[[], Strategy], str, str]] = {
    "FedAvg, int4": (lambda: FedAvg(fraction_train=0.5, fraction_evaluate=0.6), "int4", "int4"),
    "FedAvg, ecsq": (lambda: FedAvg(fraction_train=0.5, fraction_evaluate=0.6), "ecsq:1.5", "ecsq"),
    "FedAvg, below one bit": (
        lambda: FedAvg(fraction_train=0.5, fraction_evaluate=0.3),
        "ecsq:0.5",
        "ecsq:0.5",
    ),
    "FedAvg without evaluation, sign": (
        lambda: FedAvg(fraction_train=0.5, fraction_evaluate=0.0),
        "sign",
        "sign",
    ),
    "FedAdam, int4": (
        lambda: FedAdam(fraction_train=0.5, fraction_evaluate=0.6, eta=0.05, tau=0.01),
        "int4:stochastic",
        "int4",
    ),
    "FedMedian, fp16 and int8 by rows": (lambda: FedMedian(fraction_train=0.5), "fp16", "int8:channel"),
}


@pytest.mark.parametrize("name", LONG_RUNS)
def test_nothing_drifts_in_fifty_rounds_with_dropouts_restarts_and_partial_participation(name: str) -> None:
    strategy, upload, broadcast = LONG_RUNS[name]
    random.seed(3)  # Flower's strategies choose their nodes with it
    faulty = FaultyGrid(seed=3)
    grid = CheckedGrid(faulty, upload=upload, broadcast=broadcast, poll_interval=0.0)
    strategy().start(grid, record(initial()), num_rounds=50, timeout=20.0)

    # All that can go wrong did, and each kind of broadcast was needed.
    assert faulty.happened.keys() == {*FAULTS, "asked for the whole state"}
    assert {"a change", "changes", "the whole state"} <= faulty.ways.keys()
    assert grid.answers > 80
    assert {f"{JOINS + number}" for number in range(2)} <= {t.node for t in grid.ledger.transfers}

    # Every message that was taken is in the ledger, those that ask and those that answer them too.
    directions = Counter(transfer.direction for transfer in grid.ledger.transfers)
    asked = sum(transfer.direction == "up" for transfer in grid.ledger.transfers) - grid.answers
    assert directions["down"] == sum(faulty.happened[fault] for fault in set(FAULTS)) + asked
    assert 0 < asked <= faulty.happened["asked for the whole state"]

    # Error feedback of the nodes: what was sent and what is kept is what was meant, nothing twice.
    for partition, meant in faulty.meant.items():
        record_ = faulty.contexts[1000 + partition].state["fedkron.residual.arrays"]
        residual = np.frombuffer(record_["residual"], np.float32)
        np.testing.assert_allclose(faulty.sent[partition] + residual, meant, atol=2e-4)


# ------------------------------------------------------------------ a loop that pushes and pulls by itself


class PatchyGrid(InProcessGrid):
    """Keeps back the replies of some nodes, as long as they are in `silent`; remembers all broadcasts."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        super().__init__(app, nodes, {})
        self.silent: set[int] = set()
        self.unreachable: set[int] = set()
        self.down: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id in self.unreachable:
                ids.append(str(uuid4()))
            else:
                ids += super().push_messages([message])
                self.down.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [i for i in message_ids if i in self._replies]
        return super().pull_messages(
            [i for i in there if self._replies[i].metadata.src_node_id not in self.silent]
        )

    def restart(self, *nodes: int) -> None:
        for node in nodes:
            self.contexts[node].state = RecordDict()

    def ways(self, start: int = 0) -> dict[int, list[str]]:
        """What each node was sent, from some broadcast on."""
        found: dict[int, list[str]] = {}
        for message in self.down[start:]:
            found.setdefault(message.metadata.dst_node_id, []).append(way_of(message))
        return found


def exchange(nodes: int = 4, *, learn: Callable[[State, int], State] = pull) -> PatchyGrid:
    return PatchyGrid(third_party_app([compressed_exchange], learn=learn), nodes)


def train_message(arrays: ArrayRecord, node: int, round_: int = 1) -> Message:
    config = ConfigRecord({"server-round": round_})
    return Message(RecordDict({"arrays": arrays, "config": config}), node, "train")


def push(grid: CompressedGrid, state: State, nodes: Sequence[int], round_: int = 1) -> dict[str, int]:
    """Ids of messages with these arrays, and their nodes."""
    arrays = record(state)
    ids = grid.push_messages([train_message(arrays, node, round_) for node in nodes])
    return dict(zip(ids, nodes, strict=True))


def pull_all(grid: CompressedGrid, ids: Iterable[str], times: int = 3) -> dict[str, Message]:
    """Replies by the message they answer; asked for several times, as such a loop does."""
    waiting, replies = list(ids), {}
    for _ in range(times):
        for reply in grid.pull_messages(waiting):
            waiting.remove(reply.metadata.reply_to_message_id)
            replies[reply.metadata.reply_to_message_id] = reply
    return replies


def by_node(replies: Mapping[str, Message]) -> dict[int, Message]:
    return {reply.metadata.src_node_id: reply for reply in replies.values()}


def send(grid: CompressedGrid, state: State, nodes: Sequence[int], round_: int = 1) -> dict[int, Message]:
    """Replies by node: every one answers, and none with an error."""
    replies = by_node(pull_all(grid, push(grid, state, nodes, round_)))
    assert {node: reply.has_error() for node, reply in replies.items()} == dict.fromkeys(nodes, False)
    return replies


@pytest.mark.parametrize("codec_name", ["int4", "ecsq", "sign", "fp32"])
def test_nothing_drifts_in_a_loop_that_pushes_and_pulls_by_itself_where_nodes_fall_silent(
    codec_name: str,
) -> None:
    inner = exchange()
    grid = CompressedGrid(inner, upload=codec_name, broadcast=codec_name)
    nodes, rng, state = list(inner.contexts), np.random.default_rng(5), initial()
    late: list[str] = []
    answers = 0
    for round_ in range(1, 51):
        inner.silent = {node for node in nodes if rng.random() < 0.2}
        inner.unreachable = {node for node in nodes if rng.random() < 0.2}
        inner.restart(*(node for node in nodes if rng.random() < 0.1))
        ids = push(grid, state, [node for node in nodes if rng.random() < 0.7], round_)
        replies = pull_all(grid, [*ids, *late])  # now and then a reply to an earlier round comes, too
        late = [message_id for message_id in [*late, *ids] if message_id not in replies]
        for message_id, node in ids.items():
            if message_id in replies:
                assert not replies[message_id].has_error()
                assert_same_state(grid, inner.contexts[node])
                answers += 1
        good = [state_of(reply.content["arrays"]) for reply in replies.values() if not reply.has_error()]
        if good:
            state = {name: np.mean([one[name] for one in good], axis=0, dtype=np.float32) for name in SHAPES}
    assert answers > 50
    assert late


def test_restarted_node_is_served_within_the_round_unseen_by_who_waits() -> None:
    inner = exchange(2, learn=lambda received, _: received)
    grid = CompressedGrid(inner, upload="fp32", broadcast="int4")
    send(grid, initial(), [1000, 1001])
    inner.restart(1001)
    goal = random_state(7)
    ids = push(grid, goal, [1000, 1001], 2)
    first = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in first] == [1000]
    (second,) = grid.pull_messages(ids)
    assert ids[second.metadata.reply_to_message_id] == 1001
    for reply in (*first, second):
        for name, values in state_of(reply.content["arrays"]).items():
            np.testing.assert_array_equal(values, goal[name])  # what was sent plus an update of zero
    for context in inner.contexts.values():
        assert_same_state(grid, context)
    assert inner.ways(2) == {1000: ["a change"], 1001: ["a change", "the first state and changes"]}
    of_node = [t for t in grid.ledger.transfers if (t.node, t.round) == ("1001", 2)]
    assert [transfer.direction for transfer in of_node] == ["down", "up", "down", "up"]
    question = of_node[1]
    assert (question.payload_bytes, question.baseline_bytes) == (0, 0)
    assert question.message_bytes > 0
    # Afterwards it is a node like any other.
    send(grid, random_state(8), [1000, 1001], 3)
    assert inner.ways(5) == {1000: ["a change"], 1001: ["a change"]}


def test_restarted_node_does_not_train_before_it_has_the_state() -> None:
    trained: list[int] = []

    def learn(received: State, partition: int) -> State:
        trained.append(partition)
        return pull(received, partition)

    inner = exchange(1, learn=learn)
    grid = CompressedGrid(inner)
    send(grid, initial(), [1000])
    inner.restart(1000)
    send(grid, initial(), [1000], 2)
    assert inner.ways() == {1000: ["the whole state", "nothing", "the whole state"]}
    assert trained == [0, 0]


class RefusingGrid(PatchyGrid):
    """Flower takes no second message for a node: it has just left."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if round_of(messages[0]) == 2 and len(messages) == 1:
            return [None]
        return super().push_messages(messages)


def test_node_that_leaves_after_it_asked_is_an_error_and_nobody_waits_for_it() -> None:
    inner = RefusingGrid(third_party_app([compressed_exchange]), 2)
    grid = CompressedGrid(inner)
    nodes = [1000, 1001]
    send(grid, initial(), nodes)
    inner.restart(1001)
    arrays = record(initial())
    replies = list(grid.send_and_receive([train_message(arrays, node, 2) for node in nodes], timeout=5.0))
    assert {reply.metadata.src_node_id: reply.has_error() for reply in replies} == {1000: False, 1001: True}
    assert send(grid, initial(), nodes, 3).keys() == set(nodes)


def test_node_that_keeps_asking_is_answered_once_a_round() -> None:
    def insatiable(message: Message, context: Context, call_next: Callable) -> Message:
        if context.node_id == 1001:
            return Message(Error(UNKNOWN_STATE, "more"), reply_to=message)
        return call_next(message, context)

    inner = PatchyGrid(third_party_app([insatiable, compressed_exchange]), 2)
    grid = CompressedGrid(inner)
    for round_ in (1, 2):
        replies = by_node(pull_all(grid, push(grid, random_state(round_), [1000, 1001], round_)))
        assert replies[1001].error.code == UNKNOWN_STATE
        assert not replies[1000].has_error()
    assert inner.ways()[1001] == ["the whole state"] * 2 + ["the first state and changes"] * 2


def test_node_whose_question_comes_after_the_next_push_is_served_with_that() -> None:
    inner = exchange(1)
    grid = CompressedGrid(inner)
    send(grid, initial(), [1000])
    inner.restart(1000)
    inner.silent = {1000}
    early = push(grid, random_state(1), [1000], 2)
    later = push(grid, random_state(2), [1000], 3)
    inner.silent = set()
    replies = [*grid.pull_messages(early), *grid.pull_messages(later), *grid.pull_messages(later)]
    # The arrays of round 2 are not the shared state any more: that question is an error of its round.
    assert [reply.has_error() for reply in replies] == [True, False]
    assert replies[1].metadata.reply_to_message_id in later
    assert_same_state(grid, inner.contexts[1000])


def test_late_reply_is_decoded_against_what_its_message_carried_and_nothing_drifts() -> None:
    inner = exchange(2, learn=lambda received, _: received)
    grid = CompressedGrid(inner, upload="fp32", broadcast="int4")
    inner.silent = {1001}
    early = push(grid, initial(), [1000, 1001])
    assert by_node(pull_all(grid, early)).keys() == {1000}
    for round_ in (2, 3):
        ids = push(grid, random_state(round_), [1000, 1001], round_)
        inner.silent = set() if round_ == 3 else {1001}
        pull_all(grid, ids)
    (late,) = pull_all(grid, early).values()
    for name, values in state_of(late.content["arrays"]).items():
        np.testing.assert_array_equal(values, initial()[name])
    # The server now thinks that the node is two rounds behind; the node goes on from where it is.
    start = len(inner.down)
    send(grid, random_state(4), [1000, 1001], 4)
    assert inner.ways(start) == {1000: ["a change"], 1001: ["changes"]}
    for context in inner.contexts.values():
        assert_same_state(grid, context)


# ------------------------------------------------------------------ who gets what


def test_only_the_first_message_to_a_node_carries_the_layout() -> None:
    inner = exchange(2)
    grid = CompressedGrid(inner)
    send(grid, initial(), [1000])
    for round_ in (2, 3):
        send(grid, random_state(round_), [1000, 1001], round_)
    with_layout = [m.metadata.dst_node_id for m in inner.down if LAYOUT in m.content["arrays"]]
    assert with_layout == [1000, 1001]
    header_bytes = [t.header_bytes for t in grid.ledger.transfers if t.direction == "down"]
    assert header_bytes[0] > len(deflated(LAYOUT_OF_ARRAYS))


def test_node_that_was_away_for_long_gets_the_whole_state_at_no_more_than_float32() -> None:
    inner = exchange(2)
    grid = CompressedGrid(inner)
    send(grid, initial(), [1000, 1001])
    for round_ in range(2, 22):
        send(grid, random_state(round_), [1000], round_)
    start = len(inner.down)
    send(grid, random_state(50), [1001], 50)
    assert inner.ways(start) == {1001: ["the whole state"]}
    (payload,) = inner.down[start].content["arrays"][PAYLOAD]
    assert len(payload) in payload_sizes(LAYOUT_OF_ARRAYS, codec("fp32"))
    assert_same_state(grid, inner.contexts[1001])


def test_new_server_starts_anew_with_nodes_of_an_old_one() -> None:
    inner = exchange()
    old = CompressedGrid(inner)
    nodes = list(inner.contexts)
    for round_ in (1, 2, 3):
        send(old, random_state(round_), nodes, round_)
    new = CompressedGrid(inner)
    start = len(inner.down)
    for round_ in (1, 2, 3):
        send(new, random_state(10 + round_), nodes[:3], round_)
    send(new, random_state(13), nodes, 4)
    sent = inner.ways(start)
    assert sent[1000] == ["the whole state", "a change", "a change", "nothing"]
    assert sent[1003] == ["the first state and changes"]
    for context in inner.contexts.values():
        assert_same_state(new, context)


def test_training_starts_from_what_all_have_where_that_is_agreed_before() -> None:
    inner = exchange(2)
    grid = CompressedGrid(inner, broadcast="ecsq")
    with pytest.raises(LookupError):
        grid.shared_state()
    agreed = state_of(grid.agreed(record(initial())))
    for name, values in agreed.items():
        np.testing.assert_array_equal(values, grid.shared_state()[name])
        assert 0 < np.linalg.norm(values - initial()[name]) < 0.1 * np.linalg.norm(initial()[name])
    send(grid, agreed, [1000, 1001])
    assert inner.ways() == {1000: ["the whole state"], 1001: ["the whole state"]}
    for context in inner.contexts.values():
        assert kept(context)[0] == flat(agreed).tobytes()


def test_equal_arrays_in_records_of_their_own_are_one_state() -> None:
    inner = exchange()
    grid = CompressedGrid(inner)
    for round_ in (1, 2, 3):
        messages = [train_message(record(random_state(round_)), node, round_) for node in inner.contexts]
        assert not any(reply.has_error() for reply in grid.send_and_receive(messages))
    assert {tuple(ways) for ways in inner.ways().values()} == {("the whole state", "a change", "a change")}
    assert len({kept(context) for context in inner.contexts.values()}) == 1
    for context in inner.contexts.values():
        assert_same_state(grid, context)


def lots(grid: CompressedGrid, groups: Sequence[tuple[Sequence[int], State]], round_: int) -> None:
    """One push, in which each group of nodes gets arrays of its own."""
    inner = grid._grid
    messages = [
        train_message(arrays, node, round_)
        for nodes, state in groups
        for arrays in [record(state)]
        for node in nodes
    ]
    assert not any(reply.has_error() for reply in grid.send_and_receive(messages))
    last = {message.metadata.dst_node_id: message for message in inner.down[-len(messages) :]}
    for nodes, state in groups:
        for node in nodes:
            vector, digest = kept(inner.contexts[node])
            assert last[node].content["arrays"][STATES][-DIGEST_SIZE:] == digest
            assert digest == digest_of(np.frombuffer(vector, np.float32), LAYOUT_OF_ARRAYS)
            error = np.linalg.norm(np.frombuffer(vector, np.float32) - flat(state))
            assert error < 0.25 * np.linalg.norm(flat(state))


def near(seed: int, round_: int) -> State:
    """Arrays that hardly move from round to round."""
    step = random_state(1000 + round_)
    return {name: values + np.float32(1e-3) * step[name] for name, values in random_state(seed).items()}


def test_every_node_with_arrays_of_its_own_gets_small_changes_of_them() -> None:
    inner = exchange()
    grid = CompressedGrid(inner, broadcast="int4")
    for round_ in range(1, 9):
        lots(grid, [([node], near(node, round_)) for node in inner.contexts], round_)
    assert all(ways == ["the whole state"] + ["a change"] * 7 for ways in inner.ways().values())
    for node, context in inner.contexts.items():
        error = np.frombuffer(kept(context)[0], np.float32) - flat(near(node, 8))
        assert np.abs(error).max() < 1e-3
    sizes = [t.payload_bytes for t in grid.ledger.transfers if t.direction == "down" and t.round > 1]
    assert {size - 2 * DIGEST_SIZE in payload_sizes(LAYOUT_OF_ARRAYS, codec("int4")) for size in sizes} == {
        True
    }


def test_groups_that_swap_nodes_each_stay_right_and_become_cheap_again() -> None:
    inner = exchange()
    grid = CompressedGrid(inner, broadcast="int4")
    for round_ in (1, 2):
        lots(grid, [((1000, 1001), near(1, round_)), ((1002, 1003), near(2, round_))], round_)
    for round_ in (3, 4):
        lots(grid, [((1000, 1002), near(1, round_)), ((1001, 1003), near(2, round_))], round_)
    lots(grid, [((1000, 1001, 1002, 1003), near(1, 5))], 5)
    lots(grid, [((1000, 1001, 1002, 1003), near(1, 6))], 6)
    assert len(inner.down) == 6 * 4  # nobody had to ask
    for context in inner.contexts.values():
        assert_same_state(grid, context)
    assert all(ways[3] == ways[5] == "a change" for ways in inner.ways().values())


def test_arrays_of_two_contracts_in_turn_are_kept_apart() -> None:
    renamed = {f"other {name}": values for name, values in initial().items()}
    inner = exchange(2)
    grid = CompressedGrid(inner, upload="int4", broadcast="int4")
    # As a learner that knows the targets by name cannot take part, the arrays come back as they are.
    inner._app = third_party_app([compressed_exchange], learn=lambda received, _: received)
    for round_, state in enumerate([initial(), renamed, initial(), renamed], start=1):
        send(grid, state, [1000, 1001], round_)
        for context in inner.contexts.values():
            assert_same_state(grid, context)


def test_node_that_got_other_arrays_unheard_and_was_away_for_long_is_served() -> None:
    renamed = {f"other {name}": values for name, values in initial().items()}
    inner = PatchyGrid(third_party_app([compressed_exchange], learn=lambda received, _: received), 2)
    grid = CompressedGrid(inner)
    send(grid, initial(), [1000, 1001])
    inner.silent = {1001}
    pull_all(grid, push(grid, renamed, [1001], 2))  # it has the other layout now, and nobody knows
    inner.silent = set()
    for round_ in range(3, 23):
        send(grid, random_state(round_), [1000], round_)
    start = len(inner.down)
    send(grid, random_state(23), [1000, 1001], 23)
    assert inner.ways(start)[1001] == ["the whole state"]
    for context in inner.contexts.values():
        assert_same_state(grid, context)


# ------------------------------------------------------------------ two keys in one message


def two_key_app() -> ClientApp:
    """Adds one to the adapter and two to the head."""
    app = ClientApp(mods=[compressed_exchange])

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001
        content = {
            key: record(
                {name: values + np.float32(step) for name, values in state_of(message.content[key]).items()}
            )
            for key, step in (("adapter", 1), ("head", 2))
        }
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({**content, "metrics": metrics}), reply_to=message)

    return app


def test_two_keys_in_one_message_have_states_of_their_own() -> None:
    inner = PatchyGrid(two_key_app(), 3)
    grid = CompressedGrid(inner, upload="fp32", broadcast="int4")
    nodes = list(inner.contexts)
    for round_ in range(1, 7):
        head = {"head": np.random.default_rng(round_).standard_normal((7, 9)).astype(np.float32)}
        arrays = {"adapter": record(random_state(round_)), "head": record(head)}
        config = ConfigRecord({"server-round": round_})
        if round_ == 3:
            inner.restart(1001)
        if round_ == 4:
            del inner.contexts[1002].state["fedkron.shared.head"]
        messages = [Message(RecordDict({**arrays, "config": config}), node, "train") for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=5.0))
        assert sorted(reply.metadata.src_node_id for reply in replies) == nodes
        for reply in replies:
            assert not reply.has_error()
            for key, step, sent in (("adapter", 1, random_state(round_)), ("head", 2, head)):
                for name, values in state_of(reply.content[key]).items():
                    np.testing.assert_allclose(values, sent[name] + step, atol=1e-5)
        for context in inner.contexts.values():
            for key in ("adapter", "head"):
                assert_same_state(grid, context, key)
    asked = [message for message in inner.down[3:] if LAYOUT in message.content["head"]]
    assert [message.metadata.dst_node_id for message in asked] == [1001, 1002]
    assert all(is_packed(message.content[key]) for message in inner.down for key in ("adapter", "head"))
