"""What the server does: the sum of masked uploads, and nothing but the sum."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedkron.errors import SecurityError
from fedkron.secure import shamir
from fedkron.secure.masks import own_stream, pair_stream
from fedkron.secure.member import (
    COMMITMENT_SIZE,
    commitment,
    mask_key,
    mask_public_key,
    seed_hash,
)
from fedkron.secure.packing import Words
from fedkron.secure.roster import Roster


@dataclass
class Unmasking:
    """Collects revealed shares until there are enough of them.

    `commitments` are the hashes that each node in it has published of its shares, by owner and holder; their
    owners are the nodes that have masks in common. `survivors` are those of them whose uploads are added up.
    """

    roster: Roster
    commitments: Mapping[int, Mapping[int, bytes]]
    survivors: Sequence[int]
    _shares: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def take(self, holder: int, shares: Mapping[int, bytes]) -> None:
        """Take in what a node reveals; raises `SecurityError`, changing nothing, for shares that are not
        right.
        """
        if shares.keys() != self.commitments.keys():
            raise SecurityError(
                f"node {holder} reveals {len(shares)} shares, expected {len(self.commitments)}"
            )
        for owner, share in shares.items():
            kind, place = (b"seed", COMMITMENT_SIZE) if owner in self.survivors else (b"mask", 0)
            expected = self.commitments[owner][holder][place : place + COMMITMENT_SIZE]
            found = commitment(share, kind, self.roster.transcript, owner, holder)
            if not hmac.compare_digest(found, expected):
                raise SecurityError(f"node {holder} reveals a false share of node {owner}")
        for owner, share in shares.items():
            self._shares.setdefault(owner, {})[self.roster.share_number(holder)] = share

    def remove_masks(self, total: Words, binding: bytes) -> Words:
        """The sum of what the survivors have masked with this binding, from the sum of their masked words.

        Raises `SecurityError` with fewer shares than it takes, or where a node's shares are not of what it
        has published.
        """
        result = total.copy()
        for owner in self.commitments:
            if owner in self.survivors:
                seed = self._secret(owner)
                if not hmac.compare_digest(seed_hash(seed), self.roster.by_node[owner].seed):
                    raise SecurityError(f"node {owner} has shared another seed than it has published")
                result -= own_stream(seed, binding, result.size)
                continue
            secret = self._secret(owner)
            if not hmac.compare_digest(mask_public_key(secret), self.roster.by_node[owner].mask):
                raise SecurityError(f"node {owner} has shared another mask key than it has published")
            for survivor in self.survivors:
                key = mask_key(secret, self.roster.by_node[survivor].mask, binding)
                np.subtract(result, pair_stream(key, survivor, owner, result.size), out=result)
        return result

    def _secret(self, owner: int) -> bytes:
        return shamir.recover(self._shares.get(owner, {}), self.roster.threshold)
