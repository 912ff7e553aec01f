import pytest
import torch
from adapter_cases import Case, cases, dense_delta, dense_output, patient, random_layer, rounding_bound
from hypothesis import given
from torch import Tensor, nn
from torch.func import functional_call

from fedkron.adapters import AdapterSpec, KronLoRALinear
from fedkron.errors import AdapterError


@patient
@given(cases("kron_lora"))
def test_the_output_is_that_of_the_materialised_kronecker_product_within_rounding(case: Case) -> None:
    output = case.layer(case.x)
    assert output.shape == (*case.x.shape[:-1], case.layer.out_features)
    error = (output.double() - dense_output(case.layer, case.x)).abs()
    assert (error <= rounding_bound(case.layer, case.x)).all()


@patient
@given(cases("kron_lora"))
def test_delta_is_the_scaled_kronecker_product(case: Case) -> None:
    layer = case.layer
    truth = dense_delta("kron_lora", layer.factors(), layer.scale)
    assert layer.delta().shape == (layer.out_features, layer.in_features)
    torch.testing.assert_close(layer.delta().double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_gradients_pass_gradcheck_in_float64(batch: tuple[int, ...]) -> None:
    spec = AdapterSpec("kron_lora", rank=2, alpha=5.0, dropout=0.0, d_a1=3, d_a2=2)
    layer = random_layer(spec, 6, 8).double()

    def output(x: Tensor, A: Tensor, B1: Tensor, B2: Tensor) -> Tensor:
        return functional_call(layer, {"A": A, "B1": B1, "B2": B2}, (x,))

    x = torch.randn(*batch, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *layer.factors().values()))


@patient
@given(cases("kron_lora"))
def test_gradients_equal_those_through_the_materialised_product(case: Case) -> None:
    layer = case.layer.double()
    x = case.x.double().requires_grad_()
    towards = torch.randn(*x.shape[:-1], layer.out_features, dtype=torch.float64)
    inputs = (x, *layer.factors().values())
    ours = torch.autograd.grad((layer(x) * towards).sum(), inputs)
    truth = torch.autograd.grad((dense_output(layer, x) * towards).sum(), inputs)
    for gradient, true_gradient in zip(ours, truth, strict=True):
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-9, atol=1e-9)


def test_factors_have_the_shapes_of_the_paper() -> None:
    # DistilBERT's first feed-forward layer: 768 → 3072 with d_A1 = 2, d_A2 = 4, r = 8.
    layer = KronLoRALinear(nn.Linear(768, 3072), AdapterSpec(d_a2=4))
    shapes = {name: tuple(factor.shape) for name, factor in layer.factors().items()}
    assert shapes == {"A": (4, 2), "B1": (768, 8), "B2": (8, 384)}


@pytest.mark.parametrize(
    ("d_in", "d_out", "message"),
    [
        (9, 8, r"d_in = 9 does not divide by d_a1 = 2: d_a1 may be 1, 3, 9$"),
        (8, 10, r"d_out = 10 does not divide by d_a2 = 4: d_a2 may be 1, 2, 5, 10$"),
    ],
)
def test_a_layer_that_does_not_divide_is_refused_with_the_divisors_that_would(
    d_in: int, d_out: int, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        KronLoRALinear(nn.Linear(d_in, d_out), AdapterSpec(d_a1=2, d_a2=4))


def test_a_spec_without_d_a2_is_refused() -> None:
    with pytest.raises(AdapterError, match="d_a2 is not set"):
        KronLoRALinear(nn.Linear(8, 8), AdapterSpec())
