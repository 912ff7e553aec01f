"""The form of a base's weights in a finished graph: float32 as exported, or 8 bits in two ways.

int8: ONNX Runtime's dynamic quantization. A layer's weights are int8 with a scale per output, its input
becomes uint8 with one scale for the whole tensor, and their product is made in integers. So what else is in a
batch changes an answer a little.

nbits8: ONNX Runtime's operator MatMulNBits. Weights are uint8 with a scale per 128 inputs; a layer's input
becomes int8 with as many scales per token. More exact, and slower, than int8; on ARM64 it needs ONNX Runtime
1.23.

Both store embeddings as int8 with a scale per row, and a quarter of the base's bytes. Adapters in a slot,
heads, norms and attention stay in float32. All operators have kernels for x64 and ARM64.

On x64 with AVX2 or AVX512 but without VNNI, products of uint8 and int8 are added in pairs of 16 bits, which
may saturate (onnxruntime.ai, "Quantize ONNX models"). Weights have their full range in int8 all the same: one
bit less (`reduce_range`) costs more accuracy than saturation does, and costs it everywhere; unsigned weights
cost time. A session with `session.x64quantprecision` = 1 adds exactly there, and is as before elsewhere.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.edge.graph import (
    FEATURES,
    GraphBuilder,
    ModelProto,
    NodeProto,
    TensorProto,
    copy_model,
    is_transposed,
    numpy_helper,
    onnx,
    weight_name,
)
from fedkron.errors import ConfigError

BLOCK = 128
"""Inputs that share a scale in nbits8."""

_INT8_ACTIVATIONS = 4
"""Accuracy level of MatMulNBits: with float32 inputs it takes two to three times as long as float32 does."""

_SMALL_TABLE = 4096
"""Elements below which an embedding is not worth the nodes that decode it."""

Array = npt.NDArray[Any]


def quantize(model: ModelProto, form: str) -> ModelProto:
    """The graph with its base's weights in this form, which is one of `BASE_FORMS`.

    All weights must be in the model; `model` stays as it is, and is itself the answer for fp32. Inputs and
    outputs keep their names and types. Products of two computed tensors are left alone, so are those with the
    features (a head). A matrix that is both an embedding and a layer (tied) is stored once. The same model
    gives the same bytes. Raises `ConfigError` for an unknown form, `ImportError` without onnxruntime.
    """
    if form not in _FORMS:
        raise ConfigError(f"base form {form!r} is not known: choose {', '.join(_FORMS)}")
    with _unchanged_logging():
        try:
            return _FORMS[form](model)
        except ImportError as error:
            raise ImportError("quantizing needs onnxruntime: pip install 'fedkron[edge,export]'") from error


def _fp32(model: ModelProto) -> ModelProto:
    return model


def _int8(model: ModelProto) -> ModelProto:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    prepared, tied = _prepared(model)
    # Or the library would advise to fuse operators first, which is the session's business.
    add_pre_process_metadata(prepared)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            prepared,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            nodes_to_exclude=_not_linear(prepared),
            use_external_data_format=True,
        )
        quantized = onnx.load(path)

    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    tables: dict[str, _Table] = {}
    transposes = GraphBuilder(quantized.graph)
    for table, matrix in tied.items():
        codes, scales = (
            numpy_helper.to_array(weights[f"{matrix}_{part}"]) for part in ("quantized", "scale")
        )
        quantized.graph.initializer.remove(weights[f"{matrix}_quantized"])
        tables[table] = _table(quantized, table, codes.T, scales[:, None])
        # ONNX Runtime does this once, when it loads the graph.
        transposes.add("Transpose", tables[table].codes, output=f"{matrix}_quantized", perm=[1, 0])
    transposes.nodes.extend(quantized.graph.node)
    transposes.finish()
    return _finished(quantized, model, tables)


def _nbits8(model: ModelProto) -> ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    prepared, tied = _prepared(model)
    quantizer = MatMulNBitsQuantizer(
        prepared,
        bits=8,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=_INT8_ACTIVATIONS,
        nodes_to_exclude=_not_linear(prepared),
    )
    quantizer.process()
    quantized = quantizer.model.model

    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    tables = {}
    for table, matrix in tied.items():
        codes = weights[f"{matrix}_Q8"]
        # MatMulNBits wants the same numbers in another shape.
        scales = numpy_helper.to_array(weights[f"{matrix}_scales"]).reshape(*codes.dims[:2], 1)
        tables[table] = _Table(codes.name, _store(quantized, f"{table}.scales", scales), codes.dims[1])
    return _finished(quantized, model, tables)


_FORMS: dict[str, Callable[[ModelProto], ModelProto]] = {"fp32": _fp32, "int8": _int8, "nbits8": _nbits8}

BASE_FORMS = tuple(_FORMS)
"""Names of the forms."""


@dataclass(frozen=True)
class _Table:
    """An embedding's initializers: codes (rows, width) with a scale (rows, 1), or, in nbits8's layout, codes
    (rows, blocks, BLOCK) with scales (rows, blocks, 1), the last block padded.
    """

    codes: str
    scales: str
    blocks: int = 0


def _prepared(model: ModelProto) -> tuple[ModelProto, dict[str, str]]:
    """A copy in which layers are MatMuls, which is what quantizers take.

    Also the embeddings that a layer uses too (tied): name of the embedding to that of the layer's matrix.
    """
    prepared = copy_model(model)
    graph = GraphBuilder(prepared.graph)
    weights = {tensor.name: tensor for tensor in prepared.graph.initializer}
    transposed: dict[str, str] = {}
    for node in prepared.graph.node:
        weight = weights.get(weight_name(node) or "")
        if node.op_type != "Gemm" or weight is None or not _is_plain(node):
            graph.nodes.append(node)
            continue
        matrix = weight.name
        if is_transposed(node):
            if matrix not in transposed:
                transposed[matrix] = graph.constant(numpy_helper.to_array(weight).T)
            matrix = transposed[matrix]
        x, y, bias = node.input[0], node.output[0], list(node.input[2:])
        product = graph.add("MatMul", x, matrix, output="" if bias else y)
        if bias:
            graph.add("Add", product, *bias, output=y)
    graph.finish()
    used = {name for node in prepared.graph.node for name in node.input}
    _keep_weights(prepared, used)
    layers = {node.input[1] for node in prepared.graph.node if _is_linear(node, set(transposed.values()))}
    tables = {table.name for _, table in _lookups(prepared)}
    return prepared, {t: m for t, m in transposed.items() if t in tables and m in layers}


def _is_plain(node: NodeProto) -> bool:
    """Whether a Gemm is x @ W + b."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (values.get("alpha", 1.0), values.get("beta", 1.0), values.get("transA", 0)) == (1.0, 1.0, 0)


def _is_linear(node: NodeProto, matrices: set[str]) -> bool:
    return node.op_type == "MatMul" and node.input[1] in matrices and node.input[0] != FEATURES


def _not_linear(model: ModelProto) -> list[str]:
    """Names of the products that are no layer of the base."""
    matrices = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    products = (node for node in model.graph.node if node.op_type == "MatMul")
    return [node.name for node in products if not _is_linear(node, matrices)]


def _lookups(model: ModelProto) -> list[tuple[NodeProto, TensorProto]]:
    """Nodes that take rows from an embedding of some size, with the embedding."""
    tables = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2
        and tensor.data_type == TensorProto.FLOAT
        and np.prod(tensor.dims) >= _SMALL_TABLE
    }
    gathers = (node for node in model.graph.node if node.op_type == "Gather")
    axis_0 = (node for node in gathers if not any(a.name == "axis" and a.i for a in node.attribute))
    return [(node, tables[node.input[0]]) for node in axis_0 if node.input[0] in tables]


def _finished(quantized: ModelProto, original: ModelProto, tables: dict[str, _Table]) -> ModelProto:
    """With int8 embeddings, or those in `tables`, and without what the quantizers leave behind."""
    lookups = {node.output[0]: table for node, table in _lookups(quantized)}
    graph = GraphBuilder(quantized.graph)
    for node in quantized.graph.node:
        if (table := lookups.get(node.output[0])) is None:
            graph.nodes.append(node)
            continue
        if table.name not in tables:
            tables[table.name] = _table(quantized, table.name, *_row_codes(numpy_helper.to_array(table)))
        _look_up(graph, tables[table.name], node.input[1], table.dims[1], node.output[0])
    graph.finish()
    used = {name for node in quantized.graph.node for name in node.input}
    _keep_weights(quantized, used | {output.name for output in quantized.graph.output})
    computed = {name for node in quantized.graph.node for name in node.output}
    for infos, kept in (
        (quantized.metadata_props, list(original.metadata_props)),
        (quantized.graph.value_info, [i for i in original.graph.value_info if i.name in computed]),
    ):
        del infos[:]
        infos.extend(kept)
    return quantized


def _table(model: ModelProto, name: str, codes: Array, scales: Array) -> _Table:
    return _Table(_store(model, f"{name}.codes", codes), _store(model, f"{name}.scales", scales))


def _store(model: ModelProto, name: str, array: Array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _row_codes(table: Array) -> tuple[Array, Array]:
    """int8 codes and float32 scales (rows, 1): codes · scales is the table, up to half a scale."""
    scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 1
    return np.clip(np.rint(table / scales), -127, 127).astype(np.int8), scales


def _look_up(graph: GraphBuilder, table: _Table, indices: str, width: int, output: str) -> None:
    """Decodes the rows that are asked for, no others."""
    numbers = graph.add("Cast", graph.add("Gather", table.codes, indices), to=TensorProto.FLOAT)
    scales = graph.add("Gather", table.scales, indices)
    if not table.blocks:
        graph.add("Mul", numbers, scales, output=output)
        return
    values = graph.add("Mul", graph.add("Sub", numbers, graph.constant(np.array(128, np.float32))), scales)
    shape = graph.add("Concat", graph.add("Shape", indices), graph.constant([table.blocks * BLOCK]), axis=0)
    rows = graph.add("Reshape", values, shape)
    graph.add(
        "Slice", rows, graph.constant([0]), graph.constant([width]), graph.constant([-1]), output=output
    )


def _keep_weights(model: ModelProto, names: set[str]) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


@contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Leave the root logger as it was: the library sets it up, even when it is imported."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # With a handler there is nothing to set up.
    root.addHandler(logging.NullHandler())
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
