"""Local fine-tuning: what learns and what does not, and that the figures are right."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_cases import tiny_tokenizer
from torch import nn

from clients import training
from clients.batches import Tokenized, tokenize
from clients.tasks import load_task
from fedkron.adapters import AdapterSpec, adapter_state, attach, detach
from fedkron.base import TaskModel, fingerprint, load_base
from fedkron.errors import ConfigError
from fedkron.settings import TrainSettings

PAD = 0
SETTINGS = TrainSettings(epochs=3, batch_size=16, learning_rate=1e-2, head_learning_rate=1e-1)


def fresh_model(base: Path, outputs: int) -> TaskModel:
    torch.manual_seed(3)
    return TaskModel(attach(load_base(str(base)).backbone, AdapterSpec(rank=2, d_a2=4)), outputs)


def random_model(base: Path, outputs: int) -> TaskModel:
    """With a head and factors that are not zero, so that every example has its own loss."""
    model = fresh_model(base, outputs)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def examples_of(tasks: Path, name: str) -> tuple[list[Tokenized], list[Tokenized], int]:
    """Tokenized train and test split of a task, and the number of outputs its head needs."""
    task = load_task(str(tasks / name))
    train, test = (tokenize(part, tiny_tokenizer(), 16) for part in (task.train, task.test))
    return train, test, len(task.labels) or 1


def trained_bytes(model: TaskModel) -> dict[str, bytes]:
    head = {f"head.{name}": tensor.detach().numpy() for name, tensor in model.head.named_parameters()}
    return {name: values.tobytes() for name, values in {**adapter_state(model.backbone), **head}.items()}


@pytest.mark.parametrize("name", ["colours", "quiz"])
def test_training_lowers_the_loss(name: str, tiny_bert: Path, tasks: Path) -> None:
    train, _, outputs = examples_of(tasks, name)
    model = fresh_model(tiny_bert, outputs)
    before = training.evaluate(model, train, PAD)
    training.train(model, train, SETTINGS, PAD, seed=0)
    after = training.evaluate(model, train, PAD)
    assert after.loss < 0.8 * before.loss
    assert after.accuracy > before.accuracy


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_bert: Path, tasks: Path) -> None:
    train, _, outputs = examples_of(tasks, "colours")

    def run(seed: int, drawn_before: int) -> tuple[float, dict[str, bytes]]:
        model = fresh_model(tiny_bert, outputs)
        torch.rand(drawn_before)
        return training.train(model, train, SETTINGS, PAD, seed), trained_bytes(model)

    loss, state = run(1, drawn_before=0)
    assert run(1, drawn_before=5) == (loss, state)
    other_loss, other_state = run(2, drawn_before=0)
    assert other_loss != loss
    assert other_state != state


def test_learning_changes_every_factor_and_the_head_and_leaves_the_base_bit_identical(
    tiny_bert: Path, tasks: Path
) -> None:
    train, _, outputs = examples_of(tasks, "colours")
    original = load_base(str(tiny_bert)).fingerprint
    model = fresh_model(tiny_bert, outputs)
    before = trained_bytes(model)
    training.train(model, train, SETTINGS, PAD, seed=0)
    after = trained_bytes(model)
    assert [name for name in before if before[name] == after[name]] == []
    assert fingerprint(detach(model.backbone)) == original


def without_dropout(model: TaskModel) -> TaskModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_returned_loss_is_the_mean_over_the_examples_of_the_last_epoch(tiny_bert: Path, tasks: Path) -> None:
    train, _, outputs = examples_of(tasks, "colours")
    train = train[:37]  # the last batch is smaller
    model = without_dropout(random_model(tiny_bert, outputs))
    # Steps too small to change anything, so the loss must be that of the model as it is.
    settings = replace(SETTINGS, learning_rate=1e-12, head_learning_rate=1e-12)
    expected = training.evaluate(model, train, PAD).loss
    assert training.train(model, train, settings, PAD, seed=0) == pytest.approx(expected, rel=1e-4)


def one_by_one(model: TaskModel, examples: Sequence[Tokenized]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy, example by example, without padding, in float64."""
    right, losses = [], []
    for example in examples:
        texts = [torch.tensor([text]) for text in example.texts]
        with torch.no_grad():
            logits = torch.cat([model(text, torch.ones_like(text)) for text in texts])
        answers = logits.double().numpy().ravel()
        losses.append(np.log(np.exp(answers - answers.max()).sum()) + answers.max() - answers[example.target])
        right.append(answers.argmax() == example.target)
    return float(np.mean(right)), float(np.mean(losses))


@pytest.mark.parametrize("name", ["colours", "quiz"])
def test_evaluation_is_that_of_each_example_by_itself(name: str, tiny_bert: Path, tasks: Path) -> None:
    train, test, outputs = examples_of(tasks, name)
    model = random_model(tiny_bert, outputs)
    examples = [*train, *test]  # more than one evaluation batch
    assert len(examples) > training.EVALUATION_BATCH
    accuracy, loss = one_by_one(model.eval(), examples)
    model.train()  # evaluation must switch dropout off by itself
    result = training.evaluate(model, examples, PAD)
    assert result.accuracy == accuracy
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert 0 < accuracy < 1


def head_only(base: Path, tasks: Path, name: str, *, epochs: int = 20, seed: int = 0) -> training.Evaluation:
    train, test, outputs = examples_of(tasks, name)
    backbone = load_base(str(base)).backbone
    return training.evaluate_head_only(
        backbone, train, test, outputs, SETTINGS, pad_id=PAD, epochs=epochs, seed=seed
    )


def test_head_alone_beats_the_majority_where_the_base_tells_the_texts_apart(
    tiny_bert: Path, tasks: Path
) -> None:
    for name in ("animals", "quiz"):
        majority = load_task(str(tasks / name)).majority
        assert head_only(tiny_bert, tasks, name).accuracy > majority + 0.2


def test_head_alone_learns_with_epochs_and_depends_on_the_seed_alone(tiny_bert: Path, tasks: Path) -> None:
    once = head_only(tiny_bert, tasks, "animals", epochs=1)
    torch.rand(7)
    assert head_only(tiny_bert, tasks, "animals", epochs=1) == once
    assert head_only(tiny_bert, tasks, "animals", epochs=1, seed=9) != once
    assert head_only(tiny_bert, tasks, "animals", epochs=20).loss < once.loss


def test_head_alone_does_not_touch_the_base(tiny_bert: Path, tasks: Path) -> None:
    train, test, outputs = examples_of(tasks, "animals")
    base = load_base(str(tiny_bert))
    training.evaluate_head_only(base.backbone, train, test, outputs, SETTINGS, pad_id=PAD, epochs=2, seed=0)
    assert fingerprint(base.backbone) == base.fingerprint
    assert all(parameter.grad is None for parameter in base.backbone.parameters())


def test_device_is_the_gpu_where_there_is_one_and_asking_for_a_missing_one_is_an_error() -> None:
    assert training.choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert training.choose_device("cuda").type == "cuda"
        assert training.choose_device("auto").type == "cuda"
    else:
        assert training.choose_device("auto").type == "cpu"
        with pytest.raises(ConfigError, match="'device' is 'cuda', but this node has no CUDA GPU"):
            training.choose_device("cuda")
