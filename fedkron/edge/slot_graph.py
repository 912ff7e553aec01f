"""Graph surgery: a graph gets inputs for an adapter, and each layer its adapter beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

from fedkron.edge.graph import (
    FEATURES,
    LOGITS,
    GraphBuilder,
    ModelProto,
    TensorProto,
    adapted_nodes,
    float_output,
    helper,
    layer_path,
)
from fedkron.edge.slot import HEAD, SLOT, SlotLayout, layer_sizes
from fedkron.edge.slot_reading import SlotMatrices, read_slot
from fedkron.layout import AdapterLayout

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}


def insert_slot(model: ModelProto, layout: AdapterLayout, encoding: str) -> SlotLayout:
    """Give the graph inputs for an adapter, (rows, size) each, and every layer of the layout its adapter.

    `rows` is 1, one adapter for the whole batch, or the batch, an adapter for each row
    (`SlotLayout.per_row`). Returns what is where in the slot. Raises `BundleError` for a layer that the graph
    lacks or a kind that does not run in a graph, `ContractError` for a layer of another size, `ConfigError`
    for an unknown encoding.

    With X = x viewed as (…·d_A1, d_B1), a layer adds right·(mixing·(left·X)): ΔW is never made. Layers that
    read the same tensor share the view and the first product.
    """
    adapted_nodes(model, layout)
    slot = SlotLayout(layout, _groups(model, layout), encoding, _all_read_rows(model, layout))
    graph = GraphBuilder(model.graph)
    matrices = read_slot(graph, slot)
    leading = _LeadingAxes(graph, model)
    rows = graph.once("Shape", SLOT, start=0, end=1)
    group_of = {path: group for group in slot.groups for path in group}
    mixed: dict[tuple[str, int], str] = {}
    calls: Counter[str] = Counter()

    for node in model.graph.node:
        path = layer_path(node)
        if path not in group_of:
            graph.nodes.append(node)
            continue
        call, x, y = calls[path], node.input[0], node.output[0]
        calls[path] += 1
        if (path, call) not in mixed:
            group = group_of[path]
            view = graph.once("Concat", rows, graph.constant([-1, slot.layers[path].left]), axis=0)
            products = _mixed(graph, slot, matrices, group, graph.add("Reshape", x, view))
            mixed |= {(member, call): product for member, product in zip(group, products, strict=True)}
        change = graph.add("MatMul", mixed.pop((path, call)), matrices.right[path])
        node.output[0] = f"{y}.base"
        graph.nodes.append(node)
        shape = leading.with_last_axis(y, slot.layers[path].width)
        graph.add("Add", node.output[0], graph.add("Reshape", change, shape), output=y)
    graph.finish()
    for name, (size, dtype) in slot.arrays.items():
        axes: list[str | int] = ["rows" if slot.per_row else 1, size]
        model.graph.input.append(helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], axes))
    return slot


def insert_head(model: ModelProto, hidden: int) -> None:
    """Give the graph an input `head` and, in place of its features, the output `logits`.

    `head` is float32 (rows, outputs, hidden + 1): per output its weights and its bias; `logits` is
    (batch, outputs). A base has no head of its own: a head of zeros gives zeros.
    """
    graph = GraphBuilder(model.graph)
    graph.nodes.extend(model.graph.node)
    weight, bias = graph.split(HEAD, [hidden, 1], axis=2)
    rows = graph.add("Shape", HEAD, start=0, end=1)
    x = graph.add("Reshape", FEATURES, graph.add("Concat", rows, graph.constant([-1, hidden]), axis=0))
    product = graph.add("MatMul", x, graph.add("Transpose", weight, perm=[0, 2, 1]))
    scores = graph.add("Add", product, graph.add("Transpose", bias, perm=[0, 2, 1]))
    outputs = graph.add("Shape", HEAD, start=1, end=2)
    shape = graph.add("Concat", graph.constant([-1]), outputs, axis=0)
    graph.add("Reshape", scores, shape, output=LOGITS)
    graph.finish()
    axes: list[str | int] = ["head_rows", "outputs", hidden + 1]
    model.graph.input.append(helper.make_tensor_value_info(HEAD, TensorProto.FLOAT, axes))
    float_output(model, LOGITS, ["batch", "outputs"])


def _groups(model: ModelProto, layout: AdapterLayout) -> tuple[tuple[str, ...], ...]:
    """Layers that read the same tensor whenever they are called, and have the same sizes but d_out."""
    sizes = {module.path: layer_sizes(module) for module in layout.modules}
    inputs: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.node:
        if (path := layer_path(node)) in sizes:
            inputs[path].append(node.input[0])
    groups: dict[object, list[str]] = defaultdict(list)
    for path, read in inputs.items():
        size = sizes[path]
        groups[(*read, size.kind, size.rank, size.left, size.mixing)].append(path)
    return tuple(map(tuple, groups.values()))


def _all_read_rows(model: ModelProto, layout: AdapterLayout) -> bool:
    """Whether the first axis of all that the layers read goes with the batch, alone or times the tokens."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    first = {i.name: i.type.tensor_type.shape.dim[:1] for i in (*model.graph.value_info, *model.graph.input)}
    paths = {module.path for module in layout.modules}
    read = {node.input[0] for node in model.graph.node if layer_path(node) in paths}
    return all(batch in axis.dim_param for name in read for axis in first.get(name, ()))


def _mixed(
    graph: GraphBuilder, slot: SlotLayout, matrices: SlotMatrices, group: Sequence[str], x: str
) -> list[str]:
    """mixing·left·X of each layer in a group, (rows, ·, r) each, for X as (rows, ·, d_left)."""
    size, count = slot.layers[group[0]], len(group)
    d_a1, d_a2 = size.mixing
    product = graph.add("MatMul", x, matrices.left[group[0]])
    if size.kind == "kron_lora":
        tokens = graph.reshape(product, [0, -1, d_a1 * count * size.rank])
        product = graph.add("MatMul", tokens, matrices.mixing[group[0]])
    parts = graph.split(product, [d_a2 * size.rank] * count, axis=2)
    return [graph.reshape(part, [0, -1, size.rank]) for part in parts] if d_a2 > 1 else parts


class _LeadingAxes:
    """Shapes for a layer's output: made once for all outputs whose leading axes have the same names."""

    def __init__(self, graph: GraphBuilder, model: ModelProto) -> None:
        self._graph = graph
        known = chain(model.graph.value_info, model.graph.output)
        self._axes = {info.name: info.type.tensor_type.shape.dim[:-1] for info in known}
        self._shapes: dict[object, str] = {}

    def with_last_axis(self, tensor: str, width: int) -> str:
        """Name of the shape (leading axes of a layer's output, width)."""
        names = tuple(axis.dim_param or axis.dim_value for axis in self._axes.get(tensor, ()))
        key = names if names and all(names) else tensor
        if key not in self._shapes:
            self._shapes[key] = self._graph.add("Shape", f"{tensor}.base", start=0, end=-1)
        return self._graph.once("Concat", self._shapes[key], self._graph.constant([width]), axis=0)
