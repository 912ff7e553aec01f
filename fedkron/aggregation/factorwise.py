"""Factor-wise aggregation: the mean of every tensor by itself (FedAvg, McMahan et al. 2017).

Biased for products: the product of the mean factors is not the mean of the products, since the cross
terms A_j ⊗ (B1_k·B2_l) come in. `merged` removes this bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkron.aggregation.weights import shares_of
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, State, flatten, unflatten


def factorwise_mean(adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout) -> State:
    """Weighted mean of every tensor, summed in float64, returned in float32.

    `weights` need not add up to one. Raises `ConfigError` on weights that cannot be normalised,
    `AdapterError` when there is no adapter, or one does not fit the layout or holds NaN or infinity.
    """
    shares = shares_of(weights, len(adapters))
    mean = np.zeros(layout.size, np.float64)
    for index, (adapter, share) in enumerate(zip(adapters, shares, strict=True)):
        vector = flatten(adapter, layout)
        if not np.isfinite(vector).all():
            raise AdapterError(f"adapter {index} holds NaN or infinity: refuse it before aggregation")
        mean += share * vector
    return unflatten(mean.astype(np.float32), layout)
