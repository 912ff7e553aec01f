"""Adapters on adapters, on shared and tied modules, and on layers that cannot be split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import peft
import pytest
import torch
from adapter_cases import randomise
from ecosystem_models import SPEC, adapted, the_layer, tiny_bert
from torch import Tensor, nn

from fedkron.adapters import AdapterSpec, adapted_layers, adapter_state, attach, detach, merge
from fedkron.errors import AdapterError


def unchanged(model: nn.Module) -> Callable[[], bool]:
    """Whether the model still has the same modules and parameters, as trainable as now."""

    def state() -> list[tuple[str, int, bool]]:
        parameters = model.named_parameters(remove_duplicate=False)
        modules = [(path, id(module), module.training) for path, module in model.named_modules()]
        return modules + [(name, id(p), p.requires_grad) for name, p in parameters]

    before = state()
    return lambda: state() == before


# Another library's adapter


def with_peft() -> nn.Module:
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    return peft.get_peft_model(tiny_bert(), config)


@pytest.mark.parametrize("targets", [("!*.classifier",), ("*.query", "*.query.base_layer"), ("*.query.*",)])
def test_a_layer_that_peft_has_wrapped_is_refused_with_the_layers_outside_and_inside(
    targets: tuple[str, ...],
) -> None:
    model = with_peft()
    untouched = unchanged(model)
    outer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    with pytest.raises(AdapterError, match=f"layer '{outer}.base_layer' is inside '{outer}'"):
        attach(model, AdapterSpec(d_a2=4, targets=targets))
    assert untouched()


def test_what_peft_has_merged_and_unloaded_can_be_wrapped() -> None:
    model = with_peft().merge_and_unload()
    ids = torch.tensor([[2, 5, 6, 7]])
    before = model.eval()(ids).logits
    attach(model, replace(SPEC, full=("classifier",)))
    torch.testing.assert_close(model(ids).logits, before)
    assert len(list(adapted_layers(model))) == 13


# Our own


def test_a_second_adapter_is_refused_also_for_other_layers() -> None:
    model = adapted(tiny_bert(), "lora", targets=("*.query",))
    untouched = unchanged(model)
    with pytest.raises(AdapterError, match="has an adapter already: detach it, or merge it, first"):
        attach(model, AdapterSpec(d_a2=4, targets=("*.value",)))
    assert untouched()
    merge(model)
    attach(model, AdapterSpec(d_a2=4, targets=("*.value",)))


# Shared modules


class Shared(nn.Module):
    """One block in two places, so one layer at two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.second = self.first
        self.alias = self.first[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.second(self.first(x)))


def test_a_shared_layer_is_wrapped_once_at_all_its_paths_and_trained_once() -> None:
    torch.manual_seed(0)
    model = Shared()
    linear, weight = model.alias, model.alias.weight.detach().clone()
    adapted(model, "kron_lora")
    layer = the_layer(model)
    assert model.first[0] is model.second[0] is model.alias is layer
    assert len(adapter_state(model)) == 3
    x = torch.randn(4, 8)
    dense = weight + layer.delta()

    def expected(x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(nn.functional.linear(x, dense, linear.bias))
        return nn.functional.linear(x, dense, linear.bias)

    torch.testing.assert_close(model(x), expected(x))
    found = torch.autograd.grad(model(x).sum(), list(layer.factors().values()))
    truth = torch.autograd.grad(expected(x).sum(), list(layer.factors().values()))
    for gradient, true_gradient in zip(found, truth, strict=True):
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-4, atol=1e-4)

    unmerged = model(x)
    merged = merge(model)
    assert model.first[0] is model.second[0] is model.alias is linear
    torch.testing.assert_close(model(x), unmerged)
    merged.unmerge()
    assert model.first[0] is model.second[0] is model.alias is layer
    assert torch.equal(detach(model).alias.weight, weight)


def test_a_target_on_one_path_of_a_shared_layer_leaves_the_other_path_to_the_base() -> None:
    model = Shared()
    linear = model.alias
    attach(model, AdapterSpec(d_a2=4, targets=("alias",)))
    assert model.alias.base is linear is model.first[0]


# Dimensions


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(8, 6), r"'odd' .*: d_out = 6 does not divide by d_a2 = 4: d_a2 may be 1, 2, 3, 6"),
        (nn.Linear(9, 8), r"'odd' .*: d_in = 9 does not divide by d_a1 = 2: d_a1 may be 1, 3, 9"),
    ],
)
@pytest.mark.parametrize("kind", ["kron_lora", "krona", "adakron", "moka"])
def test_a_layer_that_does_not_divide_is_refused_and_both_ways_out_work(
    kind: str, layer: nn.Linear, message: str
) -> None:
    model = nn.ModuleDict({"even": nn.Linear(8, 8), "odd": layer}).requires_grad_(True)
    untouched = unchanged(model)
    with pytest.raises(AdapterError, match=f"{message}; or leave it out, with '!odd' as a target"):
        attach(model, AdapterSpec(kind, d_a2=4))
    assert untouched()
    assert [
        path for path, _ in adapted_layers(attach(model, AdapterSpec(kind, d_a2=4, targets=("!odd",))))
    ] == ["even"]
    detach(model)
    attach(model, AdapterSpec(kind, dropout=0.0, d_a1=1 if layer.in_features == 9 else 2, d_a2=2))
    randomise(model)
    x = torch.randn(3, layer.in_features)
    odd = model["odd"]
    torch.testing.assert_close(odd(x), layer(x) + x @ odd.delta().T, rtol=1e-4, atol=1e-4)


def test_lora_wraps_what_does_not_divide() -> None:
    model = attach(nn.Sequential(nn.Linear(7, 5)), AdapterSpec("lora"))
    assert model(torch.randn(2, 7)).shape == (2, 5)


# Layers that torch computes without calling


@pytest.mark.parametrize("targets", [("*",), ("*out_proj", "last")])
def test_the_projection_inside_of_multihead_attention_is_left_alone(targets: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "last": nn.Linear(8, 8)})
    adapted(model, "kron_lora", targets=targets)
    assert [path for path, _ in adapted_layers(model)] == ["last"]


def test_a_target_that_is_only_inside_of_multihead_attention_is_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(AdapterError, match="no linear layer of ModuleDict matches"):
        attach(model, SPEC)
