"""Tiny bases with random weights, random adapters on them, and what torch says."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from fedkron.adapters import AdapterSpec, adapted_layers, adapter_layout, adapter_state, attach
from fedkron.base import Base, fingerprint, text_features
from fedkron.exchange import AdapterFile, HeadFile

HIDDEN = 32
SIZE = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZE, vocab_size=60, max_position_embeddings=70),
    "distilbert": DistilBertConfig(
        dim=HIDDEN, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=60, max_position_embeddings=70
    ),
    "roberta": RobertaConfig(**SIZE, vocab_size=60, max_position_embeddings=72),
    # Its layers are one layer, called twice.
    "albert": AlbertConfig(**SIZE, embedding_size=16, vocab_size=60, max_position_embeddings=70),
    "llama": LlamaConfig(**SIZE, num_key_value_heads=2, vocab_size=60, max_position_embeddings=70),
}
SPECS = {
    "kron_lora": AdapterSpec("kron_lora", rank=3, alpha=7.0, d_a1=2, d_a2=4),
    "lora": AdapterSpec("lora", rank=3, alpha=7.0),
}
WORDS = [
    "who",
    "wrote",
    "the",
    "play",
    "what",
    "is",
    "a",
    "pipe",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "one",
    "two",
]


@dataclass(frozen=True)
class Exported:
    backbone: nn.Module
    graph: ModelProto


@dataclass(frozen=True)
class Written:
    """A bundle, and what it was made from."""

    folder: Path
    base: Base
    model: nn.Module
    adapter: AdapterFile
    heads: dict[str, HeadFile]
    steps: list[str]


def tiny_backbone(family: str) -> nn.Module:
    torch.manual_seed(7)
    backbone = AutoModel.from_config(CONFIGS[family])
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def tiny_base() -> Base:
    backbone = tiny_backbone("bert")
    return Base("tiny-bert", backbone, tiny_tokenizer(), fingerprint(backbone))


def with_adapter(
    backbone: nn.Module, spec: AdapterSpec, base: str, seed: int
) -> tuple[nn.Module, AdapterFile]:
    """A copy of the backbone with a random adapter attached (no factor is zero), and the adapter."""
    model = attach(copy.deepcopy(backbone), spec)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        for factor in layer.factors().values():
            nn.init.normal_(factor, std=0.3, generator=generator)
    return model.eval(), AdapterFile(adapter_state(model), adapter_layout(model, base), "tiny")


def random_head(
    task: str, labels: tuple[str, ...], contract: str, *, kind: str = "classification", hidden: int = HIDDEN
) -> HeadFile:
    rng = np.random.default_rng(sum(map(ord, task)))
    outputs = len(labels) or 1
    weight = rng.standard_normal((outputs, hidden)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    return HeadFile(weight, bias, task, kind, labels, contract)


def random_tokens(batch: int, sequence: int, pad_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, with padding in all rows but the first."""
    generator = torch.Generator().manual_seed(batch * 100 + sequence)
    ids = torch.randint(4, 60, (batch, sequence), generator=generator)
    lengths = torch.randint(1, sequence + 1, (batch,), generator=generator)
    lengths[0] = sequence
    mask = (torch.arange(sequence) < lengths[:, None]).long()
    return torch.where(mask.bool(), ids, pad_id or 0), mask


@torch.no_grad()
def torch_logits(model: nn.Module, head: HeadFile, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    features = text_features(model, ids, mask).numpy()
    return features @ head.weight.T + head.bias


def torch_answers(
    model: nn.Module, head: HeadFile, base: Base, texts: list[str], max_length: int
) -> np.ndarray:
    """Logits with the tokenizer as `transformers` runs it."""
    tokens = base.tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return torch_logits(model, head, tokens["input_ids"], tokens["attention_mask"])
