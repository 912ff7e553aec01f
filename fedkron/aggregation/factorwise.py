"""Factor-wise aggregation: the mean of every tensor by itself (FedAvg, McMahan et al. 2017).

Biased for products: the product of the mean factors is not the mean of the products, since the cross
terms A_j ⊗ (B1_k·B2_l) come in. `merged` removes this bias.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.weighted_mean import WeightedMean
from fedkron.layout import AdapterLayout, State, Vector, flatten, unflatten


class FactorwiseMean:
    """Weighted mean of every tensor, of any kind of adapter; an `Aggregator`. Precision: `WeightedMean`."""

    def __init__(self, layout: AdapterLayout) -> None:
        self._layout = layout
        self._mean = WeightedMean(layout.size)

    def add(self, adapter: State, weight: float) -> None:
        """Take in one client's adapter; a refused one leaves the mean as it was.

        Raises `AdapterError` for an adapter that does not fit the layout or holds NaN or infinity,
        `ConfigError` for a weight that is negative, NaN, infinite or too large beside the others.
        """
        self.add_vector(flatten(adapter, self._layout), weight)

    def add_vector(self, vector: Vector, weight: float) -> None:
        """`add` for an adapter that is already one flat float32 vector of `layout.size` elements."""
        self._mean.add(vector, weight)

    def add_with(self, accumulate: Callable[[Vector, float], object], weight: float, peak: float) -> None:
        """`add` for an adapter that need not be in memory, such as an accepted payload.

        `accumulate(sums, share)` adds share · its flat vector to float32 sums of shape (layout.size,); no
        magnitude exceeds `peak`. Errors as in `WeightedMean.add_with`.
        """
        self._mean.add_with(accumulate, weight, peak)

    def finish(self) -> Aggregate:
        """The mean in float32.

        Raises `AdapterError` when nothing was added, `ConfigError` when all weights are zero.
        """
        return Aggregate(unflatten(self._mean.finish().astype(np.float32), self._layout))
