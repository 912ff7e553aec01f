"""Graph surgery: merged and unmerged graphs compute what torch computes with the adapter attached."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edge_cases import HIDDEN, SPECS, Exported, random_head, random_tokens, torch_logits, with_adapter
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from fedkron.edge.graph import LAYER, attach_head, copy_model, fold_adapter, insert_slot
from fedkron.edge.slot import slot_vector
from fedkron.errors import BundleError, ContractError
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import AdapterLayout, ModuleLayout, State, TensorLayout

OTHER_SIZES = [(1, 1), (1, 5), (3, 17), (5, 31)]
"""Batch and sequence; the exporter's example has 2 and 8."""


def run(model: ModelProto, **inputs: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, inputs)[0]


def merged(graph: ModelProto, adapter: AdapterFile, head: HeadFile) -> ModelProto:
    model = copy_model(graph)
    fold_adapter(model, adapter.layout, adapter.state)
    attach_head(model, head.weight, head.bias)
    return model


def unmerged(graph: ModelProto, layout: AdapterLayout) -> ModelProto:
    model = copy_model(graph)
    insert_slot(model, layout, HIDDEN)
    return model


@pytest.mark.parametrize("kind", SPECS)
def test_both_forms_give_the_logits_of_torch_at_any_batch_and_sequence(exported: Exported, kind: str) -> None:
    model, adapter = with_adapter(exported.backbone, SPECS[kind], "base", seed=3)
    assert {module.kind for module in adapter.layout.modules} == {kind}
    head = random_head("colours", ("red", "green", "blue"), adapter.layout.contract)
    graphs = merged(exported.graph, adapter, head), unmerged(exported.graph, adapter.layout)
    for batch, sequence in OTHER_SIZES:
        ids, mask = random_tokens(batch, sequence, exported.backbone.config.pad_token_id)
        expected = torch_logits(model, head, ids, mask)
        tokens = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        slot = slot_vector(adapter, head)
        for actual in run(graphs[0], **tokens), run(graphs[1], **tokens, slot=slot):
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
        # The adapter matters: the bare base is far away.
        bare = torch_logits(exported.backbone, head, ids, mask)
        assert np.abs(bare - expected).max() > 1e-2 * np.abs(expected).max()


def test_an_adapter_on_some_layers_only_leaves_the_others_alone(exported: Exported) -> None:
    some = replace(SPECS["kron_lora"], targets=("*attention*", "*attn*"))
    model, adapter = with_adapter(exported.backbone, some, "base", seed=4)
    everywhere = sum(isinstance(module, torch.nn.Linear) for module in exported.backbone.modules())
    assert 0 < len(adapter.layout.modules) < everywhere
    head = random_head("spam", ("ham", "spam"), adapter.layout.contract)
    ids, mask = random_tokens(2, 9, exported.backbone.config.pad_token_id)
    tokens = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    expected = torch_logits(model, head, ids, mask)
    for actual in (
        run(merged(exported.graph, adapter, head), **tokens),
        run(unmerged(exported.graph, adapter.layout), **tokens, slot=slot_vector(adapter, head)),
    ):
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_an_exported_graph_tells_nothing_about_the_machine_that_made_it(exported: Exported) -> None:
    graph = exported.graph.graph
    keys = {entry.key for node in graph.node for entry in node.metadata_props}
    assert keys == {LAYER}
    noted = [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    assert not any(item.doc_string for item in noted)
    assert not exported.graph.metadata_props
    assert b".py" not in exported.graph.SerializeToString()


def test_a_layer_that_is_not_in_the_graph_is_named(exported: Exported) -> None:
    _, adapter = with_adapter(exported.backbone, SPECS["lora"], "base", seed=5)
    stray = replace(adapter.layout.modules[0], path="encoder.layer.9.query")
    layout = replace(adapter.layout, modules=(*adapter.layout.modules, stray))
    with pytest.raises(BundleError, match=r"encoder\.layer\.9\.query"):
        insert_slot(copy_model(exported.graph), layout, HIDDEN)
    with pytest.raises(BundleError, match=r"encoder\.layer\.9\.query"):
        fold_adapter(copy_model(exported.graph), layout, adapter.state)


# Graphs by hand: x (batch, 4), a layer "dense" with d_out = 6, perhaps a layer "second" with d_out = 8.

RNG = np.random.default_rng(0)
W, b, V = (RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (6,), (8, 6)))
KRON = ModuleLayout(
    "dense",
    "kron_lora",
    2.5,
    (6, 4),
    (TensorLayout("A", (3, 2)), TensorLayout("B1", (2, 5)), TensorLayout("B2", (5, 2))),
)


def layer(path: str, operator: str, *inputs: str, output: str, **attributes: int) -> NodeProto:
    node = helper.make_node(operator, inputs, [output], **attributes)
    node.metadata_props.add(key=LAYER, value=path)
    return node


def by_hand(nodes: list[NodeProto], widths: dict[str, int], **weights: np.ndarray) -> ModelProto:
    def values(name: str, width: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])

    graph = helper.make_graph(
        nodes,
        "by-hand",
        [values("x", 4)],
        [values("features", widths["features"])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
        value_info=[values(name, width) for name, width in widths.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def random_state(layout: AdapterLayout) -> State:
    rng = np.random.default_rng(1)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in layout.tensors}


def kron_delta(state: State, path: str, scale: float) -> np.ndarray:
    return scale * np.kron(state[f"{path}.A"], state[f"{path}.B1"] @ state[f"{path}.B2"])


@pytest.mark.parametrize("transposed", [True, False])
def test_a_gemm_gets_its_adapter_in_either_orientation_and_others_keep_its_weight(transposed: bool) -> None:
    nodes = [
        layer("dense", "Gemm", "x", "W", "b", output="y", transB=int(transposed)),
        helper.make_node("ReduceSum", ["W"], ["total"], keepdims=0),
        helper.make_node("Add", ["y", "total"], ["features"]),
    ]
    graph = by_hand(nodes, {"y": 6, "features": 6}, W=W if transposed else W.T.copy(), b=b)
    layout = AdapterLayout("base", (KRON,))
    adapter = AdapterFile(random_state(layout), layout, "base")
    head = random_head("task", ("a", "b"), layout.contract, hidden=6)
    x = RNG.standard_normal((7, 4)).astype(np.float32)
    features = x @ (W + kron_delta(adapter.state, "dense", 2.5)).T + b + W.sum()
    expected = features @ head.weight.T + head.bias

    with_slot = copy_model(graph)
    insert_slot(with_slot, layout, hidden=6)
    for actual in (
        run(with_slot, x=x, slot=slot_vector(adapter, head)),
        run(merged(graph, adapter, head), x=x),
    ):
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["kron_lora", "lora"])
def test_layers_with_factors_of_different_shapes_share_one_slot(kind: str) -> None:
    nodes = [
        layer("dense", "Gemm", "x", "W", "b", output="y", transB=1),
        layer("second", "MatMul", "y", "V", output="features"),
    ]
    graph = by_hand(nodes, {"y": 6, "features": 8}, W=W, b=b, V=V.T.copy())
    factors = {
        "kron_lora": (TensorLayout("A", (2, 3)), TensorLayout("B1", (4, 1)), TensorLayout("B2", (1, 2))),
        "lora": (TensorLayout("lora_A", (2, 6)), TensorLayout("lora_B", (8, 2))),
    }
    layout = AdapterLayout("base", (KRON, ModuleLayout("second", kind, 0.5, (8, 6), factors[kind])))
    state = random_state(layout)
    head = random_head("task", ("a", "b"), layout.contract, hidden=8)
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    y = x @ (W + kron_delta(state, "dense", 2.5)).T + b
    delta = (
        kron_delta(state, "second", 0.5)
        if kind == "kron_lora"
        else 0.5 * state["second.lora_B"] @ state["second.lora_A"]
    )
    expected = y @ (V + delta).T @ head.weight.T + head.bias

    insert_slot(graph, layout, hidden=8)
    actual = run(graph, x=x, slot=slot_vector(AdapterFile(state, layout, "base"), head))
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_layer_of_another_size_is_refused() -> None:
    graph = by_hand(
        [layer("dense", "Gemm", "x", "W", "b", output="features", transB=1)], {"features": 6}, W=W, b=b
    )
    factors = (TensorLayout("A", (3, 2)), TensorLayout("B1", (4, 5)), TensorLayout("B2", (5, 2)))
    with pytest.raises(ContractError, match=r"\[6, 4\] in the graph, \[12, 4\]"):
        insert_slot(graph, AdapterLayout("base", (replace(KRON, factors=factors),)), hidden=6)


@pytest.mark.parametrize("module", [replace(KRON, kind="moka"), replace(KRON, kind="lora")])
def test_a_kind_that_does_not_run_in_a_graph_is_refused_by_name(module: ModuleLayout) -> None:
    graph = by_hand(
        [layer("dense", "Gemm", "x", "W", "b", output="features", transB=1)], {"features": 6}, W=W, b=b
    )
    layout = AdapterLayout("base", (module,))
    for refused in (
        lambda: insert_slot(graph, layout, hidden=6),
        lambda: fold_adapter(graph, layout, random_state(layout)),
    ):
        with pytest.raises(BundleError, match=f"'dense': a '{module.kind}' adapter.*fedkron convert"):
            refused()
