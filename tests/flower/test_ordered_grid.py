"""Nodes come in the order of what they say of themselves, whatever their ids are."""

from collections.abc import Iterable
from random import Random

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedkron.aggregation import Size
from fedkron.flower.introductions import introduction_of
from fedkron.flower.ordered_grid import OrderedGrid
from simulations.in_process import InProcessGrid

TASKS = ("pets", "animals", "colours")


def app_of_strangers(silent: frozenset[int] = frozenset()) -> ClientApp:
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition in silent:
            raise RuntimeError("I am shy")
        content = introduction_of(TASKS[partition % 3], partition, Size(8, None))
        return Message(content, reply_to=message)

    return app


class ShuffledGrid(InProcessGrid):
    """Gives its nodes out in another order each time, and counts what it is asked."""

    asked = 0
    random = Random(0)
    absent: frozenset[int] = frozenset()

    def get_node_ids(self) -> Iterable[int]:
        nodes = [node for node in super().get_node_ids() if node not in self.absent]
        self.random.shuffle(nodes)
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += len(messages)
        return super().push_messages(messages)


@pytest.mark.parametrize("seed", range(5))
def test_order_is_that_of_task_and_partition(seed: int) -> None:
    grid = ShuffledGrid(app_of_strangers(), 7, {})
    ids = Random(seed).sample(range(10**6), 7)
    contexts = list(grid.contexts.values())
    grid.contexts = dict(zip(ids, contexts, strict=True))
    grid.random = Random(seed)
    ordered = OrderedGrid(grid, timeout=10)
    found = [int(grid.contexts[node].node_config["partition-id"]) for node in ordered.get_node_ids()]
    assert found == sorted(range(7), key=lambda partition: (TASKS[partition % 3], partition))
    assert list(ordered.get_node_ids()) == [ids[partition] for partition in found]
    assert grid.asked == 7  # once each


def test_those_who_do_not_say_come_last_and_new_ones_are_asked() -> None:
    grid = ShuffledGrid(app_of_strangers(frozenset({0, 5})), 6, {})
    grid.absent = frozenset({1004})
    ordered = OrderedGrid(grid, timeout=10)
    assert list(ordered.get_node_ids()) == [1001, 1002, 1003, 1000, 1005]
    grid.absent = frozenset({1002})
    assert list(ordered.get_node_ids()) == [1001, 1004, 1003, 1000, 1005]
    assert [origin.task for origin in ordered.origins()] == ["animals", "animals", "pets", "", ""]


def test_a_node_may_be_unable_to_answer_at_all() -> None:
    ordered = OrderedGrid(InProcessGrid(ClientApp(), 3, {}), timeout=10)
    assert list(ordered.get_node_ids()) == [1000, 1001, 1002]
