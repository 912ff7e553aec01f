"""The weighted mean of the clients' ΔW, module by module in Tucker form, and that of their factors.

What `merged`, `merged_exact` and `stacked` have in common; they differ in what they make of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkron.aggregation.factorwise import FactorwiseMean
from fedkron.aggregation.products import Products, product_of, product_shapes, require_products
from fedkron.aggregation.projection import Loss, Projection, Reference, project
from fedkron.aggregation.tucker import Tucker, TuckerSum
from fedkron.layout import AdapterLayout, ModuleLayout, State


@dataclass(frozen=True, slots=True)
class ModuleMean:
    """Mean of one module's products, without its scale.

    `cut` is an upper bound of the norm of what was cut off, `reference` the mean factors and sizes.
    """

    module: ModuleLayout
    tucker: Tucker
    cut: float
    reference: Reference

    def projected(self) -> tuple[Projection, Loss]:
        """The nearest product of the module's shapes, and what it loses."""
        projection = project(self.tucker, self.reference)
        lost = projection.residual.norm
        return projection, Loss(self.module.scale, lost, self.tucker.norm, self.cut)


class FactorMeans:
    """Weighted mean of every tensor, and of the norms of A and B2."""

    def __init__(self, layout: AdapterLayout) -> None:
        self._layout = layout
        self._mean = FactorwiseMean(layout)
        self._sizes = np.zeros((len(layout.modules), 2))
        self._unit = 0.0  # the first weight that is not zero: shares are relative to it, none overflows
        self.shares = 0.0
        """Sum of all shares."""

    def add(self, adapter: State, weight: float) -> float:
        """Take in one adapter; returns its share, relative to the first. Raises as `FactorwiseMean.add`."""
        self._mean.add(adapter, weight)
        self._unit = self._unit or float(weight)
        share = weight / self._unit if weight else 0.0
        self.shares += share
        products = [product_of(module, adapter) for module in self._layout.modules]
        self._sizes += share * np.array([(_norm(p.A), _norm(p.B2)) for p in products]).reshape(-1, 2)
        return share

    def finish(self) -> tuple[State, list[Reference]]:
        """The mean adapter, float32, and a reference for each module. Raises as `FactorwiseMean.finish`."""
        mean = self._mean.finish().adapter
        references = [
            reference_of(product_of(module, mean), *(sizes / self.shares))
            for module, sizes in zip(self._layout.modules, self._sizes, strict=True)
        ]
        return mean, references


class ProductMean:
    """Weighted mean of the clients' products; memory does not grow with their number (`TuckerSum`)."""

    def __init__(self, layout: AdapterLayout, way: str, max_rank: int) -> None:
        require_products(layout, way)
        self._layout = layout
        self._factors = FactorMeans(layout)
        self._sums = [tucker_sum(module, max_rank) for module in layout.modules]

    @property
    def size(self) -> int:
        """Number of numbers kept of the products."""
        return sum(each.size for each in self._sums)

    @property
    def shares(self) -> float:
        """Sum of all shares that `add` returned."""
        return self._factors.shares

    def add(self, adapter: State, weight: float) -> float:
        """Take in one adapter; returns its share, relative to the first. Raises as `FactorwiseMean.add`."""
        share = self._factors.add(adapter, weight)
        for total, module in zip(self._sums, self._layout.modules, strict=True):
            total.add(product_of(module, adapter), share)
        return share

    def finish(self) -> tuple[State, list[ModuleMean]]:
        """The mean of every tensor, and that of every product. Raises as `FactorwiseMean.finish`."""
        mean, references = self._factors.finish()
        share = 1 / self.shares
        modules = [
            ModuleMean(module, total.total().times(share), share * total.cut, reference)
            for module, total, reference in zip(self._layout.modules, self._sums, references, strict=True)
        ]
        return mean, modules


def tucker_sum(module: ModuleLayout, max_rank: int | None, rows: int | None = None) -> TuckerSum:
    """For one module's products, on a grid of d_A2 = `rows`, by default its own.

    Where B has full rank anyway, it is kept in full.
    """
    (d_A2, d_A1), (d_B2, d_B1), rank = product_shapes(module)
    rows = rows or d_A2
    limit = max_rank if rank < min(d_B2, d_B1) else None
    return TuckerSum((rows, d_A1), (d_A2 * d_B2 // rows, d_B1), limit)


def reference_of(product: Products, size_A: float | None = None, size_B2: float | None = None) -> Reference:
    """One product's factors as a reference; sizes that are not given are their own."""
    A, B1, B2 = (factor[0].astype(np.float64) for factor in (product.A, product.B1, product.B2))
    return Reference(
        A, B1, B2, _norm(A) if size_A is None else size_A, _norm(B2) if size_B2 is None else size_B2
    )


def _norm(factor: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> float:
    return float(np.linalg.norm(factor.astype(np.float64)))
