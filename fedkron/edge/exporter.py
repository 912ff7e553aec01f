"""From torch to ONNX: any module around a base as a graph in which every linear layer can be found again."""

from __future__ import annotations

import ast
import hashlib
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from fedkron.adapters.linear_like import features
from fedkron.edge.graph import LAYER, weight_name
from fedkron.errors import BundleError

# isort: split
# After fedkron.edge.graph, which says what to install where onnx is missing.
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 21
"""The first opset with blocked DequantizeLinear, so that a base may be quantised later."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_TALKATIVE = ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


def export_module(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any,  # noqa: ANN401
    backbone: nn.Module,
    prefix: str,
) -> ModelProto:
    """Export `module` (float32, no adapter attached), which calls `backbone`, with its weights in the model.

    `example`, `inputs`, `outputs` and `dynamic_shapes` are what `torch.onnx.export` takes as `args`,
    `input_names`, `output_names` and `dynamic_shapes`; `prefix` is the dotted path of `backbone` inside
    `module` ("" when they are the same).

    A node that multiplies with the weight of a linear layer of `backbone` carries the layer's dotted path
    as metadata `fedkron.layer` (the first path of a layer that has several), and the weight itself is its
    second input: (d_in, d_out) for a MatMul and a Gemm, (d_out, d_in) for a Gemm with transB=1. Several
    nodes carry the name of a layer that is called several times. A weight tied with an embedding is there
    once. A layer whose input is a small constant of the base is missing: the exporter computes its output.
    Nothing else that the exporter notes down (source lines, local paths) is kept. Raises `BundleError` for a
    model that torch.onnx cannot export.
    """
    try:
        with _eager_attention(backbone), _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),  # the exporter looks at the wrapper's own flag
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                verbose=False,
            )
    except OnnxExporterError as error:
        raise BundleError(
            f"{type(backbone).__name__} cannot be exported by torch.onnx "
            f"({str(error).strip().splitlines()[0]}): use another base"
        ) from error
    assert program is not None  # it is None for the old exporter only
    model: ModelProto = program.model_proto
    _read_weights_as_stored(model.graph)
    layers = _linear_layers(model.graph, backbone, prefix)
    _strip(model)
    for node, path in layers:
        node.metadata_props.add(key=LAYER, value=path)
    # Shapes of initializers, repeated in value_info, break ONNX Runtime's quantizer.
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [info for info in model.graph.value_info if info.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(shapes)
    return model


def _linear_layers(graph: GraphProto, backbone: nn.Module, prefix: str) -> list[tuple[NodeProto, str]]:
    """The nodes that multiply with the weight of a linear layer, each with the layer's path."""
    # A layer at several places is wrapped once, under its first path, and so it is named in a layout.
    first: dict[nn.Module, str] = {}
    by_scope = {
        f"{prefix}.{path}".strip("."): first.setdefault(layer, path)
        for path, layer in backbone.named_modules(remove_duplicate=False)
        if features(layer)
    }
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if weight_name(node) in weights]
    found = [(node, by_scope[_scope(node)]) for node in products if _scope(node) in by_scope]
    if {path for _, path in found} == set(first.values()):
        return found
    # The exporter noted down no module, or another one: the numbers tell.
    by_weight = _paths_by_weight(first)
    others = [node for node in products if _scope(node) not in by_scope]
    digests = [_digest(numpy_helper.to_array(weights[node.input[1]])) for node in others]
    known = zip(others, digests, strict=True)
    return found + [(node, by_weight[digest]) for node, digest in known if digest in by_weight]


def _paths_by_weight(layers: Mapping[nn.Module, str]) -> dict[bytes, str]:
    """Digest of a weight and of its transpose to the path of the only layer that has it."""
    paths: dict[bytes, set[str]] = defaultdict(set)
    for layer, path in layers.items():
        weight = getattr(layer, "weight", None)  # a packed one is none
        if isinstance(weight, Tensor):
            for matrix in (weight.detach(), weight.detach().T):
                paths[_digest(matrix.cpu().numpy())].add(path)
    return {digest: path for digest, (path, *more) in paths.items() if not more}


def _digest(matrix: npt.NDArray[Any]) -> bytes:
    return hashlib.sha256(f"{matrix.shape}".encode() + np.ascontiguousarray(matrix).tobytes()).digest()


def _scope(node: NodeProto) -> str:
    """Dotted path of the module that the node comes from; repeated calls of one module share it."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    # The last scope is the operation's own name.
    names = ast.literal_eval(scopes)[:-1]
    return re.sub(r"@\d+", "", names[-1]) if names else ""


def _read_weights_as_stored(graph: GraphProto) -> None:
    """x @ Transpose(W) becomes a Gemm that reads W itself, for every initializer W.

    The exporter stores weights transposed, but not one that is tied with an embedding, or with another
    layer: that one would be there twice.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    transposed = {
        node.output[0]: weights[node.input[0]]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }
    nodes: list[NodeProto] = []
    for node in graph.node:
        weight = transposed.get(node.input[1]) if node.op_type == "MatMul" else None
        nodes.extend([node] if weight is None else _as_gemm(graph, node, weight))
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [node for node in nodes if node.output[0] not in transposed or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)


def _as_gemm(graph: GraphProto, product: NodeProto, weight: TensorProto) -> list[NodeProto]:
    """The nodes for x @ Wᵀ, x (…, d_in) and W (d_out, d_in): a Gemm takes matrices only."""
    x, y = product.input[0], product.output[0]
    d_out, d_in = weight.dims
    constants = {f"{y}.columns": [-1, d_in], f"{y}.d_out": [d_out]}
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    gemm = helper.make_node("Gemm", [f"{y}.x", weight.name], [f"{y}.rows"], name=f"{y}.rows", transB=1)
    gemm.metadata_props.extend(product.metadata_props)
    graph.value_info.append(helper.make_tensor_value_info(f"{y}.rows", weight.data_type, [None, d_out]))
    return [
        helper.make_node("Reshape", [x, f"{y}.columns"], [f"{y}.x"], name=f"{y}.x"),
        gemm,
        helper.make_node("Shape", [x], [f"{y}.leading"], name=f"{y}.leading", end=-1),
        helper.make_node("Concat", [f"{y}.leading", f"{y}.d_out"], [f"{y}.shape"], name=f"{y}.shape", axis=0),
        helper.make_node("Reshape", [f"{y}.rows", f"{y}.shape"], [y], name=y),
    ]


def _strip(message: Any) -> None:  # noqa: ANN401
    """Remove all metadata and comments, at any depth."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                _strip(part)


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
    levels = {logger: logger.level for logger in map(logging.getLogger, _TALKATIVE)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
