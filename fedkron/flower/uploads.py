"""What a node has uploaded: as it came, until somebody opens it.

A payload is 8 to 80 times smaller than the arrays in it: a server that opens one upload after the other needs
memory for one adapter, and not for as many as there are clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from flwr.app import Message

from fedkron.compression import Header, Kind
from fedkron.compression.accumulate import Accepted, accept
from fedkron.errors import PayloadError
from fedkron.flower.wire import to_state
from fedkron.layout import AdapterLayout, State, unflatten


class Upload(Protocol):
    """One record of a reply."""

    def opened(self) -> State:
        """The trained tensors, float32; raises a `FedKronError` for an upload that has to be refused."""


@dataclass(frozen=True)
class Packed:
    """A payload with the change of `reference`, which is what the server sent in this round."""

    payload: bytes
    reference: State
    layout: AdapterLayout
    round: int
    limit: Callable[[float], object] = float
    """Is called with the norm of the update, and may refuse it."""

    def opened(self) -> State:
        """What was sent plus the decoded update.

        Raises `PayloadError` or `ContractError` for a payload that is damaged, no update, of another round or
        adapter, beyond the limit, or that takes a tensor beyond the largest float32.
        """
        update = np.zeros(self.layout.size, np.float32)
        self.admitted().add_to(update, 1.0)
        # The reference is the server's full-precision state, not the quantized broadcast: what the
        # broadcast's quantization left out is thus not lost, but sent again with the next one.
        with np.errstate(over="ignore"):
            trained = {n: self.reference[n] + values for n, values in unflatten(update, self.layout).items()}
        if overflown := [name for name, values in trained.items() if not np.isfinite(values).all()]:
            raise PayloadError(f"it takes tensor {overflown[0]!r} beyond the largest float32")
        return trained

    def admitted(self) -> Accepted:
        """The payload, checked and within its limit, ready to be added. Raises as `opened` does."""
        accepted = accept(self.payload, self.layout)
        self.check(accepted.header)
        self.limit(accepted.norm)
        return accepted

    def norm(self) -> float:
        """The norm of the update (`Accepted.norm`); raises as `opened` does."""
        return replace(self, limit=float).admitted().norm

    def check(self, header: Header) -> None:
        """Raise `PayloadError` unless a payload is an update of this round."""
        if header.kind != Kind.UPDATE.name:
            raise PayloadError(f"payload is a {header.kind}, an upload is an {Kind.UPDATE.name}")
        if header.round != self.round:
            raise PayloadError(f"payload is of round {header.round}, expected round {self.round}")


@dataclass(frozen=True)
class Plain:
    """Arrays that somebody has opened already."""

    reply: Message
    key: str

    def opened(self) -> State:
        """The arrays as they are."""
        return to_state(self.reply.content.array_records[self.key])


@dataclass(frozen=True)
class Watched:
    """An upload whose tensors somebody else looks at when it is opened, and may refuse."""

    upload: Upload
    look: Callable[[State], object]

    def opened(self) -> State:
        """What the upload holds."""
        state = self.upload.opened()
        self.look(state)
        return state


def plain_uploads(reply: Message) -> Mapping[str, Upload]:
    """The uploads in a reply whose arrays are not packed, by record key."""
    return {key: Plain(reply, key) for key in reply.content.array_records}
