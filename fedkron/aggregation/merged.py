"""Merged aggregation: the mean of the ΔW themselves, brought back to one adapter of the same shapes.

Unbiased up to the projection, whose error is reported. Exact for one client, and for LoRA whose clients
together have at most rank r.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.product_mean import ModuleMean, ProductMean
from fedkron.aggregation.products import factors_of
from fedkron.aggregation.projection import Projection, relative_error
from fedkron.aggregation.tucker import MAX_RANK
from fedkron.layout import AdapterLayout, State


class MergedMean:
    """Weighted mean of the clients' ΔW = scale · A ⊗ (B1·B2), projected on the layout's shapes.

    An `Aggregator`; dense tensors become their weighted mean. Computed in float64, and no ΔW is formed.
    Memory does not grow with the number of clients: at most `max_rank` directions a side are kept, and the
    projection error, exact otherwise, is an upper bound where that cuts something off (`TuckerSum`).

    Raises `AdapterError` for a layout with a module whose kind is not one product.
    """

    def __init__(self, layout: AdapterLayout, max_rank: int = MAX_RANK) -> None:
        self._mean = ProductMean(layout, "merged", max_rank)

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
        """The projected mean, float32, and its relative error over all modules together.

        Raises `AdapterError` when nothing was added, `ConfigError` when all weights are zero.
        """
        adapter, modules = self._mean.finish()
        return merged(adapter, modules)[0]


def merged(adapter: State, modules: Sequence[ModuleMean]) -> tuple[Aggregate, list[Projection]]:
    """The mean adapter with all factors replaced by those of the projected means, and the projections."""
    adapter = dict(adapter)
    projections, losses = [], []
    for mean in modules:
        projection, loss = mean.projected()
        adapter |= factors_of(mean.module, projection.A, projection.B1, projection.B2)
        projections.append(projection)
        losses.append(loss)
    return Aggregate(adapter, relative_error(losses)), projections
