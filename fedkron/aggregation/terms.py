"""Terms: the part of a mean that no adapter holds, as Kronecker products to be added to the frozen weights.

Exact in either of two forms, of which the smaller one travels: the clients' own products, or those of the
Tucker form of their sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedkron.aggregation.product_mean import ModuleMean, ProductMean
from fedkron.aggregation.products import Products, product_of, product_shapes, stacked
from fedkron.aggregation.tucker import Tucker, reduced
from fedkron.layout import AdapterLayout, ModuleLayout, State

_ROUNDING = float(np.finfo(np.float32).eps) / 2


class OwnProducts:
    """The products of one module's clients as they are, for as long as the Tucker form may be larger.

    From then on nothing is kept: memory does not grow with the number of clients. To be exact has its price
    all the same: for Mistral-7B with d_A2 = 16 and rank 8, that may be after 500 clients and 12 GB.
    """

    def __init__(self, module: ModuleLayout, max_rank: int) -> None:
        (d_A2, d_A1), (d_B2, d_B1), rank = product_shapes(module)
        widest = min(d_B2, d_B1, max(rank, max_rank))
        self._limit = d_A2 * d_A1 * (d_A2 * d_A1 + widest * (d_B2 + d_B1))
        self._kept: list[Products] | None = []
        self._weights: list[float] = []
        self.size = 0
        """Number of numbers kept."""

    def add(self, product: Products, weight: float) -> None:
        """Take in w·A ⊗ (B1·B2)."""
        if self._kept is None or weight == 0:
            return
        self._kept.append(product.as_float32())
        self._weights.append(weight)
        self.size += product.size
        if self.size > self._limit:
            self._kept, self._weights, self.size = None, [], 0

    def times(self, factor: float) -> Products | None:
        """All products times their weights and `factor`, float64; `None` when they are not kept any more."""
        if not self._kept:
            return None
        return stacked(self._kept).times(factor * np.array(self._weights))


@dataclass(frozen=True, slots=True)
class ExactModule:
    """Mean of one module's products; `own`, scale included, add up to it, `None` when not kept any more."""

    mean: ModuleMean
    own: Products | None

    @property
    def norm(self) -> float:
        """Of the mean, scale included."""
        return self.mean.module.scale * self.mean.tucker.norm

    def terms(self, sum_: Tucker, own: Products | None) -> Products | None:
        """`sum_` times the scale in the form with fewer numbers, float32; `None` when it is rounding noise.

        `own` add up to the same, but for what was cut off from `sum_`, if they are known. Left out is what
        float32 numbers of the mean's size cannot tell from zero.
        """
        scale = self.mean.module.scale
        if own is not None and scale * self.mean.cut > _ROUNDING * self.norm:
            return own.as_float32()
        products = reduced(sum_.times(scale), floor=_ROUNDING * self.norm)[0].products()
        if not len(products):
            return None
        return (products if own is None or products.size <= own.size else own).as_float32()


class ExactMean:
    """`ProductMean` that keeps the clients' own products while these are the smaller form of their sum."""

    def __init__(self, layout: AdapterLayout, way: str, max_rank: int) -> None:
        self._mean = ProductMean(layout, way, max_rank)
        self._own = [(module, OwnProducts(module, max_rank)) for module in layout.modules]

    @property
    def size(self) -> int:
        """Number of numbers kept of the clients' products."""
        return self._mean.size + sum(own.size for _, own in self._own)

    def add(self, adapter: State, weight: float) -> None:
        """Take in one adapter. Raises as `FactorwiseMean.add`."""
        share = self._mean.add(adapter, weight)
        for module, own in self._own:
            own.add(product_of(module, adapter), share)

    def finish(self) -> tuple[State, list[ExactModule]]:
        """The mean of every tensor, and that of every product. Raises as `FactorwiseMean.finish`."""
        adapter, means = self._mean.finish()
        exact = [
            ExactModule(mean, own.times(module.scale / self._mean.shares))
            for (module, own), mean in zip(self._own, means, strict=True)
        ]
        return adapter, exact


def named_terms(parts: Iterable[tuple[ModuleLayout, Products | None]]) -> State | None:
    """Terms of all modules by name, as `Aggregate.terms` has them; `None` when no module has any."""
    state: State = {}
    for module, products in parts:
        if products is not None:
            factors = (("A", products.A), ("B1", products.B1), ("B2", products.B2))
            state |= {f"{module.path}.terms.{name}": factor for name, factor in factors}
    return state or None
