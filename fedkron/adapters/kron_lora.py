"""Kron-LoRA (arXiv 2508.01961, section 3): ΔW = (α/r) · A ⊗ (B1·B2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear
from fedkron.adapters.spec import AdapterSpec
from fedkron.errors import AdapterError


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
    def factor_shapes(
        cls, in_features: int, out_features: int, spec: AdapterSpec
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of A, B1 and B2; `AdapterError` unless d_A1 | d_in and d_A2 | d_out."""
        d_a1, d_a2 = spec.d_a1, spec.d_a2
        if d_a2 is None:
            raise AdapterError(
                "d_a2 is not set: give it, or attach to a model whose config has a hidden_size"
            )
        if in_features % d_a1:
            raise AdapterError(
                f"d_in = {in_features} does not divide by d_a1 = {d_a1}: "
                f"d_a1 may be {_small_divisors(in_features)}"
            )
        if out_features % d_a2:
            raise AdapterError(
                f"d_out = {out_features} does not divide by d_a2 = {d_a2}: "
                f"d_a2 may be {_small_divisors(out_features)}"
            )
        return {
            "A": (d_a2, d_a1),
            "B1": (out_features // d_a2, spec.rank),
            "B2": (spec.rank, in_features // d_a1),
        }

    def reset_factors(self) -> None:
        """A and B2 at random, B1 zero, so that training starts from the base itself."""
        nn.init.normal_(self.A, std=1 / math.sqrt(self.A.shape[1]))
        nn.init.kaiming_uniform_(self.B2, a=math.sqrt(5))
        nn.init.zeros_(self.B1)

    def correction(self, x: Tensor) -> Tensor:
        """ΔW·x for (…, d_in): with x viewed as X (…, d_A1, d_B1), it is (A·(X·B2ᵀ))·B1ᵀ, flattened."""
        X = torch.unflatten(x, -1, (self.A.shape[1], self.B2.shape[1]))
        U = nn.functional.linear(X, self.B2)
        V = (self.scale * self.A) @ U
        return nn.functional.linear(V, self.B1).flatten(-2)

    def delta(self) -> Tensor:
        """ΔW as a dense float32 (d_out, d_in) matrix."""
        return torch.kron(self.scale * self.A, self.B1 @ self.B2)


def _small_divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, 65) if number % n == 0)
