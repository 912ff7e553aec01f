"""Throughput and memory of training: what is counted, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from simulations.paper import throughput
from simulations.paper.throughput_study.bases import (
    BASES,
    DISTILBERT,
    LABELS,
    Base,
    backbone_of,
    random_batch,
    sharing_weights,
)
from simulations.paper.throughput_study.contestants import (
    CONTESTANTS,
    HEAD_ONLY,
    KRON_LORA,
    LORA,
    PEFT_LORA,
    loss_of,
    model_of,
    optimizer_of,
    training_step,
)
from simulations.paper.throughput_study.speed import measure_speed

CPU = torch.device("cpu")
HIDDEN, LAYERS = 32, 2
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 4 * HIDDEN,
    "vocab_size": 1000,
}
TINY = Base("bert", SIZES, texts=3, tokens=8)
HEAD = LABELS * HIDDEN + LABELS
SQUARE, WIDE = 4 * LAYERS, 2 * LAYERS
"""Linear layers: query, key, value and output, and two of 32 × 128."""


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_contestants_train_as_many_parameters_as_their_formulas_say() -> None:
    backbone = backbone_of(TINY, CPU)
    counts = {name: trained(model_of(sharing_weights(backbone), name)) for name in CONTESTANTS}
    lora = SQUARE * 8 * 2 * HIDDEN + WIDE * 8 * 5 * HIDDEN
    # d_A1 = 2, and d_A2 = 1 is the power of two nearest to 32/200.
    kron = SQUARE * (2 + 8 * (HIDDEN + HIDDEN // 2)) + LAYERS * (
        (2 + 8 * (4 * HIDDEN + HIDDEN // 2)) + (2 + 8 * (HIDDEN + 2 * HIDDEN))
    )
    krona = SQUARE * (2 + HIDDEN * HIDDEN // 2) + WIDE * (2 + 4 * HIDDEN * HIDDEN // 2)
    assert counts[HEAD_ONLY] == HEAD
    assert counts[LORA] == counts[PEFT_LORA] == lora + HEAD
    assert counts[KRON_LORA] == kron + HEAD
    assert counts["KronA"] == krona + HEAD


def test_distilbert_has_the_papers_sizes() -> None:
    with torch.device("meta"):
        backbone = backbone_of(BASES[DISTILBERT], torch.device("meta"))
        model = model_of(backbone, KRON_LORA)
    # The paper's 840,481 have a classifier of their own: pre_classifier (768² + 768) and one output.
    assert trained(model.backbone) == 840_481 - (768 * 768 + 768) - (768 + 1)


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_a_step_trains_what_is_put_on_the_base_and_nothing_else(contestant: str) -> None:
    backbone = backbone_of(TINY, CPU)
    frozen = {name: values.clone() for name, values in backbone.state_dict().items()}
    model = model_of(sharing_weights(backbone), contestant)
    ids, labels = random_batch(TINY, CPU)
    step = training_step(model, optimizer_of(model), ids, labels)
    before = loss_of(model.eval(), ids, labels).item()
    model.train()
    for _ in range(5):
        step()
    assert loss_of(model.eval(), ids, labels).item() < before
    assert all(torch.equal(frozen[name], values) for name, values in backbone.state_dict().items())


def test_speed_has_a_value_a_round_for_each_contestant() -> None:
    speed = measure_speed("tiny", TINY, [KRON_LORA, PEFT_LORA], CPU, budget=0.01, visits=2)
    assert speed.batch_tokens == 24
    assert {len(values) for values in speed.seconds.values()} == {10}  # twice the least number of rounds
    assert all(second > 0 for values in speed.seconds.values() for second in values)


def test_the_program_prints_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(throughput.BASES, "minilm", TINY)
    monkeypatch.setitem(throughput.QUICK, "contestants", [LORA])
    written = tmp_path / "found.json"
    options = ["--quick", "--texts", "64", "--budget", "0.01", "--json", str(written)]
    assert throughput.main(options) == 0
    assert "time / LoRA-8's" in " ".join(capsys.readouterr().out.split())
    found = json.loads(written.read_text())
    assert found["speed"][0]["over"][LORA][LORA]["median"] == 1
    (memory,) = found["memory"]
    parameters, tensors = memory["trained_parameters"], 2 * 6 * LAYERS + 2
    assert memory["gradients"] == 4 * parameters
    # AdamW keeps two moments, and the number of steps of each tensor.
    assert memory["optimizer"] == 8 * parameters + 4 * tensors
    # Each wrapped layer keeps at least its input; query, key and value share theirs.
    hidden = 4 * found["speed"][0]["batch_tokens"] * HIDDEN
    assert memory["kept"] > LAYERS * (3 * hidden + 4 * hidden)
    assert memory["step_peak"] > 0
