"""A graph with a slot computes what torch computes with the factors that are in the slot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from edge_cases import (
    ENCODINGS,
    HIDDEN,
    KRON,
    SMALLER,
    SPECS,
    Exported,
    V,
    W,
    X,
    another_adapter,
    assert_near,
    b,
    by_hand,
    decoded_state,
    delta,
    head_input,
    layer,
    random_head,
    random_state,
    random_tokens,
    rows_of,
    session_of,
    torch_features,
    with_adapter,
    with_mixed_adapter,
    with_slot,
    with_slot_and_head,
)
from onnx import ModelProto, helper
from torch import nn

from fedkron.edge.graph import FEATURES, copy_model
from fedkron.edge.slot_graph import insert_head, insert_slot
from fedkron.errors import BundleError, ConfigError, ContractError
from fedkron.exchange import AdapterFile
from fedkron.layout import AdapterLayout, ModuleLayout, TensorLayout

OTHER_SIZES = [(1, 1), (1, 5), (3, 17), (5, 31)]
"""Batch and sequence; the exporter's example has 2 and 8."""


def adapter_of(backbone: nn.Module, kind: str, seed: int = 3) -> AdapterFile:
    if kind == "mixed":
        return with_mixed_adapter(backbone, "base", seed)[1]
    return with_adapter(backbone, (SPECS | SMALLER)[kind], "base", seed)[1]


def tokens_of(backbone: nn.Module, batch: int, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_tokens(batch, sequence, backbone.config.pad_token_id)


def named(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def agrees_with_torch(
    exported: Exported, adapter: AdapterFile, encoding: str, sizes: list[tuple[int, int]]
) -> None:
    backbone, layout = exported.backbone, adapter.layout
    run, slot = with_slot_and_head(exported.graph, layout, encoding)
    assert {name: (a.size, a.dtype.name) for name, a in slot.pack(adapter.state).items()} == slot.arrays
    state = decoded_state(slot.pack(adapter.state), slot.groups, layout, encoding)
    head = random_head("colours", ("red", "green", "blue"), layout.contract)
    for batch, sequence in sizes:
        ids, mask = tokens_of(backbone, batch, sequence)
        adapted = torch_features(backbone, layout, state, ids, mask)
        feeds = named(ids, mask) | {"head": head_input(head)}
        actual = run(**feeds, **rows_of(slot.pack(adapter.state)))
        assert_near(actual, adapted @ head.weight.T + head.bias)
        # The adapter matters: the bare base is far away, and it is what an empty slot gives.
        zeros = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in layout.tensors}
        bare = torch_features(backbone, layout, zeros, ids, mask) @ head.weight.T + head.bias
        assert np.abs(bare - actual).max() > 1e-2 * np.abs(actual).max()
        assert_near(run(**feeds, **rows_of(slot.zeros())), bare)


@pytest.mark.parametrize("kind", [*SPECS, *SMALLER, "mixed"])
def test_every_kind_and_size_runs_on_every_family(exported: Exported, kind: str) -> None:
    adapter = adapter_of(exported.backbone, kind)
    agrees_with_torch(exported, adapter, "fp32", OTHER_SIZES)


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
@pytest.mark.parametrize("kind", ["kron_lora", "lora", "mixed"])
def test_a_graph_decodes_what_is_in_its_slot(exported: Exported, kind: str, encoding: str) -> None:
    adapter = adapter_of(exported.backbone, kind)
    agrees_with_torch(exported, adapter, encoding, OTHER_SIZES[2:3])


def test_an_adapter_on_some_layers_only_leaves_the_others_alone(exported: Exported) -> None:
    some = replace(SPECS["kron_lora"], targets=("*attention*", "*attn*"))
    adapter = with_adapter(exported.backbone, some, "base", seed=4)[1]
    everywhere = sum(isinstance(module, nn.Linear) for module in exported.backbone.modules())
    assert 0 < len(adapter.layout.modules) < everywhere
    agrees_with_torch(exported, adapter, "fp32", OTHER_SIZES[3:])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_row_may_have_an_adapter_and_a_head_of_its_own(exported: Exported, encoding: str) -> None:
    adapters = [adapter_of(exported.backbone, "mixed")]
    adapters += [another_adapter(adapters[0], seed) for seed in (1, 2)]
    run, slot = with_slot_and_head(exported.graph, adapters[0].layout, encoding)
    packed = [slot.pack(adapter.state) for adapter in adapters] + [slot.zeros()]
    heads = [random_head(task, ("a", "b"), adapters[0].layout.contract) for task in "wxyz"]
    ids, mask = tokens_of(exported.backbone, 4, 9)
    together = run(**named(ids, mask), **rows_of(*packed), head=head_input(*heads))
    assert len({row.tobytes() for row in together}) == 4
    for row, (arrays, head) in enumerate(zip(packed, heads, strict=True)):
        # Alone in the batch, and as the one adapter of all rows.
        one = slice(row, row + 1)
        alone = run(**named(ids[one], mask[one]), **rows_of(arrays), head=head_input(head))
        assert_near(together[row], alone[0], 1e-5)
        everywhere = run(**named(ids, mask), **rows_of(arrays), head=head_input(head))
        assert_near(together[row], everywhere[row], 1e-5)
    # One adapter for all, heads for each; and the other way round.
    mixed = run(**named(ids, mask), **rows_of(packed[1]), head=head_input(*heads))
    assert_near(mixed[1], together[1], 1e-5)
    mixed = run(**named(ids, mask), **rows_of(*packed), head=head_input(heads[2]))
    assert_near(mixed[2], together[2], 1e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_empty_slot_gives_the_bare_graph_bit_for_bit(exported: Exported, encoding: str) -> None:
    layout = adapter_of(exported.backbone, "mixed").layout
    run, slot = with_slot(exported.graph, layout, encoding)
    ids, mask = tokens_of(exported.backbone, 3, 7)
    bare = session_of(exported.graph)(**named(ids, mask))
    np.testing.assert_array_equal(run(**named(ids, mask), **rows_of(slot.zeros())), bare)


def test_a_head_of_zeros_gives_zeros_and_the_number_of_outputs_is_free(exported: Exported) -> None:
    model = copy_model(exported.graph)
    insert_head(model, HIDDEN)
    run = session_of(model)
    tokens = named(*tokens_of(exported.backbone, 2, 3))
    for outputs in 1, 2, 11:
        head = np.zeros((1, outputs, HIDDEN + 1), np.float32)
        np.testing.assert_array_equal(run(**tokens, head=head), np.zeros((2, outputs)))


# Graphs by hand.

SECOND = {
    "kron_lora": (TensorLayout("A", (2, 3)), TensorLayout("B1", (4, 1)), TensorLayout("B2", (1, 2))),
    "lora": (TensorLayout("lora_A", (2, 6)), TensorLayout("lora_B", (8, 2))),
}


def dense_only(transposed: int = 1) -> ModelProto:
    nodes = [layer("dense", "Gemm", "x", "W", "b", output="features", transB=transposed)]
    return by_hand(nodes, {"features": 6}, W=W if transposed else W.T.copy(), b=b)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("transposed", [1, 0])
def test_a_gemm_gets_its_adapter_in_either_orientation(transposed: int, encoding: str) -> None:
    layout = AdapterLayout("base", (KRON,))
    run, slot = with_slot(dense_only(transposed), layout, encoding)
    packed = [slot.pack(random_state(layout, seed)) for seed in range(len(X))]
    states = [decoded_state(arrays, slot.groups, layout, encoding) for arrays in packed]
    expected = [x @ (W + delta(KRON, state)).T + b for x, state in zip(X, states, strict=True)]
    assert_near(run(x=X, **rows_of(*packed)), np.stack(expected))
    assert_near(run(x=X[:1], **rows_of(packed[0])), expected[0][None])


@pytest.mark.parametrize("kind", SECOND)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_layers_with_factors_of_different_shapes_share_one_slot(kind: str, encoding: str) -> None:
    nodes = [
        layer("dense", "Gemm", "x", "W", "b", output="y", transB=1),
        layer("second", "MatMul", "y", "V", output="features"),
    ]
    graph = by_hand(nodes, {"y": 6, "features": 8}, W=W, b=b, V=V.T.copy())
    second = ModuleLayout("second", kind, 0.5, (8, 6), SECOND[kind])
    # The order of the layout is not that of the graph.
    layout = AdapterLayout("base", (second, KRON))
    run, slot = with_slot(graph, layout, encoding)
    assert slot.groups == (("dense",), ("second",))
    arrays = slot.pack(random_state(layout))
    state = decoded_state(arrays, slot.groups, layout, encoding)
    y = X @ (W + delta(KRON, state)).T + b
    assert_near(run(x=X, **rows_of(arrays)), y @ (V + delta(second, state)).T)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_layers_that_read_one_tensor_are_one_group_even_if_their_outputs_differ(encoding: str) -> None:
    rng = np.random.default_rng(3)
    weights = {path: rng.standard_normal((d, 4)).astype(np.float32) for path, d in (("q", 6), ("k", 9))}
    weights["v"] = rng.standard_normal((6, 4)).astype(np.float32)
    nodes = [layer(path, "Gemm", "x", f"W{path}", output=path, transB=1) for path in weights]
    nodes.append(helper.make_node("Concat", list(weights), ["features"], axis=1))
    widths = {path: len(weight) for path, weight in weights.items()}
    graph = by_hand(nodes, widths | {"features": 21}, **{f"W{p}": w for p, w in weights.items()})
    A, _, B2 = KRON.factors
    modules = {
        "q": replace(KRON, path="q"),
        "k": replace(KRON, path="k", weight_shape=(9, 4), factors=(A, TensorLayout("B1", (3, 5)), B2)),
        "v": replace(KRON, path="v", factors=(TensorLayout("A", (2, 2)), TensorLayout("B1", (3, 5)), B2)),
    }
    layout = AdapterLayout("base", tuple(modules.values()))
    run, slot = with_slot(graph, layout, encoding)
    # q and k differ in d_out alone; v has another d_A2.
    assert slot.groups == (("q", "k"), ("v",))
    packed = [slot.pack(random_state(layout, seed)) for seed in range(len(X))]
    expected = []
    for x, arrays in zip(X, packed, strict=True):
        state = decoded_state(arrays, slot.groups, layout, encoding)
        expected.append(np.concatenate([x @ (weights[p] + delta(modules[p], state)).T for p in weights]))
    assert_near(run(x=X, **rows_of(*packed)), np.stack(expected))


def test_layers_that_read_the_same_tensor_only_once_are_not_one_group() -> None:
    square = {name: np.random.default_rng(i).standard_normal((4, 4)) for i, name in enumerate("PQ")}
    nodes = [
        layer("p", "MatMul", "x", "P", output="p1"),
        layer("q", "MatMul", "x", "Q", output="q1"),
        layer("p", "MatMul", "q1", "P", output="p2"),
        layer("q", "MatMul", "p1", "Q", output="q2"),
        helper.make_node("Add", ["p2", "q2"], ["features"]),
    ]
    weights = {name: weight.astype(np.float32) for name, weight in square.items()}
    graph = by_hand(nodes, dict.fromkeys(["p1", "q1", "p2", "q2", "features"], 4), **weights)
    factors = (TensorLayout("lora_A", (2, 4)), TensorLayout("lora_B", (4, 2)))
    modules = [ModuleLayout(path, "lora", 0.5, (4, 4), factors) for path in "pq"]
    layout = AdapterLayout("base", tuple(modules))
    run, slot = with_slot(graph, layout, "fp32")
    assert slot.groups == (("p",), ("q",))
    state = random_state(layout)
    P, Q = (w + delta(module, state).T for w, module in zip(weights.values(), modules, strict=True))
    assert_near(run(x=X, **rows_of(slot.pack(state))), X @ Q @ P + X @ P @ Q)


@pytest.mark.parametrize("leading", [(), ("a", ""), ("", ""), ("a", "b")])
def test_shapes_need_not_be_known(leading: tuple[str, ...]) -> None:
    """Leading axes may be nameless, and there may be no notes about a tensor at all."""
    nodes = [
        layer("dense", "MatMul", "x", "W", output="y"),
        helper.make_node("Add", ["y", "b"], ["z"]),
        layer("second", "MatMul", "z", "V", output="features"),
    ]
    graph = by_hand(
        nodes,
        {"features": 8} | ({"y": 6} if leading else {}),
        leading=leading or ("a", "b"),
        W=W.T.copy(), b=b, V=V.T.copy(),
    )  # fmt: skip
    second = ModuleLayout("second", "lora", 0.5, (8, 6), SECOND["lora"])
    layout = AdapterLayout("base", (KRON, second))
    run, slot = with_slot(graph, layout, "fp32")
    packed = [slot.pack(random_state(layout, seed)) for seed in (1, 2)]
    x = np.random.default_rng(5).standard_normal((2, 3, 4)).astype(np.float32)
    expected = []
    for row, seed in zip(x, (1, 2), strict=True):
        state = random_state(layout, seed)
        y = row @ (W + delta(KRON, state)).T + b
        expected.append(y @ (V + delta(second, state)).T)
    assert_near(run(x=x, **rows_of(*packed)), np.stack(expected))


@pytest.mark.parametrize("leading", [("a", ""), ("", "")])
def test_outputs_with_nameless_axes_may_have_different_shapes(leading: tuple[str, ...]) -> None:
    nodes = [
        layer("dense", "MatMul", "x", "W", output="y"),
        helper.make_node("ReduceMean", ["y", "axes"], ["z"], keepdims=1),
        layer("second", "MatMul", "z", "V", output="features"),
    ]
    widths = {"y": 6, "features": 8}
    weights = {"W": W.T.copy(), "V": V.T.copy(), "axes": np.array([1])}
    graph = by_hand(nodes, widths, leading=leading, **weights)
    second = ModuleLayout("second", "lora", 0.5, (8, 6), SECOND["lora"])
    layout = AdapterLayout("base", (KRON, second))
    run, slot = with_slot(graph, layout, "fp32")
    state = random_state(layout)
    x = np.random.default_rng(5).standard_normal((2, 3, 4)).astype(np.float32)
    y = x @ (W + delta(KRON, state)).T
    expected = y.mean(1, keepdims=True) @ (V + delta(second, state)).T
    assert_near(run(x=x, **rows_of(slot.pack(state))), expected)


def test_the_graph_says_what_it_takes() -> None:
    layout = AdapterLayout("base", (KRON,))
    for encoding in ENCODINGS:
        model = dense_only()
        slot = insert_slot(model, layout, encoding)
        insert_head(model, 6)
        inputs = {
            entry.name: [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim]
            for entry in model.graph.input
        }
        assert list(inputs) == ["x", *slot.arrays, "head"]
        assert inputs["head"][1:] == ["outputs", 7]
        assert inputs["slot"][0] == "rows"
        assert [output.name for output in model.graph.output] == ["logits"]
        assert FEATURES not in inputs


# What is refused.


def test_a_layer_that_is_not_in_the_graph_is_named() -> None:
    layout = AdapterLayout("base", (KRON, replace(KRON, path="encoder.layer.9.query")))
    with pytest.raises(BundleError, match=r"encoder\.layer\.9\.query.*is not in the exported graph"):
        insert_slot(dense_only(), layout, "fp32")


@pytest.mark.parametrize("transposed", [1, 0])
def test_a_layer_of_another_size_is_refused(transposed: int) -> None:
    module = replace(KRON, weight_shape=(12, 4))
    with pytest.raises(ContractError, match=r"'dense' is \[6, 4\] in the graph, \[12, 4\]"):
        insert_slot(dense_only(transposed), AdapterLayout("base", (module,)), "fp32")


@pytest.mark.parametrize("module", [replace(KRON, kind="moka"), replace(KRON, kind="lora")])
def test_a_kind_that_does_not_run_in_a_graph_is_refused_by_name(module: ModuleLayout) -> None:
    with pytest.raises(BundleError, match=rf"'dense': a '{module.kind}' adapter.*fedkron convert"):
        insert_slot(dense_only(), AdapterLayout("base", (module,)), "fp32")


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int2' is not known: choose fp32, fp16, int8, int4"):
        insert_slot(dense_only(), AdapterLayout("base", (KRON,)), "int2")
