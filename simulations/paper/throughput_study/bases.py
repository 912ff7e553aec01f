"""The bases: architectures of known models with random weights, which take the same time and memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

LABELS = 6


@dataclass(frozen=True)
class Base:
    """A transformers model type with its configuration, and the batch that is trained on (texts × tokens)."""

    model_type: str
    config: dict[str, int]
    texts: int
    tokens: int

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch."""
        return self.texts * self.tokens

    def with_texts(self, texts: int) -> Base:
        """The same with so many texts in a batch; 0 leaves them as they are."""
        return replace(self, texts=texts or self.texts)


MINILM, DISTILBERT, MISTRAL = "minilm", "distilbert", "mistral-layer"

_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
# All of Mistral-7B would need 29 GB in float32. Its 32 layers are alike; the vocabulary has no adapter here.
_MISTRAL_LAYER = {
    "hidden_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 1000,
}
BASES = {
    MINILM: Base("bert", _MINILM, 16, 64),
    DISTILBERT: Base("distilbert", {}, 16, 64),  # the defaults: 6 layers, 768 wide
    MISTRAL: Base("mistral", _MISTRAL_LAYER, 2, 64),
}
"""By name."""


def backbone_of(base: Base, device: torch.device) -> nn.Module:
    """The model without a pooler, frozen, float32, with random weights: the same in every process."""
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(base.model_type, **base.config))
    if hasattr(model, "pooler"):
        model.register_module("pooler", None)
    return model.requires_grad_(False).to(device)


def sharing_weights(backbone: nn.Module) -> nn.Module:
    """A copy of the modules with the very same tensors: they are frozen, so all contestants can use them."""
    shared = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    return copy.deepcopy(backbone, shared)


def random_batch(base: Base, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (texts, tokens) and labels (texts)."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (base.texts, base.tokens), generator=random)
    return ids.to(device), torch.randint(LABELS, (base.texts,), generator=random).to(device)
