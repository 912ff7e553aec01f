"""Graph surgery: an adapter is folded into an exported base, or gets a slot beside its weights.

Both work on what `fedkron.edge.features.export_features` returns, with the `onnx` package alone, and
change the model in place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.edge.slot import factor_size
from fedkron.errors import BundleError, ContractError
from fedkron.layout import AdapterLayout, ModuleLayout, State

try:
    import onnx
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("exporting needs onnx and onnxscript: pip install 'fedkron[export]'") from error

INPUTS = ("input_ids", "attention_mask")
FEATURES, SLOT, LOGITS = "features", "slot", "logits"

LAYER = "fedkron.layer"
"""Metadata key of a linear layer's node; the value is the layer's dotted path in the base."""

Array = npt.NDArray[np.float32]


def weight_name(node: NodeProto) -> str | None:
    """Name of the matrix that a MatMul or Gemm multiplies with from the right, None for other nodes."""
    return node.input[1] if node.op_type in ("MatMul", "Gemm") else None


def fold_adapter(model: ModelProto, layout: AdapterLayout, state: State) -> None:
    """Add every layer's ΔW to its weight: the graph computes the adapted features at the base's cost.

    The sum is taken in float64. A weight that other nodes use too (tied) keeps its old value for them.
    Raises `BundleError` for a layer that the graph lacks, `ContractError` for one of another size.
    """
    layers = _adapted_nodes(model, layout)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for module in layout.modules:
        delta = _delta(module, state)
        for node in layers[module.path]:
            name = f"{module.path}.merged"
            if name not in weights:
                old = numpy_helper.to_array(weights[node.input[1]])
                new = old + (delta if _is_transposed(node) else delta.T)
                weights[name] = numpy_helper.from_array(np.ascontiguousarray(new, np.float32), name)
            node.input[1] = name
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def insert_slot(model: ModelProto, layout: AdapterLayout, hidden: int) -> None:
    """Give the graph an input `slot` for an adapter and a head, and an output `logits`.

    `slot` is a float32 vector: the factors in wire order, then per output of the head a row of `hidden`
    weights and its bias (`fedkron.edge.slot.slot_vector`). Its length is dynamic, so that one graph
    serves heads with different numbers of labels; `logits` is (batch, labels). Raises like `fold_adapter`.

    A layer computes (I⊗B1)·(A⊗I)·(I⊗B2)·x, which is (A⊗B1·B2)·x by the mixed-product rule. A⊗I_r is tiny
    and made for all layers at once: three plain matrix products per layer, none of them batched.
    """
    _adapted_nodes(model, layout)
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in model.graph.value_info}
    graph = _Builder(model.graph)
    slot = _read_slot(graph, layout)
    modules = {module.path: module for module in layout.modules}

    for node in model.graph.node:
        graph.nodes.append(node)
        module = modules.get(_layer(node))
        if module is None:
            continue
        x, y = node.input[0], node.output[0]
        leading = [0] * (ranks[y] - 1)  # to ONNX's Reshape, 0 means: as it was
        node.output[0] = f"{y}.base"
        if module.kind == "kron_lora":
            change = _kron_lora(graph, slot, module, x, leading)
        else:
            change = _lora(graph, slot, module, x)
        graph.add("Add", node.output[0], change, output=y)

    rows = graph.reshape(slot.head, [-1, hidden + 1])
    weight, bias = graph.split(rows, graph.constant([hidden, 1]), 2, axis=1)
    graph.add("Gemm", FEATURES, weight, graph.reshape(bias, [-1]), output=LOGITS, transB=1)
    graph.finish()
    model.graph.input.append(helper.make_tensor_value_info(SLOT, TensorProto.FLOAT, ["slot_size"]))
    _set_output(model, "labels")


def attach_head(model: ModelProto, weight: Array, bias: Array) -> None:
    """Put a head, `weight` (labels, hidden) and `bias` (labels), on the features: output `logits`."""
    graph = _Builder(model.graph)
    graph.nodes.extend(model.graph.node)
    graph.add("Gemm", FEATURES, graph.constant(weight), graph.constant(bias), output=LOGITS, transB=1)
    graph.finish()
    _set_output(model, len(bias))


def copy_model(model: ModelProto) -> ModelProto:
    """An independent copy, weights included as far as they are in the model."""
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def set_properties(model: ModelProto, **properties: str) -> None:
    """Note `fedkron.<name>` in the model's metadata, for hosts that load a graph without its manifest."""
    helper.set_model_props(model, {f"fedkron.{name}": value for name, value in properties.items()})


def save_model(model: ModelProto, path: Path, weights: str = "") -> None:
    """Write the graph to `path`; with `weights`, its large tensors move to that file beside it.

    They are gone from `model` then, which refers to the file from there on.
    """
    onnx.save_model(
        model, path, save_as_external_data=bool(weights), location=weights or None, size_threshold=1024
    )
    if weights:
        # onnx makes this file private to its owner; give it what open() would have given.
        path.with_name(weights).chmod(0o644)


class _Builder:
    """Collects nodes in order, under fresh names; `finish` puts them into the graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self._fresh = 0

    def name(self) -> str:
        self._fresh += 1
        return f"fedkron_{self._fresh}"

    def constant(self, values: Array | list[int]) -> str:
        array = np.array(values, np.int64) if isinstance(values, list) else np.ascontiguousarray(values)
        name = self.name()
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401
        output = output or self.name()
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def reshape(self, tensor: str, shape: list[int]) -> str:
        return self.add("Reshape", tensor, self.constant(shape))

    def transposed(self, vector: str, shape: tuple[int, int]) -> str:
        """A vector as a matrix of this shape, transposed (ONNX Runtime fuses it into the product)."""
        return self.add("Transpose", self.reshape(vector, list(shape)), perm=[1, 0])

    def split(self, tensor: str, sizes: str, count: int, axis: int) -> list[str]:
        outputs = [self.name() for _ in range(count)]
        self.nodes.append(helper.make_node("Split", [tensor, sizes], outputs, name=outputs[0], axis=axis))
        return outputs

    def finish(self) -> None:
        nodes = list(self.nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)


@dataclass(frozen=True)
class _Slot:
    """Names of what lies in the slot, as vectors: factors by tensor name, the head; and made from them,
    by path, (α/r) · (A⊗I_r)ᵀ, (d_A1·r, d_A2·r), of each Kron-LoRA layer.
    """

    factors: dict[str, str]
    head: str
    mixing: dict[str, str]


def _read_slot(graph: _Builder, layout: AdapterLayout) -> _Slot:
    factors = [tensor for tensor in layout.tensors if tensor not in layout.dense]
    total = graph.add("Shape", SLOT)
    remaining = graph.add("Sub", total, graph.constant([factor_size(layout)]))
    sizes = graph.add("Concat", graph.constant([f.size for f in factors]), remaining, axis=0)
    *vectors, head = graph.split(SLOT, sizes, len(factors) + 1, axis=0)
    names = (factor.name for factor in factors)
    return _Slot(dict(zip(names, vectors, strict=True)), head, _mixing_matrices(graph, layout))


def _mixing_matrices(graph: _Builder, layout: AdapterLayout) -> dict[str, str]:
    starts, start = {}, 0
    for tensor in layout.tensors:
        starts[tensor.name] = start
        start += tensor.size
    groups: dict[tuple[int, int, int], list[ModuleLayout]] = defaultdict(list)
    for module in layout.modules:
        if module.kind == "kron_lora":
            (d_a2, d_a1), (rank, _) = _shape(module, "A"), _shape(module, "B2")
            groups[d_a2, d_a1, rank].append(module)

    matrices: dict[str, str] = {}
    for (d_a2, d_a1, rank), modules in groups.items():
        # Where each Aᵀ lies in the slot: one Gather fetches them all.
        within = np.arange(d_a2 * d_a1).reshape(d_a2, d_a1).T.reshape(1, d_a1, 1, d_a2, 1)
        offsets = np.array([starts[module.tensor_name("A")] for module in modules])
        A = graph.add("Gather", SLOT, graph.constant(within + offsets.reshape(-1, 1, 1, 1, 1)))
        scales = np.array([module.scale for module in modules], np.float32).reshape(-1, 1, 1, 1, 1)
        identity = np.eye(rank, dtype=np.float32).reshape(1, 1, rank, 1, rank)
        stacked = graph.reshape(graph.add("Mul", A, graph.constant(scales * identity)), [-1, d_a2 * rank])
        rows = graph.constant([d_a1 * rank] * len(modules))
        parts = graph.split(stacked, rows, len(modules), axis=0)
        matrices |= zip((module.path for module in modules), parts, strict=True)
    return matrices


def _kron_lora(graph: _Builder, slot: _Slot, module: ModuleLayout, x: str, leading: list[int]) -> str:
    (d_a2, d_a1), B1, B2 = _shape(module, "A"), _shape(module, "B1"), _shape(module, "B2")
    d_b2, rank = B1
    B1_transposed = graph.transposed(slot.factors[module.tensor_name("B1")], B1)
    B2_transposed = graph.transposed(slot.factors[module.tensor_name("B2")], B2)
    U = graph.add("MatMul", graph.reshape(x, [*leading, d_a1, B2[1]]), B2_transposed)
    V = graph.add("MatMul", graph.reshape(U, [*leading, d_a1 * rank]), slot.mixing[module.path])
    Y = graph.add("MatMul", graph.reshape(V, [*leading, d_a2, rank]), B1_transposed)
    return graph.reshape(Y, [*leading, d_a2 * d_b2])


def _lora(graph: _Builder, slot: _Slot, module: ModuleLayout, x: str) -> str:
    lora_A, lora_B = (
        graph.transposed(slot.factors[module.tensor_name(name)], _shape(module, name))
        for name in ("lora_A", "lora_B")
    )
    scale = graph.constant(np.array(module.scale, np.float32))
    return graph.add("MatMul", graph.add("Mul", graph.add("MatMul", x, lora_A), scale), lora_B)


def _delta(module: ModuleLayout, state: State) -> npt.NDArray[np.floating]:
    """ΔW, (d_out, d_in)."""
    factor = {f.name: state[module.tensor_name(f.name)].astype(np.float64) for f in module.factors}
    if module.kind == "kron_lora":
        return module.scale * np.kron(factor["A"], factor["B1"] @ factor["B2"])
    return module.scale * (factor["lora_B"] @ factor["lora_A"])


def _adapted_nodes(model: ModelProto, layout: AdapterLayout) -> Mapping[str, list[NodeProto]]:
    """The nodes of every layer in the layout, checked; a layer that is called repeatedly has several."""
    layers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        layers[_layer(node)].append(node)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for module in layout.modules:
        product = _product_shape(module)
        if module.path not in layers:
            raise BundleError(
                f"layer {module.path!r} is not in the exported graph (the exporter may have folded it away): "
                "train an adapter whose targets leave it out"
            )
        for node in layers[module.path]:
            shape = shapes[node.input[1]]
            size = shape if _is_transposed(node) else shape[::-1]
            if size != product:
                raise ContractError(
                    f"layer {module.path!r} is {list(size)} in the graph, {list(product)} in the adapter"
                )
    return layers


def _product_shape(module: ModuleLayout) -> tuple[int, int]:
    """(d_out, d_in) of ΔW, as its factors have it."""
    match module.kind, {factor.name: factor.shape for factor in module.factors}:
        case "kron_lora", {"A": (d_a2, d_a1), "B1": (d_b2, rank), "B2": (rows, d_b1)} if rank == rows:
            return d_a2 * d_b2, d_a1 * d_b1
        case "lora", {"lora_A": (rank, d_in), "lora_B": (d_out, columns)} if rank == columns:
            return d_out, d_in
        case kind, shapes:
            raise BundleError(
                f"layer {module.path!r}: a {kind!r} adapter with factors {shapes} does not run in an "
                "ONNX graph (kron_lora and lora do): convert it, with fedkron convert --kind lora"
            )


def _layer(node: NodeProto) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == LAYER), "")


def _is_transposed(node: NodeProto) -> bool:
    """Whether the weight is stored as (d_out, d_in), as in torch, rather than (d_in, d_out)."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _shape(module: ModuleLayout, factor: str) -> tuple[int, int]:
    rows, columns = next(f.shape for f in module.factors if f.name == factor)
    return rows, columns


def _set_output(model: ModelProto, labels: int | str) -> None:
    logits: ValueInfoProto = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", labels])
    del model.graph.output[:]
    model.graph.output.append(logits)
