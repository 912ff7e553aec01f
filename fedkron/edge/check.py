"""A bundle against torch: do both forms give what the adapted torch model gives?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedkron.adapters import attach_layout, load_adapter_state
from fedkron.base import Base, text_features
from fedkron.edge.runtime import BATCH, Bundle
from fedkron.edge.slot import matching_heads
from fedkron.exchange import AdapterFile, HeadFile

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How well one form of a bundle (`merged` or `unmerged`) agrees with torch on one task.

    `difference` is the largest absolute difference of two logits, `magnitude` the largest absolute logit
    of torch, `same_answers` the share of questions with the same answer, in [0, 1].
    """

    task: str
    form: str
    difference: float
    magnitude: float
    same_answers: float


def check_against_torch(
    folder: Path,
    base: Base,
    adapter: AdapterFile,
    heads: Sequence[HeadFile],
    texts: Sequence[str],
    *,
    choices: Sequence[int] = (),
) -> list[Agreement]:
    """Compare a bundle with the torch model that has this adapter attached (not merged) and these heads.

    Two entries per head: `merged` and `unmerged`. For a multiple choice head, `choices` are the numbers of
    consecutive texts that belong to one question; without it, all texts are choices of one. `base` is left
    as it is. Raises what `Bundle.open` and `Bundle.logits` raise.
    """
    bundle = Bundle.open(folder)
    matching = matching_heads(adapter, heads, base.hidden_size)
    features = _torch_features(base, adapter, texts, bundle.manifest.max_length)
    agreements = []
    for task, head in matching.items():
        expected = features @ head.weight.T + head.bias
        sizes = (choices or [len(texts)]) if head.task_kind == "multiple_choice" else [1] * len(texts)
        agreements += [
            _agreement(task, form, expected, bundle.logits(texts, task, merged=form == "merged"), sizes)
            for form in ("merged", "unmerged")
        ]
    return agreements


def _agreement(task: str, form: str, expected: Logits, actual: Logits, sizes: Sequence[int]) -> Agreement:
    bounds = list(pairwise(np.cumsum([0, *sizes]).tolist()))
    # One row of logits, or one column of scores: either way the answer is where the largest is.
    same = [expected[a:b].argmax() == actual[a:b].argmax() for a, b in bounds]
    difference, magnitude = np.abs(expected - actual).max(), np.abs(expected).max()
    return Agreement(task, form, float(difference), float(magnitude), float(np.mean(same)))


@torch.inference_mode()
def _torch_features(base: Base, adapter: AdapterFile, texts: Sequence[str], max_length: int) -> Logits:
    backbone = _attached(base.backbone, adapter)
    parts = []
    for start in range(0, len(texts), BATCH):
        tokens = base.tokenizer(
            list(texts[start : start + BATCH]),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        parts.append(text_features(backbone, tokens["input_ids"], tokens["attention_mask"]))
    features: Logits = torch.cat(parts).float().numpy()
    return features


def _attached(backbone: nn.Module, adapter: AdapterFile) -> nn.Module:
    """A copy of the backbone with the adapter attached, layer by layer, as the layout says."""
    adapted = attach_layout(copy.deepcopy(backbone), adapter.layout)
    load_adapter_state(adapted, {name: adapter.state[name] for name in adapter.layout.factor_names})
    return adapted.eval()
