"""What every adapter kind has in common: a frozen linear layer with a few small factors beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkron.adapters.spec import AdapterSpec


class AdaptedLinear(nn.Module, ABC):
    """A frozen `nn.Linear` plus a trainable ΔW given by factors: y = base(x) + ΔW·dropout(x).

    A kind defines `kind`, `factor_names`, `factor_shapes`, `reset_factors`, `correction` and `delta`,
    and is registered in `fedkron.adapters.kinds`.
    """

    kind: ClassVar[str]
    factor_names: ClassVar[tuple[str, ...]]

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        self.base = base
        self.scale = spec.scale
        self.dropout = nn.Dropout(spec.dropout)
        shapes = self.factor_shapes(base.in_features, base.out_features, spec)
        for name in self.factor_names:
            # Factors stay float32 whatever the base is kept in: their updates are too small for bf16.
            empty = torch.empty(shapes[name], dtype=torch.float32, device=base.weight.device)
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_factors()

    @classmethod
    @abstractmethod
    def factor_shapes(
        cls, in_features: int, out_features: int, spec: AdapterSpec
    ) -> dict[str, tuple[int, ...]]:
        """Shape of each factor for a layer in_features → out_features.

        Raises `AdapterError` when the layer cannot be wrapped, with the values that would work.
        """

    @abstractmethod
    def reset_factors(self) -> None:
        """Draw the initial factors; ΔW is exactly zero afterwards."""

    @abstractmethod
    def correction(self, x: Tensor) -> Tensor:
        """ΔW·x for x of shape (…, d_in) in the factors' dtype, as (…, d_out), without forming ΔW."""

    @abstractmethod
    def delta(self) -> Tensor:
        """ΔW as a dense (d_out, d_in) matrix, for merging."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_in) to (…, d_out)."""
        output: Tensor = self.base(x)
        x = self.dropout(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.get_parameter(self.factor_names[0]).dtype)
        return output + self.correction(x).to(output.dtype)

    def factors(self) -> dict[str, nn.Parameter]:
        """The trainable factors by name, in wire order."""
        return {name: self.get_parameter(name) for name in self.factor_names}

    # Some transformers read these from their linear layers.

    @property
    def weight(self) -> Tensor:
        """The frozen weight of the wrapped layer, (d_out, d_in)."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias of the wrapped layer, (d_out), or None."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """d_in of the wrapped layer."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """d_out of the wrapped layer."""
        return self.base.out_features

    def extra_repr(self) -> str:
        """What `print(model)` shows of this layer."""
        shapes = ", ".join(f"{name}={list(factor.shape)}" for name, factor in self.factors().items())
        return f"{self.kind}, {shapes}, scale={self.scale:g}"
