"""Layers with random factors, what they compute when ΔW is formed, and how exact float32 can be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedkron.adapters import AdaptedLinear, AdapterSpec, adapted_layers, adapter_kind

patient = settings(deadline=None, max_examples=60)  # a busy machine is not a failure

SPECS = {
    "kron_lora": AdapterSpec("kron_lora", rank=3, alpha=7.0, dropout=0.0, d_a1=2, d_a2=4),
    "lora": AdapterSpec("lora", rank=3, alpha=7.0, dropout=0.0),
    "krona": AdapterSpec("krona", rank=3, alpha=7.0, dropout=0.0, d_a1=2, d_a2=4),
    "adakron": AdapterSpec("adakron", rank=3, alpha=7.0, dropout=0.0, d_a1=2, d_a2=4, terms=2),
    "moka": AdapterSpec("moka", rank=3, alpha=7.0, dropout=0.0, d_a1=2, d_a2=4, terms=3),
}


def randomise(model: nn.Module, seed: int = 0, std: float = 0.5) -> None:
    """Draw all factors, so that none is zero."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        for factor in layer.factors().values():
            nn.init.normal_(factor, std=std, generator=generator)


def random_layer(
    spec: AdapterSpec, in_features: int, out_features: int, *, bias: bool = True, seed: int = 0
) -> AdaptedLinear:
    torch.manual_seed(seed)
    layer = adapter_kind(spec.kind).wrap(nn.Linear(in_features, out_features, bias=bias), spec)
    randomise(layer, seed)
    return layer


def dense_delta(kind: str, factors: Mapping[str, Tensor], scale: float) -> Tensor:
    """ΔW as the papers write it, in float64, product and all."""
    f = {name: factor.double() for name, factor in factors.items()}
    match kind:
        case "kron_lora":
            return torch.kron(scale * f["A"], f["B1"] @ f["B2"])
        case "lora":
            return scale * (f["lora_B"] @ f["lora_A"])
        case "krona":
            return scale * torch.kron(f["A"], f["B"])
        case "adakron":
            shares = f["gates"]
        case "moka":
            shares = f["gates"].exp() / f["gates"].exp().sum()
    rank = len(f["B2"]) // len(shares)
    parts = [slice(m * rank, (m + 1) * rank) for m in range(len(shares))]
    return scale * sum(
        share * torch.kron(A, f["B1"][:, part] @ f["B2"][part])
        for share, A, part in zip(shares, f["A"], parts, strict=True)
    )


def largest_delta(layer: AdaptedLinear) -> Tensor:
    """ΔW if no two terms of any of its sums cancelled."""
    absolute = {name: factor.abs() for name, factor in layer.factors().items()}
    if layer.kind == "moka":
        # A softmax errs by a few units of each share, however small: bound all shares by one.
        return dense_delta("adakron", absolute | {"gates": torch.ones_like(absolute["gates"])}, layer.scale)
    return dense_delta(layer.kind, absolute, layer.scale)


def dense_output(layer: AdaptedLinear, x: Tensor) -> Tensor:
    """x @ (W + ΔW).T + b in float64."""
    weight = layer.base.weight.double() + dense_delta(layer.kind, layer.factors(), layer.scale)
    bias = 0 if layer.base.bias is None else layer.base.bias.double()
    return x.double() @ weight.T + bias


def rounding_bound(layer: AdaptedLinear, x: Tensor, unit: float = 2.0**-24) -> Tensor:
    """How far sums of so many terms can be off where each operation errs by `unit`."""
    weight = layer.base.weight.double().abs() + largest_delta(layer)
    bias = 0 if layer.base.bias is None else layer.base.bias.double().abs()
    terms = layer.in_features + sum(sum(factor.shape) for factor in layer.factors().values())
    return terms * unit * (x.double().abs() @ weight.T + bias)


@dataclass(frozen=True)
class Case:
    layer: AdaptedLinear
    x: Tensor


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    """Any layer and any input: square or not, with bias or not, α ≠ r, up to two batch dimensions."""
    size = st.integers(1, 7)
    d_a1, d_b1, d_a2, d_b2, rank = (draw(size) for _ in range(5))
    alpha = draw(st.floats(0.1, 64))
    spec = AdapterSpec(kind, rank, alpha, 0.0, d_a1, d_a2, terms=draw(st.integers(1, 3)))
    seed = draw(st.integers(0, 2**31))
    layer = random_layer(spec, d_a1 * d_b1, d_a2 * d_b2, bias=draw(st.booleans()), seed=seed)
    batch = draw(st.lists(st.integers(0, 4), max_size=2))
    return Case(layer, torch.randn(*batch, d_a1 * d_b1))
