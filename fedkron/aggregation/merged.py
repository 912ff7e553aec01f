"""Merged aggregation: the mean of the ΔW themselves, brought back to one adapter of the same shapes.

Unbiased up to the projection, whose error is reported. Exact for one client, and for LoRA whose clients
together have at most rank r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkron.aggregation.factorwise import factorwise_mean
from fedkron.aggregation.projection import Products, Projection, project
from fedkron.aggregation.weights import shares_of
from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, ModuleLayout, State

# Factors in the order of A ⊗ (B1·B2). Plain LoRA is the case A = [1].
_FACTORS: dict[str, tuple[str | None, str, str]] = {
    "kron_lora": ("A", "B1", "B2"),
    "lora": (None, "lora_B", "lora_A"),
}


@dataclass(frozen=True, slots=True)
class MergedMean:
    """The aggregated adapter, and what the projection lost.

    `projection_error` is ‖mean ΔW - projected ΔW‖ / ‖mean ΔW‖, in Frobenius norms over all modules
    together: 0 is exact, 1 has lost everything. It is 0 when the mean is zero.
    """

    adapter: State
    projection_error: float


def merged_mean(adapters: Sequence[State], weights: Sequence[float], layout: AdapterLayout) -> MergedMean:
    """Weighted mean of the clients' ΔW = scale · A ⊗ (B1·B2), projected on the layout's shapes.

    `weights` need not add up to one; dense tensors become their weighted mean. Computed in float64,
    returned in float32. Memory and time are those of QR of the stacked factors: no ΔW is formed.

    Raises `ConfigError` on weights that cannot be normalised, `AdapterError` when there is no adapter, or
    one does not fit the layout or holds NaN or infinity, or a module's kind has no product to merge.
    """
    adapter = factorwise_mean(adapters, weights, layout)
    shares = shares_of(weights, len(adapters))
    lost = whole = 0.0
    for module in layout.modules:
        projection = project(_products(module, adapters), shares)
        adapter.update(_factors(module, projection))
        lost += module.scale**2 * projection.squared_error
        whole += module.scale**2 * projection.squared_norm
    return MergedMean(adapter, math.sqrt(lost / whole) if whole else 0.0)


def _names(module: ModuleLayout) -> tuple[str | None, str, str]:
    if module.kind not in _FACTORS:
        raise AdapterError(
            f"module {module.path!r} has kind {module.kind!r}, merged aggregation knows "
            f"{', '.join(_FACTORS)}: use factorwise aggregation"
        )
    return _FACTORS[module.kind]


def _products(module: ModuleLayout, adapters: Sequence[State]) -> Products:
    A, B1, B2 = (
        np.array([adapter[module.tensor_name(name)] for adapter in adapters], np.float64)
        if name
        else np.ones((len(adapters), 1, 1))
        for name in _names(module)
    )
    return Products(A, B1, B2)


def _factors(module: ModuleLayout, projection: Projection) -> State:
    factors = (projection.A, projection.B1, projection.B2)
    return {
        module.tensor_name(name): factor.astype(np.float32)
        for name, factor in zip(_names(module), factors, strict=True)
        if name
    }
