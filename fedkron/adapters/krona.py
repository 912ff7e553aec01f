"""KronA (Edalati, Tahaei et al. 2022, arXiv 2212.10650): ΔW = s · A ⊗ B, B of full rank."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear, Shapes
from fedkron.adapters.divisors import kron_sizes
from fedkron.adapters.kron_terms import KronTerms
from fedkron.adapters.spec import AdapterSpec


class KronALinear(AdaptedLinear):
    """A linear layer with ΔW = (α/r) · A ⊗ B; the paper's scale s is `spec.scale`.

    `A` is (d_A2, d_A1), `B` (d_out/d_A2, d_in/d_A1), both float32. `spec.rank` has no other meaning here.
    """

    kind = "krona"
    factor_names = ("A", "B")

    A: nn.Parameter
    B: nn.Parameter

    @classmethod
    def factor_shapes(cls, in_features: int, out_features: int, spec: AdapterSpec) -> Shapes:
        """Shapes of A and B; `AdapterError` unless d_A1 | d_in and d_A2 | d_out."""
        d_a2, d_a1, d_b2, d_b1 = kron_sizes(in_features, out_features, spec)
        return {"A": (d_a2, d_a1), "B": (d_b2, d_b1)}

    def reset_factors(self) -> None:
        """A at random, B zero (the paper's initialisation)."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    @staticmethod
    def terms(factors: Mapping[str, Tensor], scale: float) -> KronTerms:
        """One term with B1 = B and B2 the identity: exact, of rank d_B1."""
        A, B = factors["A"], factors["B"]
        identity = torch.eye(B.shape[1], dtype=B.dtype, device=B.device)
        return KronTerms(A, B, identity, scale)

    def correction(self, z: Tensor) -> Tensor:
        """ΔW·z = A·(Z·Bᵀ): with B of full rank there is nothing to gain from an inner dimension."""
        Z = torch.unflatten(z, -1, (self.A.shape[1], self.B.shape[1]))
        A, B = (self.scale * self.A).to(z.dtype), self.B.to(z.dtype)
        return (A @ nn.functional.linear(Z, B)).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_in) to (…, d_out)."""
        return self.beside(x)
