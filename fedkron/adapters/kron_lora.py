"""Kron-LoRA (arXiv 2508.01961, section 3): ΔW = (α/r) · A ⊗ (B1·B2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear, Shapes
from fedkron.adapters.divisors import kron_sizes
from fedkron.adapters.kron_terms import KronTerms
from fedkron.adapters.spec import AdapterSpec


class KronLoRALinear(AdaptedLinear):
    """A linear layer with ΔW = (α/r) · A ⊗ (B1·B2), never materialised in the forward pass.

    `A` is (d_A2, d_A1), `B1` (d_out/d_A2, r), `B2` (r, d_in/d_A1), all float32. `spec.d_a2` must be set.
    """

    kind = "kron_lora"
    factor_names = ("A", "B1", "B2")

    A: nn.Parameter
    B1: nn.Parameter
    B2: nn.Parameter

    @classmethod
    def factor_shapes(cls, in_features: int, out_features: int, spec: AdapterSpec) -> Shapes:
        """Shapes of A, B1 and B2; `AdapterError` unless d_A1 | d_in and d_A2 | d_out."""
        d_a2, d_a1, d_b2, d_b1 = kron_sizes(in_features, out_features, spec)
        return {"A": (d_a2, d_a1), "B1": (d_b2, spec.rank), "B2": (spec.rank, d_b1)}

    def reset_factors(self) -> None:
        """A and B2 at random, B1 zero, so that training starts from the base itself."""
        nn.init.normal_(self.A, std=1 / math.sqrt(self.A.shape[1]))
        nn.init.kaiming_uniform_(self.B2, a=math.sqrt(5))
        nn.init.zeros_(self.B1)

    @staticmethod
    def terms(factors: Mapping[str, Tensor], scale: float) -> KronTerms:
        """One term of rank r."""
        return KronTerms(factors["A"], factors["B1"], factors["B2"], scale)
