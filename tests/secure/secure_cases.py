"""Nodes of a session without any transport: every step of the protocol, with whoever drops out where."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkron.secure.codes import Codes
from fedkron.secure.keys import new_identity
from fedkron.secure.member import Sealed, Secrets, Shares, advertise, opened, revealed, share, total_mask
from fedkron.secure.packing import Words
from fedkron.secure.roster import Policy, Roster, Session, roster
from fedkron.secure.unmasking import Unmasking
from fedkron.secure.upload import Form, binding_of, form_of

CONTRACT = bytes(range(32))


def session(levels: int = 5, round_: int = 3) -> Session:
    return Session(7, round_, levels, CONTRACT)


@dataclass
class Nodes:
    """Nodes that have agreed on a list."""

    roster: Roster
    secrets: dict[int, Secrets]
    sealed: dict[int, list[Sealed]]

    def shares_of(self, node: int, sharing: Collection[int]) -> dict[int, Shares]:
        place = self.roster.nodes.index(node)
        boxes = {other: self.sealed[other][place].box for other in sharing}
        return opened(self.secrets[node], node, self.roster, boxes)

    def commitments(self, sharing: Collection[int]) -> dict[int, dict[int, bytes]]:
        return {
            owner: {
                holder: one.commitments
                for holder, one in zip(self.roster.nodes, self.sealed[owner], strict=True)
            }
            for owner in sharing
        }


def agreed(
    count: int, *, levels: int = 5, round_: int = 3, threshold: float = 0.6, first: int = 100
) -> Nodes:
    """Nodes with a list, all of whom have shared their secrets."""
    about = session(levels, round_)
    drawn = {node: advertise(about, node, new_identity()) for node in range(first, first + count)}
    members = roster(about, [keys for _, keys in drawn.values()], Policy(threshold, min_nodes=1))
    secrets = {node: own for node, (own, _) in drawn.items()}
    sealed = {node: share(own, node, members) for node, own in secrets.items()}
    return Nodes(members, secrets, sealed)


def random_codes(count: int, levels: int, seed: int) -> Codes:
    return np.random.default_rng(seed).integers(0, levels, count, np.uint8)


def form(nodes: Nodes, sizes: Sequence[int]) -> Form:
    return form_of(nodes.roster, np.array(sizes, np.int64))


def masked(
    nodes: Nodes, layout: Form, codes: Mapping[int, tuple[Codes, Codes]], sharing: Sequence[int]
) -> dict[int, Words]:
    """What nodes with codes send, after those in `sharing` have shared their secrets."""
    binding = binding_of(nodes.roster, sharing)
    return {
        node: layout.pack(*own)
        + total_mask(nodes.secrets[node], node, nodes.roster, sharing, binding=binding, words=layout.words)
        for node, own in codes.items()
    }


def unmasked(
    nodes: Nodes, uploads: Mapping[int, Words], sharing: Sequence[int], revealing: Collection[int]
) -> Words:
    """The sum of uploads, after some of the survivors have revealed their shares."""
    survivors = sorted(uploads)
    unmasking = Unmasking(nodes.roster, nodes.commitments(sharing), survivors)
    for node in revealing:
        unmasking.take(node, revealed(node, nodes.roster, nodes.shares_of(node, sharing), survivors))
    total = np.zeros_like(next(iter(uploads.values())))
    for words in uploads.values():
        total += words
    return unmasking.remove_masks(total, binding_of(nodes.roster, sharing))
