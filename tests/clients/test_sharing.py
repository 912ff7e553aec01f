"""Nodes that one process serves share what is the same for them, and nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federation_cases import WORDS, federate, grid_of, run_config_for, tiny_tokenizer
from torch import nn

import clients.features
import clients.node
import clients.worker
import fedkron.base
from clients import training
from clients.batches import Tokenized, tokenize
from clients.features import identity_of, kept_features
from clients.node import this_node
from clients.tasks import load_task, node_share
from clients.worker import load_worker, tokenized
from fedkron.base import Base, TaskModel
from fedkron.ledger import read_ledger
from fedkron.rundir import LEDGER
from fedkron.settings import AdapterSettings, Settings, TrainSettings

PAD = 0
ADAPTER = AdapterSettings(rank=2, d_a2=4)


class Counted(nn.Module):
    """A backbone that counts how often it is asked."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.calls = 0

    def forward(self, **inputs: torch.Tensor) -> object:
        self.calls += 1
        return self.backbone(**inputs)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the bases that are really read from the disk, from an empty process on."""
    clients.worker.load_worker.cache_clear()
    clients.worker._loaded_base.cache_clear()
    read: list[str] = []
    original = fedkron.base.load_base

    def load_base(name: str) -> Base:
        read.append(name)
        return original(name)

    monkeypatch.setattr(clients.worker, "load_base", load_base)
    yield read
    clients.worker.load_worker.cache_clear()
    clients.worker._loaded_base.cache_clear()


def test_base_is_loaded_once_for_many_nodes_and_rounds(
    tmp_path: Path, tiny_bert: Path, tasks: Path, loads: list[str]
) -> None:
    changes = {"num-server-rounds": 3, "train.max-train-examples": 4, "train.max-test-examples": 4}
    config = run_config_for(tmp_path, tiny_bert, tasks / "animals", tasks / "colours", changes=changes)
    run = federate(config, grid_of(config, 12))
    answered = {(t.round, t.node, t.phase) for t in read_ledger(run.folder / LEDGER) if t.direction == "up"}
    assert len(answered) == 12 * 3 * 2
    assert loads == [str(tiny_bert)]


def test_task_is_read_once_for_all_nodes_that_have_a_share_of_it(
    tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(clients.node, "load_task", lambda source: read.append(source) or load_task(source))
    source = str(tasks / "animals")
    settings = Settings.from_run_config({"tasks": source, "run-name": "read-once"})
    nodes = [this_node({"partition-id": i, "num-partitions": 16}, settings, 5) for i in range(16)]
    assert read == [source]
    whole = load_task(source)
    for node in nodes:
        own = node_share(whole, node.partition, 16, partitioner="iid", alpha=0.5, seed=0)
        assert node.task == own
    texts = sorted(example.text for node in nodes for example in node.task.train)
    assert texts == sorted(example.text for example in whole.train)


def test_a_task_that_has_changed_is_read_anew_by_the_next_run(tmp_path: Path) -> None:
    def written(text: str) -> str:
        row = json.dumps({"text": text, "label": 0}) + "\n"
        for split in ("train", "test"):
            (tmp_path / f"{split}.jsonl").write_text(row)
        (tmp_path / "labels.json").write_text('["a", "b"]')
        settings = Settings.from_run_config({"tasks": str(tmp_path), "run-name": text})
        return this_node({"partition-id": 0, "num-partitions": 1}, settings, 5).task.train[0].text

    assert [written("one"), written("two")] == ["one", "two"]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_shares_do_not_depend_on_who_asked_first(tasks: Path, kind: str) -> None:
    task = load_task(str(tasks / "colours"))

    def share(index: int) -> object:
        return node_share(task, index, 4, partitioner=kind, alpha=0.5, seed=3)

    forwards = [share(index) for index in range(4)]
    clients.partition._iid.cache_clear()
    clients.partition._dirichlet_partitioner.cache_clear()
    assert [share(index) for index in reversed(range(4))][::-1] == forwards


def texts_of(seed: int, count: int) -> list[Tokenized]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    rows = [torch.randint(4, 4 + len(WORDS), (n,), generator=generator).tolist() for n in lengths]
    return [Tokenized((row,), number % 3) for number, row in enumerate(rows)]


def test_head_on_kept_features_is_bit_for_bit_the_head_on_fresh_ones(tiny_bert: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    counted = Counted(worker.bare)
    settings = TrainSettings(batch_size=8, head_learning_rate=0.03)
    identity = identity_of("head on kept features")

    def measured(seed: int, *, kept: bool) -> training.Evaluation:
        return training.evaluate_head_only(
            counted,
            texts_of(seed, 20),
            texts_of(100, 20),
            3,
            settings,
            pad_id=PAD,
            epochs=4,
            seed=seed,
            features=kept_features(counted, identity) if kept else None,
        )

    assert [measured(seed, kept=True) for seed in (1, 2)] == [measured(seed, kept=False) for seed in (1, 2)]
    before = counted.calls
    third = measured(3, kept=True)
    assert counted.calls - before == 3  # its own texts; those of the test are known
    assert third == measured(3, kept=False)


def test_evaluation_on_kept_features_is_bit_for_bit_the_fresh_one(tiny_bert: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    generator = torch.Generator().manual_seed(1)
    for parameter in worker.adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    counted = Counted(worker.adapted)
    features = kept_features(counted, identity_of("evaluation on kept features"))
    for seed in (1, 2):
        model = TaskModel(counted, 3)
        nn.init.normal_(model.head.weight, generator=generator)
        fresh = training.evaluate(model, texts_of(seed, 30), PAD)
        before = counted.calls
        assert training.evaluate(model, texts_of(seed, 30), PAD, features) == fresh
        nn.init.normal_(model.head.weight, generator=generator)  # another node's head
        assert training.evaluate(model, texts_of(seed, 30), PAD, features).loss != fresh.loss
        assert counted.calls - before == 1


def test_features_of_other_models_and_other_texts_are_others(tiny_bert: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    state = {"w": torch.arange(4.0).numpy()}
    names = [
        identity_of("c"),
        identity_of("d"),
        identity_of("c", state),
        identity_of("c", {"w": state["w"] + 1}),
        identity_of("c", {"v": state["w"]}),
        identity_of("c", {"w": state["w"].reshape(2, 2)}),
        identity_of("c", state, state),
        identity_of("c", state, {}),
    ]
    assert len(set(names)) == len(names)
    assert identity_of("c", {"w": state["w"].copy()}) == identity_of("c", state)
    model = TaskModel(worker.adapted, 3)
    nn.init.normal_(model.head.weight)
    features = kept_features(worker.adapted, identity_of("others"))
    for seed in range(6):
        texts = texts_of(seed, 5)
        assert training.evaluate(model, texts, PAD, features) == training.evaluate(model, texts, PAD)


def test_nodes_of_a_real_federation_measure_what_each_would_measure_alone(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    """With and without what nodes share in a process, every reply has the same bytes."""

    def replies(name: str, *, capacity: int) -> list[bytes]:
        changes = {"run-name": name, "train.max-train-examples": 8, "train.max-test-examples": 12}
        config = run_config_for(tmp_path, tiny_bert, tasks / "animals", tasks / "quiz", changes=changes)
        with pytest.MonkeyPatch.context() as patch:
            small = clients.features.BoundedCache(capacity, lambda tensor: tensor.numel() * 4)
            patch.setattr(clients.features, "_kept", small)
            run = federate(config, grid_of(config, 4))
        assert (small.bytes > 0) == (capacity > 0)
        return [reply.content.deflate() for reply in run.grid.up]

    shared = replies("shared", capacity=2**20)
    assert len(shared) == 2 * 2 * 4
    assert replies("alone", capacity=0) == shared


def test_tokens_are_those_of_the_tokenizer_and_its_side(tiny_bert: Path, tasks: Path) -> None:
    task = load_task(str(tasks / "animals"))
    for side in ("left", "right"):
        worker = load_worker(str(tiny_bert), ADAPTER, "cpu", side)
        tokenizer = tiny_tokenizer()
        tokenizer.truncation_side = side
        for split in (task.train, task.test):
            found = tokenized(worker, split, 4)
            assert list(found) == tokenize(split, tokenizer, 4)
            assert tokenized(worker, split, 4) is found


def test_another_setting_is_another_worker_over_the_same_weights(tiny_bert: Path, loads: list[str]) -> None:
    first = load_worker(str(tiny_bert), ADAPTER, "cpu", "right")
    second = load_worker(str(tiny_bert), replace(ADAPTER, rank=3), "cpu", "right")
    assert first.layout.contract != second.layout.contract
    assert first.layout.base == second.layout.base == first.fingerprint
    assert loads == [str(tiny_bert)]
