"""Which shared state each node has, and what it has to be sent to get the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from fedkron.compression import Codec
from fedkron.compression.shared_state import NOTHING, Chain, SharedState, digest_of
from fedkron.layout import AdapterLayout, State, Vector, flatten, unflatten


@dataclass(frozen=True)
class Target:
    """What some nodes are to have."""

    state: State
    layout: AdapterLayout
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Delivery:
    """What a node gets: the way to the shared state, and the layout where it may not have that."""

    shared: SharedState
    chain: Chain
    layout: AdapterLayout | None


class Downlink:
    """The shared states of one record key, and which of them each node is known to have.

    One state is enough as long as all nodes get the same arrays. Where a strategy sends different arrays to
    different nodes (personal or clustered models), each lot gets its own, so that changes stay small.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._shared: list[SharedState] = []  # the one published last comes last
        self._known: dict[int, tuple[SharedState, bytes]] = {}

    @property
    def latest(self) -> State:
        """The shared state that was published last. Raises `LookupError` when none was."""
        shared = self._shared[-1]
        return unflatten(shared.held.vector, shared.layout)

    def publish(self, targets: Sequence[Target], round_: int) -> list[SharedState]:
        """Publish targets, each on a shared state of its own, and return those; equal targets share one."""
        chosen: dict[bytes, SharedState] = {}
        vectors = [flatten(target.state, target.layout) for target in targets]
        digests = [digest_of(v, target.layout) for v, target in zip(vectors, targets, strict=True)]
        # Who has more nodes on a shared state has a better claim on it.
        claims = [max(self._followers(target).values(), default=0) for target in targets]
        order = sorted(range(len(targets)), key=lambda i: -claims[i])
        for i in order:
            if digests[i] not in chosen:
                taken = {id(shared) for shared in chosen.values()}
                chosen[digests[i]] = self._published(targets[i], vectors[i], digests[i], round_, taken)
        used = {id(shared) for shared in (*chosen.values(), *(shared for shared, _ in self._known.values()))}
        self._shared = [shared for shared in self._shared if id(shared) in used]
        return [chosen[digest] for digest in digests]

    def delivery(self, node: int, shared: SharedState) -> Delivery:
        """What to send to a node, so that it has this shared state."""
        known, digest = self._known.get(node, (None, None))
        chain = shared.way_from(digest)
        # Who gets a whole state may have lost all else, or got the layout of other arrays in the meantime.
        has_layout = (
            known is not None
            and known.layout.contract == shared.layout.contract
            and chain.digests[0] != NOTHING
        )
        return Delivery(shared, chain, None if has_layout else shared.layout)

    def confirm(self, node: int, shared: SharedState, digest: bytes) -> None:
        """The node has answered a message that led to this state: it has it."""
        self._known[node] = (shared, digest)

    def forget(self, node: int) -> None:
        """The node does not have what it should."""
        self._known.pop(node, None)

    def snapshot(self) -> dict[str, Any]:
        """All it knows, as plain values, bytes and arrays: for `restored`."""
        # What only a node follows that has not answered since is no longer in the list.
        everyone = {id(shared): shared for shared in self._shared}
        everyone |= {id(shared): shared for shared, _ in self._known.values()}
        places = {identity: place for place, identity in enumerate(everyone)}
        return {
            "shared": [shared.snapshot() for shared in everyone.values()],
            "listed": len(self._shared),
            "known": {str(n): [places[id(shared)], digest] for n, (shared, digest) in self._known.items()},
        }

    @staticmethod
    def restored(snapshot: Mapping[str, Any], codec: Codec, renamed: Mapping[int, int]) -> Downlink:
        """The downlink that a snapshot was made of; `renamed` has today's ids of nodes that are still
        there.
        """
        downlink = Downlink(codec)
        everyone = [SharedState.restored(shared, codec) for shared in snapshot["shared"]]
        downlink._shared = everyone[: snapshot["listed"]]
        downlink._known = {
            renamed[int(node)]: (everyone[place], digest)
            for node, (place, digest) in snapshot["known"].items()
            if int(node) in renamed
        }
        return downlink

    def _followers(self, target: Target) -> Counter[int]:
        """How many of the target's nodes follow each shared state of its layout, by place in the list."""
        followed = [self._known[node][0] for node in target.nodes if node in self._known]
        places = {id(s): place for place, s in enumerate(self._shared) if _same(s, target)}
        return Counter(places[id(shared)] for shared in followed if id(shared) in places)

    def _published(
        self, target: Target, vector: Vector, digest: bytes, round_: int, taken: Set[int]
    ) -> SharedState:
        followers = self._followers(target)
        free = [s for s in self._shared if _same(s, target) and id(s) not in taken]
        places = {id(s): place for place, s in enumerate(self._shared)}
        if not target.nodes and len(free) > 1:
            # Nobody gets it now: a state that other arrays go on from must not be led there and back.
            followed = {id(s) for s, _ in self._known.values()}
            free = [s for s in free if s.target == digest or id(s) not in followed]
        shared = max(
            free, key=lambda s: (s.target == digest, followers[places[id(s)]], places[id(s)]), default=None
        )
        if shared is None:
            shared = SharedState(target.layout, self._codec)
            self._shared.append(shared)
        shared.publish(vector, round_)
        self._shared.append(self._shared.pop(self._shared.index(shared)))
        return shared


def _same(shared: SharedState, target: Target) -> bool:
    """Whether they have the same layout."""
    return shared.layout.contract == target.layout.contract
