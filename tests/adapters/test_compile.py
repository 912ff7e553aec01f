"""Adapters under torch.compile: one graph without breaks for all batch sizes, and the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ecosystem_models import adapted, gradients, texts, the_layer, tiny_bert, trained
from torch import Tensor, nn

from fedkron.adapters import ADAPTER_KINDS

each_kind = pytest.mark.parametrize("kind", ADAPTER_KINDS)


@pytest.fixture(autouse=True)
def without_earlier_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def layer_of(kind: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return the_layer(adapted(nn.Sequential(nn.Linear(8, 12)), kind, **changes))


def run(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients, with the same dropout each time."""
    x = x.clone().requires_grad_(True)
    torch.manual_seed(2)
    y = layer(x)
    y.square().sum().backward()
    return {"y": y.detach(), "x": x.grad, **gradients(layer)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert {name.removeprefix("_orig_mod.") for name in found} == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name.removeprefix("_orig_mod.")], rtol=1e-4, atol=1e-5)


@each_kind
def test_a_layer_is_one_graph_for_all_batch_sizes_and_computes_the_same(kind: str) -> None:
    layer = layer_of(kind, dropout=0.5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    inputs = [torch.randn(batch, 2, 8) for batch in (3, 5, 7)]
    assert_same(run(compiled, inputs[0]), run(layer, inputs[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for x in inputs[1:]:
            assert_same(run(compiled, x), run(layer, x))


@each_kind
def test_a_layer_compiles_under_autocast(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(5, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = layer(x), compiled(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_whole_model_compiles_without_a_break_and_learns_the_same() -> None:
    model, data = adapted(tiny_bert(), "kron_lora", full=("classifier",)), texts(8)
    model(**data).loss.backward()
    expected = gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(**data).loss.backward()
    assert_same(gradients(model), expected)
    assert expected.keys() == trained(model).keys()


def test_code_that_inductor_generates_computes_the_same() -> None:
    layer = layer_of("kron_lora")
    # Scalar code, and no headers compiled in advance: half of the compiler's time.
    options = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    compiled = torch.compile(layer, backend="inductor", fullgraph=True, dynamic=True, options=options)
    for batch in (3, 5):
        x = torch.randn(batch, 8)
        assert_same(run(compiled, x), run(layer, x))
