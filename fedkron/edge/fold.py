"""Graph surgery: an adapter is folded into the base, which stays an ordinary graph of the base's cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedkron.edge.graph import (
    FEATURES,
    LOGITS,
    GraphBuilder,
    ModelProto,
    adapted_nodes,
    float_output,
    is_transposed,
    numpy_helper,
    weight_array,
)
from fedkron.edge.slot import layer_sizes
from fedkron.layout import AdapterLayout, ModuleLayout, State

Array = npt.NDArray[np.float32]


def fold_adapter(model: ModelProto, layout: AdapterLayout, state: State, folder: Path = Path()) -> None:
    """Add every layer's ΔW to its weight: the graph computes the adapted features at the base's cost.

    Weights may lie in files of `folder`; the new ones are in the model. The sum is taken in float64. A
    weight that other nodes use too (tied) keeps its old value for them. Raises `BundleError` for a layer that
    the graph lacks or a kind that does not run in a graph, `ContractError` for a layer of another size.
    """
    layers = adapted_nodes(model, layout)
    for module in layout.modules:
        layer_sizes(module)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for module in layout.modules:
        delta = _delta(module, state)
        for node in layers[module.path]:
            transposed = is_transposed(node)
            name = f"{module.path}.merged.{'T' if transposed else 'N'}"
            if name not in weights:
                new = weight_array(weights[node.input[1]], folder) + (delta if transposed else delta.T)
                weights[name] = numpy_helper.from_array(np.ascontiguousarray(new, np.float32), name)
            node.input[1] = name
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def attach_head(model: ModelProto, weight: Array, bias: Array) -> None:
    """Put a head, `weight` (labels, hidden) and `bias` (labels), on the features: output `logits`."""
    graph = GraphBuilder(model.graph)
    graph.nodes.extend(model.graph.node)
    graph.add("Gemm", FEATURES, graph.constant(weight), graph.constant(bias), output=LOGITS, transB=1)
    graph.finish()
    float_output(model, LOGITS, ["batch", len(bias)])


def _delta(module: ModuleLayout, state: State) -> npt.NDArray[np.floating]:
    """ΔW, (d_out, d_in)."""
    factor = {f.name: state[module.tensor_name(f.name)].astype(np.float64) for f in module.factors}
    if module.kind == "kron_lora":
        return module.scale * np.kron(factor["A"], factor["B1"] @ factor["B2"])
    return module.scale * (factor["lora_B"] @ factor["lora_A"])
