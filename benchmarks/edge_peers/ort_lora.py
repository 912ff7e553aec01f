"""Peer: ONNX Runtime's own adapters, LoRA as initializers of a graph that a run may override."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fedkron.edge.graph import FEATURES, LOGITS, copy_model, float_output, layer_path
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import AdapterLayout, ModuleLayout

HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"

Arrays = dict[str, npt.NDArray[np.float32]]


def with_overridable_lora(
    features: ModelProto, layout: AdapterLayout, outputs: int, hidden: int
) -> ModelProto:
    """The base with y + (x·lora_A)·lora_B at every layer of a LoRA layout, and a head, all of them zero.

    An initializer that is an input, too, may be given with a run (ONNX, "overridable initializer"): this
    is what ONNX Runtime's adapters do.
    """
    model = copy_model(features)
    modules = {module.path: module for module in layout.modules}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        module = modules.get(layer_path(node))
        beside = [] if module is None else _lora_nodes(model, module, node)
        model.graph.node.extend([node, *beside])
    _overridable(model, HEAD_WEIGHT, (outputs, hidden))
    _overridable(model, HEAD_BIAS, (outputs,))
    _finish(model, outputs)
    return model


def write_adapter(path: Path, adapter: AdapterFile, head: HeadFile) -> None:
    """Write a plain LoRA and its head as an `.onnx_adapter` file."""
    arrays: Arrays = {HEAD_WEIGHT: head.weight, HEAD_BIAS: head.bias}
    for module in adapter.layout.modules:
        lora_A, lora_B = (adapter.state[module.tensor_name(name)] for name in ("lora_A", "lora_B"))
        arrays[f"{module.path}.lora_A"] = np.ascontiguousarray(lora_A.T)
        arrays[f"{module.path}.lora_B"] = np.ascontiguousarray(module.scale * lora_B.T, np.float32)
    # The format keeps addresses only: the values must live until the file is written.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters(values)
    file.export_adapter(str(path))


def active(path: Path) -> tuple[onnxruntime.LoraAdapter, onnxruntime.RunOptions]:
    """An adapter file, and the options of a run that uses it; the adapter must live as long as they do."""
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(path))
    return adapter, activated(adapter)


def activated(adapter: onnxruntime.LoraAdapter) -> onnxruntime.RunOptions:
    """Options of a run that uses this adapter."""
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return options


def _lora_nodes(model: ModelProto, module: ModuleLayout, node: NodeProto) -> list[NodeProto]:
    """Nodes that add LoRA's change to what `node` gives, which gets another name."""
    d_out, d_in = module.weight_shape
    rank = module.factors[0].shape[0]
    A = _overridable(model, f"{module.path}.lora_A", (d_in, rank))
    B = _overridable(model, f"{module.path}.lora_B", (rank, d_out))
    x, y = node.input[0], node.output[0]
    node.output[0] = f"{y}.base"
    return [
        helper.make_node("MatMul", [x, A], [f"{y}.down"]),
        helper.make_node("MatMul", [f"{y}.down", B], [f"{y}.change"]),
        helper.make_node("Add", [node.output[0], f"{y}.change"], [y]),
    ]


def _overridable(model: ModelProto, name: str, shape: tuple[int, ...]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return name


def _finish(model: ModelProto, outputs: int) -> None:
    head = helper.make_node("Gemm", [FEATURES, HEAD_WEIGHT, HEAD_BIAS], [LOGITS], transB=1)
    model.graph.node.append(head)
    float_output(model, LOGITS, ["batch", outputs])
