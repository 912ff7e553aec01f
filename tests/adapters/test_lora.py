import copy
from collections import OrderedDict

import pytest
import torch
from adapter_cases import randomise
from peft import LoraConfig, get_peft_model
from torch import nn

from fedkron.adapters import AdapterSpec, adapted_layers, attach, merge


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
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    merge(ours)
    torch.testing.assert_close(ours(x), theirs.merge_and_unload()(x), rtol=1e-5, atol=1e-5)
