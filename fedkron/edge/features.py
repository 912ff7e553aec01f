"""From torch to ONNX, once per base: the bare base as a graph from token ids to text features."""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedkron.base import text_features
from fedkron.edge.graph import FEATURES, INPUTS, LAYER, weight_name

if TYPE_CHECKING:  # fedkron.edge.graph imports onnx, and says what to install where it is missing
    from onnx import ModelProto, NodeProto

OPSET = 21
"""The first opset with blocked DequantizeLinear, so that a base may be quantised later."""

_SCOPES = "pkg.torch.onnx.name_scopes"


class _TextFeatures(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return text_features(self.backbone, input_ids, attention_mask)


def export_features(backbone: nn.Module) -> ModelProto:
    """Export a bare base (float32, no adapter attached) with its weights in the model.

    Inputs `input_ids` and `attention_mask`, int64 (batch, sequence), both axes dynamic; output `features`,
    float32 (batch, hidden). The node of every linear layer carries the layer's dotted path in the base as
    metadata `fedkron.layer`, which is what `fold_adapter` and `insert_slot` look for. Nothing else that
    the exporter notes down (source lines, local paths) is kept.
    """
    model = _TextFeatures(backbone).eval()
    # Two tensors: the exporter would take one object for one input.
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
    axes = {0: "batch", 1: "sequence"}
    with _eager_attention(backbone), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[FEATURES],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            verbose=False,
        )
    assert program is not None  # it is None for the old exporter only
    exported: ModelProto = program.model_proto
    _name_linear_layers(exported, backbone)
    return exported


def _name_linear_layers(model: ModelProto, backbone: nn.Module) -> None:
    """Replace all metadata by the one that we need."""
    # A layer at several places is wrapped once, under its first path, and so it is named in a layout.
    first: dict[nn.Module, str] = {}
    paths = {
        f"backbone.{path}": first.setdefault(module, path)
        for path, module in backbone.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    }
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        path = paths.get(_scope(node))
        del node.metadata_props[:]
        node.doc_string = ""
        if path is not None and weight_name(node) in weights:
            node.metadata_props.add(key=LAYER, value=path)
    # Shapes of initializers, repeated in value_info, break ONNX Runtime's quantizer.
    shapes = [info for info in model.graph.value_info if info.name not in weights]
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    model.graph.value_info.extend(shapes)
    graph = model.graph
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _scope(node: NodeProto) -> str:
    """Dotted path of the module that the node comes from; repeated calls of one module share it."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    # The last scope is the operation's own name.
    names = ast.literal_eval(scopes)[:-1]
    return re.sub(r"@\d+", "", names[-1]) if names else ""


@contextmanager
def _eager_attention(backbone: nn.Module) -> Iterator[None]:
    """Attention as plain matrix products: the fused kind does not export well."""
    before = backbone.config._attn_implementation  # type: ignore[union-attr]
    backbone.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)  # type: ignore[operator]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own insides."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)
