"""What is computed in bf16, and what is not."""

from pathlib import Path

import pytest
import torch
from federation_cases import federate, grid_of, run_config_for, tiny_tokenizer
from torch import nn

from clients import training
from clients.batches import Tokenized, tokenize
from clients.features import identity_of, kept_features
from clients.tasks import load_task
from clients.worker import load_worker
from fedkron.adapters import adapted_layers, adapter_state
from fedkron.base import load_base
from fedkron.cli import main
from fedkron.edge.runtime import Bundle
from fedkron.exchange import load_adapter
from fedkron.rundir import ADAPTER
from fedkron.settings import AdapterSettings, TrainSettings

PAD = 0
ADAPTER_SETTINGS = AdapterSettings(rank=2, d_a2=4, dropout=0.0)
CPU = torch.device("cpu")


def examples(tasks: Path) -> list[Tokenized]:
    return tokenize(load_task(str(tasks / "colours")).train, tiny_tokenizer(), 16)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_products_on_a_cpu_are_in_full_precision_unless_bf16_is_asked_for(
    precision: str, dtype: torch.dtype
) -> None:
    with training.mixed_precision(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def trained(base: Path, tasks: Path, precision: str, dtype: str) -> tuple[float, dict[str, bytes]]:
    """Loss of the last epoch and factors."""
    load_worker.cache_clear()
    worker = load_worker(str(base), ADAPTER_SETTINGS, "cpu", "right", dtype)
    torch.manual_seed(3)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    model = worker.task_model(3)
    settings = TrainSettings(
        epochs=4, batch_size=16, learning_rate=1e-2, head_learning_rate=1e-1, precision=precision
    )
    loss = training.train(model, examples(tasks), settings, PAD, seed=0)
    state = adapter_state(model.backbone)
    assert {values.dtype.name for values in state.values()} == {"float32"}
    assert model.head.weight.dtype == torch.float32
    return loss, {name: values.tobytes() for name, values in state.items()}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", "float32"), ("auto", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_training_in_bf16_learns_as_much_and_is_as_repeatable(
    precision: str, dtype: str, tiny_bert: Path, tasks: Path
) -> None:
    loss, factors = trained(tiny_bert, tasks, precision, dtype)
    full_loss, full_factors = trained(tiny_bert, tasks, "float32", "float32")
    assert loss == pytest.approx(full_loss, rel=0.1)  # dropout draws other numbers for another dtype
    assert all(factors[name] != full_factors[name] for name in full_factors)
    assert trained(tiny_bert, tasks, precision, dtype) == (loss, factors)


def test_base_in_bf16_takes_half_the_bytes_and_keeps_its_name(tiny_bert: Path) -> None:
    half = load_worker(str(tiny_bert), ADAPTER_SETTINGS, "cpu", "right", "bfloat16")
    assert {parameter.dtype for parameter in half.bare.parameters()} == {torch.bfloat16}
    whole = load_base(str(tiny_bert))
    assert half.fingerprint == whole.fingerprint
    for held, own in zip(half.bare.parameters(), whole.backbone.parameters(), strict=True):
        assert torch.equal(held, own.bfloat16())
    layout = load_worker(str(tiny_bert), ADAPTER_SETTINGS, "cpu", "right").layout
    assert layout.contract == half.layout.contract


def test_evaluation_is_in_the_precision_that_is_asked_for(tiny_bert: Path, tasks: Path) -> None:
    worker = load_worker(str(tiny_bert), ADAPTER_SETTINGS, "cpu", "right")
    model = worker.task_model(3)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    # What is kept in one precision is not an answer in the other.
    features = kept_features(model.backbone, identity_of("evaluation in two precisions"))
    found = {
        precision: training.evaluate(model, examples(tasks), PAD, features, precision=precision)
        for precision in ("float32", "bfloat16")
    }
    for precision, result in found.items():
        assert result == training.evaluate(model, examples(tasks), PAD, precision=precision)
    assert found["float32"].loss != found["bfloat16"].loss
    assert found["float32"].loss == pytest.approx(found["bfloat16"].loss, rel=0.02)


def test_federation_of_nodes_with_a_base_in_bf16_ends_in_an_adapter_for_the_base_in_float32(
    tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    changes = {"base-dtype": "bfloat16", "num-server-rounds": 3, "train.epochs": 4}
    config = run_config_for(tmp_path, tiny_bert, tasks / "animals", changes=changes)
    run = federate(config, grid_of(config, 2))
    assert run.log.outcome == "completed"
    assert all(entry.failures == () for entry in run.log.rounds)
    assert run.log.rounds[-1].tasks["animals"].accuracy > 0.8
    layout = load_worker(str(tiny_bert), ADAPTER_SETTINGS, "cpu", "right").layout
    assert load_adapter(run.folder / ADAPTER).layout.base == layout.base
    assert main(["export", str(run.folder)]) == 0
    assert Bundle.open(run.folder / "bundle").predict(["cat"], "animals")
