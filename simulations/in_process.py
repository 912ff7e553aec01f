"""A federation inside one Python process: the real ClientApp, the real messages, no Ray and no SuperLink.

Every message is serialized to Flower's wire objects and read back on both ways, so bytes and behaviour
are those of a real run, at a hundredth of the start-up time. For tests and sweeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1


class InProcessGrid(Grid):
    """Calls `app` for every message, one node after the other; node i of n has partition i of n."""

    def __init__(
        self, app: ClientApp, nodes: int | Sequence[Mapping[str, object]], run_config: Mapping[str, object]
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
        configs = (
            [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
            if isinstance(nodes, int)
            else nodes
        )
        self._app = app
        self._replies: dict[str, Message] = {}
        self.contexts = {
            1000 + i: Context(1, 1000 + i, dict(config), RecordDict(), dict(run_config))  # type: ignore[arg-type]
            for i, config in enumerate(configs)
        }

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, let the nodes answer, keep the replies."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._replies[message.metadata.message_id] = self._answer(transported(message))
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies to these messages, once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Push, then pull: all replies are there at once."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            reply = self._app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # what Flower's simulation engine does with it
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return transported(reply)

    def set_run(self, run: Run) -> None:
        """There is only one run."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(TaskIdentity.run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return list(self.contexts)


def transported(message: Message) -> Message:
    """What arrives when a message has been sent: serialized with Flower's own code and read back."""
    with no_object_id_recompute():
        contents = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
        arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    # The id travels beside the objects, not in them.
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived
