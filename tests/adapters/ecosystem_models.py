"""Tiny models of the transformers library with random weights, and adapters on them."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from adapter_cases import randomise
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from fedkron.adapters import AdaptedLinear, AdapterSpec, adapted_layers, attach

M = TypeVar("M", bound=nn.Module)

SPEC = AdapterSpec("kron_lora", rank=4, alpha=8.0, dropout=0.0, d_a1=2, d_a2=4)


def adapted(model: M, kind: str, *, std: float = 0.2, **changes: object) -> M:
    """`model` with random factors on it: none is zero."""
    attach(model, replace(SPEC, kind=kind, **changes))
    randomise(model, std=std)
    return model


def tiny_bert(*, dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def texts(count: int = 32) -> dict[str, Tensor]:
    """Six random tokens each; the first says which of two labels it is."""
    ids = torch.randint(4, 16, (count, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    ids[:, 0] = 2 + labels
    return {"input_ids": ids, "labels": labels}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Those of everything that is trained, taken off the model."""
    found = {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}
    model.zero_grad()
    return found


def the_layer(model: nn.Module) -> AdaptedLinear:
    (layer,) = (layer for _, layer in adapted_layers(model))
    return layer
