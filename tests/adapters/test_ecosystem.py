"""Adapters under the Trainer of transformers, in generation, and with gradient checkpointing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_models import SPEC, adapted, gradients, texts, tiny_bert, trained
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from fedkron.adapters import (
    ADAPTER_KINDS,
    adapted_layers,
    adapter_state,
    attach,
    load_adapter_state,
    merge,
)

each_kind = pytest.mark.parametrize("kind", ADAPTER_KINDS)


def trainer(model: nn.Module, folder: Path, **settings: Any) -> Trainer:  # noqa: ANN401
    data = texts()
    rows = [{name: column[row] for name, column in data.items()} for row in range(len(data["labels"]))]
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "max_steps": 20,
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-2,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "logging_strategy": "no",
            "seed": 0,
        }
        | settings
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


def fresh(kind: str, *, dropout: float = 0.0) -> nn.Module:
    """A BERT to be trained: a new adapter, ΔW = 0, and the classifier in full."""
    model = tiny_bert(dropout=dropout)
    torch.manual_seed(1)
    return attach(model, replace(SPEC, kind=kind, dropout=dropout, full=("classifier",)))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# transformers.Trainer


@each_kind
def test_the_trainer_trains_the_factors_and_the_head_and_nothing_else(kind: str, tmp_path: Path) -> None:
    model = fresh(kind)
    running = trainer(model, tmp_path)
    before, loss_before = values(model), running.evaluate()["eval_loss"]
    running.train()
    assert changed(before, values(model)) == set(trained(model))
    assert len(trained(model)) == 13 * len(next(adapted_layers(model))[1].factor_names) + 2
    assert running.evaluate()["eval_loss"] < loss_before / 4


def test_the_trainer_trains_in_bfloat16_and_the_factors_stay_float32(tmp_path: Path) -> None:
    model = fresh("kron_lora")
    running = trainer(model, tmp_path, bf16=True)
    seen: set[torch.dtype] = set()
    next(adapted_layers(model))[1].register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    loss_before = running.evaluate()["eval_loss"]
    running.train()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert running.evaluate()["eval_loss"] < loss_before / 4


def test_the_state_that_the_trainer_has_made_gives_the_same_logits_on_another_copy(tmp_path: Path) -> None:
    model, other = fresh("kron_lora"), fresh("kron_lora")
    trainer(model, tmp_path).train()
    ids = texts()["input_ids"]
    load_adapter_state(other, adapter_state(model))
    assert torch.equal(other.eval()(ids).logits, model.eval()(ids).logits)


@each_kind
def test_training_resumed_from_a_checkpoint_ends_where_training_without_a_break_ends(
    kind: str, tmp_path: Path
) -> None:
    whole = fresh(kind, dropout=0.1)
    trainer(whole, tmp_path, max_steps=6, save_strategy="steps", save_steps=3).train()
    resumed = fresh(kind, dropout=0.1)
    trainer(resumed, tmp_path, max_steps=6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected, state = adapter_state(whole), adapter_state(resumed)
    assert all(np.array_equal(state[name], array) for name, array in expected.items())


@each_kind
def test_the_gradients_of_two_micro_batches_add_up_to_those_of_one_batch(kind: str) -> None:
    model, data = adapted(tiny_bert(), kind, full=("classifier",)), texts(16)
    model(**data).loss.backward()
    whole = gradients(model)
    for part in (slice(0, 8), slice(8, 16)):
        (model(**{name: column[part] for name, column in data.items()}).loss / 2).backward()
    accumulated = gradients(model)
    assert whole.keys() == trained(model).keys() == accumulated.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-6)


# Gradient checkpointing


@each_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, use_reentrant: bool, tmp_path: Path) -> None:
    def after_one_step(**settings: object) -> tuple[int, dict[str, Tensor]]:
        model = fresh(kind, dropout=0.1)
        calls = []
        layer = model.get_submodule("bert.encoder.layer.0.output.dense")
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        running = trainer(model, tmp_path, max_steps=1, max_grad_norm=0, optim="sgd", **settings)
        running.train()
        return len(calls), values(model)

    calls, plain = after_one_step()
    calls_checkpointed, checkpointed = after_one_step(
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    assert (calls, calls_checkpointed) == (1, 2)
    assert not changed(plain, checkpointed)
    assert changed(values(fresh(kind)), plain)


# Generation


@each_kind
def test_generation_with_a_cache_gives_the_tokens_of_the_merged_model(kind: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=24,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    # In float64, so that no two tokens are equally likely but for rounding.
    model = LlamaForCausalLM(config).double().eval()
    prompt = torch.tensor([[3, 1, 4, 1], [9, 2, 6, 5]])

    def generate(**settings: bool) -> Tensor:
        return model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, **settings
        )

    bare = generate()
    adapted(model, kind)
    unmerged = generate()
    assert unmerged.shape == (2, 16)
    assert not torch.equal(unmerged, bare)
    assert torch.equal(unmerged, generate(use_cache=False))
    merged = merge(model)
    assert torch.equal(unmerged, generate())
    merged.unmerge()
    assert torch.equal(unmerged, generate())
