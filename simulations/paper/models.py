"""The paper's two models, by shapes alone: on the meta device, from configurations that need no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
)

from fedkron.adapters import AdapterSpec, attach


@dataclass(frozen=True)
class PaperModel:
    """A model as the paper trains it; `full` are the parts of its task head, which it trains without adapter.

    The defaults of `config` are those of the checkpoint `base`.
    """

    name: str
    base: str
    config: Callable[[], PreTrainedConfig]
    with_head: Callable[[PreTrainedConfig], nn.Module]
    d_a2: int
    full: tuple[str, ...] = ()

    def spec(self, kind: str, rank: int = 8) -> AdapterSpec:
        """The paper's hyper-parameters."""
        return AdapterSpec(kind, rank, alpha=32, dropout=0.1, d_a1=2, d_a2=self.d_a2, full=self.full)

    def trained_parameters(self, kind: str, rank: int = 8) -> int:
        """What the paper counts: factors of every linear layer, and the head that is trained in full."""
        with torch.device("meta"):
            model = self.with_head(self.config())
        attach(model, self.spec(kind, rank))
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def backbone(self) -> nn.Module:
        """What a run of ours trains: hidden states, without the model's own head."""
        with torch.device("meta"):
            model: nn.Module = AutoModel.from_config(self.config())
        return model


DISTILBERT = PaperModel(
    "DistilBERT",
    "distilbert-base-uncased",
    lambda: DistilBertConfig(num_labels=1),
    DistilBertForSequenceClassification,
    d_a2=4,
    full=("pre_classifier", "classifier"),
)
MISTRAL = PaperModel("Mistral-7B", "mistralai/Mistral-7B-v0.1", MistralConfig, MistralForCausalLM, d_a2=16)
MODELS: Mapping[str, PaperModel] = {"distilbert": DISTILBERT, "mistral": MISTRAL}
"""By the name of its configuration file."""
