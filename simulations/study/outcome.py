"""What came of one federation of a study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Accuracy in [0, 1] and loss in nats: one tuple per round, with one figure per entry of `tasks`.

    `tasks` names the task of each node, or each task once where the figures are means over its nodes.
    `head_only` is what a head alone reaches on the frozen base. `up` and `down` are serialized Flower
    messages in bytes, all nodes together, one entry per round.
    """

    tasks: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]
    head_only: tuple[float, ...]
    up: tuple[int, ...]
    down: tuple[int, ...]
    seconds: float
