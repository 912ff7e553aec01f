"""What the server saw of single nodes in a round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedkron.flower.global_adapter import Answer
from fedkron.flower.uploads import Packed


@dataclass
class NodeReport:
    """One node in one round.

    `examples` it trained on, None where its update does not count. `update_norm` is that of its update where
    the server has measured it, or a bound of it (`Packed.norm`). `trained` and `evaluated` are its metrics,
    `failures` the reasons why it failed, at most one a phase; a node that has never answered has no task.
    """

    task: str = ""
    partition: int = 0
    examples: int | None = None
    update_norm: float | None = None
    trained: Mapping[str, float] = field(default_factory=dict)
    evaluated: Mapping[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def update_norms(answers: Iterable[Answer]) -> dict[int, float]:
    """The norms of the updates that have one, by node: of all records of an upload together."""
    found: dict[int, float] = {}
    for answer in answers:
        norms = [upload.norm for upload in answer.uploads.values() if isinstance(upload, Packed)]
        known = [norm for norm in norms if norm is not None]
        if known and len(known) == len(answer.uploads):
            found[answer.origin.node] = math.hypot(*known)
    return found
