"""Adapters under torch.amp: autocast to bfloat16 and a GradScaler, on the CPU."""

from __future__ import annotations

import pytest
import torch
from ecosystem_models import adapted, gradients, texts, tiny_bert, trained
from torch import Tensor, nn

from fedkron.adapters import ADAPTER_KINDS, merge

each_kind = pytest.mark.parametrize("kind", ADAPTER_KINDS)


def bert(kind: str) -> nn.Module:
    return adapted(tiny_bert(), kind, full=("classifier",))


def norm(tensors: dict[str, Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm().item()


@each_kind
def test_autocast_costs_an_adapter_no_more_accuracy_than_a_plain_model(kind: str) -> None:
    model, ids = bert(kind).eval(), texts()["input_ids"]

    def error() -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rounded = model.bert(ids)[0]
        return (rounded.float() - exact).norm().item()

    with torch.no_grad():
        exact = model.bert(ids)[0]
    adapted_error = error()
    merge(model)
    assert 0 < adapted_error <= 1.5 * error()
    assert adapted_error <= 2.0**-6 * exact.norm()


@each_kind
def test_gradients_under_autocast_are_float32_and_those_of_float32_but_for_rounding(kind: str) -> None:
    model, data = bert(kind), texts()
    model(**data).loss.backward()
    exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**data).loss
    loss.backward()
    rounded = gradients(model)
    assert exact.keys() == rounded.keys() == trained(model).keys()
    assert {gradient.dtype for gradient in rounded.values()} == {torch.float32}
    error = norm({name: rounded[name] - gradient for name, gradient in exact.items()})
    assert 0 < error < 0.05 * norm(exact)


@each_kind
def test_a_scaled_step_is_the_step_without_scaling(kind: str) -> None:
    stepped = []
    for enabled in (False, True):
        model = bert(kind)
        optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
        # A power of two: scaling and unscaling round nothing.
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**texts()).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained(model).values(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        stepped.append({name: p.detach() for name, p in trained(model).items()})
    start = trained(bert(kind))
    assert not any(torch.equal(p, start[name]) for name, p in stepped[0].items())
    for name, p in stepped[0].items():
        torch.testing.assert_close(stepped[1][name], p, rtol=1e-6, atol=1e-7)


@each_kind
def test_a_step_that_overflows_is_skipped_and_the_scale_halved(kind: str) -> None:
    model = bert(kind)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    optimizer = torch.optim.SGD(trained(model).values(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    scaler.scale(model(**texts()).loss * 1e3).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(p, before[name]) for name, p in trained(model).items())
