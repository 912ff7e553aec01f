"""The server half of secure aggregation: a Grid that lets a strategy see nothing but the mean.

`SecureGrid(CompressedGrid(grid))` goes where the grid went. Around every training message it lets the nodes
agree on keys and share secrets, and unmasks the sum when the uploads are there. In each reply that took part
the masked upload is replaced by arrays, the same for all: those that were sent plus the mean of the updates.
Any mean of these, with whatever weights, is that mean: every node counts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid

from fedkron.errors import RunError
from fedkron.exchange import Tree
from fedkron.flower import secure_wire as wire
from fedkron.flower.grid_wrapper import GridWrapper
from fedkron.flower.secure_round import Plan, SecureRound
from fedkron.flower.wire import round_of, to_state
from fedkron.layout import State, Vector
from fedkron.secure.codes import steps_from, steps_of
from fedkron.secure.roster import Policy, Session
from fedkron.secure.upload import contract_of

STAGE_TIMEOUT = 300.0
"""Seconds that nodes have for a query: nothing is computed for it, but a process may have to start."""

USUAL_MAGNITUDE = 1e-3
"""Mean magnitude of the elements of a first update, where nothing is known of it."""


class SecureGrid(GridWrapper):
    """Wraps a grid; clients need `secure_exchange` and `answer_secure_queries`.

    `levels` are the values of a code, 2 to 255. `policy` has to ask what the nodes' policies ask. `magnitude`
    says how large the elements of a tensor are expected to be in the first update, by the tensor's name:
    where that is far off, the first update arrives in part, and the rest of it with the next ones.

    A round that cannot be unmasked gives error replies only, so that a strategy counts all its nodes as
    failed.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        levels: int = 5,
        policy: Policy | None = None,
        magnitude: Callable[[str], float] = lambda _: USUAL_MAGNITUDE,
        poll_interval: float = 0.2,
    ) -> None:
        super().__init__(grid, poll_interval=poll_interval)
        self._levels = levels
        self._policy = policy or Policy()
        self._magnitude = magnitude
        self._steps: dict[bytes, Vector] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send and receive; training messages are answered with the mean of all that took part.

        Raises `RunError` for training messages that have not the same arrays, in one record.
        """
        messages = list(messages)
        if not messages or messages[0].metadata.message_type != MessageType.TRAIN:
            return self._grid.send_and_receive(messages, timeout=timeout)
        sent = to_state(_arrays_of_all(messages))
        contract = contract_of(wire.shapes(sent))
        session = Session(self.run.run_id, round_of(messages[0]), self._levels, contract)
        stage = STAGE_TIMEOUT if timeout is None else min(timeout, STAGE_TIMEOUT)
        plan = Plan(session, self._policy, sent, self._steps_for(sent, contract), stage, timeout)
        outcome = SecureRound(self._grid, plan).run(messages)
        if outcome.magnitudes is not None:
            self._steps[contract] = steps_from(outcome.magnitudes, outcome.nodes, self._levels)
        return outcome.replies

    def snapshot(self) -> dict[str, Tree]:
        """The steps for tensors that it has learnt so far: for `restore`."""
        return {contract.hex(): steps for contract, steps in self._steps.items()}

    def restore(self, snapshot: Mapping[str, Tree]) -> None:
        """Go on with these steps."""
        self._steps = {bytes.fromhex(contract): steps for contract, steps in snapshot.items()}

    def _steps_for(self, sent: State, contract: bytes) -> Vector:
        """This round's steps for tensors, in the order in which they travel."""
        if contract not in self._steps:
            means: npt.NDArray[np.float64] = np.array([self._magnitude(name) for name in wire.in_order(sent)])
            self._steps[contract] = steps_of(means, self._levels)
        return self._steps[contract]


def _arrays_of_all(messages: Sequence[Message]) -> ArrayRecord:
    records = [record for message in messages for record in message.content.array_records.values()]
    if any(len(message.content.array_records) != 1 for message in messages):
        raise RunError("secure aggregation needs one record of arrays in each training message")
    different = {id(record): record for record in records}.values()
    if len({record.object_id for record in different}) > 1:
        raise RunError(
            "secure aggregation needs the same arrays for all nodes: what is added up is their change"
        )
    return records[0]
