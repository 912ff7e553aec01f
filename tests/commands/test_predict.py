"""`fedkron predict` on a bundle of texts: which adapter, which task, and what is printed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_cases import Capture, Command, Finished
from transformers import AutoTokenizer

from fedkron.adapters import AdapterSpec, attach, load_adapter_state
from fedkron.base import load_base, text_features
from fedkron.edge.device_adapter import device_adapter, save_device_adapter
from fedkron.edge.manifest import read_manifest
from fedkron.edge.runtime import Bundle
from fedkron.exchange import AdapterFile, load_adapter, load_head, save_adapter

PREDICT = Command("predict")
TEXTS = ["my bark is near the bone", "purr purr the paw", "one yes"]
ROSE = ["--choice", "rose", "--choice", "milk", "--choice", "bone"]

Answers = list[dict[str, object]]


def answers_of(capsys: Capture, *arguments: object) -> Answers:
    return json.loads(PREDICT.output_of(capsys, *arguments, "--json"))


@pytest.fixture(scope="module")
def other(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter file of training that gives other answers."""
    adapter = load_adapter(finished.run / "adapter.safetensors")
    state = {n: (v * 3 if n.endswith("B1") else v) for n, v in adapter.state.items()}
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_adapter(path, AdapterFile(state, adapter.layout, adapter.base_name))
    return path


@pytest.fixture(scope="module")
def quiz_only(finished: Finished, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a device adapter, with one task, in a file of the same name."""
    manifest = read_manifest(finished.bundle)
    head = load_head(next(finished.run.glob("nodes/quiz-*/head.safetensors")))
    device = device_adapter("x", load_adapter(other), [head], manifest.slot, manifest.hidden_size)
    path = tmp_path_factory.mktemp("device") / "other.safetensors"
    save_device_adapter(path, device)
    return path


@pytest.mark.parametrize("merged", [False, True])
def test_it_answers_as_torch_does(finished: Finished, capsys: Capture, merged: bool) -> None:
    flags = ["--merged"] if merged else []
    answers = answers_of(capsys, finished.bundle, *TEXTS, "--task", "animals", *flags)

    base = load_base(str(finished.base))
    adapter = load_adapter(finished.run / "adapter.safetensors")
    head = load_head(finished.run / "nodes" / "animals-0" / "head.safetensors")
    model = attach(base.backbone, AdapterSpec(rank=2, d_a2=4)).eval()
    load_adapter_state(model, adapter.state)
    tokens = AutoTokenizer.from_pretrained(finished.base)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = text_features(model, tokens["input_ids"], tokens["attention_mask"])
        expected = torch.softmax(features @ torch.tensor(head.weight).T + torch.tensor(head.bias), -1)
    np.testing.assert_allclose([a["probabilities"] for a in answers], expected, atol=1e-4)
    assert [a["label"] for a in answers] == [head.labels[i] for i in expected.argmax(-1)]
    assert [a["input"] for a in answers] == TEXTS


def test_people_get_a_line_per_answer(finished: Finished, capsys: Capture) -> None:
    answers = answers_of(capsys, finished.bundle, *TEXTS)
    assert PREDICT.output_of(capsys, finished.bundle, *TEXTS).splitlines() == [
        f"{a['task']}: {a['label']} ({a['probability']:.3f})  {a['input']}" for a in answers
    ]


def test_it_picks_a_choice(finished: Finished, capsys: Capture) -> None:
    (answer,) = answers_of(capsys, finished.bundle, "the sky is _", *ROSE)
    expected = Bundle.open(finished.bundle).choose("the sky is _", ["rose", "milk", "bone"], "quiz")
    assert (answer["task"], answer["label"]) == ("quiz", expected.label)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_it_reads_lines_from_standard_input(finished: Finished) -> None:
    command = [sys.executable, "-m", "fedkron.cli", "predict", str(finished.bundle), "--json"]
    done = subprocess.run(command, input="purr\n\nbark\n", capture_output=True, text=True, check=True)
    assert [answer["input"] for answer in json.loads(done.stdout)] == ["purr", "bark"]


def test_another_adapter_gives_its_answer(finished: Finished, other: Path, capsys: Capture) -> None:
    ask = (finished.bundle, *TEXTS, "--task", "animals")
    after = answers_of(capsys, *ask, "--adapter", other)
    opened = Bundle.open(finished.bundle)
    opened.load(other, "truth")
    expected = opened.predict(TEXTS, "animals", adapter="truth")
    for answer, prediction in zip(after, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
        assert answer["adapter"] == str(other)
    assert answers_of(capsys, *ask, "--adapter", "default") == answers_of(capsys, *ask)
    assert answers_of(capsys, *ask) != after


def test_each_input_may_have_its_own_adapter(
    finished: Finished, other: Path, quiz_only: Path, capsys: Capture
) -> None:
    asked = ["default", str(other), str(quiz_only)]
    flags = [flag for adapter in asked for flag in ("--adapter", adapter)]
    # Two files of one name are two adapters.
    questions = ["the sky is _"] * 3
    answers = answers_of(capsys, finished.bundle, *questions, *ROSE, *flags)
    alone = [
        answers_of(capsys, finished.bundle, "the sky is _", *ROSE, "--adapter", adapter)[0]
        for adapter in asked
    ]
    assert answers == alone
    assert answers[0]["probabilities"] != answers[1]["probabilities"]
    assert answers[1]["probabilities"] == pytest.approx(answers[2]["probabilities"], abs=1e-6)

    flags = ["--adapter", other, "--adapter", "default", "--adapter", "default"]
    answers = answers_of(capsys, finished.bundle, *TEXTS, "--task", "animals", *flags)
    assert [a["adapter"] for a in answers] == [str(other), "default", "default"]
    for text, answer, adapter in zip(TEXTS, answers, (other, "default", "default"), strict=True):
        (one,) = answers_of(capsys, finished.bundle, text, "--task", "animals", "--adapter", adapter)
        assert answer["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)


def test_the_list_has_the_adapters_with_their_tasks(finished: Finished, capsys: Capture) -> None:
    heads = [load_head(path) for path in sorted(finished.run.glob("nodes/*/head.safetensors"))]
    tasks = [{"name": h.task, "kind": h.task_kind, "labels": list(h.labels)} for h in heads]
    assert answers_of(capsys, finished.bundle, "--list") == [{"adapter": "default", "tasks": tasks}]
    printed = PREDICT.output_of(capsys, finished.bundle, "--list")
    assert printed == "default: animals (classification), quiz (multiple_choice)\n"


def test_the_bundles_own_program_prints_the_same(finished: Finished, capsys: Capture) -> None:
    for arguments in (
        [*TEXTS],
        [*TEXTS, "--json"],
        ["the _", *ROSE, "--json"],
        ["--list"],
        ["--list", "--json"],
    ):
        command = [sys.executable, finished.bundle / "run.py", *arguments, "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == PREDICT.output_of(capsys, finished.bundle, *arguments, "--threads", 1)


# What is refused.


def test_a_foreign_adapter_is_refused(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    adapter = load_adapter(finished.run / "adapter.safetensors")
    foreign = type(adapter.layout)("0" * 64, adapter.layout.modules, adapter.layout.dense)
    save_adapter(tmp_path / "foreign.safetensors", AdapterFile(adapter.state, foreign, "another base"))
    ask = (finished.bundle, "purr", "--adapter", tmp_path / "foreign.safetensors")
    assert "contract" in PREDICT.error_of(capsys, *ask)


def test_a_bundle_whose_contract_was_changed_is_refused(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(finished.bundle, tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    contract = json.loads(manifest.read_text())["contract"]
    manifest.write_text(manifest.read_text().replace(contract, "0" * 64))
    assert "contract" in PREDICT.error_of(capsys, tmp_path / "bundle", "purr")


def test_an_adapter_without_the_task_is_refused(finished: Finished, quiz_only: Path, capsys: Capture) -> None:
    ask = (finished.bundle, "purr", "--adapter", quiz_only)
    assert "has no classification task but quiz (multiple_choice)" in PREDICT.error_of(capsys, *ask)
    assert "'animals'" in PREDICT.error_of(capsys, *ask, "--task", "animals")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["purr", "--task", "weather"], "'weather': it has 'animals', 'quiz'"),
        (
            ["purr", "--adapter", "nobody"],
            "'nobody' is no file, and no adapter of this bundle: it has default",
        ),
        (["purr", "--adapter", "default", "--adapter", "default"], "there are 2 adapters for 1 inputs"),
        (["purr", "--task", "quiz"], "use choose()"),
        (["purr", "--temperature", "0.5"], "--temperature has no meaning for this bundle"),
        (["purr", "--max-new-tokens", "5"], "--max-new-tokens has no meaning for this bundle"),
    ],
)
def test_what_cannot_be_answered_is_said(
    finished: Finished, capsys: Capture, arguments: list[str], reason: str
) -> None:
    assert reason in PREDICT.error_of(capsys, finished.bundle, *arguments)
