"""Tiny bases and tasks on disk, and whole federations of the real programs inside this process."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import clients.app
import server.app
from fedkron.rundir import run_directory
from fedkron.runlog import RunLog, read_run
from fedkron.settings import Settings
from simulations.in_process import InProcessGrid, transported

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (
    *("the", "a", "is", "was", "near", "with", "my", "one", "who", "what", "has", "and", "yes", "no"),
    *("purr", "milk", "bark", "bone", "leash", "rose", "leaf", "sky"),
)
FILLERS = WORDS[:14]


def save_tiny_bert(folder: Path, *, hidden: int = 32, seed: int = 0) -> Path:
    """Save a random BERT and a word-level tokenizer as `save_pretrained` does; returns the folder."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Splits at white space; unknown words become one token."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def write_texts(folder: Path, clues: Mapping[str, str], *, seed: int) -> Path:
    """A classification task of 48 + 24 texts: each holds the word that gives its label away."""
    rng = random.Random(seed)

    def row(number: int) -> dict[str, object]:
        label = number % len(clues)
        words = rng.choices(FILLERS, k=rng.randint(2, 8))
        words.insert(rng.randrange(len(words)), list(clues.values())[label])
        return {"text": " ".join(words), "label": label}

    _write_rows(folder, [row(number) for number in range(72)])
    (folder / "labels.json").write_text(json.dumps(list(clues)))
    return folder


def write_choices(folder: Path, *, seed: int) -> Path:
    """A multiple-choice task with 2 to 4 choices; the right one is always `rose`."""
    rng = random.Random(seed)

    def row() -> dict[str, object]:
        choices = ["rose", *rng.sample(("bark", "milk", "sky", "bone"), k=rng.randint(1, 3))]
        rng.shuffle(choices)
        question = " ".join(rng.choices(FILLERS, k=rng.randint(1, 4)))
        return {"question": f"{question} _", "choices": choices, "answer": choices.index("rose")}

    return _write_rows(folder, [row() for _ in range(72)])


def _write_rows(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    folder.mkdir(parents=True)
    for name, part in (("train", rows[:48]), ("test", rows[48:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


class ObservedGrid(InProcessGrid):
    """An InProcessGrid that keeps a copy of every message as it was on the wire."""

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        nodes: int | Sequence[Mapping[str, object]],
        run_config: Mapping[str, object],
    ) -> None:
        super().__init__(app, nodes, run_config)
        self.down: list[Message] = []
        self.up: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.down += [transported(message) for message in messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.up += [transported(reply) for reply in replies]
        return replies


@dataclass(frozen=True)
class Federation:
    """A run that has ended: its folder, what is written there, and the grid it ran on."""

    folder: Path
    log: RunLog
    grid: ObservedGrid


def run_config_for(
    output: Path, base: Path, *tasks: Path, changes: Mapping[str, object] | None = None
) -> dict[str, object]:
    """A run config that takes a second: two rounds, small factors."""
    return {
        "base": str(base),
        "tasks": ",".join(map(str, tasks)),
        "output-dir": str(output),
        "run-name": "run",
        "device": "cpu",
        "num-server-rounds": 2,
        "adapter.rank": 2,
        "adapter.d-a2": 4,
        "train.batch-size": 16,
        "train.learning-rate": 0.01,
        "train.head-learning-rate": 0.03,
        "train.max-length": 16,
        **(changes or {}),
    }


def grid_of(run_config: Mapping[str, object], nodes: int) -> ObservedGrid:
    """Nodes that run the real ClientApp; change `contexts` to make one of them different."""
    return ObservedGrid(clients.app.app, nodes, run_config)


def federate(run_config: Mapping[str, object], grid: ObservedGrid) -> Federation:
    """Run the real ServerApp on the grid to its end; raises what it raises."""
    server.app.app(grid, Context(1, 1, {}, RecordDict(), dict(run_config)))
    folder = run_directory(Settings.from_run_config(run_config), 1)
    return Federation(folder, read_run(folder), grid)


def wire_size(message: Message) -> int:
    """Bytes of all different objects in a message's tree, walked without Flower's helpers."""
    objects: dict[bytes, int] = {}
    waiting: list[InflatableObject] = [message]
    while waiting:
        item = waiting.pop()
        content = item.deflate()
        objects[hashlib.sha256(content).digest()] = len(content)
        waiting += (item.children or {}).values()
    return sum(objects.values())
