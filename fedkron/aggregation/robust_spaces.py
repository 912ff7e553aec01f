"""Where the robust rules work: on the factors as they travel, or on the ΔW that they make.

The same ΔW has many factors, so that the two spaces do not see the same lies: factors may be far apart and
make nearly the same ΔW, or the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.merged import merged
from fedkron.aggregation.product_mean import ModuleMean, tucker_sum
from fedkron.aggregation.products import (
    Array,
    Products,
    product_of,
    require_products,
    stacked,
)
from fedkron.aggregation.projection import Reference
from fedkron.aggregation.robust_rules import median
from fedkron.aggregation.tucker import MAX_RANK, Tucker
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout, Vector, unflatten

_AT_A_TIME = 1 << 21
"""Numbers of all uploads together that are worked on at once: 16 MiB of float64."""

Combine = Callable[[Array], Array]
"""Numbers (n, …) of n uploads to one for each coordinate; may change what it is given."""


@dataclass(frozen=True)
class Uploads:
    """What the clients of a round sent and what they had been sent, flat float32 vectors of the layout."""

    layout: AdapterLayout
    held: Vector
    vectors: Sequence[Vector]

    @cached_property
    def states(self) -> list[State]:
        """The uploads tensor by tensor, and what they had been sent last; views."""
        return [unflatten(vector, self.layout) for vector in (*self.vectors, self.held)]


class Space(Protocol):
    """What a rule needs of a space."""

    def gram(self, uploads: Uploads) -> Array:
        """Inner products of the updates, float64 (n, n)."""

    def weighted(self, uploads: Uploads, shares: Array) -> Aggregate:
        """What was sent plus the sum of the updates times their shares (n,), which add up to at most one."""

    def by_coordinate(self, uploads: Uploads, combine: Combine) -> Aggregate:
        """Each coordinate combined by itself."""


class FactorSpace:
    """An adapter is the vector of all its factors and dense tensors; of any kind."""

    def gram(self, uploads: Uploads) -> Array:
        """Inner products of the updates."""
        gram = np.zeros((len(uploads.vectors),) * 2)
        for values, held in _pieces(uploads.vectors, uploads.held):
            updates = values - held
            gram += updates @ updates.T
        return gram

    def weighted(self, uploads: Uploads, shares: Array) -> Aggregate:
        """What was sent plus the sum of the updates times their shares."""
        pieces = [shares @ (values - held) + held for values, held in _pieces(uploads.vectors, uploads.held)]
        return Aggregate(unflatten(_as_float32(np.concatenate(pieces)), uploads.layout))

    def by_coordinate(self, uploads: Uploads, combine: Combine) -> Aggregate:
        """Each number of each tensor combined by itself."""
        pieces = [combine(values) for values, _ in _pieces(uploads.vectors, uploads.held)]
        return Aggregate(unflatten(_as_float32(np.concatenate(pieces)), uploads.layout))


class ProductSpace:
    """An adapter is its ΔW = scale · A ⊗ (B1·B2), all layers together, and its dense tensors.

    What a rule makes of the ΔW is projected on the layout's shapes as `MergedMean` does it. The projection's
    factors are near to the median of the clients' own, and as large: their mean could be led anywhere by one
    client without its ΔW being suspicious. No ΔW is formed for rules by distance; by coordinate, one layer's
    result is, and of the clients' only a few rows at a time.

    Raises `AdapterError` for a layout with a module whose kind is not one product.
    """

    def __init__(self, layout: AdapterLayout) -> None:
        require_products(layout, "robust merged")

    def gram(self, uploads: Uploads) -> Array:
        """Inner products of the updates: Σ scale²·⟨A, A'⟩·⟨B1ᵀ·B1', B2·B2'ᵀ⟩ over the layers, and dense."""
        count = len(uploads.vectors)
        whole = np.zeros((count + 1, count + 1))
        for module in uploads.layout.modules:
            whole += module.scale**2 * _inner_products(_products(uploads, module).times(1))
        to_held = whole[:count, count:]
        gram: Array = whole[:count, :count] - to_held - to_held.T + whole[count, count]
        for tensor in uploads.layout.dense:
            for values, held in _pieces(*_dense(uploads, tensor)):
                updates = values - held
                gram += updates @ updates.T
        return gram

    def weighted(self, uploads: Uploads, shares: Array) -> Aggregate:
        """What was sent plus the sum of the updates times their shares, projected."""
        all_shares = np.append(shares, max(0.0, 1 - shares.sum()))
        means = []
        for module, reference in zip(uploads.layout.modules, _references(uploads), strict=True):
            total = tucker_sum(module, MAX_RANK)
            for state, share in zip(uploads.states, all_shares.tolist(), strict=True):
                total.add(product_of(module, state), share)
            means.append(ModuleMean(module, total.total(), total.cut, reference))
        return self._projected(uploads, means, lambda values, held: shares @ (values - held) + held)

    def by_coordinate(self, uploads: Uploads, combine: Combine) -> Aggregate:
        """Each number of each ΔW combined by itself, and the result projected."""
        means = [
            ModuleMean(module, _dense_tucker(_products(uploads, module), combine), 0.0, reference)
            for module, reference in zip(uploads.layout.modules, _references(uploads), strict=True)
        ]
        return self._projected(uploads, means, lambda values, _: combine(values))

    def _projected(
        self, uploads: Uploads, means: Sequence[ModuleMean], dense: Callable[[Array, Array], Array]
    ) -> Aggregate:
        tensors = {
            tensor.name: _as_float32(
                np.concatenate([dense(*piece) for piece in _pieces(*_dense(uploads, tensor))])
            ).reshape(tensor.shape)
            for tensor in uploads.layout.dense
        }
        with np.errstate(over="ignore"):
            aggregate, _ = merged(tensors, means)
        _as_float32(np.concatenate([values.ravel() for values in aggregate.adapter.values()]))
        return aggregate


def _pieces(vectors: Sequence[Vector], held: Vector) -> Iterator[tuple[Array, Array]]:
    """A part (n, …) of all vectors at a time, and the same part of what was held (…), float64."""
    step = max(1, _AT_A_TIME // len(vectors))
    for start in range(0, held.size, step):
        part = slice(start, start + step)
        yield np.array([vector[part] for vector in vectors], np.float64), held[part].astype(np.float64)


def _dense(uploads: Uploads, tensor: TensorLayout) -> tuple[list[Vector], Vector]:
    *vectors, held = (state[tensor.name].ravel() for state in uploads.states)
    return vectors, held


def _products(uploads: Uploads, module: ModuleLayout) -> Products:
    """One module's products of all uploads, and last of what they had been sent."""
    return stacked([product_of(module, state) for state in uploads.states])


def _inner_products(products: Products) -> Array:
    """⟨A_k ⊗ B1_k·B2_k, A_l ⊗ B1_l·B2_l⟩, (T, T); one row at a time, so that nothing has (T·r)² numbers."""
    A = products.A.reshape(len(products), -1)
    rows = [
        np.sum((B1.T @ products.B1) * (B2 @ products.B2.transpose(0, 2, 1)), axis=(1, 2))
        for B1, B2 in zip(products.B1, products.B2, strict=True)
    ]
    inner: Array = (A @ A.T) * np.array(rows)
    return (inner + inner.T) / 2


def _dense_tucker(products: Products, combine: Combine) -> Tucker:
    """The blocks of ΔW, without scale, each combined coordinate by coordinate: Van Loan's rearrangement.

    The last product, of what had been sent, takes no part.
    """
    count = len(products) - 1
    d_A2, d_A1 = products.A.shape[1:]
    A = products.A[:count].astype(np.float64).reshape(count, -1)
    B2 = products.B2[:count].astype(np.float64)
    (d_B2, d_B1), cells = (products.B1.shape[1], B2.shape[2]), d_A2 * d_A1
    core = np.empty((cells, d_B2, d_B1))
    step = max(1, _AT_A_TIME // (count * d_B1))
    for start in range(0, d_B2, step):
        rows = products.B1[:count, start : start + step].astype(np.float64) @ B2
        for cell in range(cells):
            core[cell, start : start + step] = combine(A[:, cell, None, None] * rows)
    return Tucker(np.eye(cells).reshape(cells, d_A2, d_A1), core, np.eye(d_B2), np.eye(d_B1))


def _references(uploads: Uploads) -> Iterator[Reference]:
    """The median of the uploads' factors, and of the norms of their A and B2, module by module."""
    for module in uploads.layout.modules:
        products = [product_of(module, state) for state in uploads.states[:-1]]
        A, B1, B2 = (
            median(np.array(factors, np.float64), 0)
            for factors in zip(*((p.A[0], p.B1[0], p.B2[0]) for p in products), strict=True)
        )
        sizes = [
            (np.linalg.norm(p.A.astype(np.float64)), np.linalg.norm(p.B2.astype(np.float64)))
            for p in products
        ]
        size_A, size_B2 = np.median(sizes, axis=0)
        yield Reference(A, B1, B2, float(size_A), float(size_B2))


def _as_float32(values: Array) -> Vector:
    """Rounded. Raises `AdapterError` for numbers beyond the largest float32."""
    with np.errstate(over="ignore"):
        vector = values.astype(np.float32)
    if not np.isfinite(vector).all():
        raise AdapterError(
            "the robust aggregate of the uploads is beyond the largest float32: there are more attackers "
            "than robust.attackers says, or than the rule withstands"
        )
    return vector
