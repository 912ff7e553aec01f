"""Kron-LoRA with a 2 × 2 A is LoKr with another initialisation: PEFT and LyCORIS have to agree."""

import pytest
import torch
from adapter_cases import random_layer
from lycoris.modules.lokr import LokrModule
from peft import LoKrConfig, get_peft_model
from torch import Tensor, nn

from fedkron.adapters import AdaptedLinear, AdapterSpec


def ours(rank: int, alpha: float) -> AdaptedLinear:
    spec = AdapterSpec("kron_lora", rank=rank, alpha=alpha, dropout=0.0, d_a1=2, d_a2=2)
    return random_layer(spec, 24, 40)


def base_of(layer: AdaptedLinear) -> nn.Linear:
    base = nn.Linear(layer.in_features, layer.out_features)
    base.load_state_dict(layer.base.state_dict())
    return base


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.square().sum(), inputs)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (3, 7.0), (4, 1.0)])
def test_peft_computes_the_same_output_and_gradients_from_the_same_factors(rank: int, alpha: float) -> None:
    layer = ours(rank, alpha)
    config = LoKrConfig(r=rank, alpha=alpha, decompose_factor=2, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(base_of(layer)), config).base_model.model[0]
    factors = [theirs.lokr_w1["default"], theirs.lokr_w2_a["default"], theirs.lokr_w2_b["default"]]
    with torch.no_grad():
        for factor, own in zip(factors, (layer.A, layer.B1, layer.B2), strict=True):
            factor.copy_(own)
    x = torch.randn(5, 24, requires_grad=True)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.delta(), theirs.get_delta_weight("default"), rtol=1e-5, atol=1e-6)
    for mine, other in zip(
        gradients(layer(x), x, layer.A, layer.B1, layer.B2), gradients(theirs(x), x, *factors), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


# With α = r only: LyCORIS drops α/r beside the base, and applies it twice when it merges.
@pytest.mark.parametrize("bypass", [False, True])
def test_lycoris_computes_the_same_output_from_the_same_factors(bypass: bool) -> None:
    layer = ours(rank=4, alpha=4.0)
    theirs = LokrModule("0", base_of(layer), lora_dim=4, alpha=4.0, factor=2, bypass_mode=bypass)
    with torch.no_grad():
        theirs.lokr_w1.copy_(layer.A)
        theirs.lokr_w2_a.copy_(layer.B1)
        theirs.lokr_w2_b.copy_(layer.B2)
    theirs.apply_to()
    x = torch.randn(5, 24)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        layer.delta(), theirs.get_weight(layer.base.weight.shape), rtol=1e-5, atol=1e-6
    )
