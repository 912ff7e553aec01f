"""The ways to combine adapters that exist, by name. A new one is a class, and a line in `AGGREGATIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedkron.aggregation.aggregator import Aggregate, Aggregator
from fedkron.aggregation.exact import MergedExact
from fedkron.aggregation.factorwise import FactorwiseMean
from fedkron.aggregation.merged import MergedMean
from fedkron.aggregation.stacked import Stacked
from fedkron.errors import ConfigError
from fedkron.layout import AdapterLayout, State

AGGREGATIONS: dict[str, Callable[[AdapterLayout], Aggregator]] = {
    "factorwise": FactorwiseMean,
    "merged": MergedMean,
    "merged_exact": MergedExact,
    "stacked": Stacked,
}
"""Aggregators by the name a run config uses."""


def aggregator(name: str, layout: AdapterLayout) -> Aggregator:
    """A new aggregator of this name for adapters of one layout.

    Raises `ConfigError` when there is none of this name, `AdapterError` when it cannot do a module's kind.
    """
    if name not in AGGREGATIONS:
        raise ConfigError(f"aggregation {name!r} does not exist: use one of {', '.join(AGGREGATIONS)}")
    return AGGREGATIONS[name](layout)


def aggregate(
    name: str, adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout
) -> Aggregate:
    """`aggregator` for adapters that are all there.

    Raises `ConfigError` when a weight is missing, and what the aggregator itself raises.
    """
    if len(weights) != len(adapters):
        raise ConfigError(
            f"{len(weights)} weights for {len(adapters)} adapters: give one weight for each adapter"
        )
    combined = aggregator(name, layout)
    for adapter, weight in zip(adapters, weights, strict=True):
        combined.add(adapter, weight)
    return combined.finish()
