"""What every adapter kind has in common: a frozen linear layer with a few small factors beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fedkron.adapters.kron_terms import KronTerms, kron_correction, kron_linear
from fedkron.adapters.linear_like import device_of, features, is_plain_linear
from fedkron.adapters.spec import AdapterSpec
from fedkron.errors import AdapterError

Shapes = dict[str, tuple[int, ...]]


class AdaptedLinear(nn.Module, ABC):
    """A frozen linear layer plus a trainable ΔW given by factors: y = base(x) + ΔW·dropout(x).

    `base` is an `nn.Linear` or acts like one (`fedkron.adapters.linear_like`); `shapes` are those of the
    factors, `scale` is α/r, `dropout` the probability. Factors are float32 whatever the base is kept in
    (their updates are too small for bf16) and take part in the computation in the dtype of the base, or
    of the autocast.

    A kind defines `kind`, `factor_names`, `factor_shapes`, `reset_factors` and `terms`, and has its line
    in `fedkron.kinds`.
    """

    kind: ClassVar[str]
    factor_names: ClassVar[tuple[str, ...]]

    def __init__(
        self, base: nn.Module, shapes: Mapping[str, tuple[int, ...]], scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        for name in self.factor_names:
            empty = torch.empty(shapes[name], dtype=torch.float32, device=device_of(base))
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_factors()
        self.register_state_dict_post_hook(_name_as_bare)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_name_as_wrapped)  # type: ignore[no-untyped-call]

    @classmethod
    def wrap(cls, base: nn.Module, spec: AdapterSpec) -> Self:
        """A layer around `base` as `spec` describes it; raises like `factor_shapes`."""
        found = features(base)
        if found is None:
            raise AdapterError(f"{type(base).__name__} is not a linear layer: it cannot be wrapped")
        return cls(base, cls.factor_shapes(*found, spec), spec.scale, spec.dropout)

    @classmethod
    @abstractmethod
    def factor_shapes(cls, in_features: int, out_features: int, spec: AdapterSpec) -> Shapes:
        """Shape of each factor for a layer in_features → out_features.

        Raises `AdapterError` when the layer cannot be wrapped, with the values that would work.
        """

    @abstractmethod
    def reset_factors(self) -> None:
        """Draw the initial factors; ΔW is exactly zero afterwards."""

    @staticmethod
    @abstractmethod
    def terms(factors: Mapping[str, Tensor], scale: float) -> KronTerms:
        """ΔW as a sum of Kronecker products, from the kind's factors by name. Differentiable."""

    def correction(self, z: Tensor) -> Tensor:
        """ΔW·z for z of shape (…, d_in), as (…, d_out) in the dtype of z, without forming ΔW."""
        return kron_correction(z, self._terms())

    def delta(self) -> Tensor:
        """ΔW as a dense (d_out, d_in) matrix, for merging."""
        return self._terms().dense()

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_in) to (…, d_out)."""
        if not is_plain_linear(self.base):
            return self.beside(x)
        weight, bias = self.weight, self.bias
        if (dtype := _autocast_dtype(x.device.type)) is None:
            return kron_linear(x, self._dropped(x), weight, bias, self._terms())
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return kron_linear(x, self._dropped(x), weight.to(dtype), bias, self._terms())

    def beside(self, x: Tensor) -> Tensor:
        """The same for a base that has to be called: base(x) + ΔW·dropout(x)."""
        output: Tensor = self.base(x)
        return output + self.change(x).to(output.dtype)

    def change(self, x: Tensor) -> Tensor:
        """ΔW·dropout(x), in the dtype of x or of the autocast."""
        if (dtype := _autocast_dtype(x.device.type)) is None:
            return self.correction(self.dropout(x))
        with torch.autocast(x.device.type, enabled=False):
            return self.correction(self.dropout(x.to(dtype)))

    def factors(self) -> dict[str, nn.Parameter]:
        """The trainable factors by name, in wire order."""
        return {name: self.get_parameter(name) for name in self.factor_names}

    def _dropped(self, x: Tensor) -> Tensor | None:
        return self.dropout(x) if self.training and self.dropout.p else None

    def _terms(self) -> KronTerms:
        return self.terms(self._parameters, self.scale)  # type: ignore[arg-type]

    # Some transformers read these from their linear layers, and set them when they tie weights.

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute; weight and bias are the base's."""
        if name in {"weight", "bias"}:
            setattr(self.base, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def weight(self) -> Tensor:
        """The frozen weight of the wrapped layer, (d_out, d_in) for an `nn.Linear`."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias of the wrapped layer, (d_out), or None."""
        return self.base.bias  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        """d_in of the wrapped layer."""
        return self._features[0]

    @property
    def out_features(self) -> int:
        """d_out of the wrapped layer."""
        return self._features[1]

    @property
    def _features(self) -> tuple[int, int]:
        found = features(self.base)
        assert found is not None, "wrap() lets nothing else in"
        return found

    def extra_repr(self) -> str:
        """What `print(model)` shows of this layer."""
        shapes = ", ".join(f"{name}={list(factor.shape)}" for name, factor in self.factors().items())
        return f"{self.kind}, {shapes}, scale={self.scale:g}"


# A saved model has the base's weights under their own names, beside the factors: it loads as a bare base,
# too, and libraries find tied weights where they expect them.


def _name_as_bare(_layer: AdaptedLinear, state: dict[str, Any], prefix: str, _: object) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}base.")]:
        state[prefix + name.removeprefix(f"{prefix}base.")] = state.pop(name)


def _name_as_wrapped(layer: AdaptedLinear, state: dict[str, Any], prefix: str, *_: object) -> None:
    own = {prefix + name for name in layer.factor_names}
    for name in [name for name in state if name.startswith(prefix) and name not in own]:
        state[f"{prefix}base.{name.removeprefix(prefix)}"] = state.pop(name)


def _autocast_dtype(device: str) -> torch.dtype | None:
    # Asked in this order because the meta device has no autocast to ask about.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
