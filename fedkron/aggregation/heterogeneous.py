"""Clients of different ranks and d_A2 in one federation, without rank collapse.

Each client holds an approximation of the global adapter in its own size. A mean of what they return would
pull every direction that small clients cannot hold towards zero, round after round. So updates are averaged,
not adapters: what a client has not seen it has not changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fedkron.aggregation.aggregator import Aggregate
from fedkron.aggregation.product_mean import FactorMeans, reference_of, tucker_sum
from fedkron.aggregation.products import factors_of, product_of, product_shapes
from fedkron.aggregation.projection import Loss, Reference, project, relative_error
from fedkron.aggregation.sizes import (
    coarsened,
    common_rows,
    refined,
    require_same_layers,
    unless_zero,
)
from fedkron.aggregation.tucker import MAX_RANK
from fedkron.aggregation.weights import checked_weight
from fedkron.errors import AdapterError, ConfigError
from fedkron.layout import AdapterLayout, State, flatten


class Heterogeneous:
    """ΔW of the new global adapter: G + Σ w_k·(X_k - T_k) / Σ w_k, projected on the global layout.

    An `Aggregator`. G is the global adapter `held` when the round began, X_k what client k returns, and T_k
    what it had received: the state that `sent` names for its size, recognised by the shapes; clients of the
    global size had received `held` unless `sent` says otherwise. With one size only this is `MergedMean`.
    Dense tensors become their weighted mean. Memory does not grow with the number of clients (`TuckerSum`).

    Raises `AdapterError` for states that do not fit their layouts, and for layouts that are not sizes of one
    adapter (`sized`).
    """

    def __init__(
        self,
        layout: AdapterLayout,
        held: State,
        sent: Iterable[tuple[AdapterLayout, State]] = (),
        max_rank: int = MAX_RANK,
    ) -> None:
        self._layout, self._held = layout, held
        self._sent = {layout: held, **dict(sent)}
        for size, state in ((layout, held), *self._sent.items()):
            require_same_layers(layout, size)
            flatten(state, size)
        self._means: dict[AdapterLayout, FactorMeans] = {}
        self._shares: dict[AdapterLayout, float] = {}
        self._unit = 0.0  # the first weight that is not zero: shares are relative to it, none overflows
        self._sums = [
            tucker_sum(modules[0], max_rank, common_rows(modules))
            for modules in zip(*(size.modules for size in self._sent), strict=True)
        ]

    @property
    def size(self) -> int:
        """Number of numbers kept of the clients' products."""
        return sum(each.size for each in self._sums)

    def add(self, adapter: State, weight: float) -> None:
        """Take in one client's adapter, of any size that was sent; a refused one changes nothing.

        Raises `AdapterError` for an adapter that is of no such size or holds NaN or infinity, `ConfigError`
        for a weight that is negative, NaN, infinite or too large beside the others.
        """
        weight = checked_weight(weight)
        size = self._layout.of_state(adapter)
        if size not in self._sent:
            raise AdapterError(
                f"adapter is of none of the {len(self._sent)} sizes that were sent: {_shapes(size)}"
            )
        unit = self._unit or weight
        share = weight / unit if weight else 0.0
        if not math.isfinite(sum(self._shares.values()) + share):
            raise ConfigError(
                f"weight {weight} is too large beside the first one, {unit}: use smaller weights"
            )
        means = self._means.get(size) or FactorMeans(size)
        means.add(adapter, weight)
        self._means[size] = means
        self._unit = unit
        self._shares[size] = self._shares.get(size, 0.0) + share
        self._add(size, adapter, share)

    def finish(self) -> Aggregate:
        """The new global adapter, float32, and the relative error of its projection.

        Raises `AdapterError` when nothing was added, `ConfigError` when all weights are zero.
        """
        if not self._means:
            raise AdapterError("there is no adapter to aggregate: wait for at least one client")
        whole = sum(self._shares.values())
        if not whole:
            raise ConfigError("all weights are zero: give at least one adapter a positive weight")
        for size, share in self._shares.items():
            self._add(size, self._sent[size], -share)
        self._add(self._layout, self._held, whole)

        adapter: State = {}
        losses = []
        for module, total, reference in zip(
            self._layout.modules, self._sums, self._references(), strict=True
        ):
            (rows, _), _, _ = product_shapes(module)
            mean = coarsened(total.total().times(1 / whole), rows)
            found = project(mean, reference)
            losses.append(Loss(module.scale, found.residual.norm, mean.norm, total.cut / whole))
            adapter |= factors_of(module, found.A, found.B1, found.B2)
        return Aggregate(adapter | self._dense(whole), relative_error(losses))

    def _add(self, size: AdapterLayout, adapter: State, share: float) -> None:
        for total, module in zip(self._sums, size.modules, strict=True):
            total.add(refined(product_of(module, adapter), total.grid[0]), share)

    def _references(self) -> list[Reference]:
        """Mean factors of clients of the global size; where there are none, the factors held."""
        held = [reference_of(product_of(module, self._held)) for module in self._layout.modules]
        if not self._shares.get(self._layout):
            return held
        means = self._means[self._layout].finish()[1]
        return [unless_zero(mean, other) for mean, other in zip(means, held, strict=True)]

    def _dense(self, whole: float) -> State:
        mean = {tensor.name: np.zeros(tensor.shape) for tensor in self._layout.dense}
        for size, share in self._shares.items():
            if share and mean:
                adapter, _ = self._means[size].finish()
                for name in mean:
                    mean[name] += share / whole * adapter[name]
        return {name: total.astype(np.float32) for name, total in mean.items()}


def _shapes(size: AdapterLayout) -> str:
    module = size.modules[0] if size.modules else None
    if module is None:
        return "it has no factors"
    return f"its {module.path!r} has " + ", ".join(f"{f.name} {list(f.shape)}" for f in module.factors)
