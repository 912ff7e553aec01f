"""Exact merged aggregation: what the projection of the mean ΔW loses goes along as extra Kronecker terms.

As in FedEx-LoRA (Singhal et al. 2024, arXiv 2410.09432) the residual is added to the frozen weights; here it
is not formed, and travels as a few products.
"""

from __future__ import annotations

from dataclasses import replace

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.merged import merged
from fedkron.aggregation.products import Products, product_of, stacked
from fedkron.aggregation.projection import Projection
from fedkron.aggregation.terms import ExactMean, ExactModule, named_terms
from fedkron.aggregation.tucker import MAX_RANK
from fedkron.layout import AdapterLayout, State


class MergedExact:
    """As `MergedMean`, with the residual as `terms`: adapter and terms together are the mean, in float32.

    An `Aggregator`. `projection_error` is what the adapter alone loses. Memory does not grow with the number
    of clients: their own products are kept only while they are fewer numbers than a Tucker form may have.
    After that the terms lack what more than `max_rank` directions a side would have held (`TuckerSum`).

    Raises `AdapterError` for a layout with a module whose kind is not one product.
    """

    def __init__(self, layout: AdapterLayout, max_rank: int = MAX_RANK) -> None:
        self._mean = ExactMean(layout, "merged_exact", max_rank)

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
        """The projected mean, its relative error over all modules together, and the residual.

        Raises `AdapterError` when nothing was added, `ConfigError` when all weights are zero.
        """
        mean_adapter, modules = self._mean.finish()
        aggregate, projections = merged(mean_adapter, [exact.mean for exact in modules])
        parts = (
            (exact.mean.module, _residual(exact, projection, aggregate.adapter))
            for exact, projection in zip(modules, projections, strict=True)
        )
        return replace(aggregate, terms=named_terms(parts))


def _residual(exact: ExactModule, projection: Projection, adapter: State) -> Products | None:
    module, own = exact.mean.module, exact.own
    if own is not None:
        own = stacked([own, product_of(module, adapter).times(-module.scale)])
    return exact.terms(projection.residual, own)
