"""`fedkron convert` as a user sees it: a run to PEFT, PEFT to ours, one kind to another."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_cases import Capture, Command, Finished
from federation_cases import save_tiny_bert
from peft import LoKrConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from fedkron.adapters import adapted_layers, attach_layout, load_adapter_state
from fedkron.base import load_base
from fedkron.cli import main
from fedkron.exchange import load_adapter

INPUTS = {"input_ids": torch.arange(24).view(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


COMMAND = Command("convert")
output_of, facts_of, error_of = COMMAND.output_of, COMMAND.facts_of, COMMAND.error_of


def hidden(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(**INPUTS).last_hidden_state
    return output


def ours(base: Path, file: Path) -> nn.Module:
    adapter = load_adapter(file)
    model = attach_layout(load_base(str(base)).backbone, adapter.layout)
    load_adapter_state(model, adapter.state)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A PEFT LoRA of a classifier, which has the base under `bert` and a head of its own."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("peft") / "lora"
    model.save_pretrained(folder)
    return folder


def test_a_runs_adapter_is_served_by_peft(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    facts = facts_of(capsys, finished.run, "-o", tmp_path / "peft", "--to", "peft")
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(finished.base), tmp_path / "peft")
    adapted = hidden(ours(finished.base, finished.run / "adapter.safetensors"))
    assert float((hidden(theirs) - adapted).abs().max()) < 1e-5
    assert theirs.peft_config["default"].task_type == "FEATURE_EXTRACTION"
    assert facts["peft_rank"] == theirs.peft_config["default"].r
    assert facts["relative_error"] is None


def test_an_adapter_goes_to_peft_and_back(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    run, peft, back = finished.run / "adapter.safetensors", tmp_path / "peft", tmp_path / "back.safetensors"
    printed = output_of(capsys, run, "-o", peft, "--to", "peft", "--prefix", "bert")
    assert "exact" in printed
    assert str(peft) in printed
    assert json.loads((peft / "adapter_config.json").read_text())["task_type"] is None
    output_of(capsys, peft, "-o", back)
    before = {path: layer.delta() for path, layer in adapted_layers(ours(finished.base, run))}
    after = {path: layer.delta() for path, layer in adapted_layers(ours(finished.base, back))}
    assert list(before) == list(after)
    for path, delta in before.items():
        torch.testing.assert_close(after[path], delta, rtol=1e-5, atol=1e-7)
    assert load_adapter(back).layout.base == load_adapter(run).layout.base


def test_an_exact_form_of_a_runs_adapter_is_exported_with_the_heads_of_that_run(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    converted, bundle = tmp_path / "lora.safetensors", tmp_path / "bundle"
    output_of(capsys, finished.run, "-o", converted, "--kind", "lora")
    head = finished.run / "nodes" / "animals-0" / "head.safetensors"
    assert main(["export", str(converted), "--head", str(head), "-o", str(bundle), "--max-length", "16"]) == 0
    texts = ["my bark is near", "purring on the sofa"]
    answers = []
    for folder in (bundle, finished.bundle):
        capsys.readouterr()
        assert main(["predict", str(folder), *texts, "--task", "animals", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    for ours_, theirs in zip(*answers, strict=True):
        assert ours_["label"] == theirs["label"]
        assert ours_["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)


def test_a_classifiers_lora_comes_in_without_its_head(
    base: Path, lora: Path, tmp_path: Path, capsys: Capture
) -> None:
    printed = output_of(capsys, lora, "-o", tmp_path / "a.safetensors")
    assert "4 × lora: exact" in printed
    assert "Left out" in printed
    assert "classifier.weight" in printed
    theirs = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), lora)
    difference = hidden(theirs.base_model.model.bert) - hidden(ours(base, tmp_path / "a.safetensors"))
    assert float(difference.abs().max()) < 1e-5


def test_the_printed_error_is_that_of_the_weights(
    base: Path, lora: Path, tmp_path: Path, capsys: Capture
) -> None:
    exact, near = tmp_path / "exact.safetensors", tmp_path / "near.safetensors"
    output_of(capsys, lora, "-o", exact)
    sizes = ("--kind", "kron_lora", "--rank", "2", "--d-a1", "2", "--d-a2", "4")
    printed = output_of(capsys, lora, "-o", near, *sizes)
    figures = [float(number) / 100 for number in re.findall(r"([\d.]+)%", printed)]

    want = {path: layer.delta() for path, layer in adapted_layers(ours(base, exact))}
    have = {path: layer.delta() for path, layer in adapted_layers(ours(base, near))}
    errors = [float((have[path] - delta).norm()) for path, delta in want.items()]
    norms = [float(delta.norm()) for delta in want.values()]
    relative = np.divide(errors, norms)
    total = np.linalg.norm(errors) / np.linalg.norm(norms)
    assert figures == pytest.approx([total, np.median(relative), relative.max()], abs=1e-4)
    assert figures == pytest.approx(
        list(
            map(
                facts_of(capsys, lora, "-o", near, *sizes)["relative_error"].get,
                ("total", "median", "largest"),
            )
        ),
        abs=1e-4,
    )
    layout = load_adapter(near).layout
    assert {module.kind for module in layout.modules} == {"kron_lora"}
    assert {module.factors[0].shape for module in layout.modules} == {(4, 2)}


def test_every_kind_is_a_lora_and_lokr_reaches_peft_as_one(
    base: Path, tmp_path: Path, capsys: Capture
) -> None:
    torch.manual_seed(4)
    config = LoKrConfig(r=2, alpha=6, target_modules=["query"])
    theirs = get_peft_model(AutoModel.from_pretrained(base), config)
    for name, parameter in theirs.named_parameters():
        if "lokr_" in name:
            nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "lokr")
    assert facts_of(capsys, tmp_path / "lokr", "-o", tmp_path / "a.safetensors")["kinds"] == {"kron_lora": 2}
    assert facts_of(capsys, tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--kind", "lora")[
        "kinds"
    ] == {"lora": 2}
    output_of(capsys, tmp_path / "lokr", "-o", tmp_path / "lora", "--to", "peft")
    served = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "lora")
    for model in (ours(base, tmp_path / "b.safetensors"), served):
        assert float((hidden(model) - hidden(theirs)).abs().max()) < 1e-5


def test_the_size_of_a_follows_the_base_unless_given(lora: Path, tmp_path: Path, capsys: Capture) -> None:
    # Hidden size 32: the power of two nearest to 32/200 is 1.
    facts_of(capsys, lora, "-o", tmp_path / "a.safetensors", "--kind", "kron_lora")
    modules = load_adapter(tmp_path / "a.safetensors").layout.modules
    assert {module.factors[0].shape for module in modules} == {(1, 2)}


def test_base_renames_the_base(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    output_of(capsys, finished.run, "-o", tmp_path / "peft", "--to", "peft", "--base", "somebody/tiny-bert")
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/tiny-bert"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rank", "3"], "--kind kron_lora"),
        (["--kind", "lora", "--d-a1", "3"], "--d-a1"),
        (["--task-type", "CAUSAL_LM"], "--to peft"),
        (["--kind", "kron_lora", "--d-a1", "7"], "query"),
        (["--kind", "kron_lora", "--rank", "0"], "rank is 0"),
        (["--base", "no/such/base"], "no/such/base"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: list[str], named: str, lora: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert named in error_of(capsys, lora, "-o", tmp_path / "out.safetensors", *arguments)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over_something_else(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    error = error_of(capsys, finished.run, "-o", finished.run, "--to", "peft")
    assert "another folder" in error
    assert (finished.run / "adapter.safetensors").is_file()
    assert "--prefix" in error_of(capsys, finished.run, "-o", tmp_path / "x.safetensors", "--prefix", "bert")
    assert "nowhere" in error_of(capsys, tmp_path / "nowhere", "-o", tmp_path / "x.safetensors")
