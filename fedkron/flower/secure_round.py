"""One round of secure aggregation as the server goes through it: keys, shares, masked uploads, unmasking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common import log
from flwr.serverapp import Grid

from fedkron.errors import FedKronError, PayloadError, SecurityError
from fedkron.flower import secure_wire as wire
from fedkron.flower.wire import REJECTED_UPLOAD, replace_records, to_arrays
from fedkron.layout import State, Vector
from fedkron.secure import shamir
from fedkron.secure.codes import mean_of
from fedkron.secure.member import COMMITMENT_SIZE, SEALED_SIZE
from fedkron.secure.packing import Words
from fedkron.secure.roster import (
    Advertisement,
    Policy,
    Roster,
    Session,
    read_advertisements,
    roster,
    shares_needed,
)
from fedkron.secure.unmasking import Unmasking
from fedkron.secure.upload import Form, form_of


@dataclass(frozen=True)
class Plan:
    """What a round is about: `sent` is what the updates are changes of, `steps` has one step for each tensor
    of it.

    Nodes have `stage_timeout` seconds for each query and `timeout` for their training.
    """

    session: Session
    policy: Policy
    sent: State
    steps: Vector
    stage_timeout: float
    timeout: float | None


@dataclass(frozen=True)
class Outcome:
    """The replies to the training messages, and the sums of magnitudes over so many nodes (None: no sum)."""

    replies: list[Message]
    nodes: int = 0
    magnitudes: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True)
class _Shared:
    """What a node has sent for all others: boxes and hashes, by who they are for."""

    boxes: Mapping[int, bytes]
    commitments: Mapping[int, bytes]


@dataclass(frozen=True)
class _Masked:
    """The reply of a node, and what it holds."""

    reply: Message
    words: Words
    binding: bytes


@dataclass
class SecureRound:
    """Goes through a round once. A node that fails gets an error reply; one that is silent gets none."""

    grid: Grid
    plan: Plan
    _heard: dict[int, Metadata] = field(default_factory=dict)
    _errors: dict[int, Message] = field(default_factory=dict)

    def run(self, messages: Sequence[Message]) -> Outcome:
        """Send training messages to those who can take part, and unmask the sum of what they answer."""
        by_node = {message.metadata.dst_node_id: message for message in messages}
        session = self.plan.session
        try:
            members = self._agree(list(by_node))
            shared = self._share(members)
            form = form_of(members, wire.sizes(self.plan.sent))
            masked = self._train(members, shared, form, [by_node[node] for node in shared])
            return self._unmasked(members, shared, form, masked)
        except FedKronError as error:
            reason = f"round {session.round} cannot be added up securely: {error}"
            log(WARNING, reason)
            for node in self._heard.keys() - self._errors.keys():
                self._refuse(node, reason)
            return Outcome(list(self._errors.values()))

    def _agree(self, nodes: Sequence[int]) -> Roster:
        """Ask all nodes for keys: the list of those who gave some that are theirs."""
        session, policy = self.plan.session, self.plan.policy
        request = {wire.SESSION: session.to_bytes()}
        found = []
        for node, record in self._query(wire.KEYS, dict.fromkeys(nodes, request)).items():
            try:
                found.append(_advertisement(record, node, session))
            except FedKronError as error:
                self._refuse(node, f"node {node}: {error}")
        if len(found) < (needed := shares_needed(policy.threshold, len(nodes))):
            raise SecurityError(f"{len(found)} of {len(nodes)} nodes gave keys, it takes {needed}")
        return roster(session, sorted(found, key=lambda one: one.node), policy)

    def _share(self, members: Roster) -> dict[int, _Shared]:
        """Show everybody the list, and collect their shares."""
        request = {wire.ROSTER: members.to_bytes()}
        shared = {}
        for node, record in self._query(wire.SHARES, dict.fromkeys(members.nodes, request)).items():
            try:
                shared[node] = _Shared(
                    _for_all(members, record, wire.BOXES, SEALED_SIZE),
                    _for_all(members, record, wire.COMMITMENTS, 2 * COMMITMENT_SIZE),
                )
            except FedKronError as error:
                self._refuse(node, f"node {node}: {error}")
        members.checked(sorted(shared), "nodes that have shared their secrets")
        return dict(sorted(shared.items()))

    def _train(
        self, members: Roster, shared: Mapping[int, _Shared], form: Form, messages: Sequence[Message]
    ) -> dict[int, _Masked]:
        """Send the training messages, each with the shares for its node, and collect masked uploads."""
        for message in messages:
            node = message.metadata.dst_node_id
            record = wire.record_of(
                {
                    wire.NODES: wire.nodes_to_bytes(list(shared)),
                    wire.BOXES: b"".join(one.boxes[node] for one in shared.values()),
                    wire.STEPS: self.plan.steps.tobytes(),
                }
            )
            message.content = RecordDict({**message.content, wire.SECURE: record})
        found = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.plan.timeout):
            node = reply.metadata.src_node_id
            self._heard[node] = reply.metadata
            if reply.has_error():
                self._errors[node] = reply
                continue
            try:
                found[node] = _masked(reply, form, members.session.round)
            except FedKronError as error:
                self._refuse(node, f"upload of node {node} refused: {error}")
        bindings = Counter(one.binding for one in found.values())
        usual = max(bindings, key=lambda binding: bindings[binding], default=b"")
        for node in [node for node, one in found.items() if one.binding != usual]:
            self._refuse(node, f"upload of node {node} refused: it is not of what the others have received")
            del found[node]
        members.checked(sorted(found), "nodes that have uploaded")
        return found

    def _unmasked(
        self, members: Roster, shared: Mapping[int, _Shared], form: Form, masked: Mapping[int, _Masked]
    ) -> Outcome:
        """Have shares revealed, take the masks off the sum, and put the mean in every reply."""
        survivors = sorted(masked)
        unmasking = Unmasking(members, {node: one.commitments for node, one in shared.items()}, survivors)
        request = {wire.NODES: wire.nodes_to_bytes(survivors)}
        for node, record in self._query(wire.UNMASK, dict.fromkeys(survivors, request)).items():
            try:
                pieces = wire.parts(wire.field(record, wire.REVEALED), shamir.SIZE)
                if len(pieces) != len(shared):
                    raise PayloadError(f"it reveals {len(pieces)} shares, expected {len(shared)}")
                unmasking.take(node, dict(zip(shared, pieces, strict=True)))
            except FedKronError as error:
                log(WARNING, "shares of node %s refused: %s", node, error)
        total = np.zeros(form.words, np.uint64)
        for one in masked.values():
            total += one.words
        binding = masked[survivors[0]].binding
        codes, magnitudes = form.unpack(unmasking.remove_masks(total, binding))
        plan = self.plan
        levels = plan.session.levels
        mean = mean_of(codes, wire.sizes(plan.sent), plan.steps, levels, len(survivors))
        update = wire.unflat(mean, plan.sent)
        arrays = to_arrays({name: values + update[name] for name, values in plan.sent.items()})
        log(INFO, "round %s: the sum of %s of %s nodes", plan.session.round, len(masked), len(members.nodes))
        for one in masked.values():
            one.reply.content = _with_arrays(one.reply, arrays)
        replies = [*(one.reply for one in masked.values()), *self._without(masked).values()]
        return Outcome(replies, len(survivors), magnitudes)

    def _without(self, taken: Mapping[int, object]) -> dict[int, Message]:
        """Error replies of nodes that took no part: one that only failed to reveal its shares did."""
        return {node: reply for node, reply in self._errors.items() if node not in taken}

    def _query(
        self, message_type: str, requests: Mapping[int, Mapping[str, bytes]]
    ) -> dict[int, ConfigRecord]:
        """Ask nodes; those that answer with an error, or with nothing of ours, are noted as failed."""
        round_ = self.plan.session.round
        config = ConfigRecord({wire.ROUND: round_})
        messages = [
            Message(
                RecordDict({wire.CONFIG: config, wire.SECURE: wire.record_of(fields)}), node, message_type
            )
            for node, fields in requests.items()
        ]
        found = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.plan.stage_timeout):
            node = reply.metadata.src_node_id
            self._heard[node] = reply.metadata
            if reply.has_error():
                self._errors[node] = reply
            elif (record := wire.secure_record(reply)) is None:
                self._refuse(
                    node, f"node {node} does not answer {message_type}: its app needs secure_exchange"
                )
            else:
                found[node] = record
        return found

    def _refuse(self, node: int, reason: str) -> None:
        log(WARNING, reason)
        self._errors[node] = make_message(self._heard[node], error=Error(REJECTED_UPLOAD, reason))


def _advertisement(record: ConfigRecord, node: int, session: Session) -> Advertisement:
    found = read_advertisements(wire.field(record, wire.ADVERTISEMENT))
    if len(found) != 1 or found[0].node != node or not found[0].is_signed(session):
        raise SecurityError("its keys are not its own, or not signed for this round")
    return found[0]


def _for_all(members: Roster, record: ConfigRecord, key: str, size: int) -> dict[int, bytes]:
    """Pieces of a record by the node that they are for."""
    pieces = wire.parts(wire.field(record, key), size)
    if len(pieces) != len(members.nodes):
        raise PayloadError(f"{len(pieces)} {key} came, expected one for each of {len(members.nodes)} nodes")
    return dict(zip(members.nodes, pieces, strict=True))


def _masked(reply: Message, form: Form, round_: int) -> _Masked:
    records = [record for record in reply.content.config_records.values() if wire.is_masked(record)]
    if len(records) != 1 or reply.content.array_records:
        raise PayloadError(
            f"it has {len(records)} masked uploads and {len(reply.content.array_records)} ArrayRecords"
        )
    return _Masked(reply, *form.from_bytes(wire.field(records[0], wire.MASKED), round_))


def _with_arrays(reply: Message, arrays: ArrayRecord) -> RecordDict:
    return replace_records(reply.content, wire.is_masked, lambda key, record: arrays)  # noqa: ARG005
