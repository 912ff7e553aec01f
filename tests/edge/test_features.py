"""Bases of many families: the exported graph computes what torch computes, and every layer can be found."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edge_cases import random_tokens
from onnx import ModelProto, numpy_helper
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SwinConfig,
    ViTConfig,
)

from fedkron.adapters import AdapterSpec, adapted_layers, attach
from fedkron.base import image_features, text_features
from fedkron.edge.features import export_features, export_image_features
from fedkron.edge.graph import LAYER, weight_name

WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = {"vocab_size": 60, "max_position_embeddings": 72}
SIZE = WIDTH | WORDS | {"num_hidden_layers": 1}
TWO_HEADS = SIZE | {"num_key_value_heads": 2}
END = {"bos_token_id": 1, "eos_token_id": 2}
SPECIAL = END | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
# Relative positions with projections of their own, as DeBERTa has them unless they are shared.
POSITIONS = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["c2p", "p2c"]}
WINDOW_AND_ALL = ["sliding_attention", "full_attention"]
TEXTS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZE),
    "distilbert": DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=48, **WORDS),
    "roberta": RobertaConfig(**SIZE),
    # Its layers are one layer, called twice.
    "albert": AlbertConfig(**SIZE | {"num_hidden_layers": 2}, embedding_size=16),
    "deberta-v2": DebertaV2Config(**SIZE, **POSITIONS, norm_rel_ebd="layer_norm"),
    "deberta-v3": DebertaV2Config(**SIZE, **POSITIONS, norm_rel_ebd="layer_norm", share_att_key=True),
    "modernbert": ModernBertConfig(
        **SIZE | {"num_hidden_layers": 2}, **SPECIAL, local_attention=8, global_attn_every_n_layers=2
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=72, vocab_size=60, **END),
    "llama": LlamaConfig(**TWO_HEADS),
    "qwen2": Qwen2Config(**TWO_HEADS),
    "qwen3": Qwen3Config(**TWO_HEADS, head_dim=8),
    "gemma3": Gemma3TextConfig(
        **TWO_HEADS | {"num_hidden_layers": 2}, head_dim=8, sliding_window=8, layer_types=WINDOW_AND_ALL
    ),
}
PIXELS = {"image_size": 24, "patch_size": 8, "num_hidden_layers": 1}
IMAGES: dict[str, PreTrainedConfig] = {
    "vit": ViTConfig(**WIDTH, **PIXELS),
    "swin": SwinConfig(
        image_size=24, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=3
    ),
}


@dataclass(frozen=True)
class Case:
    backbone: nn.Module
    graph: ModelProto
    example: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=[*TEXTS, *IMAGES])
def case(request: pytest.FixtureRequest) -> Case:
    backbone = random_backbone((TEXTS | IMAGES)[request.param])
    if request.param in TEXTS:
        return Case(backbone, export_features(backbone), tokens(2, 5, backbone))
    return Case(backbone, export_image_features(backbone), pixels(2))


def random_backbone(config: PreTrainedConfig) -> nn.Module:
    torch.manual_seed(7)
    backbone = AutoModel.from_config(config).eval()
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    # The zeros and ones that biases and norms begin with are often left out of a graph, or equal.
    generator = torch.Generator().manual_seed(7)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3, generator)
    return backbone


def tokens(batch: int, sequence: int, backbone: nn.Module) -> dict[str, torch.Tensor]:
    ids, mask = random_tokens(batch, sequence, backbone.config.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask}


def pixels(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"pixel_values": torch.randn(batch, 3, 24, 24, generator=generator)}


def test_the_graph_gives_the_features_of_torch_at_any_size(case: Case) -> None:
    onnx.checker.check_model(case.graph, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(case.graph.SerializeToString(), options)
    if "pixel_values" in case.example:
        features = image_features
        batches = [pixels(batch) for batch in (1, 2, 5)]
    else:
        features = text_features
        sizes = [(1, 1), (1, 5), (4, 1), (3, 17), (5, 31)]
        batches = [tokens(batch, sequence, case.backbone) for batch, sequence in sizes]
        assert any((batch["attention_mask"] == 0).any() for batch in batches)
    for batch in batches:
        with torch.no_grad():
            expected = features(case.backbone, **batch).numpy()
        [actual] = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 10, rtol=1e-4)
        np.testing.assert_allclose(actual, expected, atol=5e-5)


def test_every_layer_that_an_adapter_goes_on_is_named_once_per_call_and_has_its_weight(case: Case) -> None:
    adapted = attach(copy.deepcopy(case.backbone), AdapterSpec("lora", rank=1))
    calls: Counter[str] = Counter()
    for path, layer in adapted_layers(adapted):
        layer.register_forward_hook(lambda *_, path=path: calls.update([path]))
    with torch.no_grad():
        adapted(**case.example)
    assert calls

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in case.graph.graph.initializer}
    named: Counter[str] = Counter()
    for node in case.graph.graph.node:
        for entry in node.metadata_props:
            assert entry.key == LAYER
            named.update([entry.value])
            layer = case.backbone.get_submodule(entry.value)
            weight = layer.weight.detach().numpy()
            if type(layer).__name__ == "Conv1D":  # keeps it as (d_in, d_out)
                weight = weight.T
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            stored = weights[weight_name(node) or ""]
            np.testing.assert_array_equal(stored if transposed else stored.T, weight)
    assert named == calls


def test_the_graph_has_named_inputs_and_one_output_and_a_rank_for_every_layer(case: Case) -> None:
    graph = case.graph.graph
    assert [value.name for value in graph.input] == list(case.example)
    assert [value.name for value in graph.output] == ["features"]
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in graph.value_info}
    assert all(ranks[node.output[0]] in (2, 3, 4) for node in graph.node if node.metadata_props)
    assert not ranks.keys() & {tensor.name for tensor in graph.initializer}
