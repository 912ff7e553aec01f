"""A language model's bundle, from `fedkron export` to the next token: every form against torch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import tiny_decoder, transformers_tokenizer
from edge_cases import SPECS, another_adapter, with_adapter
from torch import nn

from fedkron.base import load_any_base, load_language_model
from fedkron.cli import main
from fedkron.edge.bundle_adapters import add_to_bundle
from fedkron.edge.language_runtime import LanguageModel, Sampling
from fedkron.edge.runtime import Bundle
from fedkron.edge.slot_encoding import ENCODINGS
from fedkron.errors import BundleError, ContractError, TaskError
from fedkron.exchange import AdapterFile, save_adapter

PROMPTS = ["Once upon a time", "naïve ☂"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, AdapterFile]:
    """A base in a folder, the same with an adapter on all layers, and the adapter."""
    folder = tmp_path_factory.mktemp("language")
    tiny_decoder("llama").save_pretrained(folder / "base")
    transformers_tokenizer().save_pretrained(folder / "base")
    base = load_language_model(str(folder / "base"))
    model, adapter = with_adapter(base.backbone, SPECS["kron_lora"], base.fingerprint, seed=1)
    assert any("lm_head" in module.path for module in adapter.layout.modules)
    adapter = replace(adapter, base_name=str(folder / "base"))
    save_adapter(folder / "adapter.safetensors", adapter)
    return folder, model, adapter


@pytest.fixture(scope="module")
def bundle(saved: tuple[Path, nn.Module, AdapterFile]) -> Path:
    folder = saved[0]
    options = ["--language-model", "--max-length", "48", "-o", str(folder / "bundle")]
    assert main(["export", str(folder / "adapter.safetensors"), *options]) == 0
    return folder / "bundle"


@torch.no_grad()
def torch_logits(model: nn.Module) -> list[np.ndarray]:
    tokenizer = transformers_tokenizer()
    ids = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]
    return [model(input_ids=row).logits[0, -1].numpy() for row in ids]


@pytest.mark.parametrize("merged", [True, False])
def test_the_next_token_has_torchs_logits(
    saved: tuple[Path, nn.Module, AdapterFile], bundle: Path, merged: bool
) -> None:
    opened = LanguageModel.open(bundle, threads=1)
    for prompt, expected in zip(PROMPTS, torch_logits(saved[1]), strict=True):
        np.testing.assert_allclose(opened.next_logits(prompt, merged=merged), expected, atol=1e-4)


def test_without_an_adapter_the_base_answers_and_only_then(
    saved: tuple[Path, nn.Module, AdapterFile], bundle: Path
) -> None:
    base = load_language_model(str(saved[0] / "base"))
    opened = LanguageModel.open(bundle, threads=1)
    for prompt, expected in zip(PROMPTS, torch_logits(base.backbone), strict=True):
        bare = opened.next_logits(prompt, adapter=None)
        np.testing.assert_allclose(bare, expected, atol=1e-4)
        assert np.abs(bare - opened.next_logits(prompt)).max() > 1e-2
    with pytest.raises(TaskError, match="'nobody' is not loaded"):
        opened.next_logits(PROMPTS[0], adapter="nobody")
    with pytest.raises(BundleError, match="the adapter of the export alone"):
        opened.next_logits(PROMPTS[0], adapter=None, merged=True)


def test_each_prompt_may_have_its_own_adapter(
    saved: tuple[Path, nn.Module, AdapterFile], bundle: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "other.safetensors", another_adapter(saved[2], seed=3))
    opened = LanguageModel.open(bundle, threads=1)
    assert opened.load(tmp_path / "other.safetensors") == "other"
    adapters, sampling = ["default", None, "other"], Sampling(max_new_tokens=6)
    together = opened.generate([PROMPTS[0]] * 3, sampling, adapter=adapters)
    alone = [opened.generate([PROMPTS[0]], sampling, adapter=adapter)[0] for adapter in adapters]
    assert together == alone
    assert ["".join(opened.stream(PROMPTS[0], sampling, adapter=adapter)) for adapter in adapters] == alone
    with pytest.raises(TaskError, match="2 adapters for 1 prompts"):
        opened.generate(PROMPTS[:1], adapter=["default", "other"])
    opened.unload("other")
    assert list(opened.adapters) == ["default"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_smaller_slot_and_base_stay_near_torch(
    saved: tuple[Path, nn.Module, AdapterFile],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    encoding: str,
) -> None:
    folder, _, _ = saved
    base_form = {"fp32": "nbits8", "int8": "int8"}.get(encoding, "fp32")
    options = ["--language-model", "--slot", encoding, "--base-form", base_form, "--no-merged", "--json"]
    output = ["--max-length", "48", "-o", str(tmp_path / "bundle")]
    assert main(["export", str(folder / "adapter.safetensors"), *options, *output]) == 0
    (agreement,) = json.loads(capsys.readouterr().out)["agreement"]
    assert (agreement["task"], agreement["form"]) == ("text-generation", "unmerged")
    # A code is wrong by up to a 14th of the largest number with 4 bits, a 250th with 8; layers add up.
    bound = {"fp16": 0.01, "int4": 0.5}.get(encoding, 0.2)
    assert 0 < agreement["difference"] <= bound * agreement["magnitude"]


def test_a_language_model_is_not_opened_as_something_else(
    saved: tuple[Path, nn.Module, AdapterFile], bundle: Path
) -> None:
    with pytest.raises(BundleError, match="generates text"):
        Bundle.open(bundle)
    # The same weights without the head are another base: other paths, another fingerprint.
    other = load_any_base(str(saved[0] / "base"))
    _, foreign = with_adapter(other.backbone, SPECS["kron_lora"], other.fingerprint, seed=1)
    with pytest.raises(ContractError, match="another base, or with other settings"):
        add_to_bundle(bundle, "foreign", foreign, [])
    entry = add_to_bundle(bundle, "second", another_adapter(saved[2], seed=4), [])
    assert list(entry.onnx_adapters) == ["text-generation"]
    assert list(LanguageModel.open(bundle).adapters) == ["default", "second"]
