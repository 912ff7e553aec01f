"""A limit for the norm of an update, from what nodes have sent so far.

One update of a hundred times the usual size carries a mean away, by accident (a diverged node) or on purpose.
What is usual differs from run to run, and from round to round: so the limit is a multiple of the median norm
of the latest updates that were admitted. A liar moves a median only together with half of all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from fedkron.errors import FedKronError, PayloadError
from fedkron.exchange import Tree
from fedkron.flower.global_adapter import Answer
from fedkron.flower.uploads import Packed

REMEMBERED = 64
"""So many norms of admitted updates say what is usual."""


class NormLimit:
    """Updates may have `factor` times the usual norm; 0 admits any.

    Updates of different records or sizes are not compared. Norms are Euclidean, of all numbers in one upload.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._usual: dict[str, deque[float]] = {}
        self._admitted: list[tuple[str, float]] = []

    def applied(self, answers: Iterable[Answer]) -> Iterable[Answer]:
        """The answers of a round, with uploads that are refused when they are opened and too large.

        Where nothing is known yet, the norms of this very round say what is usual.
        """
        if self._factor <= 0:
            return answers
        answers = list(answers)
        norms: dict[str, list[float]] = {}
        for key, upload in _uploads(answers):
            if key not in self._usual:
                with suppress(FedKronError):  # what is wrong with it is said when it is opened
                    norms.setdefault(key, []).append(upload.norm())
        for key, found in norms.items():
            self._usual[key] = deque([float(np.median(found))], maxlen=REMEMBERED)
        return [self._limited(answer) for answer in answers]

    def end_round(self) -> None:
        """From now on the updates that were admitted in this round count, too."""
        for key, norm in self._admitted:
            self._usual[key].append(norm)
        self._admitted.clear()

    def snapshot(self) -> dict[str, Tree]:
        """What is usual: for `restore`."""
        return {key: list(norms) for key, norms in self._usual.items()}

    def restore(self, snapshot: Mapping[str, Tree]) -> None:
        """Go on where a snapshot was made."""
        self._usual = {key: deque(norms, maxlen=REMEMBERED) for key, norms in snapshot.items()}

    def _limited(self, answer: Answer) -> Answer:
        limits = {
            key: replace(upload, limit=partial(self._check, _kind(key, upload)))
            for key, upload in answer.uploads.items()
            if isinstance(upload, Packed)
        }
        return replace(answer, uploads={**answer.uploads, **limits})

    def _check(self, key: str, norm: float) -> None:
        usual = float(np.median(self._usual[key]))
        if norm > self._factor * usual > 0:  # where nothing is usual, nothing is unusual
            raise PayloadError(
                f"its norm is {norm:.3g}, {norm / usual:.3g} times the usual {usual:.3g}: "
                f"more than admission.norm-limit = {self._factor:g} times is not admitted"
            )
        self._admitted.append((key, norm))


def _uploads(answers: Iterable[Answer]) -> Iterator[tuple[str, Packed]]:
    """All uploads that are known to be changes of something, by what they can be compared with."""
    for answer in answers:
        for key, upload in answer.uploads.items():
            if isinstance(upload, Packed):
                yield _kind(key, upload), upload


def _kind(key: str, upload: Packed) -> str:
    return f"{key} {upload.layout.contract}"
