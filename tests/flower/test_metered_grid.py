"""The one line for users of plain Flower: everything is counted, nothing is changed."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from federation_cases import ObservedGrid, wire_size
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy
from seam_cases import SHAPES, MuteGrid, State, initial, record, state_of, third_party_app

from fedkron.flower.grid_wrapper import GridWrapper
from fedkron.flower.metered_grid import MeteredGrid
from fedkron.ledger import read_ledger
from simulations.in_process import InProcessGrid

NODES = 3
NPY_HEADER = 128


def run(strategy: Strategy, grid: object, rounds: int = 2) -> State:
    random.seed(7)  # Flower's strategies draw the order of the nodes
    return state_of(strategy.start(grid, record(initial()), num_rounds=rounds).arrays)


def messages_to(nodes: Iterable[int], arrays: ArrayRecord, round_: int = 1) -> list[Message]:
    config = ConfigRecord({"server-round": round_})
    return [Message(RecordDict({"arrays": arrays, "config": config}), node, "train") for node in nodes]


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    return app


# ------------------------------------------------------------------ nothing is changed


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian, lambda: FedAdam(eta=0.1, tau=0.01)])
def test_strategies_give_to_the_last_bit_what_they_give_without_it(
    strategy: Callable[[], Strategy],
) -> None:
    plain = run(strategy(), InProcessGrid(third_party_app([]), NODES, {}), rounds=3)
    metered = run(strategy(), MeteredGrid(InProcessGrid(third_party_app([]), NODES, {})), rounds=3)
    assert list(metered) == list(plain)
    for name in SHAPES:
        np.testing.assert_array_equal(metered[name], plain[name])


def test_the_messages_on_the_wire_are_as_large_as_without_it() -> None:
    plain, inner = (ObservedGrid(third_party_app([]), NODES, {}) for _ in range(2))
    run(FedAvg(), plain)
    run(FedAvg(), MeteredGrid(inner))
    for without, with_it in ((plain.down, inner.down), (plain.up, inner.up)):
        assert [wire_size(message) for message in with_it] == [wire_size(message) for message in without]


def test_a_wrapper_that_overrides_nothing_passes_all_on() -> None:
    inner = InProcessGrid(third_party_app([]), NODES, {})
    grid = GridWrapper(GridWrapper(inner))
    assert list(grid.get_node_ids()) == [1000, 1001, 1002] == [node.node_id for node in grid.get_nodes()]
    assert grid.run == inner.run
    created = grid.create_message(RecordDict(), "train", 1001, "7", ttl=30.0)
    assert (created.metadata.dst_node_id, created.metadata.group_id, created.metadata.ttl) == (1001, "7", 30)
    ids = list(grid.push_messages(messages_to([1000, 1002], record(initial()))))
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids)] == [1000, 1002]
    assert len(list(grid.send_and_receive(messages_to([1000, 1002], record(initial()))))) == 2


# ------------------------------------------------------------------ everything is counted


def test_every_message_is_in_the_ledger_with_its_size_on_the_wire(tmp_path: Path) -> None:
    inner = ObservedGrid(third_party_app([]), NODES, {})
    grid = MeteredGrid(inner, tmp_path / "new" / "ledger.jsonl")
    run(FedAvg(), grid)
    transfers = grid.ledger.transfers
    assert read_ledger(tmp_path / "new" / "ledger.jsonl") == transfers
    assert len(transfers) == 2 * 2 * 2 * NODES
    for direction, seen in (("down", inner.down), ("up", inner.up)):
        entries = [transfer for transfer in transfers if transfer.direction == direction]
        assert [entry.message_bytes for entry in entries] == [wire_size(message) for message in seen]
        assert [entry.phase for entry in entries] == [message.metadata.message_type for message in seen]
        ends = "dst_node_id" if direction == "down" else "src_node_id"
        assert [entry.node for entry in entries] == [str(getattr(m.metadata, ends)) for m in seen]
        assert [entry.round for entry in entries] == [1] * 2 * NODES + [2] * 2 * NODES


def test_factors_are_the_arrays_data_and_the_baseline_is_float32() -> None:
    grid = MeteredGrid(InProcessGrid(third_party_app([]), NODES, {}))
    run(FedAvg(), grid, rounds=1)
    elements = sum(np.zeros(shape).size for shape in SHAPES.values())
    stored = 4 * elements + NPY_HEADER * len(SHAPES)
    found = {(t.phase, t.direction): (t.factor_bytes, t.baseline_bytes) for t in grid.ledger.transfers}
    carrying = (stored, 4 * elements)
    assert found == {
        ("train", "down"): carrying,
        ("train", "up"): carrying,
        ("evaluate", "down"): carrying,
        ("evaluate", "up"): (0, 0),
    }
    assert {(t.head_bytes, t.header_bytes) for t in grid.ledger.transfers} == {(0, 0)}


def test_arrays_of_the_head_are_counted_as_head() -> None:
    arrays = {
        "layer.A": np.arange(6, dtype=np.float32),
        "head.weight": np.arange(10, dtype=np.float64),
        "head.bias": np.arange(3, dtype=np.float16),
        "headless": np.arange(5, dtype=np.int8),
    }
    grid = MeteredGrid(InProcessGrid(echo_app(), 1, {}))
    list(grid.send_and_receive(messages_to([1000], ArrayRecord({n: Array(a) for n, a in arrays.items()}))))
    assert {transfer.direction for transfer in grid.ledger.transfers} == {"down", "up"}
    for transfer in grid.ledger.transfers:
        assert transfer.factor_bytes == 6 * 4 + 5 + 2 * NPY_HEADER
        assert transfer.head_bytes == 10 * 8 + 3 * 2 + 2 * NPY_HEADER
        assert transfer.baseline_bytes == 4 * (6 + 10 + 3 + 5)


def test_data_that_travels_once_is_counted_once() -> None:
    # Flower sends equal chunks (5 MiB) once: within an array, and between arrays of a message.
    zeros = np.zeros(4 * 1_310_720, np.float32)  # four chunks, and the rest that the header displaces
    arrays = ArrayRecord({"first": Array(zeros), "second": Array(zeros.copy())})
    inner = ObservedGrid(echo_app(), 1, {})
    grid = MeteredGrid(inner)
    list(grid.send_and_receive(messages_to([1000], arrays)))
    for transfer, message in zip(grid.ledger.transfers, (inner.down[0], inner.up[0]), strict=True):
        assert transfer.message_bytes == wire_size(message) < zeros.nbytes
        assert 0 < transfer.message_bytes - transfer.factor_bytes < 3000
        assert transfer.baseline_bytes == 2 * zeros.nbytes


def test_messages_of_no_round_and_without_arrays_are_counted_too() -> None:
    app = third_party_app([])

    @app.query()
    def query(message: Message, context: Context) -> Message:  # noqa: ARG001
        return Message(message.content, reply_to=message)

    inner = ObservedGrid(app, 1, {})
    grid = MeteredGrid(inner)
    question = RecordDict({"question": ConfigRecord({"text": "how are you?"})})
    (reply,) = grid.send_and_receive([Message(question, 1000, "query")])
    assert reply.content["question"] == ConfigRecord({"text": "how are you?"})
    down, up = grid.ledger.transfers
    assert (down.round, down.phase, down.payload_bytes, down.baseline_bytes) == (0, "query", 0, 0)
    assert down.message_bytes == wire_size(inner.down[0])
    assert up.message_bytes == wire_size(inner.up[0])


# ------------------------------------------------------------------ what was not sent does not count


class RefusingGrid(ObservedGrid):
    """Takes no message for node 1001: in its place stands None, as in a deployment, or nothing at all."""

    def __init__(self, *, says_none: bool) -> None:
        super().__init__(echo_app(), NODES, {})
        self.says_none = says_none

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str] = []
        for message in messages:
            if message.metadata.dst_node_id != 1001:
                ids += super().push_messages([message])
            elif self.says_none:
                ids.append(None)
        return ids


@pytest.mark.parametrize("says_none", [True, False])
def test_a_message_that_flower_did_not_take_is_not_counted(says_none: bool) -> None:
    inner = RefusingGrid(says_none=says_none)
    grid = MeteredGrid(inner)
    replies = grid.send_and_receive(messages_to([1000, 1001, 1002], record(initial())), timeout=5)
    assert [reply.metadata.src_node_id for reply in replies] == [1000, 1002]
    assert [transfer.node for transfer in grid.ledger.transfers] == ["1000", "1002"] * 2
    on_the_wire = [wire_size(message) for message in inner.down + inner.up]
    assert [transfer.message_bytes for transfer in grid.ledger.transfers] == on_the_wire


class FailingGrid(ObservedGrid):
    """The reply of the last node is an error with the given code, whoever made it."""

    def __init__(self, code: int) -> None:
        super().__init__(echo_app(), NODES, {})
        self.code = code

    def _answer(self, message: Message) -> Message:
        if message.metadata.dst_node_id == 1002:
            return Message(Error(self.code, "a reason of some length"), reply_to=message)
        return super()._answer(message)


@pytest.mark.parametrize(
    "code", [ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.LOAD_CLIENT_APP_EXCEPTION, 101]
)
def test_an_error_that_a_node_sent_counts_as_a_message_without_payload(code: int) -> None:
    inner = FailingGrid(code)
    grid = MeteredGrid(inner)
    replies = list(grid.send_and_receive(messages_to([1000, 1002], record(initial()), round_=4)))
    assert [reply.has_error() for reply in replies] == [False, True]
    failed = grid.ledger.transfers[-1]
    assert (failed.node, failed.direction, failed.round) == ("1002", "up", 4)
    assert (failed.payload_bytes, failed.baseline_bytes) == (0, 0)
    assert failed.message_bytes == wire_size(inner.up[-1])


@pytest.mark.parametrize(
    "code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE]
)
def test_an_error_that_the_superlink_made_crossed_no_wire(code: int) -> None:
    grid = MeteredGrid(FailingGrid(code))
    replies = list(grid.send_and_receive(messages_to([1000, 1002], record(initial()))))
    assert [reply.has_error() for reply in replies] == [False, True]  # the strategy still sees it
    assert [(t.node, t.direction) for t in grid.ledger.transfers] == [
        ("1000", "down"),
        ("1002", "down"),
        ("1000", "up"),
    ]


def test_a_late_reply_is_counted_when_it_is_pulled_in_the_round_it_belongs_to() -> None:
    inner = MuteGrid(echo_app(), NODES, {})
    grid = MeteredGrid(inner, poll_interval=0.01)
    asked = messages_to([1000, 1002], record(initial()), round_=5)
    assert len(list(grid.send_and_receive(asked, timeout=0.1))) == 1
    assert [(t.node, t.direction) for t in grid.ledger.transfers][2:] == [("1000", "up")]
    late, inner.late = inner.late, frozenset()
    assert len(list(grid.pull_messages(late))) == 1
    assert [(t.node, t.direction, t.round) for t in grid.ledger.transfers][3:] == [("1002", "up", 5)]
