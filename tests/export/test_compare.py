"""`python -m export.compare` says how well a bundle agrees with torch, and exits accordingly."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from export.compare import main
from fedkron.adapters import AdapterSpec, adapter_layout, adapter_state, attach
from fedkron.base import load_base
from fedkron.edge.bundle import write_bundle
from fedkron.exchange import AdapterFile, HeadFile, load_adapter, save_adapter, save_head

WORDS = ["[PAD]", "[UNK]", "red", "green", "blue", "cat", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base on disk, an adapter with heads of labels and of choices, and the bundle of them."""
    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    config = DistilBertConfig(
        dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=7, max_position_embeddings=64
    )
    DistilBertModel(config).save_pretrained(folder / "base")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder / "base")

    trained = load_base(str(folder / "base"))
    model = attach(trained.backbone, AdapterSpec(rank=2, d_a2=4))
    state = {n: t + np.float32(0.1) for n, t in adapter_state(model).items()}
    layout = adapter_layout(model, trained.fingerprint)
    rng = np.random.default_rng(0)
    heads = [
        HeadFile(
            rng.standard_normal((outputs, 16)).astype(np.float32),
            rng.standard_normal(outputs).astype(np.float32),
            task,
            kind,
            labels,
            layout.contract,
        )
        for task, kind, labels, outputs in (
            ("animal", "classification", ("cat", "dog"), 2),
            ("fits", "multiple_choice", (), 1),
        )
    ]
    adapter = AdapterFile(state, layout, trained.name)
    save_adapter(folder / "adapter.safetensors", adapter)
    for head in heads:
        save_head(folder / f"{head.task}.safetensors", head)
    write_bundle(folder / "bundle", load_base(trained.name), adapter, heads, report=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def sound(folder: Path) -> list[str]:
    """The arguments for the bundle and what it was made from."""
    heads = [["--head", str(folder / f"{task}.safetensors")] for task in ("animal", "fits")]
    return [str(folder / "bundle"), str(folder / "adapter.safetensors"), *heads[0], *heads[1]]


def test_a_sound_bundle_agrees_on_texts(sound: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*sound, "--text", "red cat", "--text", "blue dog blue", "--json"]) == 0
    agreements = json.loads(capsys.readouterr().out)
    assert [(a["task"], a["form"]) for a in agreements] == [
        ("animal", "merged"),
        ("animal", "unmerged"),
        ("fits", "merged"),
        ("fits", "unmerged"),
    ]
    assert all(a["same_answers"] == 1.0 and a["difference"] <= 1e-4 * a["magnitude"] for a in agreements)


def test_a_data_file_of_questions_is_read_up_to_the_limit(
    sound: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "red _", "choices": ["cat", "dog"], "answer": 0}, {"text": "blue cat", "label": 0}]
    data = tmp_path / "test.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + "\n\nnot JSON")
    assert main([*sound, "--data", str(data), "--limit", "3", "--task", "fits"]) == 0
    assert capsys.readouterr().out.count("100.0%") == 2
    assert main([*sound, "--data", str(data)]) == 1
    assert "test.jsonl, line 4 has no text" in capsys.readouterr().err


def test_a_tolerance_that_is_not_met_and_a_bundle_that_is_none_end_with_1(
    sound: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sound, "--text", "red cat", "--tolerance", "-1"]) == 1
    capsys.readouterr()
    assert main([str(tmp_path), *sound[1:], "--text", "red cat"]) == 1
    assert "is not a bundle" in capsys.readouterr().err
    assert main([*sound, "--text", "red cat", "--task", "weather"]) == 1
    assert "no task 'weather'" in capsys.readouterr().err


def test_another_adapter_than_the_bundles_does_not_agree(
    folder: Path, sound: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = load_adapter(folder / "adapter.safetensors")
    other = replace(adapter, state={name: 2 * values for name, values in adapter.state.items()})
    save_adapter(tmp_path / "other.safetensors", other)
    heads = sound[2:]
    assert main([sound[0], str(tmp_path / "other.safetensors"), *heads, "--text", "red cat"]) == 1
    assert main([*sound[:2], "--text", "red cat"]) == 1
    assert "no head found" in capsys.readouterr().err


def test_the_program_runs_from_the_repository_root() -> None:
    command = [sys.executable, "-m", "export.compare", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--tolerance" in done.stdout
