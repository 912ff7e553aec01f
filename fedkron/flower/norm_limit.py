"""A limit for the norm of an update, from what nodes have sent so far.

One update of a hundred times the usual size carries a mean away, by accident (a node that diverged) or on
purpose. What is usual differs from run to run and from round to round (updates are tiny as long as heads are
zero, and get smaller at the end): so it is the median of the latest updates that were admitted, or that of
the round itself where that is larger. A liar moves a median only together with half of all others. (A node
that is alone in a round can do what it likes.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedkron.exchange import Tree
from fedkron.flower.global_adapter import Answer
from fedkron.flower.uploads import Packed

REMEMBERED = 64
"""So many norms of admitted updates say what is usual."""


class NormLimit:
    """Updates may have `factor` times the usual norm; 0 admits any.

    Norms are those of `Packed.norm`. Updates of different records or sizes are not compared.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._usual: dict[str, deque[float]] = {}

    def refusals(self, answers: Sequence[Answer]) -> dict[int, str]:
        """Reasons against the answers of a round, by node; from now on the norms of the others count.

        Uploads whose norm is not known are not judged.
        """
        if self._factor <= 0:
            return {}
        limits = {kind: self._limit(kind, norms) for kind, norms in _by_kind(answers).items()}
        found: dict[int, str] = {}
        for answer in answers:
            for kind, norm in _norms(answer):
                if norm > limits[kind] > 0:  # where nothing is usual, nothing is unusual
                    node = answer.origin.node
                    found[node] = (
                        f"node {node}: upload refused: its norm is {norm:.3g}, the limit {limits[kind]:.3g}: "
                        f"admission.norm-limit = {self._factor:g} times the usual norm"
                    )
        for kind, norms in _by_kind(a for a in answers if a.origin.node not in found).items():
            self._usual.setdefault(kind, deque(maxlen=REMEMBERED)).extend(norms)
        return found

    def snapshot(self) -> dict[str, Tree]:
        """What is usual: for `restore`."""
        return {kind: list(norms) for kind, norms in self._usual.items()}

    def restore(self, snapshot: Mapping[str, Tree]) -> None:
        """Go on where a snapshot was made."""
        self._usual = {kind: deque(norms, maxlen=REMEMBERED) for kind, norms in snapshot.items()}

    def _limit(self, kind: str, norms: Sequence[float]) -> float:
        # Of two in the middle the smaller: one of two nodes must not be half of what is usual.
        here = sorted(norms)[(len(norms) - 1) // 2]
        return self._factor * max(here, float(np.median(self._usual.get(kind, here))))


def _by_kind(answers: Iterable[Answer]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for answer in answers:
        for kind, norm in _norms(answer):
            found.setdefault(kind, []).append(norm)
    return found


def _norms(answer: Answer) -> Iterator[tuple[str, float]]:
    """The norms of an answer's uploads, by what they can be compared with: others of the same tensors."""
    for key, upload in answer.uploads.items():
        if isinstance(upload, Packed) and upload.norm is not None:
            yield f"{key} {upload.layout.contract}", upload.norm
