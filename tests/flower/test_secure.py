"""Secure aggregation over real Flower messages: any strategy gets the mean, and nobody gets more."""

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from seam_cases import SHAPES, State, examples_of, initial, pull, record, state_of, target_of, third_party_app

from fedkron.errors import RunError
from fedkron.flower import CompressedGrid, FedKron, compressed_exchange
from fedkron.flower.secure_client import answer_secure_queries, secure_exchange
from fedkron.flower.secure_grid import SecureGrid
from fedkron.flower.secure_memory import kept_residual, last_round
from fedkron.flower.secure_wire import (
    BOXES,
    KEYS,
    MASKED,
    NODES,
    ROSTER,
    SECURE,
    SESSION,
    SHARES,
    STEPS,
    UNMASK,
    flat,
    nodes_from_bytes,
    nodes_to_bytes,
    shapes,
)
from fedkron.flower.wire import PAYLOAD
from fedkron.layout import AdapterLayout
from fedkron.ledger import by_round, sections
from fedkron.secure.codes import steps_of
from fedkron.secure.packing import packing
from fedkron.secure.roster import Policy, Session
from fedkron.secure.upload import contract_of
from simulations.in_process import InProcessGrid, transported

TRAIN = MessageType.TRAIN
STAGES = (KEYS, SHARES, TRAIN, UNMASK)
MAGNITUDE = 0.4
FIRST = 1000  # the first node's id in an InProcessGrid

Change = Callable[[Message], object]


class UnreliableGrid(InProcessGrid):
    """Keeps every message; some answers never come, some messages are changed on the way to a node."""

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        *,
        silent: Collection[tuple[str, int]] = (),
        changes: Mapping[tuple[str, int], Change] | None = None,
    ) -> None:
        super().__init__(app, nodes, {})
        self.silent, self.changes = set(silent), changes or {}
        self.down: list[Message] = []
        self.up: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            where = message.metadata.message_type, message.metadata.dst_node_id - FIRST
            self.changes.get(where, lambda _: None)(message)
            self.down.append(transported(message))
        ids = list(super().push_messages(messages))
        for message in messages:
            if (message.metadata.message_type, message.metadata.dst_node_id - FIRST) in self.silent:
                del self._replies[message.metadata.message_id]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.up += [transported(reply) for reply in replies]
        return replies

    def again(self, message_type: str, node: int = 0) -> str:
        """Send a node once more what it was sent last; what it says to that."""
        message = [
            message
            for message in self.down
            if (message.metadata.message_type, message.metadata.dst_node_id - FIRST) == (message_type, node)
        ][-1]
        reply = self._answer(transported(message))
        return reply.error.reason if reply.has_error() else ""


def secure_app(learn: Callable[[State, int], State] = pull) -> ClientApp:
    app = third_party_app([compressed_exchange, secure_exchange], learn=learn)
    answer_secure_queries(app)
    return app


def secured(nodes: InProcessGrid, *, levels: int = 255, broadcast: str = "fp32") -> SecureGrid:
    compressed = CompressedGrid(nodes, broadcast=broadcast, poll_interval=0.01)
    return SecureGrid(compressed, levels=levels, policy=Policy(0.6), magnitude=lambda _: MAGNITUDE)


def federate(nodes: InProcessGrid, *, rounds: int = 1, levels: int = 255) -> State:
    """FedAvg over masked uploads; what it ends with. Nodes have 0.2 seconds for each answer."""
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    result = strategy.start(secured(nodes, levels=levels), record(initial()), rounds, timeout=0.2)
    return state_of(result.arrays)


def expected(nodes: Iterable[int], levels: int = 255) -> State:
    """What was sent plus the mean of the nodes' coded updates, by the formula in `fedkron.secure.codes`."""
    start, partitions = initial(), list(nodes)
    step = float(steps_of(np.array([MAGNITUDE]), levels)[0])
    middle = (levels - 1) / 2
    result = {}
    for name, values in start.items():
        codes = [
            np.clip(np.round((pull(start, i)[name] - values) / step + middle), 0, levels - 1)
            for i in partitions
        ]
        result[name] = values + step * (np.mean(codes, axis=0) - middle)
    return result


def assert_close(found: State, wanted: State) -> None:
    for name in SHAPES:
        assert np.allclose(found[name], wanted[name], rtol=1e-6, atol=2e-6), name


# ------------------------------------------------------------------ what a strategy gets


@pytest.mark.parametrize("levels", [2, 3, 5, 15, 255])
def test_any_strategy_gets_the_mean_of_the_codes_every_node_counted_once(levels: int) -> None:
    nodes = UnreliableGrid(secure_app(), 4)
    assert len({examples_of(i) for i in range(4)}) == 4  # FedAvg would weight them
    assert_close(federate(nodes, levels=levels), expected(range(4), levels))


@pytest.mark.parametrize("levels", [3, 15])
def test_over_rounds_the_mean_of_all_targets_is_reached(levels: int) -> None:
    nodes = UnreliableGrid(secure_app(), 4)
    end = federate(nodes, rounds=8, levels=levels)
    goal = {name: np.mean([target_of(i)[name] for i in range(4)], axis=0) for name in SHAPES}
    far = np.linalg.norm(flat(initial()) - flat(goal))
    assert np.linalg.norm(flat(end) - flat(goal)) < 0.2 * far


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_vanishes_at_any_stage_leaves_the_sum_of_the_others(stage: str) -> None:
    nodes = UnreliableGrid(secure_app(), 5, silent=[(stage, 1), (stage, 4)])
    survivors = range(5) if stage == UNMASK else (0, 2, 3)
    assert_close(federate(nodes), expected(survivors))


def test_nodes_may_vanish_at_different_stages() -> None:
    nodes = UnreliableGrid(secure_app(), 9, silent=[(KEYS, 1), (SHARES, 5), (TRAIN, 7), (UNMASK, 0)])
    assert_close(federate(nodes), expected((0, 2, 3, 4, 6, 8)))


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_nodes_fail_the_round_for_all_and_change_nothing(stage: str) -> None:
    nodes = UnreliableGrid(secure_app(), 4, silent=[(stage, 1), (stage, 2)])
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    grid = secured(nodes)
    messages = list(strategy.configure_train(1, record(initial()), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages, timeout=0.2))
    assert len(replies) >= 2
    assert all(reply.has_error() for reply in replies)
    assert all("round 1 cannot be added up securely: " in reply.error.reason for reply in replies)
    assert any("it takes 3" in reply.error.reason for reply in replies)


def test_a_round_that_fails_ends_our_runs_as_failed() -> None:
    nodes = UnreliableGrid(secure_app(), 4, silent=[(TRAIN, 1), (TRAIN, 2)])
    layout = AdapterLayout.of_arrays(initial())
    strategy = FedKron(layout, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    with pytest.raises(RunError, match=r"clients failed in training.*cannot be added up securely"):
        strategy.start(secured(nodes), record(initial()), 1, timeout=0.2)


def test_arrays_that_differ_from_node_to_node_cannot_be_added_up() -> None:
    nodes = UnreliableGrid(secure_app(), 3)
    messages = [
        Message(RecordDict({"arrays": record(pull(initial(), i))}), FIRST + i, TRAIN) for i in range(3)
    ]
    with pytest.raises(RunError, match="the same arrays for all nodes"):
        secured(nodes).send_and_receive(messages)
    messages = [Message(RecordDict({"config": ConfigRecord()}), FIRST + i, TRAIN) for i in range(3)]
    with pytest.raises(RunError, match="one record of arrays"):
        secured(nodes).send_and_receive(messages)
    assert nodes.down == []


# ------------------------------------------------------------------ what the server sees


def masked_uploads(nodes: UnreliableGrid) -> list[bytes]:
    return [
        bytes(found[MASKED])
        for reply in nodes.up
        if not reply.has_error()
        for found in reply.content.config_records.values()
        if MASKED in found
    ]


def test_the_server_sees_no_arrays_no_payload_and_never_the_same_upload_twice() -> None:
    uploads = []
    for _ in range(2):
        nodes = UnreliableGrid(secure_app(lambda received, _: pull(received, 0)), 4)
        federate(nodes)
        for reply in nodes.up:
            assert not reply.content.array_records
            assert not any(PAYLOAD in found for found in reply.content.config_records.values())
        uploads += masked_uploads(nodes)
    assert len(uploads) == 8
    assert len({upload[44:] for upload in uploads}) == 8


@pytest.mark.parametrize("levels", [3, 5, 255])
def test_the_ledger_has_every_stage_in_its_round_and_uploads_of_the_size_of_their_packing(
    levels: int,
) -> None:
    nodes = UnreliableGrid(secure_app(), 4)
    grid = secured(nodes, levels=levels)
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy.start(grid, record(initial()), 2, timeout=0.2)
    ledger = grid._grid.ledger
    count = sum(int(np.prod(shape)) for shape in SHAPES.values())
    size = 44 + packing(levels, 4).size(count) + packing(256, 4).size(len(SHAPES))
    assert {len(upload) for upload in masked_uploads(nodes)} == {size}
    assert list(by_round(ledger.transfers)) == [1, 2]
    for transfers in by_round(ledger.transfers).values():
        phases = {(t.phase, t.direction): t for t in transfers}
        assert {phase for phase, _ in phases} == {*STAGES, MessageType.EVALUATE}
        assert len(transfers) == 4 * 2 * 5
        assert phases[TRAIN, "up"].factor_bytes == size
        assert phases[TRAIN, "up"].baseline_bytes == phases[TRAIN, "down"].baseline_bytes == 4 * count
        assert phases[KEYS, "up"].header_bytes == 200
        assert phases[SHARES, "down"].header_bytes == 4 * 200
        assert phases[SHARES, "up"].header_bytes == 4 * (80 + 32)
        assert phases[UNMASK, "up"].header_bytes == 4 * 32
        assert phases[UNMASK, "up"].factor_bytes == phases[UNMASK, "up"].baseline_bytes == 0
    up = sections(ledger.transfers)["up"]
    assert up.factors == 2 * 4 * size


# ------------------------------------------------------------------ what a node refuses


def test_requests_that_come_twice_are_refused() -> None:
    nodes = UnreliableGrid(secure_app(), 4)
    federate(nodes, rounds=2)
    assert "asked for keys of round 2, but round 2 has been answered" in nodes.again(KEYS)
    assert "no round of secure aggregation is under way" in nodes.again(SHARES)
    assert "no round of secure aggregation is under way" in nodes.again(UNMASK)


@pytest.mark.parametrize(
    ("until", "twice", "said"),
    [
        (TRAIN, SHARES, "a second list of nodes came in round 1"),
        (UNMASK, TRAIN, "asked for too early, or twice"),
        (UNMASK, KEYS, "but round 1 has been answered"),
    ],
)
def test_requests_that_come_twice_within_a_round_are_refused(until: str, twice: str, said: str) -> None:
    heard = []
    nodes = UnreliableGrid(secure_app(), 4, changes={(until, 0): lambda _: heard.append(nodes.again(twice))})
    assert_close(federate(nodes), expected(range(4)))
    assert said in heard[0]


def test_the_other_share_of_a_node_cannot_be_had_by_asking_again() -> None:
    """First the seeds of all, then, with other survivors, the mask key of one of them."""
    nodes = UnreliableGrid(secure_app(), 4)
    federate(nodes)
    others = nodes_to_bytes([FIRST, FIRST + 1, FIRST + 2])

    def ask_for_other(message: Message) -> None:
        message.content[SECURE] = ConfigRecord({**message.content[SECURE], NODES: others})

    unmask = next(m for m in nodes.down if m.metadata.message_type == UNMASK)
    ask_for_other(unmask)
    assert unmask.metadata.dst_node_id == FIRST
    reply = nodes._answer(transported(unmask))
    assert reply.has_error()
    assert "no round of secure aggregation is under way" in reply.error.reason


def test_a_server_that_asks_twice_at_the_same_moment_gets_one_answer() -> None:
    """As two processes would: each with a copy of the node's state as it was before."""
    heard: dict[str, str] = {}

    def ask_with_a_copy(message: Message) -> None:
        context = nodes.contexts[FIRST]
        before = {key: deepcopy(found) for key, found in context.state.items()}
        reply = nodes._answer(transported(message))
        assert not reply.has_error()
        context.state.clear()
        context.state.update(before)
        heard[message.metadata.message_type] = nodes._answer(transported(message)).error.reason
        context.state.clear()
        context.state.update(before)

    for stage in (UNMASK, TRAIN, SHARES):  # each in a federation of its own: node 0 is out after it
        nodes = UnreliableGrid(secure_app(), 4, changes={(stage, 0): ask_with_a_copy})
        federate(nodes)
    assert heard.keys() == {SHARES, TRAIN, UNMASK}
    assert all("twice in one round" in reason for reason in heard.values())


def test_a_second_session_of_a_round_cannot_upload_while_the_first_one_trains() -> None:
    """Both uploads would be of the same update, in the sums of different nodes."""
    nodes = UnreliableGrid(secure_app(), 4)
    heard: list[str] = []

    def second_session(message: Message) -> None:
        if heard:
            return
        heard.append("begun")
        context = nodes.contexts[FIRST]
        before = {key: deepcopy(found) for key, found in context.state.items()}
        assert not nodes._answer(transported(message)).has_error()  # the first session's upload
        context.state.clear()
        context.state.update(before)
        others = UnreliableGrid(secure_app(), 4)
        others.contexts[FIRST].state = context.state
        federate(others)
        heard[:] = [reply.error.reason for reply in others.up if reply.has_error()]

    nodes.changes = {(TRAIN, 0): second_session}
    federate(nodes)
    assert len(heard) == 1
    assert "asked to upload twice in one round" in heard[0]


def put(key: str, change: Callable[[bytes], bytes]) -> Change:
    def changed(message: Message) -> None:
        found = message.content.config_records[SECURE]
        found[key] = change(bytes(found[key]))

    return changed


def flipped(data: bytes) -> bytes:
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


@pytest.mark.parametrize(
    ("stage", "key", "change", "said"),
    [
        (KEYS, SESSION, lambda data: bytes([1]) + data[1:], "it is another one"),
        (KEYS, SESSION, lambda data: data[:-1], "a session has"),
        (SHARES, ROSTER, flipped, "not signed"),
        (SHARES, ROSTER, lambda data: data[200:], "does not have the keys"),
        (SHARES, ROSTER, lambda data: data[:400], "fewer than 3"),
        (SHARES, ROSTER, lambda data: data[:200] + data, "has one twice"),
        (TRAIN, BOXES, flipped, "cannot be opened"),
        (TRAIN, BOXES, lambda data: data[80:], "3 boxes came"),
        (TRAIN, NODES, lambda data: data[:16], "it takes 3"),
        (TRAIN, NODES, lambda data: data[:24] + (9).to_bytes(8), "not nodes of this round"),
        (TRAIN, STEPS, lambda data: data[4:], "2 steps came"),
        (TRAIN, STEPS, lambda data: bytes(len(data)), "not above 0"),
        (UNMASK, NODES, lambda data: data[:16], "it takes 3"),
        (UNMASK, NODES, lambda data: data[8:], "cannot be added up"),
        (UNMASK, NODES, lambda data: data[:8] + data, "ascending order"),
    ],
)
def test_what_was_tampered_with_is_refused_by_the_node_and_does_no_harm(
    stage: str, key: str, change: Callable[[bytes], bytes], said: str
) -> None:
    nodes = UnreliableGrid(secure_app(), 4, changes={(stage, 0): put(key, change)})
    found = federate(nodes)
    reasons = [reply.error.reason for reply in nodes.up if reply.has_error()]
    assert len(reasons) == 1
    assert said in reasons[0]
    assert_close(found, expected(range(4) if stage == UNMASK else (1, 2, 3)))


def other_settings(message: Message) -> None:
    message.content["config"] = ConfigRecord({**message.content["config"], "proximal-mu": 1e9})


def other_steps(message: Message) -> None:
    found = message.content.config_records[SECURE]
    found[STEPS] = (np.frombuffer(bytes(found[STEPS]), np.float32) * 1000).tobytes()


@pytest.mark.parametrize("change", [other_settings, other_steps])
def test_a_node_that_was_sent_something_else_than_the_others_is_left_out(change: Change) -> None:
    """An active server could read that node's update from the sum; a mistaken one would get nonsense."""
    nodes = UnreliableGrid(secure_app(), 4, changes={(TRAIN, 2): change})
    assert_close(federate(nodes), expected((0, 1, 3)))


def test_a_node_that_gives_masked_updates_only_refuses_to_answer_otherwise() -> None:
    for where in ("node_config", "run_config"):
        nodes = InProcessGrid(secure_app(), 3, {})
        for context in nodes.contexts.values():
            key = "secure-required" if where == "node_config" else "secure.aggregation"
            getattr(context, where)[key] = True
        message = Message(RecordDict({"arrays": record(initial())}), FIRST, TRAIN)
        (reply,) = CompressedGrid(nodes).send_and_receive([message])
        assert reply.has_error()
        assert "asks for arrays that are not masked" in reply.error.reason


def test_a_node_may_ask_for_more_nodes_than_the_run() -> None:
    nodes = UnreliableGrid(secure_app(), 4)
    nodes.contexts[FIRST].node_config["secure-min-nodes"] = 5
    assert_close(federate(nodes), expected((1, 2, 3)))
    assert any("has 4 nodes, fewer than 5" in reply.error.reason for reply in nodes.up if reply.has_error())


# ------------------------------------------------------------------ the rest goes on as it was


def test_without_a_request_the_mod_does_nothing() -> None:
    found = []
    for app in (secure_app(), third_party_app([compressed_exchange])):
        grid = CompressedGrid(InProcessGrid(app, 3, {}), upload="int4", broadcast="int8")
        random.seed(0)  # the order in which FedAvg chooses nodes, and so adds them up
        strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        found.append(state_of(strategy.start(grid, record(initial()), 2).arrays))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in SHAPES)


def test_an_app_that_answers_with_two_records_masks_neither() -> None:
    app = ClientApp(mods=[secure_exchange])
    answer_secure_queries(app)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        arrays = message.content["arrays"]
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "more": arrays, "metrics": metrics}), reply_to=message)

    grid = SecureGrid(UnreliableGrid(app, 3))
    content = RecordDict({"arrays": record(initial()), "config": ConfigRecord({"server-round": 1})})
    replies = list(grid.send_and_receive([Message(content, FIRST + i, TRAIN) for i in range(3)]))
    assert len(replies) == 3
    assert all("a mask is for one" in reply.error.reason for reply in replies)


def test_what_did_not_get_into_the_sum_is_sent_with_the_next_upload() -> None:
    nodes = UnreliableGrid(secure_app(), 4, silent=[(TRAIN, 3)])
    federate(nodes, levels=15)
    contract = contract_of(shapes(initial()))
    lost, arrived = (kept_residual(nodes.contexts[FIRST + i], contract) for i in (3, 0))
    update = flat(pull(initial(), 3)) - flat(initial())
    assert np.allclose(lost, update, atol=1e-6)
    assert np.linalg.norm(arrived) < 0.5 * np.linalg.norm(flat(pull(initial(), 0)) - flat(initial()))
    assert [last_round(nodes.contexts[FIRST + i], run=1) for i in (3, 0)] == [1, 1]
    assert last_round(nodes.contexts[FIRST], run=2) == 0


def test_nothing_secret_stays_on_a_node_after_a_round() -> None:
    nodes = UnreliableGrid(secure_app(), 4)
    federate(nodes)
    for context in nodes.contexts.values():
        assert "fedkron.secure.session" not in context.state
        assert set(context.state) == {
            "fedkron.shared.arrays",
            "fedkron.secure.residual",
            "fedkron.secure.name",
        }


def test_sessions_and_nodes_survive_the_wire() -> None:
    session = Session(2**63 + 5, 2**31, 255, bytes(range(32)))
    assert Session.from_bytes(session.to_bytes()) == session
    assert nodes_from_bytes(nodes_to_bytes([0, 5, 2**64 - 1])) == [0, 5, 2**64 - 1]
