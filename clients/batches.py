"""From examples to padded token batches: the same for classification and multiple choice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import torch
from flwr.common import log
from torch import Tensor, nn

from clients.examples import Classified, Example
from fedkron.prompts import choice_texts

POOL = 8
"""Batches whose examples are sorted by length together: less padding, still a random order."""


@dataclass(frozen=True)
class Tokenized:
    """One example as token ids: one text for a classified example, one per choice otherwise."""

    texts: tuple[list[int], ...]
    target: int

    @property
    def length(self) -> int:
        """Tokens in the longest text."""
        return max(len(text) for text in self.texts)


@dataclass(frozen=True)
class Batch:
    """Padded texts (texts, sequence) with the number of texts of each example, and the targets."""

    input_ids: Tensor
    attention_mask: Tensor
    counts: tuple[int, ...]
    targets: Tensor


def tokenize(examples: Sequence[Example], tokenizer: Any, max_length: int) -> list[Tokenized]:  # noqa: ANN401
    """Token ids of every text of every example, cut to `max_length` tokens at the tokenizer's side.

    Logs a warning when questions are cut so that their choices become the same text.
    """
    texts = [[e.text] if isinstance(e, Classified) else choice_texts(e.question, e.choices) for e in examples]
    flat = [text for group in texts for text in group]
    ids = iter(tokenizer(flat, truncation=True, max_length=max_length)["input_ids"])
    tokenized = [
        Tokenized(tuple(next(ids) for _ in group), e.label if isinstance(e, Classified) else e.answer)
        for group, e in zip(texts, examples, strict=True)
    ]
    alike = sum(len(set(map(tuple, one.texts))) == 1 < len(one.texts) for one in tokenized)
    if alike:
        log(
            WARNING,
            "%d of %d questions are longer than train.max-length = %d, which cuts off their choices: "
            "raise it, or set train.truncation-side = 'left'",
            alike,
            len(tokenized),
            max_length,
        )
    return tokenized


def training_batches(
    examples: Sequence[Tokenized], size: int, pad_id: int, seed: int, device: torch.device
) -> Iterator[Batch]:
    """One epoch in a seeded random order, in batches of texts of similar length."""
    rng = random.Random(seed)
    order = rng.sample(examples, len(examples))
    groups = []
    for start in range(0, len(order), POOL * size):
        pool = sorted(order[start : start + POOL * size], key=lambda example: example.length)
        groups += [pool[at : at + size] for at in range(0, len(pool), size)]
    rng.shuffle(groups)
    return (_collate(group, pad_id, device) for group in groups)


def evaluation_batches(
    examples: Sequence[Tokenized], size: int, pad_id: int, device: torch.device
) -> Iterator[Batch]:
    """All examples once, sorted by length."""
    order = sorted(examples, key=lambda example: example.length)
    return (_collate(order[at : at + size], pad_id, device) for at in range(0, len(order), size))


def scores(logits: Tensor, batch: Batch) -> Tensor:
    """Logits (texts, outputs) as (examples, answers); missing choices score minus infinity."""
    if all(count == 1 for count in batch.counts):
        return logits
    choices = torch.split(logits.squeeze(-1), list(batch.counts))
    return nn.utils.rnn.pad_sequence(list(choices), batch_first=True, padding_value=float("-inf"))


def _collate(examples: Sequence[Tokenized], pad_id: int, device: torch.device) -> Batch:
    texts = [text for example in examples for text in example.texts]
    lengths = torch.tensor([len(text) for text in texts])
    # A text without tokens becomes a masked one: no model takes a sequence of length 0.
    rows = [torch.tensor(text or [pad_id]) for text in texts]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return Batch(
        input_ids.to(device),
        mask.to(device),
        tuple(len(example.texts) for example in examples),
        torch.tensor([example.target for example in examples], device=device),
    )
