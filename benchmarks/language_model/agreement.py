"""The exported language model against torch: logits, and the tokens that both write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fedkron.edge.generation import Adapter, Generator, sampler

Ids = Sequence[list[int]]


@torch.no_grad()
def logit_difference(
    generator: Generator, adapter: Adapter, model: PreTrainedModel, texts: Ids, steps: int
) -> tuple[float, float]:
    """Largest difference of two logits, and the largest logit of torch, over the last tokens of all texts.

    The graph reads the texts as one batch, padded on the left, the last `steps` tokens of each one by one
    with its cache; torch reads each text alone and at once.
    """
    found: list[npt.NDArray[np.float32]] = []

    def next_of_the_text(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        found.append(logits.copy())
        position = len(found) - 1 - steps
        return np.array([text[position] for text in texts])

    prompts = [text[:-steps] for text in texts]
    for _ in generator.tokens(prompts, next_of_the_text, adapter=adapter, max_new_tokens=steps):
        pass
    differences, largest = [], 0.0
    for row, text in enumerate(texts):
        expected = model(torch.tensor([text])).logits[0, -steps - 1 : -1].numpy()
        actual = np.stack([logits[row] for logits in found])
        differences.append(float(np.abs(actual - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return max(differences), largest


def graph_writes(generator: Generator, adapter: Adapter, prompts: Ids, count: int) -> list[list[int]]:
    """The most probable new tokens of each prompt, without the end."""
    rows: list[list[int]] = [[] for _ in prompts]
    choose = sampler(len(prompts), temperature=0, top_p=1, seed=0)
    for tokens in generator.tokens(prompts, choose, adapter=adapter, max_new_tokens=count):
        for row, token in tokens.items():
            rows[row].append(token)
    return rows


@torch.no_grad()
def torch_writes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Ids, count: int
) -> list[list[int]]:
    """The same by `transformers`."""
    padded = tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt")
    output = model.generate(  # type: ignore[operator]
        **padded, max_new_tokens=count, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    end = tokenizer.eos_token_id
    rows = output[:, padded["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
