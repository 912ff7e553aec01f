"""The way down: a state that server and clients share bit for bit, and the changes that lead to it.

The server has a target that it wants the clients to have. It publishes: the change from the shared state to
the target is quantized, and what the payload decodes to is added to the shared state, by the server as by
every client, in the same order and with the same float32 additions. What quantization left out is still part
of the difference to the next target (error feedback of the server: Tang et al. 2019, DoubleSqueeze, arXiv
1905.05957). A digest of contract and state names each state, and each client checks that it got there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedkron.bounded_cache import BoundedCache
from fedkron.compression.codecs import Codec, codec
from fedkron.compression.finite import first_nonfinite
from fedkron.compression.payload import HEADER_SIZE, Kind, decode_vector, encode_vector
from fedkron.errors import AdapterError, NonFiniteError, PayloadError, UnknownStateError
from fedkron.layout import AdapterLayout, Vector

DIGEST_SIZE = 16
NOTHING = b""
"""In the place of a digest: no state at all."""


@dataclass(frozen=True)
class Held:
    """A state that somebody has: a flat float32 vector, which nobody may write to, and its digest."""

    vector: Vector
    digest: bytes


_reached: BoundedCache[tuple[str, bytes, bytes], Held] = BoundedCache(
    64 * 2**20, lambda held: held.vector.nbytes
)
"""States by contract, digest of the state before, and payload: nodes that one process simulates are all led
the same way.
"""


@dataclass(frozen=True)
class Chain:
    """Payloads that lead from one state to another.

    `digests` has one entry more than `payloads`: the i-th payload leads from the i-th state to the next. The
    first is `NOTHING` where the first payload is a whole state.
    """

    digests: tuple[bytes, ...]
    payloads: tuple[bytes, ...] = ()


def digest_of(vector: Vector, layout: AdapterLayout) -> bytes:
    """BLAKE2b of contract and little-endian float32 vector, 16 bytes."""
    digest = hashlib.blake2b(bytes.fromhex(layout.contract), digest_size=DIGEST_SIZE)
    digest.update(np.ascontiguousarray(vector, "<f4").data)
    return digest.digest()


class SharedState:
    """The server's side: publishes targets, and knows the way to the current state from earlier ones."""

    def __init__(self, layout: AdapterLayout, codec: Codec) -> None:
        self.layout = layout
        self._codec = codec
        self._steps: list[tuple[bytes, bytes]] = []  # digest before, payload; oldest first
        self._held: Held | None = None
        self._target = NOTHING
        self._whole: bytes | None = None
        self._round = 0

    def snapshot(self) -> dict[str, Any]:
        """All it knows, as plain values, bytes and arrays: for `restored`."""
        return {
            "layout": self.layout.to_json(),
            "steps": [list(step) for step in self._steps],
            "held": None if self._held is None else self._held.vector,
            "target": self._target,
            "round": self._round,
        }

    @staticmethod
    def restored(snapshot: Mapping[str, Any], codec: Codec) -> SharedState:
        """The shared state that a snapshot was made of: it publishes the same from now on."""
        shared = SharedState(AdapterLayout.from_json(snapshot["layout"]), codec)
        shared._steps = [(before, payload) for before, payload in snapshot["steps"]]
        if (vector := snapshot["held"]) is not None:
            vector.flags.writeable = False
            shared._held = Held(vector, digest_of(vector, shared.layout))
        shared._target, shared._round = snapshot["target"], snapshot["round"]
        return shared

    @property
    def held(self) -> Held:
        """What a client has that follows. Only after the first `publish`."""
        assert self._held is not None
        return self._held

    @property
    def target(self) -> bytes:
        """Digest of what was published last."""
        return self._target

    def publish(self, target: Vector, round: int) -> None:
        """Bring the shared state as near to `target` as the codec can; nothing when it was published already.

        `target` is a float32 vector of `layout.size` elements. Raises `AdapterError` when it holds NaN or
        infinity.
        """
        if found := first_nonfinite(target, self.layout.tensors):
            raise AdapterError(f"{found} in the global adapter: the aggregation diverged, lower its step")
        self._round, digest = round, digest_of(target, self.layout)
        held = self._held
        if digest == self._target or (held is not None and digest == held.digest):
            self._target = digest
            return
        if held is None:
            payload = encode_vector(
                target, self.layout, codec(self._codec.state_codec), round=round, kind=Kind.STATE
            )
        else:
            payload = encode_vector(
                target - held.vector,
                self.layout,
                self._codec,
                round=round,
                kind=Kind.CHANGE,
                rng=np.random.default_rng([round, *digest]),
            )
        reached = _applied(held, payload, self.layout)
        self._steps.append((NOTHING if held is None else held.digest, payload))
        self._held, self._target, self._whole = reached, digest, None
        self._forget_what_costs_more_than_the_state()

    def way_from(self, digest: bytes | None) -> Chain:
        """The cheapest way to the current state for a client that has the state `digest`, or none.

        The changes since then; or, when those are not known any more or weigh more than the state itself,
        the first state with all changes; or the whole state in float32.
        """
        if digest == self.held.digest:
            return Chain((digest,))
        befores = [before for before, _ in self._steps]
        for start in (digest, NOTHING):
            if start in befores:
                last = len(befores) - 1 - befores[::-1].index(start)  # a state may have come back
                steps = self._steps[last:]
                if _weight(steps) <= self._state_weight:
                    digests = (*(before for before, _ in steps), self.held.digest)
                    return Chain(digests, tuple(payload for _, payload in steps))
        if self._whole is None:
            self._whole = encode_vector(
                self.held.vector, self.layout, codec("fp32"), round=self._round, kind=Kind.STATE
            )
        return Chain((NOTHING, self.held.digest), (self._whole,))

    @property
    def _state_weight(self) -> int:
        return HEADER_SIZE + 4 * self.layout.size

    def _forget_what_costs_more_than_the_state(self) -> None:
        while len(self._steps) > 1 and _weight(self._steps) > self._state_weight:
            del self._steps[0]


def follow(held: Held | None, chain: Chain, layout: AdapterLayout) -> Held:
    """The client's side: the state at the end of a chain.

    A client that already has a state inside the chain, because it was reached but the server did not hear of
    it, goes on from there. Raises `UnknownStateError` when it has none of them, or does not arrive where it
    should, and `PayloadError` or `ContractError` for payloads that cannot be decoded.
    """
    if len(chain.digests) != len(chain.payloads) + 1:
        raise PayloadError(f"{len(chain.payloads)} payloads need as many digests and one more")
    have = NOTHING if held is None else held.digest
    if have in chain.digests:
        start = chain.digests.index(have)
    elif chain.digests[0] == NOTHING:
        start, held = 0, None
    else:
        raise UnknownStateError(
            f"the change is one of state {chain.digests[0].hex()}, this node has {have.hex() or 'none'}; "
            "send it the whole state"
        )
    for payload, digest in zip(chain.payloads[start:], chain.digests[start + 1 :], strict=True):
        step = (layout.contract, NOTHING if held is None else held.digest, payload)
        held = _reached.get(step, partial(_applied, held, payload, layout))
        if held.digest != digest:
            raise UnknownStateError(
                f"the payload leads to state {held.digest.hex()}, it should be {digest.hex()}; "
                "send the whole state"
            )
    assert held is not None
    return held


def _applied(held: Held | None, payload: bytes, layout: AdapterLayout) -> Held:
    header, vector = decode_vector(payload, layout)
    expected = Kind.STATE if held is None else Kind.CHANGE
    if header.kind != expected.name:
        raise PayloadError(f"payload is a {header.kind}, a {expected.name} belongs here; send it again")
    if held is not None:
        with np.errstate(over="ignore"):
            np.add(held.vector, vector, out=vector)
        if found := first_nonfinite(vector, layout.tensors):
            raise NonFiniteError(f"{found} after this change; ask the sender to encode again")
    vector.flags.writeable = False
    return Held(vector, digest_of(vector, layout))


def _weight(steps: Sequence[tuple[bytes, bytes]]) -> int:
    return sum(len(payload) for _, payload in steps)
