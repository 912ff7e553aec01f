"""What holds for every adapter kind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from adapter_cases import (
    SPECS,
    cases,
    dense_delta,
    dense_output,
    largest_delta,
    patient,
    random_layer,
    rounding_bound,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fedkron.adapters import ADAPTER_KINDS, AdapterSpec, adapter_kind
from fedkron.errors import AdapterError, ConfigError

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


def test_every_kind_is_tested_and_goes_by_its_name() -> None:
    assert tuple(ADAPTER_KINDS) == tuple(SPECS)
    assert [adapter_kind(name).kind for name in ADAPTER_KINDS] == list(ADAPTER_KINDS)


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"'loha' does not exist: use one of kron_lora, lora, krona, adakron, moka"
    ):
        adapter_kind("loha")


# Exactness, against the product as it is written on paper.


@each_kind
@patient
@given(data=st.data())
def test_the_output_is_that_of_the_materialised_product_within_rounding(
    kind: str, data: st.DataObject
) -> None:
    case = data.draw(cases(kind))
    for output in (case.layer(case.x), case.layer.beside(case.x)):
        assert output.shape == (*case.x.shape[:-1], case.layer.out_features)
        error = (output.double() - dense_output(case.layer, case.x)).abs()
        assert (error <= rounding_bound(case.layer, case.x)).all()


@each_kind
@patient
@given(data=st.data())
def test_delta_is_the_scaled_product_within_rounding(kind: str, data: st.DataObject) -> None:
    layer = data.draw(cases(kind)).layer
    truth = dense_delta(kind, layer.factors(), layer.scale)
    assert layer.delta().shape == (layer.out_features, layer.in_features)
    operations = 8 + sum(max(factor.shape) for factor in layer.factors().values())
    assert ((layer.delta() - truth).abs() <= operations * 2.0**-24 * largest_delta(layer)).all()


@each_kind
@patient
@given(data=st.data())
def test_any_kind_is_exactly_a_plain_lora_of_the_smallest_rank_that_its_form_allows(
    kind: str, data: st.DataObject
) -> None:
    layer = data.draw(cases(kind)).layer.double()
    terms = layer.terms(layer.factors(), layer.scale)
    lora_B, lora_A = terms.lora()
    assert lora_A.shape[0] == lora_B.shape[1] == len(terms.B2) * min(terms.A.shape[-2:])
    truth = dense_delta(kind, layer.factors(), layer.scale)
    torch.testing.assert_close(lora_B @ lora_A, truth, rtol=1e-12, atol=1e-12)


@each_kind
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_gradients_pass_gradcheck_in_float64(kind: str, batch: tuple[int, ...]) -> None:
    spec = AdapterSpec(kind, rank=2, alpha=5.0, dropout=0.0, d_a1=3, d_a2=2)
    layer = random_layer(spec, 6, 8).double()

    def output(x: Tensor, *factors: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(layer.factor_names, factors, strict=True)), (x,))

    x = torch.randn(*batch, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *layer.factors().values()))


@each_kind
@patient
@given(data=st.data())
def test_gradients_equal_those_through_the_materialised_product(kind: str, data: st.DataObject) -> None:
    case = data.draw(cases(kind))
    layer = case.layer.double()
    x = case.x.double().requires_grad_()
    towards = torch.randn(*x.shape[:-1], layer.out_features, dtype=torch.float64)
    inputs = (x, *layer.factors().values())
    truth = torch.autograd.grad((dense_output(layer, x) * towards).sum(), inputs)
    for forward in (layer, layer.beside):
        ours = torch.autograd.grad((forward(x) * towards).sum(), inputs)
        for gradient, true_gradient in zip(ours, truth, strict=True):
            torch.testing.assert_close(gradient, true_gradient, rtol=1e-9, atol=1e-9)


@each_kind
def test_gradients_through_dropout_equal_those_through_the_materialised_product(kind: str) -> None:
    layer = random_layer(replace(SPECS[kind], dropout=0.5), 8, 12).double().train()
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.factors().values())
    torch.manual_seed(1)
    ours = torch.autograd.grad(layer(x).square().sum(), inputs)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    delta = dense_delta(kind, layer.factors(), layer.scale)
    truth = torch.autograd.grad((layer.base(x) + dropped @ delta.T).square().sum(), inputs)
    for gradient, true_gradient in zip(ours, truth, strict=True):
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-9, atol=1e-9)


@each_kind
def test_an_input_that_needs_no_gradient_or_is_not_contiguous_changes_nothing_else(kind: str) -> None:
    layer = random_layer(SPECS[kind], 8, 12)
    x = torch.randn(5, 8, 3).transpose(1, 2)
    factors = list(layer.factors().values())
    whole = torch.autograd.grad(layer(x.detach().requires_grad_()).square().sum(), factors)
    alone = torch.autograd.grad(layer(x).square().sum(), factors)
    same = torch.autograd.grad(layer(x.contiguous()).square().sum(), factors)
    for a, b, c in zip(whole, alone, same, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    layer = random_layer(SPECS["kron_lora"], 8, 12)
    (gradient,) = torch.autograd.grad(layer(torch.randn(3, 8)).square().sum(), layer.B1, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# Cost.


@pytest.mark.parametrize("kind", ["kron_lora", "lora", "adakron", "moka"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_backward_keeps_the_input_and_one_small_projection(kind: str, dropout: float) -> None:
    spec = replace(SPECS[kind], dropout=dropout)
    layer, tokens = random_layer(spec, 256, 128).requires_grad_(True).train(), 40
    layer.base.requires_grad_(False)
    x = torch.randn(tokens, 256, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    for known in (x, layer.base.weight, *layer.factors().values()):
        kept.pop(known.untyped_storage().data_ptr(), None)
    terms = layer.terms(layer.factors(), layer.scale)
    projection = 4 * tokens * len(terms.B2) * terms.A.shape[-1]
    mask_and_dropped = (1 + 4 + 4) * tokens * 256 if dropout else 0
    mixing = 4 * 8 * terms.A.numel()
    assert projection <= sum(kept.values()) <= projection + mask_and_dropped + mixing


@each_kind
def test_a_new_layer_gives_exactly_what_its_base_gives_but_can_learn(kind: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(8, 12)
    layer = adapter_kind(kind).wrap(base, SPECS[kind])
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


@pytest.mark.parametrize("tokens", [20, 200])
@pytest.mark.parametrize("kind", ["kron_lora", "lora", "adakron", "moka"])
def test_what_backward_keeps_of_a_half_precision_layer_is_no_copy_of_the_factors(
    kind: str, tokens: int
) -> None:
    layer = random_layer(SPECS[kind], 256, 128)
    layer.base.to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(tokens, 256, dtype=torch.bfloat16)
    known = {t.data_ptr() for t in (x, layer.base.weight, *layer.factors().values())}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    new = [t for t in kept if t.data_ptr() not in known and t.numel() > 16]
    terms = layer.terms(layer.factors(), layer.scale)
    assert [t.shape for t in new if t.ndim == 2] == [(len(terms.B2), tokens * terms.A.shape[-1])]


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
    layer = adapter_kind(kind).wrap(base, SPECS[kind])
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
    layer = adapter_kind(kind).wrap(base, SPECS[kind])
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert (layer.in_features, layer.out_features) == (8, 12)
    assert f"{kind}, " in repr(layer)
    assert "scale=2.33333" in repr(layer)


@each_kind
def test_a_base_with_hooks_is_called_so_that_they_run(kind: str) -> None:
    layer = random_layer(SPECS[kind], 8, 12)
    x = torch.randn(3, 8)
    before = layer(x)
    seen = []
    layer.base.register_forward_hook(lambda _module, _args, output: seen.append(output.shape))
    torch.testing.assert_close(layer(x), before)
    assert seen == [(3, 12)]


def test_what_is_not_linear_is_not_wrapped() -> None:
    with pytest.raises(AdapterError, match="LayerNorm is not a linear layer"):
        adapter_kind("lora").wrap(nn.LayerNorm(8), SPECS["lora"])
