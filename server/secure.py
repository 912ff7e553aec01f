"""From the settings of a run to the grid that adds up masked uploads."""

from __future__ import annotations

from flwr.serverapp import Grid

from fedkron.flower.secure_grid import SecureGrid
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT
from fedkron.secure.roster import Policy
from fedkron.settings import Settings

FIRST_MAGNITUDE = 3.0
"""Mean magnitude of a first update in learning rates. AdamW moves an element by one in a step at most, to and
fro: 2 were measured after 8 steps. Too little is better than too much: what is clipped still has its sign,
what is rounded to zero has nothing.
"""


def secured(grid: Grid, settings: Settings) -> SecureGrid:
    """A grid whose strategy sees means only; single updates stay with their nodes."""
    secure, train = settings.secure, settings.train

    def magnitude(tensor: str) -> float:
        head = tensor in (HEAD_WEIGHT, HEAD_BIAS)
        return FIRST_MAGNITUDE * (train.head_learning_rate if head else train.learning_rate)

    policy = Policy(secure.threshold, secure.min_nodes)
    return SecureGrid(grid, levels=secure.levels, policy=policy, magnitude=magnitude)
