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
from fedkron.compression.accumulate import accept
from fedkron.compression.payload import decode_vector
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
    norm: float | None = None
    """Of the update (`Accepted.norm`), where it has been measured."""

    def opened(self) -> State:
        """What was sent plus the decoded update.

        Raises `PayloadError` or `ContractError` for a payload that is damaged, no update, of another round or
        adapter, or that takes a tensor beyond the largest float32.
        """
        header, update = decode_vector(self.payload, self.layout)
        self.check(header)
        # The reference is the server's full-precision state, not the quantized broadcast: what the
        # broadcast's quantization left out is thus not lost, but sent again with the next one.
        with np.errstate(over="ignore"):
            trained = {n: self.reference[n] + values for n, values in unflatten(update, self.layout).items()}
        if overflown := [name for name, values in trained.items() if not np.isfinite(values).all()]:
            raise PayloadError(f"it takes tensor {overflown[0]!r} beyond the largest float32")
        return trained

    def measured(self) -> Packed:
        """The same with its norm. Raises `PayloadError` or `ContractError` for a payload that is damaged."""
        return replace(self, norm=accept(self.payload, self.layout).norm)

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
