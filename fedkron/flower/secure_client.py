"""The client half of secure aggregation: a mod that masks uploads, and answers to the server's queries.

    app = ClientApp(mods=[compressed_exchange, secure_exchange])
    answer_secure_queries(app)

The mod stands inside of `compressed_exchange`, whose downlink is as always. It does nothing to a message that
does not ask for it, unless this node gives its updates masked only.
"""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedkron.errors import SecurityError
from fedkron.flower import secure_wire as wire
from fedkron.flower.secure_memory import (
    Remembered,
    forget,
    keep_residual,
    kept_residual,
    last_round,
    own_name,
    remember,
    remembered,
)
from fedkron.flower.secure_once import claim
from fedkron.flower.secure_policy import node_policy
from fedkron.flower.wire import replace_records, round_of, to_state
from fedkron.layout import State
from fedkron.secure.codes import MAX_LEVELS, MIN_LEVELS, magnitudes, quantize
from fedkron.secure.member import SEALED_SIZE, advertise, check_own, opened, revealed, share, total_mask
from fedkron.secure.roster import Roster, Session, read_advertisements, roster
from fedkron.secure.upload import binding_of, check_contract, contract_of, form_of


def answer_secure_queries(app: ClientApp) -> None:
    """Let a ClientApp answer the queries of secure aggregation."""
    for message_type, answer in ((wire.KEYS, keys), (wire.SHARES, shares), (wire.UNMASK, unmask)):
        app.query(message_type.partition(".")[2])(answer)


def keys(message: Message, context: Context) -> Message:
    """Begin a session: draw its secrets, answer with the public keys.

    Raises `SecurityError` for a session of another run, or a round for which this node has made an upload
    already.
    """
    session = Session.from_bytes(wire.field(wire.secure_record(message), wire.SESSION))
    if session.run != context.run_id or session.round != round_of(message):
        raise SecurityError(f"asked for keys of run {session.run}, round {session.round}: it is another one")
    if session.round <= (last := last_round(context, session.run)):
        raise SecurityError(f"asked for keys of round {session.round}, but round {last} has been answered")
    if not MIN_LEVELS <= session.levels <= MAX_LEVELS:
        raise SecurityError(
            f"codes with {session.levels} levels are not between {MIN_LEVELS} and {MAX_LEVELS}"
        )
    secrets, advertisement = advertise(session, context.node_id, node_policy(context).identity)
    own_name(context)
    remember(context, Remembered(session, secrets))
    return wire.answer(message, {wire.ADVERTISEMENT: advertisement.to_bytes()})


def shares(message: Message, context: Context) -> Message:
    """Share this session's secrets with the nodes in the list, if this node may trust it.

    Raises `SecurityError` for a list that must not be trusted, and for a second one.
    """
    session = remembered(context)
    if session.roster is not None:
        raise SecurityError(f"a second list of nodes came in round {session.session.round}")
    advertisements = read_advertisements(wire.field(wire.secure_record(message), wire.ROSTER))
    members = roster(session.session, advertisements, node_policy(context).rounds)
    claim(session.secrets.to_bytes(), "share its secrets")
    sealed = share(session.secrets, context.node_id, members)
    remember(context, session.with_roster(members))
    return wire.answer(
        message,
        {
            wire.BOXES: b"".join(one.box for one in sealed),
            wire.COMMITMENTS: b"".join(one.commitments for one in sealed),
        },
    )


def secure_exchange(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let the app train, and answer with the masked codes of its update.

    Raises `SecurityError` for an upload that would be the second of a session, for shares that cannot be
    opened, for a list of nodes that is not part of the session's, and where a node that gives its updates
    masked only is asked for arrays as they are.
    """
    request = wire.secure_record(message)
    if request is None or message.metadata.message_type != MessageType.TRAIN:
        reply = call_next(message, context)
        if not reply.has_error() and reply.content.array_records and node_policy(context).required:
            raise SecurityError("the server asks for arrays that are not masked: this node gives none")
        return reply
    upload = _Upload(request, message, context)
    reply = call_next(message, context)
    if not reply.has_error():
        if len(reply.content.array_records) != 1:
            raise SecurityError("the app must answer with one record of arrays: a mask is for one")
        upload.claim()
        reply.content = replace_records(reply.content, lambda r: isinstance(r, ArrayRecord), upload.masked)
    return reply


def unmask(message: Message, context: Context) -> Message:
    """Reveal one share of each node, and forget the session.

    Raises `SecurityError` for a second request in a session, and for nodes that cannot be added up.
    """
    session = remembered(context)
    if session.roster is None or session.left_out is None:
        raise SecurityError(
            f"nothing has been uploaded in round {session.session.round}: there is nothing to unmask"
        )
    survivors = wire.nodes_from_bytes(wire.field(wire.secure_record(message), wire.NODES))
    found = revealed(context.node_id, session.roster, session.held, survivors)
    claim(session.secrets.to_bytes(), "reveal shares")
    # From here on the upload counts as arrived: what it left out is all that is left to send.
    keep_residual(context, session.session, session.left_out)
    forget(context)
    return wire.answer(message, {wire.REVEALED: b"".join(found.values())})


class _Upload:
    """What is checked before the app trains, and done after it."""

    def __init__(self, request: ConfigRecord, message: Message, context: Context) -> None:
        session = remembered(context)
        if session.roster is None or session.left_out is not None:
            raise SecurityError(f"round {session.session.round}: an upload was asked for too early, or twice")
        if len(message.content.array_records) != 1:
            raise SecurityError(
                "an update can be masked where it is one record of arrays, no more and no less"
            )
        self._context, self._session = context, session
        self._roster: Roster = session.roster
        (arrays,) = message.content.array_records.values()
        self._received: State = to_state(arrays)
        self._settings = wire.settings_in(message)
        check_contract(self._roster, contract_of(wire.shapes(self._received)))
        check_own(session.secrets, context.node_id, self._roster)
        sharing = wire.nodes_from_bytes(wire.field(request, wire.NODES))
        self._sharing = self._roster.checked(sharing, "nodes that have shared their secrets")
        boxes = wire.parts(wire.field(request, wire.BOXES), SEALED_SIZE)
        if len(boxes) != len(sharing) or context.node_id not in sharing:
            raise SecurityError(
                f"{len(boxes)} boxes came for node {context.node_id}, from the nodes {sharing}"
            )
        self._held = opened(
            session.secrets, context.node_id, self._roster, dict(zip(sharing, boxes, strict=True))
        )
        self._steps = np.frombuffer(wire.field(request, wire.STEPS), np.float32)
        if self._steps.shape != (len(self._received),) or not (self._steps > 0).all():
            raise SecurityError(
                f"{self._steps.size} steps came for {len(self._received)} tensors, or one is not above 0"
            )
        if not np.isfinite(self._steps).all():
            raise SecurityError("a step is not finite")

    def claim(self) -> None:
        """Take this round for this session: no other, at the same moment, may upload in it."""
        session = self._session.session
        claim(own_name(self._context) + session.run.to_bytes(8) + session.round.to_bytes(4), "upload")

    def masked(self, key: str, record: object) -> ConfigRecord:  # noqa: ARG002
        """The masked upload in the place of the trained arrays."""
        assert isinstance(record, ArrayRecord)
        trained = to_state(record)
        session, context = self._session.session, self._context
        if contract_of(wire.shapes(trained)) != session.contract:
            raise SecurityError("the app answers with other tensors than it was sent")
        sizes = wire.sizes(trained)
        received = wire.flat(self._received)
        update = wire.flat(trained) - received
        residual = kept_residual(context, session.contract)
        accumulated = update if residual is None else update + residual
        codes, left_out = quantize(accumulated, sizes, self._steps, session.levels)
        form = form_of(self._roster, sizes)
        alike = (self._steps.tobytes(), self._settings, received.tobytes())
        binding = binding_of(self._roster, self._sharing, *alike)
        words = form.pack(codes, magnitudes(accumulated, sizes))
        secrets = self._session.secrets
        words += total_mask(
            secrets, context.node_id, self._roster, self._sharing, binding=binding, words=form.words
        )
        remember(context, Remembered(session, secrets, self._roster, self._held, left_out))
        # Until the server adds this upload up, nothing of it counts as sent.
        keep_residual(context, session, accumulated)
        return ConfigRecord({wire.MASKED: form.to_bytes(words, session.round, binding)})
