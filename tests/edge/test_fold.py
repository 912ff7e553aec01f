"""A graph with an adapter folded in computes what torch computes with the adapter attached."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from edge_cases import (
    KRON,
    SPECS,
    Exported,
    W,
    X,
    assert_near,
    b,
    by_hand,
    delta,
    layer,
    random_head,
    random_state,
    random_tokens,
    session_of,
    torch_logits,
    with_adapter,
    with_mixed_adapter,
)
from onnx import ModelProto, helper, numpy_helper

from fedkron.edge.fold import attach_head, fold_adapter
from fedkron.edge.graph import copy_model, fetch_weights, move_weights
from fedkron.errors import BundleError, ContractError
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

LAYOUT = AdapterLayout("base", (KRON,))


def dense_only(transposed: int = 1) -> ModelProto:
    nodes = [layer("dense", "Gemm", "x", "W", "b", output="features", transB=transposed)]
    return by_hand(nodes, {"features": 6}, W=W if transposed else W.T.copy(), b=b)


def initializers(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("kind", [*SPECS, "mixed"])
def test_logits_are_those_of_torch_at_any_batch_and_sequence(exported: Exported, kind: str) -> None:
    model, adapter = (
        with_mixed_adapter(exported.backbone, "base", seed=3)
        if kind == "mixed"
        else with_adapter(exported.backbone, SPECS[kind], "base", seed=3)
    )
    head = random_head("colours", ("red", "green", "blue"), adapter.layout.contract)
    merged = copy_model(exported.graph)
    before = merged.ByteSize()
    fold_adapter(merged, adapter.layout, adapter.state)
    attach_head(merged, head.weight, head.bias)
    # An ordinary model: no input and, but for the head, no node more than the base has.
    assert [entry.name for entry in merged.graph.input] == ["input_ids", "attention_mask"]
    assert len(merged.graph.node) == len(exported.graph.graph.node) + 1
    assert merged.ByteSize() < 1.1 * before
    run = session_of(merged)
    for batch, sequence in [(1, 1), (3, 17), (5, 31)]:
        ids, mask = random_tokens(batch, sequence, exported.backbone.config.pad_token_id)
        actual = run(input_ids=ids.numpy(), attention_mask=mask.numpy())
        assert_near(actual, torch_logits(model, head, ids, mask))


@pytest.mark.parametrize("transposed", [1, 0])
def test_a_weight_becomes_the_sum_with_the_kronecker_product_in_float64(transposed: int) -> None:
    model = dense_only(transposed)
    state = random_state(LAYOUT)
    fold_adapter(model, LAYOUT, state)
    (folded,) = (values for name, values in initializers(model).items() if name != "b")
    expected = W.astype(np.float64) + delta(KRON, state)
    # Rounded once: not even the last bit differs.
    np.testing.assert_array_equal(folded if transposed else folded.T, expected.astype(np.float32))
    assert_near(session_of(model)(x=X), X @ expected.T + b, 1e-6)


def test_others_keep_a_weight_that_they_share() -> None:
    nodes = [
        layer("dense", "Gemm", "x", "W", "b", output="y", transB=1),
        helper.make_node("ReduceSum", ["W"], ["total"], keepdims=0),
        helper.make_node("Add", ["y", "total"], ["features"]),
    ]
    model = by_hand(nodes, {"y": 6, "features": 6}, W=W, b=b)
    state = random_state(LAYOUT)
    fold_adapter(model, LAYOUT, state)
    assert_near(session_of(model)(x=X), X @ (W + delta(KRON, state)).T + b + W.sum())


def test_two_layers_with_one_weight_get_weights_of_their_own() -> None:
    nodes = [layer(path, "Gemm", "x", "W", output=path, transB=1) for path in ("dense", "twin")]
    nodes.append(helper.make_node("Sub", ["dense", "twin"], ["features"]))
    model = by_hand(nodes, {"dense": 6, "twin": 6, "features": 6}, W=W)
    layout = AdapterLayout("base", (KRON, replace(KRON, path="twin")))
    state = random_state(layout)
    fold_adapter(model, layout, state)
    difference = delta(KRON, state) - delta(layout.modules[1], state)
    assert_near(session_of(model)(x=X), X @ difference.T)
    assert "W" not in initializers(model)  # nobody uses it any more


def test_a_layer_that_is_called_in_both_orientations_is_folded_in_both() -> None:
    nodes = [
        layer("dense", "Gemm", "x", "W", output="y", transB=1),
        layer("dense", "MatMul", "x", "Wt", output="z"),
        layer("dense", "Gemm", "x", "W", output="w", transB=1),
        helper.make_node("Sum", ["y", "z", "w"], ["features"]),
    ]
    model = by_hand(nodes, dict.fromkeys("yzw", 6) | {"features": 6}, W=W, Wt=W.T.copy())
    state = random_state(LAYOUT)
    fold_adapter(model, LAYOUT, state)
    assert_near(session_of(model)(x=X), 3 * X @ (W + delta(KRON, state)).T)
    assert len(initializers(model)) == 2  # not a copy for each call


def test_weights_may_lie_in_a_file_and_what_is_not_adapted_stays_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    wide = {"W": (64, 32), "V": (32, 64)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in wide.items()}
    nodes = [
        layer("other", "Gemm", "x", "V0", output="x0", transB=1),
        layer("dense", "Gemm", "x0", "W", output="y", transB=1),
        layer("second", "Gemm", "y", "V", output="features", transB=1),
    ]
    first = rng.standard_normal((32, 4)).astype(np.float32)
    model = by_hand(nodes, {"x0": 32, "y": 64, "features": 32}, V0=first, **weights)
    whole = copy_model(model)
    move_weights(model, tmp_path / "base.bin")
    assert model.ByteSize() < 2000
    bytes_before = (tmp_path / "base.bin").read_bytes()
    factors = (TensorLayout("lora_A", (2, 32)), TensorLayout("lora_B", (64, 2)))
    module = ModuleLayout("dense", "lora", 0.5, (64, 32), factors)
    layout = AdapterLayout("base", (module,))
    state = random_state(layout)
    fold_adapter(model, layout, state, tmp_path)
    assert {t.name for t in model.graph.initializer if not t.external_data} - {"V0"} == {"dense.merged.T"}
    assert (tmp_path / "base.bin").read_bytes() == bytes_before
    move_weights(model, tmp_path / "merged.bin")
    onnx.save_model(model, tmp_path / "merged.onnx")
    assert (tmp_path / "merged.bin").stat().st_size < 1.1 * weights["W"].nbytes
    fetch_weights(model, tmp_path)
    fold_adapter(whole, layout, state)
    np.testing.assert_array_equal(session_of(model)(x=X), session_of(whole)(x=X))
    expected = X @ first.T @ (weights["W"] + delta(module, state)).T @ weights["V"].T
    assert_near(session_of(model)(x=X), expected)


def test_a_head_gives_a_score_per_label() -> None:
    model = dense_only()
    head = random_head("task", ("a", "b", "c"), "contract", hidden=6)
    attach_head(model, head.weight, head.bias)
    assert_near(session_of(model)(x=X), (X @ W.T + b) @ head.weight.T + head.bias, 1e-5)
    (output,) = model.graph.output
    assert [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim] == ["batch", 3]


def test_a_layer_that_is_missing_or_of_another_size_or_kind_is_refused_and_nothing_changes() -> None:
    wrong: list[tuple[ModuleLayout, type[Exception], str]] = [
        (replace(KRON, path="encoder.9"), BundleError, "'encoder.9' is not in the exported graph"),
        (replace(KRON, weight_shape=(12, 4)), ContractError, r"\[6, 4\] in the graph, \[12, 4\]"),
        (replace(KRON, kind="moka"), BundleError, "'dense': a 'moka' adapter.*fedkron convert"),
        (replace(KRON, kind="lora"), BundleError, "'dense': a 'lora' adapter"),
    ]
    for module, error, message in wrong:
        model = dense_only()
        before = model.SerializeToString()
        layout = AdapterLayout("base", (module,))
        with pytest.raises(error, match=message):
            fold_adapter(model, layout, random_state(layout))
        assert model.SerializeToString() == before


def test_an_exported_graph_tells_nothing_about_the_machine_that_made_it(exported: Exported) -> None:
    graph = exported.graph.graph
    keys = {entry.key for node in graph.node for entry in node.metadata_props}
    assert keys == {"fedkron.layer"}
    noted = [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    assert not any(item.doc_string for item in noted)
    assert not exported.graph.metadata_props
    assert b".py" not in exported.graph.SerializeToString()
