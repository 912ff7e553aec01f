"""The aggregations that exist, under one signature. A new one is a function, and a line in `AGGREGATIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedkron.aggregation.factorwise import factorwise_mean
from fedkron.aggregation.merged import merged_mean
from fedkron.errors import ConfigError
from fedkron.layout import AdapterLayout, State


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The aggregated adapter, and the relative error of projecting it (`None` where nothing is projected)."""

    adapter: State
    projection_error: float | None


def _factorwise(adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout) -> Aggregate:
    return Aggregate(factorwise_mean(adapters, weights, layout), None)


def _merged(adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout) -> Aggregate:
    merged = merged_mean(adapters, weights, layout)
    return Aggregate(merged.adapter, merged.projection_error)


Aggregation = Callable[[Sequence[State], Sequence[float], AdapterLayout], Aggregate]
"""Adapters of one layout, their weights, the layout."""

AGGREGATIONS: dict[str, Aggregation] = {"factorwise": _factorwise, "merged": _merged}
"""Aggregations by the name a run config uses."""


def aggregate(
    name: str, adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout
) -> Aggregate:
    """Combine adapters by the aggregation of this name.

    Raises `ConfigError` when there is none of this name, and what the aggregation itself raises.
    """
    if name not in AGGREGATIONS:
        raise ConfigError(f"aggregation {name!r} does not exist: use one of {', '.join(AGGREGATIONS)}")
    return AGGREGATIONS[name](adapters, weights, layout)
