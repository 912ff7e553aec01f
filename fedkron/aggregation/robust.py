"""Robust aggregation: some of the clients may send anything, and the aggregate stays near the others'.

`robust_rules` says how, `robust_spaces` where. How much a rule withstands, and what it costs when nobody
lies: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.robust_rules import BY_COORDINATE, BY_DISTANCE, RobustRule
from fedkron.aggregation.robust_spaces import FactorSpace, ProductSpace, Space, Uploads
from fedkron.aggregation.weighted_mean import largest_magnitude
from fedkron.aggregation.weights import checked_weight
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, State, Vector, flatten

SPACES: Mapping[str, Callable[[AdapterLayout], Space]] = {
    "factorwise": lambda layout: FactorSpace(),  # noqa: ARG005
    "merged": ProductSpace,
}
"""Where a rule works, by the aggregation that it takes the place of."""


def require_space(aggregation: str, rule: RobustRule) -> None:
    """Raise `ConfigError` unless a rule can take the place of this aggregation's mean."""
    if not rule.is_mean and aggregation not in SPACES:
        raise ConfigError(
            f"robust rule {rule.name!r} is not for aggregation {aggregation!r}: use {' or '.join(SPACES)}"
        )


class Robust:
    """One rule in the space of one aggregation; an `Aggregator`.

    `held` is what the clients had been sent. All uploads are kept until the end, as float32 vectors: memory
    grows with the number of clients, 4 · `layout.size` bytes each. The order of uploads makes no difference
    beyond rounding. Weights are checked, and otherwise ignored: they may be lies.

    Raises `ConfigError` for an aggregation without such a space and for the rule "mean", which has
    aggregators of its own; `AdapterError` for a state that does not fit the layout, and for a kind of
    adapter that the space does not know.
    """

    def __init__(self, aggregation: str, layout: AdapterLayout, rule: RobustRule, held: State) -> None:
        require_space(aggregation, rule)
        if rule.is_mean:
            raise ConfigError(f"the mean has aggregators of its own: use aggregator({aggregation!r}, …)")
        self._layout = layout
        self._rule = rule
        self._space = SPACES[aggregation](layout)
        self._held = flatten(held, layout)
        self._vectors: list[Vector] = []

    def add(self, adapter: State, weight: float) -> None:
        """Take in one client's adapter; a refused one changes nothing.

        Raises `AdapterError` for an adapter that does not fit the layout or holds NaN or infinity,
        `ConfigError` for a weight that is negative, NaN or infinite.
        """
        checked_weight(weight)
        vector = flatten(adapter, self._layout)
        largest_magnitude(vector)
        self._vectors.append(vector)

    def finish(self) -> Aggregate:
        """What the rule makes of the uploads, float32, with the projection error where it is projected.

        Raises `AdapterError` when nothing was added, or the result is beyond float32 (too many attackers);
        `ConfigError` when there are too few uploads for the rule.
        """
        if not self._vectors:
            raise AdapterError("there is no adapter to aggregate: wait for at least one client")
        uploads = Uploads(self._layout, self._held, self._vectors)
        attackers = self._rule.tolerated(len(self._vectors))
        if self._rule.name in BY_COORDINATE:
            rule = BY_COORDINATE[self._rule.name]
            return self._space.by_coordinate(uploads, lambda values: rule(values, attackers))
        shares = BY_DISTANCE[self._rule.name](self._space.gram(uploads), attackers)
        return self._space.weighted(uploads, shares)
