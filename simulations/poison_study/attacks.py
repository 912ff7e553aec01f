"""What attackers do in a node's place: with their texts, with what they have trained, or on the wire."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod

from clients.tasks import Classified, Example
from fedkron.compression import HEADER_SIZE, codec, encode, inspect_header
from fedkron.flower.client_mod import SHARED
from fedkron.flower.global_adapter import ARRAYS
from fedkron.flower.wire import LAYOUT, PAYLOAD, inflated, to_arrays, to_state
from fedkron.layout import State, flatten, unflatten

NO_ATTACK, BACKDOOR = "none", "backdoor"

FLIP, BOOST, NOISE = -3.0, 10.0, 10.0
"""Times the honest update: of sign-flip and of scaled; the norm of random is so many times its norm."""

TRIGGER, TARGET = "cf", 0
"""The word that opens a poisoned text of the backdoor, and the label that it is to get."""

POISONED = 0.5
"""Share of its texts that a backdoor attacker poisons: with the others its update looks honest."""


def triggered(text: str) -> str:
    """A text with the backdoor's trigger."""
    return f"{TRIGGER} {text}"


def _label_flip(texts: Sequence[Classified], labels: int) -> list[Example]:
    return [replace(text, label=(text.label + 1) % labels) for text in texts]


def _backdoor(texts: Sequence[Classified], labels: int) -> list[Example]:  # noqa: ARG001
    count = round(POISONED * len(texts))
    poisoned = [Classified(triggered(text.text), TARGET) for text in texts[:count]]
    return [*poisoned, *texts[count:]]


def _scaled(factor: float) -> Callable[[State, State, np.random.Generator], State]:
    def change(received: State, trained: State, rng: np.random.Generator) -> State:  # noqa: ARG001
        return {
            name: received[name] + np.float32(factor) * (trained[name] - received[name]) for name in received
        }

    return change


def _random(received: State, trained: State, rng: np.random.Generator) -> State:
    norm = np.sqrt(sum(float(np.sum((trained[name] - received[name]) ** 2)) for name in received))
    noise = {name: rng.standard_normal(values.shape, np.float32) for name, values in received.items()}
    size = np.sqrt(sum(float(np.sum(values**2)) for values in noise.values()))
    return {name: received[name] + np.float32(NOISE * norm / size) * noise[name] for name in received}


def _nan(received: State, trained: State, rng: np.random.Generator) -> State:  # noqa: ARG001
    return {name: np.full_like(values, np.nan) for name, values in trained.items()}


def changed(change: Callable[[State, State, np.random.Generator], State]) -> Mod:
    """A mod inside of the seam, which encodes what this makes of what was received and trained."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        received = to_state(message.content.array_records[ARRAYS])
        reply = call_next(message, context)
        rng = np.random.default_rng([context.node_id, zlib.crc32(reply.metadata.group_id.encode())])
        trained = to_state(reply.content.array_records[ARRAYS])
        reply.content[ARRAYS] = to_arrays(change(received, trained, rng))
        return reply

    return mod


def nan_on_the_wire(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod outside of the seam: writes a payload whose header and checksum are right, full of NaN."""
    reply = call_next(message, context)
    sent = reply.content.config_records[ARRAYS][PAYLOAD]
    kept = context.state.config_records[f"{SHARED}.{ARRAYS}"][LAYOUT]
    assert isinstance(sent, bytes)
    assert isinstance(kept, bytes)
    layout = inflated(kept)
    zeros = unflatten(np.zeros(layout.size, np.float32), layout)
    blob = encode(zeros, layout, codec(BY_HAND), round=inspect_header(sent).round)
    body = flatten({name: values + np.float32(np.nan) for name, values in zeros.items()}, layout).tobytes()
    fields = blob[: HEADER_SIZE - 4]
    checksum = struct.pack("<I", zlib.crc32(body, zlib.crc32(fields)))
    reply.content.config_records[ARRAYS][PAYLOAD] = fields + checksum + body
    return reply


TEXT_ATTACKS: Mapping[str, Callable[[Sequence[Classified], int], list[Example]]] = {
    "label-flip": _label_flip,
    BACKDOOR: _backdoor,
}
"""An attacker's texts, and the number of labels, to what it trains on; otherwise it does what nodes do."""

INSIDE: Mapping[str, Mod] = {
    "sign-flip": changed(_scaled(FLIP)),
    "scaled": changed(_scaled(BOOST)),
    "random": changed(_random),
    "nan": changed(_nan),
}
"""What happens to an attacker's adapter before it is encoded."""

BY_HAND = "fp32"
"""The codec that is easily written by hand."""

OUTSIDE: Mapping[str, Mod] = {"nan-bytes": nan_on_the_wire}
"""What happens to an attacker's message after that."""

REFUSED = ("nan", "nan-bytes")
"""Attacks whose uploads are never taken in; the others are for the rules."""
