"""A bundle against torch: do both forms give what the adapted torch model gives?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedkron.adapters import attach_layout, load_adapter_state
from fedkron.base import Base, image_features, text_features
from fedkron.edge.heads import matching_heads
from fedkron.edge.language_runtime import LanguageModel
from fedkron.edge.manifest import GENERATION
from fedkron.edge.runtime import Bundle
from fedkron.edge.texts import BATCH
from fedkron.errors import TaskError
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
    inputs: Sequence[Any],
    *,
    choices: Sequence[int] = (),
) -> list[Agreement]:
    """Compare a bundle with the torch model that has this adapter attached (not merged) and these heads.

    Two entries per head: `merged`, where the bundle has it, and `unmerged`. For a multiple choice head,
    `choices` are the numbers of consecutive texts that belong to one question; without it, all texts are
    choices of one. `inputs` are texts, or images for a base of images. `base` is left as it is. Raises what
    `Bundle.open` and `Bundle.logits` raise.
    """
    bundle = Bundle.open(folder)
    matching = matching_heads(adapter, heads, base.hidden_size)
    settings = bundle.manifest.input
    features = _torch_features(base, adapter, inputs, getattr(settings, "max_length", 0))
    agreements = []
    for task, head in matching.items():
        expected = features @ head.weight.T + head.bias
        sizes = (choices or [len(inputs)]) if head.task_kind == "multiple_choice" else [1] * len(inputs)
        agreements += [
            _agreement(task, form, expected, bundle.logits(inputs, task, merged=form == "merged"), sizes)
            for form in [*(["merged"] if task in bundle.manifest.merged else []), "unmerged"]
        ]
    return agreements


@torch.inference_mode()
def check_language_model(
    folder: Path, base: Base, adapter: AdapterFile, prompts: Sequence[str]
) -> list[Agreement]:
    """Compare a language model's bundle with the torch model that has this adapter attached (not merged).

    What is compared are the logits of the token after each prompt that fits into the bundle's length. Two
    entries: `merged`, where the bundle has it, and `unmerged`. Raises what `LanguageModel.open` raises, and
    `TaskError` when no prompt fits.
    """
    model = LanguageModel.open(folder)
    adapted = _attached(base.backbone, adapter)
    all_tokens = {prompt: base.tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts}
    longest = getattr(model.manifest.input, "max_length", 0)
    tokens = {prompt: ids for prompt, ids in all_tokens.items() if 0 < ids.shape[1] < longest}
    if not tokens:
        raise TaskError(f"no prompt fits into the bundle's {longest} tokens: give a shorter one")
    expected = torch.cat([adapted(input_ids=ids).logits[:, -1] for ids in tokens.values()]).float().numpy()
    return [
        _agreement(
            GENERATION,
            form,
            expected,
            np.stack([model.next_logits(prompt, merged=form == "merged") for prompt in tokens]),
            [1] * len(tokens),
        )
        for form in [*(["merged"] if model.manifest.merged else []), "unmerged"]
    ]


def _agreement(task: str, form: str, expected: Logits, actual: Logits, sizes: Sequence[int]) -> Agreement:
    bounds = list(pairwise(np.cumsum([0, *sizes]).tolist()))
    # One row of logits, or one column of scores: either way the answer is where the largest is.
    same = [expected[a:b].argmax() == actual[a:b].argmax() for a, b in bounds]
    difference, magnitude = np.abs(expected - actual).max(), np.abs(expected).max()
    return Agreement(task, form, float(difference), float(magnitude), float(np.mean(same)))


@torch.inference_mode()
def _torch_features(base: Base, adapter: AdapterFile, inputs: Sequence[Any], max_length: int) -> Logits:
    backbone = _attached(base.backbone, adapter)
    batches = (list(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH))
    if base.image_processor is not None:
        parts = [_image_features(base, backbone, batch) for batch in batches]
    else:
        parts = [_text_features(base, backbone, batch, max_length) for batch in batches]
    features: Logits = torch.cat(parts).float().numpy()
    return features


def _text_features(base: Base, backbone: nn.Module, texts: list[str], max_length: int) -> Tensor:
    tokens = base.tokenizer(
        texts,
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    return text_features(backbone, tokens["input_ids"], tokens["attention_mask"])


def _image_features(base: Base, backbone: nn.Module, images: list[Any]) -> Tensor:
    return image_features(backbone, base.image_processor(images, return_tensors="pt")["pixel_values"])


def _attached(backbone: nn.Module, adapter: AdapterFile) -> nn.Module:
    """A copy of the backbone with the adapter attached, layer by layer, as the layout says."""
    adapted = attach_layout(copy.deepcopy(backbone), adapter.layout)
    load_adapter_state(adapted, {name: adapter.state[name] for name in adapter.layout.factor_names})
    return adapted.eval()
