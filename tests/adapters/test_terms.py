"""Terms that are folded into a base's weights, and tensors that are frozen for a while."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedkron.adapters import AdapterSpec, attach, folded, only_trained
from fedkron.errors import AdapterError
from fedkron.layout import State

RNG = np.random.default_rng(0)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6))


def terms_of(
    path: str, *, count: int = 3, left: tuple[int, int] = (4, 2), d_B2: int = 2, d_B1: int = 6
) -> State:
    shapes = {"A": (count, *left), "B1": (count, d_B2, 2), "B2": (count, 2, d_B1)}
    return {f"{path}.terms.{n}": RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def dense(state: State, path: str) -> torch.Tensor:
    A, B1, B2 = (torch.from_numpy(state[f"{path}.terms.{name}"]).double() for name in ("A", "B1", "B2"))
    return torch.stack([torch.kron(a, b1 @ b2) for a, b1, b2 in zip(A, B1, B2, strict=True)]).sum(0)


@pytest.mark.parametrize("adapted", [False, True])
def test_folded_terms_act_like_their_kronecker_products_added_to_the_weight(adapted: bool) -> None:
    net, x = model(), torch.randn(5, 12)
    first, again = terms_of("0"), terms_of("0", left=(1, 1), d_B2=8, d_B1=12)
    expected = copy.deepcopy(net).double()
    with torch.no_grad():
        expected[0].weight += dense(first, "0") + dense(again, "0")
    if adapted:
        attach(net, AdapterSpec(rank=2, d_a2=2, targets=("0",)))  # B1 is zero: nothing is added
    net.eval()
    before = net(x)
    with folded(net, [first, again]):
        inside = net(x)
    torch.testing.assert_close(inside, expected(x.double()).float(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(inside, before)
    assert torch.equal(net(x), before)


def test_weights_come_back_when_the_work_inside_fails() -> None:
    net = model()
    weight = net[0].weight
    with pytest.raises(RuntimeError, match="diverged"), folded(net, [terms_of("0")]):
        raise RuntimeError("diverged")
    assert net[0].weight is weight


@pytest.mark.parametrize(
    ("path", "shapes", "said"),
    [
        ("7", {}, "layer '7', which this model does not have"),
        ("1", {}, "'1', which is Tanh and not linear"),
        ("2", {}, r"layer '2' are for a weight of \[8, 12\], here it is \[6, 8\]"),
    ],
)
def test_terms_of_other_layers_are_refused_and_nothing_changes(path: str, shapes: dict, said: str) -> None:
    net = model()
    weights = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(AdapterError, match=said), folded(net, [terms_of("0"), terms_of(path, **shapes)]):
        pass
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))


def test_only_the_named_tensors_have_gradients_until_the_context_ends() -> None:
    net = attach(model(), AdapterSpec(rank=2, d_a2=2))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("B1"):
                parameter.normal_()

    def with_gradient() -> set[str]:
        net.zero_grad()
        net(torch.randn(4, 12)).sum().backward()
        return {name for name, parameter in net.named_parameters() if parameter.grad is not None}

    everything = {f"{layer}.{factor}" for layer in "02" for factor in ("A", "B1", "B2")}
    assert with_gradient() == everything
    with only_trained(net, ["0.B1", "2.B1"]):
        assert with_gradient() == {"0.B1", "2.B1"}
    assert with_gradient() == everything
