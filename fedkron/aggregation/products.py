"""Adapters as Kronecker products A ⊗ (B1·B2): what the factors of each kind mean, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.errors import AdapterError
from fedkron.layout import AdapterLayout, ModuleLayout, State

Array = npt.NDArray[np.float64]
Factors = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""A (d_A2, d_A1), B1 (d_B2, r), B2 (r, d_B1)."""


@dataclass(frozen=True, slots=True)
class Products:
    """T products A_t ⊗ (B1_t·B2_t): `A` (T, d_A2, d_A1), `B1` (T, d_B2, r), `B2` (T, r, d_B1)."""

    A: npt.NDArray[Any]
    B1: npt.NDArray[Any]
    B2: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.A)

    @property
    def rank(self) -> int:
        """Inner dimension r of B1·B2."""
        return int(self.B2.shape[1])

    @property
    def size(self) -> int:
        """Number of numbers in all factors together."""
        return self.A.size + self.B1.size + self.B2.size

    @property
    def bounds(self) -> Array:
        """‖A_t‖·‖B1_t‖·‖B2_t‖, float64 (T,): no product's norm is greater."""
        norms = (np.linalg.norm(f.astype(np.float64), axis=(1, 2)) for f in (self.A, self.B1, self.B2))
        bounds: Array = np.prod(np.array(list(norms)), axis=0)
        return bounds

    def times(self, weights: npt.ArrayLike) -> Products:
        """The products times one weight each, or all times the same, in float64."""
        factors = np.asarray(weights, np.float64).reshape(-1, 1, 1)
        return Products(self.A * factors, self.B1.astype(np.float64), self.B2.astype(np.float64))

    def as_float32(self) -> Products:
        """The same, rounded; arrays of its own."""
        return Products(*(np.array(f, np.float32) for f in (self.A, self.B1, self.B2)))


def stacked(parts: Sequence[Products]) -> Products:
    """All of them in one; they have the same shapes but for T."""
    A, B1, B2 = (np.concatenate(factors) for factors in zip(*((p.A, p.B1, p.B2) for p in parts), strict=True))
    return Products(A, B1, B2)


@dataclass(frozen=True, slots=True)
class _Kind:
    """`split` makes A, B1, B2 of a kind's factors, `join` inverts it; `idle` is zero when training starts."""

    split: Callable[[Mapping[str, npt.NDArray[Any]]], Factors]
    join: Callable[[Array, Array, Array], dict[str, Array]]
    idle: str


def _split_krona(factors: Mapping[str, npt.NDArray[Any]]) -> Factors:
    A, B = factors["A"], factors["B"]
    identity = np.eye(min(B.shape), dtype=B.dtype)
    return (A, identity, B) if B.shape[0] < B.shape[1] else (A, B, identity)


_KINDS: dict[str, _Kind] = {
    "kron_lora": _Kind(
        lambda f: (f["A"], f["B1"], f["B2"]), lambda A, B1, B2: {"A": A, "B1": B1, "B2": B2}, "B1"
    ),
    "lora": _Kind(
        lambda f: (np.ones((1, 1), f["lora_A"].dtype), f["lora_B"], f["lora_A"]),
        lambda A, B1, B2: {"lora_A": B2, "lora_B": A[0, 0] * B1},
        "lora_B",
    ),
    "krona": _Kind(_split_krona, lambda A, B1, B2: {"A": A, "B": B1 @ B2}, "B"),
}


def require_products(layout: AdapterLayout, way: str) -> None:
    """Raise `AdapterError`, naming module and kind, unless every module is one product A ⊗ (B1·B2)."""
    for module in layout.modules:
        if module.kind not in _KINDS:
            raise AdapterError(
                f"module {module.path!r} has kind {module.kind!r}, {way} aggregation knows "
                f"{', '.join(_KINDS)}: use factorwise aggregation, or convert the adapter"
            )


def product_of(module: ModuleLayout, state: Mapping[str, npt.NDArray[Any]]) -> Products:
    """One module's product (T = 1) without its scale, in the dtype of the state; may share its memory."""
    factors = {factor.name: state[module.tensor_name(factor.name)] for factor in module.factors}
    A, B1, B2 = _KINDS[module.kind].split(factors)
    return Products(A[None], B1[None], B2[None])


def product_shapes(module: ModuleLayout) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Of one module's product: grid (d_A2, d_A1), sides of a block (d_B2, d_B1), rank r."""
    nothing = {module.tensor_name(f.name): np.broadcast_to(np.float32(0), f.shape) for f in module.factors}
    product = product_of(module, nothing)
    (_, d_A2, d_A1), (_, d_B2, rank), d_B1 = product.A.shape, product.B1.shape, product.B2.shape[2]
    return (d_A2, d_A1), (d_B2, d_B1), rank


def factors_of(module: ModuleLayout, A: Array, B1: Array, B2: Array) -> State:
    """One module's tensors by full name, float32, that make the product A ⊗ (B1·B2)."""
    joined = _KINDS[module.kind].join(A, B1, B2)
    return {module.tensor_name(f.name): joined[f.name].astype(np.float32) for f in module.factors}


def idle_factor(module: ModuleLayout) -> str:
    """Full name of the tensor that is zero when training starts, and makes the product zero."""
    return module.tensor_name(_KINDS[module.kind].idle)
