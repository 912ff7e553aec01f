"""How the clients' adapters become one. Numpy only."""

from fedkron.aggregation.factorwise import factorwise_mean
from fedkron.aggregation.merged import MergedMean, merged_mean
from fedkron.aggregation.registry import AGGREGATIONS, Aggregate, Aggregation, aggregate

__all__ = [
    "AGGREGATIONS",
    "Aggregate",
    "Aggregation",
    "MergedMean",
    "aggregate",
    "factorwise_mean",
    "merged_mean",
]
