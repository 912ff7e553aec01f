"""A third party's Flower app of a few lines: numpy arrays that each node pulls towards its own target."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulations.in_process import InProcessGrid

State = dict[str, np.ndarray]
SHAPES = {"weight": (40, 30), "bias": (30,), "temperature": ()}


def initial() -> State:
    return random_state(99)


def target_of(partition: int) -> State:
    return random_state(partition)


def random_state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def examples_of(partition: int) -> int:
    return 10 + 7 * partition


def pull(received: State, partition: int) -> State:
    """Half of the way to the target."""
    target = target_of(partition)
    return {name: values + np.float32(0.5) * (target[name] - values) for name, values in received.items()}


def record(state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in state.items()})


def state_of(arrays: ArrayRecord) -> State:
    return {name: array.numpy() for name, array in arrays.items()}


class MuteGrid(InProcessGrid):
    """The replies of the last node to the first push come too late."""

    late: frozenset[str] | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        ids = list(super().push_messages(messages))
        if self.late is None:
            self.late = frozenset(
                i
                for i, message in zip(ids, messages, strict=True)
                if message.metadata.dst_node_id == max(self.contexts)
            )
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(set(message_ids) - self.late)


def third_party_app(
    mods: Sequence[object],
    *,
    train_mods: Sequence[object] = (),
    learn: Callable[[State, int], State] = pull,
) -> ClientApp:
    """The app, with its mods: `compressed_exchange` is the only trace of fedkron that it may have."""
    app = ClientApp(mods=list(mods))

    @app.train(mods=list(train_mods))
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        trained = learn(state_of(message.content["arrays"]), partition)
        metrics = MetricRecord({"num-examples": examples_of(partition), "partition": partition})
        return Message(RecordDict({"arrays": record(trained), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        received, target = state_of(message.content["arrays"]), target_of(partition)
        loss = sum(float(((received[name] - target[name]) ** 2).sum()) for name in target)
        metrics = MetricRecord({"num-examples": examples_of(partition), "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app
