"""A node's state survives its process, and a repeated round starts from before it."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from fedkron.flower.durable_state import durable_state
from fedkron.flower.strategy import RESUMES


def message(kind: str, round_: int, resumes: str = "") -> Message:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    config = ConfigRecord({"server-round": round_} | ({RESUMES: resumes} if resumes else {}))
    asked = Message(RecordDict({"config": config}), 7, kind)
    asked.metadata.__dict__["_message_id"] = str(uuid4())
    return asked


def context(run: int = 1) -> Context:
    return Context(run, 7, {"partition-id": 0}, RecordDict(), {})


def learn(asked: Message, there: Context) -> Message:
    """Adds the round to a list of rounds, in each sort of record that a state may have."""
    before = there.state.config_records["seen"]["rounds"] if "seen" in there.state else []
    number = int(asked.content["config"]["server-round"])
    rounds = [*before, number] if asked.metadata.message_type == "train" else list(before)
    there.state["seen"] = ConfigRecord({"rounds": rounds, "digest": bytes(rounds), "name": "x"})
    there.state["head"] = ArrayRecord({"w": Array(np.array(rounds, np.float32).reshape(-1, 1))})
    there.state["measured"] = MetricRecord({"sum": sum(rounds)})
    return Message(RecordDict(), reply_to=asked)


def rounds_in(there: Context) -> list[int]:
    return list(there.state.config_records["seen"]["rounds"]) if "seen" in there.state else []


class Node:
    """A node whose process may die between two messages."""

    def __init__(self, folder: Path) -> None:
        self.mod = durable_state(lambda _: folder)
        self.folder = folder
        self.context = context()

    def get(self, kind: str, round_: int, app: Callable = learn, resumes: str = "") -> None:
        self.mod(message(kind, round_, resumes), self.context, app)

    def die(self) -> None:
        self.context = context()


def test_every_sort_of_record_comes_back_as_it_was(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.get("train", 1)
    node.get("train", 2)
    before = node.context.state
    node.die()
    node.get("evaluate", 2, lambda asked, _: Message(RecordDict(), reply_to=asked))
    after = node.context.state
    assert list(after) == list(before)
    assert dict(after["seen"]) == dict(before["seen"])
    assert dict(after["measured"]) == dict(before["measured"])
    assert after["head"]["w"].numpy().tobytes() == before["head"]["w"].numpy().tobytes()
    assert after["head"]["w"].numpy().shape == (2, 1)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_failed_message_changes_nothing(tmp_path: Path) -> None:
    def broken(asked: Message, there: Context) -> Message:
        learn(asked, there)
        raise RuntimeError("out of memory")

    node = Node(tmp_path)
    node.get("train", 1)
    with pytest.raises(RuntimeError):
        node.get("train", 2, broken)
    node.die()
    node.get("train", 2)
    assert rounds_in(node.context) == [1, 2]


def test_damaged_file_is_left_out(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.get("train", 1)
    node.get("train", 2)
    latest = tmp_path / "state" / "1" / "round-2.safetensors"
    latest.write_bytes(latest.read_bytes()[:-3])
    node.die()
    node.get("train", 3)
    assert rounds_in(node.context) == [1, 3]


def test_other_runs_do_not_mix(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.get("train", 1)
    node.context = context(run=2)
    node.get("train", 5)
    assert rounds_in(node.context) == [5]
    node.context = context(run=3)
    node.get("train", 2, resumes="1")
    assert rounds_in(node.context) == [1, 2]


class Rounds(RuleBasedStateMachine):
    """A server that goes on, or repeats a round, and a node that dies or stays away as it likes.

    What the node has seen must always be the rounds that it took part in, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.node = Node(Path(self.folder.name))
        self.done: list[int] = []
        self.aborted: list[int] = []
        self.number = 1

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def whole_round(self) -> None:
        self.node.get("train", self.number)
        self.done.append(self.number)
        self.aborted = []
        assert rounds_in(self.node.context) == self.done
        self.node.get("evaluate", self.number)
        self.number += 1

    @rule()
    def aborted_round(self) -> None:
        self.node.get("train", self.number)
        self.aborted = [self.number]
        assert rounds_in(self.node.context) == [*self.done, self.number]
        self.node.die()  # whoever goes on with a run has a new one, and a context of its own

    @rule()
    def round_without_this_node(self) -> None:
        self.done += self.aborted  # nobody asks for that round again: what it made of the head stays
        self.aborted = []
        self.number += 1

    @rule()
    def death(self) -> None:
        self.node.die()


TestRounds = Rounds.TestCase
TestRounds.settings = settings(deadline=None, max_examples=20, stateful_step_count=12)
