"""What all run: MiniLM, random adapters as strong as trained ones, one head; and torch's answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedkron.adapters import AdapterSpec, adapter_layout, attach, attach_layout, load_adapter_state
from fedkron.base import Base, text_features
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import AdapterLayout

BASE = "demo:all-minilm-l6-v2"
KRON, LORA = AdapterSpec(), AdapterSpec("lora")
"""Kron-LoRA with the d_A2 of MiniLM's width, which is 2, and plain LoRA; both of rank 8."""

TASK, LABELS = "trec", ("abbreviation", "description", "entity", "human", "location", "number")

DELTA = 0.01
"""Standard deviation of ΔW's elements: changes answers, and leaves the base (0.05) alive."""

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Token ids and mask, both (batch, sequence), nothing padded."""

    ids: Ids
    mask: Ids

    @property
    def feeds(self) -> dict[str, Ids]:
        """By the names of a graph's inputs."""
        return {"input_ids": self.ids, "attention_mask": self.mask}

    @property
    def name(self) -> str:
        """Texts × tokens."""
        return " × ".join(map(str, self.ids.shape))


def batch(texts: int, tokens: int) -> Batch:
    """Random words between [CLS] and [SEP], as ids of MiniLM's vocabulary."""
    ids = np.random.default_rng(tokens).integers(2000, 20_000, (texts, tokens))
    ids[:, 0], ids[:, -1] = 101, 102
    return Batch(ids, np.ones_like(ids))


def text_of(tokens: int) -> str:
    """A text that MiniLM's tokenizer makes that many tokens of, [CLS] and [SEP] among them."""
    return " ".join(["word"] * (tokens - 2))


def adapters(base: Base, spec: AdapterSpec, count: int) -> list[AdapterFile]:
    """Adapters on all linear layers of one layout."""
    layout = adapter_layout(attach(copy.deepcopy(base.backbone), spec), base.fingerprint)
    return [_random_adapter(layout, base.name, seed) for seed in range(count)]


def head(contract: str, hidden: int) -> HeadFile:
    """A head that goes with adapters of a contract; its logits are about as large as trained ones."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((len(LABELS), hidden)) * 0.3, rng.standard_normal(len(LABELS))
    return HeadFile(
        weight.astype(np.float32), bias.astype(np.float32), TASK, "classification", LABELS, contract
    )


@torch.inference_mode()
def answers(base: Base, adapter: AdapterFile | None, with_head: HeadFile, inputs: Batch) -> Logits:
    """Logits (batch, outputs) of the torch model that has the adapter attached, not merged."""
    model = copy.deepcopy(base.backbone)
    if adapter is not None:
        model = attach_layout(model, adapter.layout)
        load_adapter_state(model, adapter.state)
    features = text_features(model.eval(), torch.from_numpy(inputs.ids), torch.from_numpy(inputs.mask))
    logits: Logits = features.numpy() @ with_head.weight.T + with_head.bias
    return logits


def answers_by_row(base: Base, several: Sequence[AdapterFile], with_head: HeadFile, inputs: Batch) -> Logits:
    """Like `answers`, each row with an adapter of its own."""
    rows = [Batch(inputs.ids[i : i + 1], inputs.mask[i : i + 1]) for i in range(len(several))]
    found = [answers(base, adapter, with_head, row) for adapter, row in zip(several, rows, strict=True)]
    return np.concatenate(found)


def _random_adapter(layout: AdapterLayout, base_name: str, seed: int) -> AdapterFile:
    rng = np.random.default_rng(seed)
    state = {}
    for module in layout.modules:
        shapes = {factor.name: factor.shape for factor in module.factors}
        rank = shapes["B2" if "B2" in shapes else "lora_A"][0]
        # All elements of all factors are drawn alike; a sum of `rank` products has this deviation.
        each = (DELTA / (module.scale * np.sqrt(rank))) ** (1 / len(shapes))
        for name, shape in shapes.items():
            state[module.tensor_name(name)] = (each * rng.standard_normal(shape)).astype(np.float32)
    return AdapterFile(state, layout, base_name)
