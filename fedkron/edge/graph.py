"""ONNX graphs: what their parts are called, how nodes are added to them, how they are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkron.errors import BundleError, ContractError
from fedkron.layout import AdapterLayout

try:
    import onnx
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("exporting needs onnx and onnxscript: pip install 'fedkron[export]'") from error

__all__ = [  # noqa: RUF022 - by what they are
    # What others need of onnx they get from here, and with it the advice above.
    "GraphProto",
    "ModelProto",
    "NodeProto",
    "TensorProto",
    "helper",
    "numpy_helper",
    "onnx",
    # Names
    "EXTERNAL_SIZE",
    "FEATURES",
    "LAYER",
    "LOGITS",
    # Functions
    "GraphBuilder",
    "adapted_nodes",
    "copy_model",
    "fetch_weights",
    "float_output",
    "is_transposed",
    "layer_path",
    "move_weights",
    "save_model",
    "set_properties",
    "weight_array",
    "weight_name",
]

FEATURES, LOGITS = "features", "logits"

LAYER = "fedkron.layer"
"""Metadata key of a linear layer's node; the value is the layer's dotted path in the base."""

EXTERNAL_SIZE = 1024
"""Bytes from which a tensor is stored beside the graph rather than in it."""


class GraphBuilder:
    """Collects nodes in order, under fresh names; `finish` puts them into the graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self._known: dict[object, str] = {}
        self._taken = {tensor.name for tensor in graph.initializer}
        self._taken.update(name for node in graph.node for name in (node.name, *node.output))

    def name(self) -> str:
        """A name that nothing in the graph has."""
        name = f"fedkron_{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def constant(self, values: npt.NDArray[Any] | list[int]) -> str:
        """An initializer with these values; lists are int64."""
        array = np.array(values, np.int64) if isinstance(values, list) else np.ascontiguousarray(values)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.name()
            self.graph.initializer.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401
        """A node with one output, whose name is returned."""
        # Nodes may be called like tensors, and the base's are: so ours have names of their own.
        name = self.name()
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def once(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """Like `add`, but a node that is there already is used again."""
        key = (operator, inputs, tuple(attributes.items()))
        if key not in self._known:
            self._known[key] = self.add(operator, *inputs, **attributes)
        return self._known[key]

    def reshape(self, tensor: str, shape: list[int]) -> str:
        """0 in `shape` keeps an axis, -1 takes what is left."""
        return self.add("Reshape", tensor, self.constant(shape))

    def split(self, tensor: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Parts of a tensor, which add up to its axis."""
        if len(sizes) == 1:
            return [tensor]
        outputs = [self.name() for _ in sizes]
        lengths = self.constant(list(sizes))
        self.nodes.append(helper.make_node("Split", [tensor, lengths], outputs, name=outputs[0], axis=axis))
        return outputs

    def finish(self) -> None:
        """Make the collected nodes those of the graph."""
        nodes = list(self.nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)


def weight_name(node: NodeProto) -> str | None:
    """Name of the matrix that a MatMul or Gemm multiplies with from the right, None for other nodes."""
    return node.input[1] if node.op_type in ("MatMul", "Gemm") else None


def layer_path(node: NodeProto) -> str:
    """Dotted path of the linear layer whose product this node is, or nothing."""
    return next((entry.value for entry in node.metadata_props if entry.key == LAYER), "")


def is_transposed(node: NodeProto) -> bool:
    """Whether the weight is stored as (d_out, d_in), as in torch, rather than (d_in, d_out)."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def adapted_nodes(model: ModelProto, layout: AdapterLayout) -> Mapping[str, list[NodeProto]]:
    """The nodes of every layer in the layout; a layer that is called repeatedly has several.

    Raises `BundleError` for a layer that the graph lacks, `ContractError` for one of another size.
    """
    layers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        layers[layer_path(node)].append(node)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for module in layout.modules:
        if module.path not in layers:
            raise BundleError(
                f"layer {module.path!r} is not in the exported graph (the exporter may have folded it away): "
                "train an adapter whose targets leave it out"
            )
        for node in layers[module.path]:
            shape = shapes[node.input[1]]
            size = shape if is_transposed(node) else shape[::-1]
            if size != module.weight_shape:
                raise ContractError(
                    f"layer {module.path!r} is {list(size)} in the graph, {list(module.weight_shape)} in the "
                    "adapter"
                )
    return layers


def copy_model(model: ModelProto) -> ModelProto:
    """An independent copy, weights included as far as they are in the model."""
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def float_output(model: ModelProto, name: str, shape: list[int | str]) -> None:
    """Make this float32 tensor the graph's only output."""
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def set_properties(model: ModelProto, **properties: str) -> None:
    """Note `fedkron.<name>` in the model's metadata, for hosts that load a graph without its manifest."""
    helper.set_model_props(model, {f"fedkron.{name}": value for name, value in properties.items()})


def save_model(model: ModelProto, path: Path) -> None:
    """Write the graph to `path`, with the tensors that are in it."""
    onnx.save_model(model, path)


def move_weights(model: ModelProto, file: Path) -> None:
    """Move the large tensors that are in the model to a file; the model refers to it, by name, from then on.

    What lies in other files already stays there. So a model may be larger than the 2 GB that fit into
    one protobuf message.
    """
    graph = file.with_name(f".{file.name}.onnx")
    onnx.save_model(
        model, graph, save_as_external_data=True, location=file.name, size_threshold=EXTERNAL_SIZE
    )
    graph.unlink()
    # onnx makes this file private to its owner; give it what open() would have given.
    file.chmod(0o644)


def fetch_weights(model: ModelProto, folder: Path) -> None:
    """Inverse of `move_weights`: read all tensors that lie in files of `folder` into the model."""
    onnx.load_external_data_for_model(model, str(folder))


def weight_array(tensor: TensorProto, folder: Path) -> npt.NDArray[Any]:
    """Values of a tensor that is in the model, or in a file of `folder`."""
    return numpy_helper.to_array(tensor, str(folder))
