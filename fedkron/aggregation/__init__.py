"""How the clients' adapters become one. Numpy only."""

from fedkron.aggregation.aggregator import Aggregate, Aggregator
from fedkron.aggregation.exact import MergedExact
from fedkron.aggregation.factorwise import FactorwiseMean
from fedkron.aggregation.heterogeneous import Heterogeneous
from fedkron.aggregation.merged import MergedMean
from fedkron.aggregation.registry import AGGREGATIONS, aggregate, aggregator
from fedkron.aggregation.robust import Robust
from fedkron.aggregation.robust_rules import ROBUST_RULES, RobustRule
from fedkron.aggregation.sizes import Size, resized, size_name, sized
from fedkron.aggregation.stacked import Stacked

__all__ = [
    "AGGREGATIONS",
    "ROBUST_RULES",
    "Aggregate",
    "Aggregator",
    "FactorwiseMean",
    "Heterogeneous",
    "MergedExact",
    "MergedMean",
    "Robust",
    "RobustRule",
    "Size",
    "Stacked",
    "aggregate",
    "aggregator",
    "resized",
    "size_name",
    "sized",
]
