"""Sums of M Kronecker terms with learned mixing weights: ΔW = (α/r) · Σₘ gₘ · Aₘ ⊗ (B1ₘ·B2ₘ).

The mixtures of AdaKron (Braga et al. 2024, LREC-COLING) and MoKA (Sadeghi et al. 2025, arXiv 2508.03527)
carried over to Kron-LoRA's low-rank B. AdaKron's weights are free, MoKA's a softmax over gates. Unlike in
those papers all terms of a layer have the same shapes, so that one matrix product serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear, Shapes
from fedkron.adapters.divisors import kron_sizes
from fedkron.adapters.kron_terms import KronTerms
from fedkron.adapters.spec import AdapterSpec


class AdaKronLinear(AdaptedLinear):
    """A sum of M = `spec.terms` Kron-LoRA terms with free mixing weights g.

    `A` is (M, d_A2, d_A1), `B1` (d_out/d_A2, M·r), `B2` (M·r, d_in/d_A1), `gates` (M), all float32; columns
    m·r to (m+1)·r of B1 and rows of B2 are those of term m.
    """

    kind = "adakron"
    factor_names = ("A", "B1", "B2", "gates")

    A: nn.Parameter
    B1: nn.Parameter
    B2: nn.Parameter
    gates: nn.Parameter

    @classmethod
    def factor_shapes(cls, in_features: int, out_features: int, spec: AdapterSpec) -> Shapes:
        """Shapes of A, B1, B2 and gates; `AdapterError` unless d_A1 | d_in and d_A2 | d_out."""
        d_a2, d_a1, d_b2, d_b1 = kron_sizes(in_features, out_features, spec)
        inner = spec.terms * spec.rank
        return {
            "A": (spec.terms, d_a2, d_a1),
            "B1": (d_b2, inner),
            "B2": (inner, d_b1),
            "gates": (spec.terms,),
        }

    def reset_factors(self) -> None:
        """A and B2 at random, B1 zero, equal weights that add up to one."""
        nn.init.normal_(self.A, std=1 / math.sqrt(self.A.shape[2]))
        nn.init.kaiming_uniform_(self.B2, a=math.sqrt(5))
        nn.init.zeros_(self.B1)
        nn.init.constant_(self.gates, 1 / len(self.gates))

    @staticmethod
    def terms(factors: Mapping[str, Tensor], scale: float) -> KronTerms:
        """M terms of rank r, weighted by g."""
        A = factors["A"] * factors["gates"].view(-1, 1, 1)
        return KronTerms(A, factors["B1"], factors["B2"], scale)


class MoKALinear(AdaKronLinear):
    """The same with the mixing weights g = softmax(gates): positive, adding up to one."""

    kind = "moka"

    def reset_factors(self) -> None:
        """As for free weights; equal gates."""
        super().reset_factors()
        nn.init.zeros_(self.gates)

    @staticmethod
    def terms(factors: Mapping[str, Tensor], scale: float) -> KronTerms:
        """M terms of rank r, weighted by softmax(gates)."""
        shares = torch.softmax(factors["gates"], 0)
        return AdaKronLinear.terms({**factors, "gates": shares}, scale)
