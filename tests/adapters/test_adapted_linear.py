"""What holds for every adapter kind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from adapter_cases import SPECS, dense_output, random_layer, rounding_bound
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedkron.adapters import KINDS, adapter_kind
from fedkron.errors import ConfigError
from fedkron.layout import ADAPTER_KINDS

each_kind = pytest.mark.parametrize("kind", SPECS)


class NewTensors(TorchDispatchMode):
    """Notes the size of every tensor that has memory of its own."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self.sizes.append(tensor.numel())
        return result


def test_every_kind_is_tested_and_known_to_those_who_have_no_torch() -> None:
    assert tuple(KINDS) == ADAPTER_KINDS == tuple(SPECS)


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"'loha' does not exist: use one of kron_lora, lora"):
        adapter_kind("loha")


@each_kind
def test_a_new_layer_gives_exactly_what_its_base_gives_but_can_learn(kind: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(8, 12)
    layer = adapter_kind(kind)(base, SPECS[kind])
    x = torch.randn(3, 8)
    assert torch.count_nonzero(layer.delta()) == 0
    assert torch.equal(layer(x), base(x))
    layer(x).square().sum().backward()
    assert any(factor.grad.count_nonzero() for factor in layer.factors().values())


@each_kind
def test_neither_forward_nor_backward_ever_forms_a_tensor_of_the_size_of_the_weight(kind: str) -> None:
    layer = random_layer(replace(SPECS[kind], d_a2=8), 256, 128).requires_grad_(True)
    layer.base.requires_grad_(False)
    x = torch.randn(3, 256, requires_grad=True)
    with NewTensors(layer.base.weight) as new:
        layer(x).sum().backward()
    largest_factor = max(factor.numel() for factor in layer.factors().values())
    assert max(new.sizes) <= max(largest_factor, 3 * 256) < layer.base.weight.numel() / 4


@each_kind
def test_dropout_acts_in_training_only_and_only_on_what_the_correction_sees(kind: str) -> None:
    layer = random_layer(replace(SPECS[kind], dropout=0.5), 8, 12)
    x = torch.randn(40, 8)
    torch.manual_seed(1)
    trained = layer.train()(x)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(trained, layer.base(x) + layer.correction(dropped))
    assert not torch.equal(trained, layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x).double(), dense_output(layer, x), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x), layer(x))


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_factors_of_a_half_precision_base_stay_float32_and_so_do_their_gradients(
    kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    base = nn.Linear(8, 12).to(dtype)
    layer = adapter_kind(kind)(base, SPECS[kind])
    for factor in layer.factors().values():
        nn.init.normal_(factor, std=0.5)
    x = torch.randn(5, 8).to(dtype)
    output = layer(x)
    assert output.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    assert ((output.double() - dense_output(layer, x)).abs() <= rounding_bound(layer, x, unit)).all()
    output.float().sum().backward()
    assert {factor.dtype for factor in layer.factors().values()} == {torch.float32}
    assert {factor.grad.dtype for factor in layer.factors().values()} == {torch.float32}


@each_kind
def test_autocast_to_bfloat16_works_on_the_cpu_in_both_directions(kind: str) -> None:
    layer = random_layer(SPECS[kind], 8, 12)
    x = torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert ((output.double() - dense_output(layer, x)).abs() <= rounding_bound(layer, x, 2.0**-8)).all()
    output.float().sum().backward()
    assert all(factor.grad.dtype == torch.float32 for factor in layer.factors().values())


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_cast_as_a_whole_still_runs(kind: str, dtype: torch.dtype) -> None:
    layer = random_layer(SPECS[kind], 8, 12).to(dtype)
    x = torch.randn(4, 8, dtype=dtype)
    output = layer(x)
    assert output.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    assert ((output.double() - dense_output(layer, x)).abs() <= rounding_bound(layer, x, unit)).all()


@each_kind
def test_a_wrapped_layer_still_says_what_transformers_ask_of_a_linear_layer(kind: str) -> None:
    base = nn.Linear(8, 12)
    layer = adapter_kind(kind)(base, SPECS[kind])
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert (layer.in_features, layer.out_features) == (8, 12)
    assert f"{kind}, " in repr(layer)
    assert "scale=2.33333" in repr(layer)
