"""What a node remembers between the messages of secure aggregation: each of them may be a new process.

Everything lies in `context.state`, in the memory of the node's SuperNode, never on the wire. The secrets of a
session are there until its shares are revealed or the next session begins.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ConfigRecord, Context

from fedkron.errors import SecurityError
from fedkron.flower.secure_wire import nodes_from_bytes, nodes_to_bytes, parts
from fedkron.layout import Vector
from fedkron.secure import shamir
from fedkron.secure.member import Secrets, Shares
from fedkron.secure.roster import Roster, Session, read_advertisements

SESSION, _RESIDUAL, NAME = "fedkron.secure.session", "fedkron.secure.residual", "fedkron.secure.name"


@dataclass(frozen=True)
class Remembered:
    """A session under way. `roster` is None before the list is there, `held` is empty before the upload.

    `left_out` is what the upload has left out, if it gets into the sum.
    """

    session: Session
    secrets: Secrets
    roster: Roster | None = None
    held: Mapping[int, Shares] = field(default_factory=dict)
    left_out: Vector | None = None

    def with_roster(self, roster: Roster) -> Remembered:
        """The same after the list of nodes has come."""
        return replace(self, roster=roster)


def remember(context: Context, session: Remembered) -> None:
    """Keep a session, in the place of any other."""
    record = ConfigRecord({"session": session.session.to_bytes(), "secrets": session.secrets.to_bytes()})
    if session.roster is not None:
        record["roster"] = session.roster.to_bytes()
        record["threshold"] = session.roster.threshold
    if session.left_out is not None:
        record["holders"] = nodes_to_bytes(list(session.held))
        record["held"] = b"".join(shares.mask + shares.seed for shares in session.held.values())
        record["left-out"] = session.left_out.tobytes()
    context.state[SESSION] = record


def remembered(context: Context) -> Remembered:
    """The session under way. Raises `SecurityError` where there is none."""
    record = context.state.get(SESSION)
    if not isinstance(record, ConfigRecord):
        raise SecurityError(
            "no round of secure aggregation is under way: it is over, or this node was restarted"
        )
    found = Remembered(
        Session.from_bytes(_bytes(record, "session")), Secrets.from_bytes(_bytes(record, "secrets"))
    )
    if "roster" in record:
        advertisements = read_advertisements(_bytes(record, "roster"))
        threshold = record["threshold"]
        assert isinstance(threshold, int)
        found = found.with_roster(Roster(found.session, advertisements, threshold))
    if "held" in record:
        holders = nodes_from_bytes(_bytes(record, "holders"))
        pairs = parts(_bytes(record, "held"), 2 * shamir.SIZE)
        held = {n: Shares(p[: shamir.SIZE], p[shamir.SIZE :]) for n, p in zip(holders, pairs, strict=True)}
        found = replace(found, held=held, left_out=np.frombuffer(_bytes(record, "left-out"), np.float32))
    return found


def forget(context: Context) -> None:
    """The session is over: its secrets are gone."""
    context.state.pop(SESSION, None)


def kept_residual(context: Context, contract: bytes) -> Vector | None:
    """What earlier uploads have left out, None where there is nothing for these tensors."""
    record = context.state.get(_RESIDUAL)
    if not isinstance(record, ConfigRecord) or record["contract"] != contract:
        return None
    return np.frombuffer(_bytes(record, "residual"), np.float32)


def keep_residual(context: Context, session: Session, residual: Vector) -> None:
    """Keep what the next upload has to make up for, and the last round that was answered."""
    context.state[_RESIDUAL] = ConfigRecord(
        {"contract": session.contract, "residual": residual.tobytes(), "last": session.to_bytes()}
    )


def last_round(context: Context, run: int) -> int:
    """The last round of a run in which this node has made an upload; 0 before the first."""
    record = context.state.get(_RESIDUAL)
    if not isinstance(record, ConfigRecord):
        return 0
    last = Session.from_bytes(_bytes(record, "last"))
    # Flower may hand a node's state on to a later run, which counts from 1 again.
    return last.round if last.run == run else 0


def own_name(context: Context) -> bytes:
    """32 random bytes that name this node to itself, drawn when they are first asked for."""
    record = context.state.get(NAME)
    if not isinstance(record, ConfigRecord):
        record = context.state[NAME] = ConfigRecord({"name": secrets.token_bytes(32)})
    return _bytes(record, "name")


def _bytes(record: ConfigRecord, key: str) -> bytes:
    value = record[key]
    assert isinstance(value, bytes)
    return value
