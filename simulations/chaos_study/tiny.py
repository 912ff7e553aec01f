"""A base and two tasks that take no time: what is tried here is the federation, not the model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

FILLERS = ("the", "a", "is", "was", "near", "with", "my", "who")
CLUES = {"cat": "purr", "dog": "bark"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TASKS = ("animals", "pets")


def write_tiny(folder: Path) -> None:
    """A random BERT of two layers in `base`, and tasks with the same two labels beside it."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *FILLERS, *CLUES.values()))}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder / "base")
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder / "base")
    for seed, task in enumerate(TASKS):
        _write_task(folder / task, random.Random(seed))


def _write_task(folder: Path, rng: random.Random) -> None:
    folder.mkdir()
    for split, count in (("train", 48), ("test", 24)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
            for number in range(count):
                label = number % len(CLUES)
                words = [*rng.choices(FILLERS, k=5), list(CLUES.values())[label]]
                rng.shuffle(words)
                lines.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")
    (folder / "labels.json").write_text(json.dumps(list(CLUES)), encoding="utf-8")
