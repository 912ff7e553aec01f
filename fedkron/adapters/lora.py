"""LoRA (Hu et al. 2021, arXiv 2106.09685): ΔW = (α/r) · B·A, the baseline of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear, Shapes
from fedkron.adapters.kron_terms import KronTerms
from fedkron.adapters.spec import AdapterSpec


class LoRALinear(AdaptedLinear):
    """A linear layer with ΔW = (α/r) · lora_B·lora_A.

    `lora_A` is (r, d_in), `lora_B` (d_out, r), both float32, named as in PEFT.
    """

    kind = "lora"
    factor_names = ("lora_A", "lora_B")

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    @classmethod
    def factor_shapes(cls, in_features: int, out_features: int, spec: AdapterSpec) -> Shapes:
        """Shapes of lora_A and lora_B."""
        return {"lora_A": (spec.rank, in_features), "lora_B": (out_features, spec.rank)}

    def reset_factors(self) -> None:
        """lora_A at random, lora_B zero, as in PEFT."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    @staticmethod
    def terms(factors: Mapping[str, Tensor], scale: float) -> KronTerms:
        """One term with A = [1]."""
        lora_A, lora_B = factors["lora_A"], factors["lora_B"]
        return KronTerms(lora_A.new_ones(1, 1), lora_B, lora_A, scale)
