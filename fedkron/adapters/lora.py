"""LoRA (Hu et al. 2021, arXiv 2106.09685): ΔW = (α/r) · B·A, the baseline of the field."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fedkron.adapters.adapted_linear import AdaptedLinear
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
    def factor_shapes(
        cls, in_features: int, out_features: int, spec: AdapterSpec
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of lora_A and lora_B."""
        return {"lora_A": (spec.rank, in_features), "lora_B": (out_features, spec.rank)}

    def reset_factors(self) -> None:
        """lora_A at random, lora_B zero, as in PEFT."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def correction(self, x: Tensor) -> Tensor:
        """ΔW·x for (…, d_in), as (…, d_out)."""
        return nn.functional.linear(nn.functional.linear(x, self.lora_A), self.scale * self.lora_B)

    def delta(self) -> Tensor:
        """ΔW as a dense float32 (d_out, d_in) matrix."""
        return self.scale * (self.lora_B @ self.lora_A)
