import copy
from collections import OrderedDict

import pytest
import torch
from adapter_cases import (
    Case,
    cases,
    dense_delta,
    dense_output,
    patient,
    random_layer,
    randomise,
    rounding_bound,
)
from hypothesis import given
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from fedkron.adapters import AdapterSpec, adapted_layers, attach, merge


@patient
@given(cases("lora"))
def test_the_output_is_that_of_the_materialised_product_within_rounding(case: Case) -> None:
    output = case.layer(case.x)
    assert output.shape == (*case.x.shape[:-1], case.layer.out_features)
    error = (output.double() - dense_output(case.layer, case.x)).abs()
    assert (error <= rounding_bound(case.layer, case.x)).all()


@patient
@given(cases("lora"))
def test_delta_is_the_scaled_product(case: Case) -> None:
    layer = case.layer
    truth = dense_delta("lora", layer.factors(), layer.scale)
    torch.testing.assert_close(layer.delta().double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_gradients_pass_gradcheck_in_float64(batch: tuple[int, ...]) -> None:
    layer = random_layer(AdapterSpec("lora", rank=2, alpha=5.0, dropout=0.0), 6, 8).double()

    def output(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return functional_call(layer, {"lora_A": lora_A, "lora_B": lora_B}, (x,))

    x = torch.randn(*batch, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *layer.factors().values()))


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 13.0), (8, 2.0)])
def test_peft_with_the_same_factors_gives_the_same_outputs_merged_or_not(rank: int, alpha: float) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(OrderedDict(up=nn.Linear(12, 20), act=nn.Tanh(), down=nn.Linear(20, 6, bias=False)))
    ours = attach(copy.deepcopy(base), AdapterSpec("lora", rank, alpha, dropout=0.0))
    randomise(ours)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=["up", "down"])
    theirs = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for path, layer in adapted_layers(ours):
            peft_layer = theirs.base_model.model.get_submodule(path)
            peft_layer.lora_A["default"].weight.copy_(layer.factors()["lora_A"])
            peft_layer.lora_B["default"].weight.copy_(layer.factors()["lora_B"])
    x = torch.randn(5, 12)
    bare = base(x)
    assert (ours(x) - bare).abs().max() > 0.1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merge(ours)(x), theirs.merge_and_unload()(x), rtol=1e-6, atol=1e-6)
