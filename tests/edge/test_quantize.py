"""8-bit forms of a base, against numpy and against the same graph in float32."""

import logging
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edge_cases import SPECS, random_tokens, with_adapter
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from fedkron.edge.decoder import export_decoder
from fedkron.edge.features import export_features
from fedkron.edge.fold import attach_head
from fedkron.edge.graph import FEATURES, copy_model, layer_path
from fedkron.edge.quantize import BASE_FORMS, BLOCK, quantize
from fedkron.edge.slot_graph import insert_head, insert_slot
from fedkron.errors import ConfigError

IN_8_BITS = tuple(form for form in BASE_FORMS if form != "fp32")
HIDDEN, VOCABULARY = 128, 400
SIZE = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZE, vocab_size=VOCABULARY, max_position_embeddings=70),
    "distilbert": DistilBertConfig(
        dim=HIDDEN, n_layers=1, n_heads=4, hidden_dim=256, vocab_size=VOCABULARY, max_position_embeddings=70
    ),
    "llama": LlamaConfig(
        **SIZE,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=70,
        tie_word_embeddings=True,
    ),
}
rng = np.random.default_rng(4)


@dataclass(frozen=True)
class Exported:
    """A base: of texts with `features`, or (llama) a language model with `logits` and a cache."""

    backbone: nn.Module
    model: ModelProto

    @property
    def has_features(self) -> bool:
        return self.model.graph.output[0].name == FEATURES

    @property
    def layers(self) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if layer_path(node)]

    def feeds(self, batch: int, sequence: int) -> dict[str, np.ndarray]:
        ids, mask = random_tokens(batch, sequence, 0)
        cache = {
            info.name: np.zeros((batch, 2, 0, HIDDEN // 4), np.float32)
            for info in self.model.graph.input
            if info.name.startswith("past")
        }
        # A language model has its padding on the left.
        side = 1 if self.has_features else -1
        return {"input_ids": ids.numpy()[:, ::side], "attention_mask": mask.numpy()[:, ::side]} | cache


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest) -> Exported:
    torch.manual_seed(3)
    config = CONFIGS[request.param]
    if request.param == "llama":
        model = AutoModelForCausalLM.from_config(config).eval()
        return Exported(model, export_decoder(model))
    backbone = AutoModel.from_config(config).eval()
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return Exported(backbone, export_features(backbone))


def run(model: ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Sums as in theory on every CPU.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def small_graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    output: tuple[str, list[str | int]],
    weights: dict[str, np.ndarray],
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def weight_bytes(model: ModelProto) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def layer_bound(x: np.ndarray, weight: np.ndarray, form: str) -> np.ndarray:
    """The largest errors that x @ weight, (m, k) and (k, n), may have: those of both factors add up."""
    if form == "int8":
        # The zero point of x is rounded as well: up to a step at the ends of its range.
        dx = np.full_like(x, (max(x.max(), 0) - min(x.min(), 0)) / 255)
        dw = np.zeros_like(weight) + np.abs(weight).max(axis=0) / 127 / 2
    else:
        blocks = [slice(i, i + BLOCK) for i in range(0, len(weight), BLOCK)]
        dx, dw = np.zeros_like(x), np.zeros_like(weight)
        for block in blocks:
            dx[:, block] = np.abs(x[:, block]).max(axis=1, keepdims=True) / 127 / 2
            # The largest weight is 128 steps: of the other sign, it may be a whole step away.
            dw[block] = np.abs(weight[block]).max(axis=0) / 128
    return np.abs(x) @ dw + dx @ np.abs(weight) + dx @ dw + 1e-5


@pytest.mark.parametrize("form", IN_8_BITS)
@pytest.mark.parametrize("inputs", [64, 200, 384])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm, transposed"])
def test_a_layer_errs_by_no_more_than_its_steps(form: str, inputs: int, kind: str) -> None:
    x = rng.standard_normal((9, inputs)).astype(np.float32) * rng.uniform(0.1, 3, (9, 1)).astype(np.float32)
    weight = rng.standard_normal((inputs, 48)).astype(np.float32) * rng.uniform(0.01, 1, 48).astype(
        np.float32
    )
    bias = rng.standard_normal(48).astype(np.float32)
    transposed = "transposed" in kind
    weights = {"w": np.ascontiguousarray(weight.T) if transposed else weight}
    if kind == "MatMul":
        expected, nodes = x @ weight, [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    else:
        expected, weights["b"] = x @ weight + bias, bias
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=int(transposed))]
    model = small_graph(nodes, {"x": (TensorProto.FLOAT, ["batch", inputs])}, ("y", ["batch", 48]), weights)
    quantized = quantize(model, form)
    (actual,) = run(quantized, x=x)
    assert np.all(np.abs(actual - expected) <= layer_bound(x, weight, form))
    # Rounding errors are independent, so that in sum they are much smaller than the bound.
    assert 1e-4 < relative_error(actual, expected) < 0.02
    assert weight_bytes(quantized) < 0.4 * weight_bytes(model) + 128 * 48


@pytest.mark.parametrize("form", IN_8_BITS)
def test_embeddings_are_within_half_a_step_of_each_row(form: str) -> None:
    table = rng.standard_normal((300, 50)).astype(np.float32)
    table *= np.logspace(-30, 3, 300, dtype=np.float32)[:, None]
    table[7] = 0
    table[8, 3] = 1e6
    ids = np.arange(300).reshape(4, 75)
    model = small_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"], name="embedding")],
        {"ids": (TensorProto.INT64, ["batch", "sequence"])},
        ("y", ["batch", "sequence", 50]),
        {"table": table},
    )
    quantized = quantize(model, form)
    (rows,) = run(quantized, ids=ids)
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(rows.reshape(300, 50) - table) <= steps / 2 * (1 + 1e-5))
    assert weight_bytes(quantized) == 300 * 50 + 300 * 4


@pytest.mark.parametrize("form", IN_8_BITS)
@pytest.mark.parametrize("width", [BLOCK, 200])
def test_a_tied_matrix_is_stored_once_and_right_for_both(form: str, width: int) -> None:
    table = rng.standard_normal((300, width)).astype(np.float32)
    ids = rng.integers(0, 300, 60)
    model = small_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"], name="embedding"),
            helper.make_node("Gemm", ["x", "table"], ["y"], name="lm_head", transB=1),
        ],
        {"ids": (TensorProto.INT64, ["batch"])},
        ("y", ["batch", 300]),
        {"table": table},
    )
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width]))
    quantized = quantize(model, form)
    y, x = run(quantized, ids=ids)
    # The largest weight of nbits8 may be a whole step away.
    steps = np.abs(table).max() / 127
    assert np.all(np.abs(x - table[ids]) <= steps)
    assert relative_error(x, table[ids]) < 0.01
    assert np.all(np.abs(y - x @ table.T) <= layer_bound(x, table.T, form))
    assert relative_error(y, table[ids] @ table.T) < 0.02
    padded = -(-width // BLOCK) * BLOCK if form == "nbits8" else width
    assert 300 * padded < weight_bytes(quantized) < 1.1 * 300 * padded


@pytest.mark.parametrize("form", IN_8_BITS)
def test_outputs_stay_close_and_the_graph_shrinks(exported: Exported, form: str) -> None:
    quantized = quantize(exported.model, form)
    onnx.checker.check_model(quantized)
    # A product errs by about 1 %: a factor's step is 1/127 of its largest number, which is 3 to 4 times the
    # typical one, and rounding errs by the step over the square root of 12. Six products in a row err by the
    # square root of six times that.
    feeds = exported.feeds(4, 20)
    for actual, expected in zip(run(quantized, **feeds), run(exported.model, **feeds), strict=True):
        assert actual.shape == expected.shape
        assert 1e-4 < relative_error(actual, expected) < 0.05
    operator = {"int8": "MatMulInteger", "nbits8": "MatMulNBits"}[form]
    assert sum(node.op_type == operator for node in quantized.graph.node) == len(exported.layers)
    assert weight_bytes(quantized) < 0.3 * weight_bytes(exported.model)
    tables = [t for t in quantized.graph.initializer if np.prod(t.dims) == VOCABULARY * HIDDEN]
    assert len(tables) == 1


@pytest.mark.parametrize("form", BASE_FORMS)
def test_inputs_outputs_and_properties_stay(exported: Exported, form: str) -> None:
    model = copy_model(exported.model)
    helper.set_model_props(model, {"fedkron.contract": "abc"})
    quantized = quantize(model, form)
    assert list(quantized.graph.input) == list(model.graph.input)
    assert list(quantized.graph.output) == list(model.graph.output)
    assert list(quantized.metadata_props) == list(model.metadata_props)


@pytest.mark.parametrize("form", IN_8_BITS)
def test_the_model_is_left_alone_and_gives_the_same_bytes_again(exported: Exported, form: str) -> None:
    before = exported.model.SerializeToString()
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    first, second = quantize(exported.model, form), quantize(exported.model, form)
    assert first.SerializeToString() == second.SerializeToString()
    assert exported.model.SerializeToString() == before
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)


@pytest.mark.parametrize("form", IN_8_BITS)
@pytest.mark.parametrize("kind", SPECS)
def test_an_empty_slot_is_the_bare_base_in_8_bits(exported: Exported, form: str, kind: str) -> None:
    _, adapter = with_adapter(exported.backbone, SPECS[kind], "base", seed=1)
    bare, unmerged = copy_model(exported.model), copy_model(exported.model)
    slot = insert_slot(unmerged, adapter.layout, "fp32")
    feeds = exported.feeds(3, 17)
    head = {}
    if exported.has_features:
        weight, bias = rng.standard_normal((3, HIDDEN)).astype(np.float32), np.ones(3, np.float32)
        attach_head(bare, weight, bias)
        insert_head(unmerged, HIDDEN)
        head = {"head": np.column_stack([weight, bias])[None]}
    (empty,) = slot.zeros().values()
    full = 0.3 * rng.standard_normal(empty.shape).astype(np.float32)

    quantized = quantize(unmerged, form)
    expected = run(quantize(bare, form), **feeds)[0]
    same = run(quantized, **feeds, **head, slot=empty[None])[0]
    np.testing.assert_allclose(same, expected, atol=1e-5 * np.abs(expected).max())
    # A full one is close to the same in float32; only products with the base's layers are in 8 bits.
    exact, close = (run(model, **feeds, **head, slot=full[None])[0] for model in (unmerged, quantized))
    assert relative_error(exact, expected) > 0.1 > relative_error(close, exact)
    before, after = (
        [node.op_type for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
        for model in (unmerged, quantized)
    )
    assert len(after) == len(before) - len(exported.layers)


@pytest.mark.parametrize("form", IN_8_BITS)
def test_a_head_that_is_part_of_the_graph_stays_as_it_is(form: str) -> None:
    weight = rng.standard_normal((64, HIDDEN)).astype(np.float32)
    x = rng.standard_normal((5, HIDDEN)).astype(np.float32)
    model = small_graph(
        [helper.make_node("Relu", ["x"], [FEATURES], name="relu")],
        {"x": (TensorProto.FLOAT, ["batch", HIDDEN])},
        (FEATURES, ["batch", HIDDEN]),
        {},
    )
    attach_head(model, weight, np.ones(64, np.float32))
    (logits,) = run(quantize(model, form), x=x)
    np.testing.assert_allclose(logits, np.maximum(x, 0) @ weight.T + 1, atol=1e-4)


def test_rows_of_a_batch_do_not_change_each_other_in_nbits8(exported: Exported) -> None:
    quantized = quantize(exported.model, "nbits8")
    batch = exported.feeds(3, 12)
    together = run(quantized, **batch)[0]
    alone = [run(quantized, **{name: feed[[row]] for name, feed in batch.items()})[0] for row in range(3)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5 * np.abs(together).max())


def test_an_unknown_form_is_refused_by_name(exported: Exported) -> None:
    with pytest.raises(ConfigError, match="'int3' is not known: choose fp32, int8, nbits8"):
        quantize(exported.model, "int3")
