"""Modules by hand: shared layers, tied weights, and what may be left in a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedkron.edge.exporter import export_module
from fedkron.edge.graph import LAYER

WORDS = 300
"""The exporter copies a tied weight of less than 8192 numbers; these have 32 columns."""


class Backbone(PreTrainedModel):
    """`x`, (batch, sequence, 32), or word ids, through `call`."""

    config_class = PreTrainedConfig

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__(PreTrainedConfig())
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def export(backbone: nn.Module, example: Tensor) -> ModelProto:
    return export_module(
        Around(backbone),
        (example,),
        inputs=["x"],
        outputs=["y"],
        dynamic_shapes={"x": {0: "batch", 1: "sequence"}},
        backbone=backbone,
        prefix="inner",
    )


def linear(d_in: int, d_out: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(d_in, d_out, bias=bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer


def words(batch: int, sequence: int) -> Tensor:
    return torch.randint(0, WORDS, (batch, sequence))


def numbers(batch: int, sequence: int) -> Tensor:
    return torch.randn(batch, sequence, 32)


def named(graph: ModelProto) -> list[tuple[str, NodeProto]]:
    return [(entry.value, node) for node in graph.graph.node for entry in node.metadata_props]


def weight_of(graph: ModelProto, node: NodeProto) -> np.ndarray:
    """As torch keeps it, (d_out, d_in)."""
    [tensor] = [tensor for tensor in graph.graph.initializer if tensor.name == node.input[1]]
    stored = numpy_helper.to_array(tensor)
    return stored if any(entry.name == "transB" and entry.i for entry in node.attribute) else stored.T


def assert_as_torch(graph: ModelProto, backbone: nn.Module, *batches: Tensor) -> None:
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for x in batches:
        with torch.no_grad():
            expected = 2 * backbone(x).numpy()
        [actual] = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("bias", [True, False])
def test_an_output_layer_tied_with_the_embedding_is_stored_once(bias: bool) -> None:
    embedding, head = nn.Embedding(WORDS, 32), linear(32, WORDS, bias=bias)
    head.weight = embedding.weight
    backbone = Backbone(
        lambda self, ids: self.head(self.dense(self.embedding(ids))),
        embedding=embedding,
        dense=linear(32, 32),
        head=head,
    )
    graph = export(backbone, words(2, 8))
    assert_as_torch(graph, backbone, words(1, 1), words(3, 7))
    (dense, _), (name, node) = named(graph)
    assert (dense, name) == ("dense", "head")
    np.testing.assert_array_equal(weight_of(graph, node), head.weight.detach())
    large = [tensor for tensor in graph.graph.initializer if np.prod(tensor.dims) == WORDS * 32]
    assert len(large) == 1


def test_a_tied_language_model_is_stored_once() -> None:
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    config = LlamaConfig(**size, hidden_size=32, vocab_size=WORDS, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    backbone = Backbone(lambda self, ids: self.model(input_ids=ids, use_cache=False).logits, model=model)
    graph = export(backbone, words(2, 8))
    assert_as_torch(graph, backbone, words(1, 1), words(3, 7))
    assert [name for name, _ in named(graph)][-1] == "model.lm_head"
    assert sum(WORDS in tensor.dims for tensor in graph.graph.initializer) == 1


def test_two_layers_with_one_weight_keep_their_names_and_store_it_once() -> None:
    first, second = linear(32, WORDS), linear(32, WORDS)
    second.weight = first.weight
    backbone = Backbone(lambda self, x: self.first(x) - self.second(x.cos()), first=first, second=second)
    graph = export(backbone, numbers(2, 8))
    assert_as_torch(graph, backbone, numbers(1, 1), numbers(3, 7))
    assert sorted(name for name, _ in named(graph)) == ["first", "second"]
    assert len({node.input[1] for _, node in named(graph)}) == 1
    assert sum(np.prod(tensor.dims) == WORDS * 32 for tensor in graph.graph.initializer) == 1


def test_a_layer_at_two_places_goes_by_its_first_path_and_is_named_per_call() -> None:
    layer = linear(32, 32)
    backbone = Backbone(lambda self, x: self.second(self.first(self.second(x))), first=layer, second=layer)
    graph = export(backbone, numbers(2, 8))
    assert_as_torch(graph, backbone, numbers(1, 1), numbers(3, 7))
    assert [name for name, _ in named(graph)] == ["first"] * 3


def test_a_conv1d_and_a_layer_on_matrices_are_named() -> None:
    conv, last = Conv1D(48, 32), linear(48, 20)
    backbone = Backbone(lambda self, x: self.last(self.conv(x)[:, 0]), conv=conv, last=last)
    graph = export(backbone, numbers(2, 8))
    assert_as_torch(graph, backbone, numbers(1, 1), numbers(3, 7))
    (conv_name, conv_node), (last_name, last_node) = named(graph)
    assert (conv_name, last_name) == ("conv", "last")
    np.testing.assert_array_equal(weight_of(graph, conv_node), conv.weight.detach().T)
    np.testing.assert_array_equal(weight_of(graph, last_node), last.weight.detach())


def test_layers_with_equal_weights_are_told_apart_by_where_they_are() -> None:
    first, second = linear(32, 32), linear(32, 32)
    second.load_state_dict(first.state_dict())
    backbone = Backbone(lambda self, x: self.second(self.first(x).sin()), first=first, second=second)
    assert [name for name, _ in named(export(backbone, numbers(2, 8)))] == ["first", "second"]


def test_a_weight_that_is_used_outside_of_its_layer_is_known_by_its_numbers_if_only_one_has_them() -> None:
    one, twin, other = linear(32, 32), linear(32, 32), linear(32, 32)
    twin.load_state_dict(other.state_dict())
    backbone = Backbone(
        lambda self, x: nn.functional.linear(
            nn.functional.linear(x, self.one.weight).sin(), self.other.weight
        ),
        one=one,
        twin=twin,
        other=other,
    )
    graph = export(backbone, numbers(2, 8))
    assert_as_torch(graph, backbone, numbers(3, 7))
    [(name, node)] = named(graph)
    assert name == "one"
    np.testing.assert_array_equal(weight_of(graph, node), one.weight.detach())


def test_nothing_tells_about_the_machine_not_even_inside_of_branches() -> None:
    backbone = Backbone(
        lambda self, x: torch.cond(x.sum() > 0, self.first, self.second, (x,)),
        first=linear(32, 32),
        second=linear(32, 32),
    )
    graph = export(backbone, numbers(2, 8))
    assert "If" in {node.op_type for node in graph.graph.node}
    assert_as_torch(graph, backbone, numbers(1, 1), *numbers(3, 7).split(1))
    content = graph.SerializeToString()
    assert b"torch.onnx" not in content
    assert b".py" not in content
    assert {entry.key for _, node in named(graph) for entry in node.metadata_props} <= {LAYER}


def test_exporting_is_quiet_and_leaves_the_base_and_the_loggers_as_they_were(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    levels = {name: logging.getLogger(name).level for name in ("onnxscript", "torch.onnx", "transformers")}
    backbone = Backbone(lambda self, x: self.norm(self.dense(x)), dense=linear(32, 32), norm=nn.LayerNorm(32))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    attention = backbone.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        export(backbone, numbers(2, 8))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert backbone.config._attn_implementation == attention
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
