"""Stacked aggregation (FLoRA, Wang et al. 2024, arXiv 2409.05976): the clients' products side by side.

The sum of all terms is the mean ΔW, without cross terms and without projection. It becomes part of the base,
and training starts anew on that.
"""

from __future__ import annotations

import numpy as np

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.products import idle_factor
from fedkron.aggregation.projection import Loss, relative_error
from fedkron.aggregation.terms import ExactMean, named_terms
from fedkron.aggregation.tucker import MAX_RANK
from fedkron.layout import AdapterLayout, State


class Stacked:
    """The mean ΔW as `terms`, and an adapter with ΔW = 0: mean A and B2, B1 zero (KronA: B zero).

    An `Aggregator`; dense tensors become their weighted mean. Memory does not grow with the number of
    clients: their own products are kept only while they are fewer numbers than a Tucker form may have. After
    that the terms lack what more than `max_rank` directions a side would have held (`TuckerSum`);
    `projection_error` is then an upper bound of it, and `None` as long as nothing is lost.

    Raises `AdapterError` for a layout with a module whose kind is not one product.
    """

    def __init__(self, layout: AdapterLayout, max_rank: int = MAX_RANK) -> None:
        self._mean = ExactMean(layout, "stacked", max_rank)

    @property
    def size(self) -> int:
        """Number of numbers kept of the clients' products."""
        return self._mean.size

    def add(self, adapter: State, weight: float) -> None:
        """Take in one client's adapter; a refused one leaves the mean as it was.

        Raises `AdapterError` for an adapter that does not fit the layout or holds NaN or infinity,
        `ConfigError` for a weight that is negative, NaN, infinite or too large beside the others.
        """
        self._mean.add(adapter, weight)

    def finish(self) -> Aggregate:
        """The mean as terms, and an adapter to start anew from.

        Raises `AdapterError` when nothing was added, `ConfigError` when all weights are zero.
        """
        adapter, modules = self._mean.finish()
        losses = [
            Loss(exact.mean.module.scale, 0.0, exact.mean.tucker.norm, exact.mean.cut)
            for exact in modules
            if exact.own is None
        ]
        idle = [idle_factor(exact.mean.module) for exact in modules]
        adapter = adapter | {name: np.zeros_like(adapter[name]) for name in idle}
        terms = named_terms(
            (exact.mean.module, exact.terms(exact.mean.tucker, exact.own)) for exact in modules
        )
        return Aggregate(adapter, relative_error(losses) or None, terms)
