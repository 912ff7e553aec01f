"""Running bundles: right answers, hot swaps, and no trust in damaged or foreign files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_cases import HIDDEN, SPECS, WORDS, Written, random_head, torch_answers, with_adapter
from hypothesis import given
from hypothesis import strategies as st

from fedkron.edge.manifest import sha256
from fedkron.edge.runtime import Bundle
from fedkron.errors import AdapterError, BundleError, ContractError, FedKronError, TaskError
from fedkron.exchange import save_adapter
from fedkron.prompts import choice_texts

COLOURS = "colour/of: it"
TEXTS = ["who wrote the play", "", "What is a PIPE?", " ".join(WORDS), "unknown words — naïve ☂"]


@pytest.fixture(scope="module")
def opened(bundle: Written) -> Bundle:
    return Bundle.open(bundle.folder, threads=1)


@pytest.fixture
def copied(bundle: Written, tmp_path: Path) -> Path:
    return shutil.copytree(bundle.folder, tmp_path / "copy")


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("task", [COLOURS, "spam"])
def test_predictions_are_those_of_torch(bundle: Written, opened: Bundle, task: str, merged: bool) -> None:
    head = bundle.heads[task]
    expected = softmax(torch_answers(bundle.model, head, bundle.base, TEXTS, max_length=12))
    predictions = opened.predict(TEXTS, task, merged=merged)
    np.testing.assert_allclose([p.probabilities for p in predictions], expected, atol=1e-4)
    assert [p.label for p in predictions] == [head.labels[i] for i in expected.argmax(-1)]
    assert [p.probability for p in predictions] == [max(p.probabilities) for p in predictions]


@pytest.mark.parametrize("merged", [True, False])
def test_a_choice_is_the_one_that_torch_scores_highest(bundle: Written, opened: Bundle, merged: bool) -> None:
    choices = ["red", "green", "blue cat", "one"]
    texts = choice_texts("what is the _ ?", choices)
    scores = torch_answers(bundle.model, bundle.heads["trivia"], bundle.base, texts, max_length=12)[:, 0]
    prediction = opened.choose("what is the _ ?", choices, "trivia", merged=merged)
    np.testing.assert_allclose(prediction.probabilities, softmax(scores), atol=1e-4)
    assert prediction.label == choices[scores.argmax()]


def test_many_texts_get_their_own_answers_in_their_own_order(opened: Bundle) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(75)]
    together = opened.logits(texts, COLOURS)
    alone = np.concatenate([opened.logits([text], COLOURS) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-3)
    assert opened.predict([], COLOURS) == []


@given(st.lists(st.text() | st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join), max_size=3))
def test_token_ids_are_those_of_transformers(bundle: Written, opened: Bundle, texts: list[str]) -> None:
    expected = [bundle.base.tokenizer(t, truncation=True, max_length=12)["input_ids"] for t in texts]
    assert opened.tokenize(texts) == expected


def test_a_swapped_adapter_answers_from_the_next_prediction_on(bundle: Written, tmp_path: Path) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    before = opened.logits(TEXTS, COLOURS)
    other_model, other = with_adapter(
        bundle.base.backbone, SPECS["kron_lora"], bundle.base.fingerprint, seed=2
    )
    save_adapter(tmp_path / "other.safetensors", other)
    opened.load_adapter_file(tmp_path / "other.safetensors")
    expected = torch_answers(other_model, bundle.heads[COLOURS], bundle.base, TEXTS, max_length=12)
    actual = opened.logits(TEXTS, COLOURS)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(actual - before).max() > 1e-2 * np.abs(expected).max()
    # The merged graphs cannot know: they must not answer for the new adapter.
    with pytest.raises(BundleError, match="merged=False"):
        opened.predict(TEXTS, COLOURS, merged=True)
    opened.swap(bundle.adapter)
    np.testing.assert_array_equal(opened.logits(TEXTS, COLOURS), before)


def test_a_swap_may_bring_heads_for_new_tasks_with_any_number_of_labels(bundle: Written) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    contract = bundle.adapter.layout.contract
    labels = tuple(f"label {i}" for i in range(11))
    heads = [random_head("new", labels, contract), random_head("spam", ("good", "odd", "bad"), contract)]
    opened.swap(opened.adapter, heads)
    for head in (*heads, bundle.heads[COLOURS]):
        expected = torch_answers(bundle.model, head, bundle.base, TEXTS, max_length=12)
        assert np.abs(opened.logits(TEXTS, head.task) - expected).max() <= 1e-4 * np.abs(expected).max()
    # Only the task whose head changed has lost its merged graph.
    with pytest.raises(BundleError, match="merged graph of task 'spam'"):
        opened.logits(TEXTS, "spam", merged=True)
    opened.logits(TEXTS, COLOURS, merged=True)


def test_a_foreign_adapter_or_head_is_refused_and_the_old_one_stays(bundle: Written, tmp_path: Path) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    before = opened.logits(TEXTS, COLOURS)
    _, foreign = with_adapter(bundle.base.backbone, SPECS["kron_lora"], "another base", seed=2)
    _, same_size = with_adapter(
        bundle.base.backbone, replace(SPECS["kron_lora"], alpha=8.0), bundle.base.fingerprint, seed=2
    )
    for adapter in foreign, same_size:
        save_adapter(tmp_path / "foreign.safetensors", adapter)
        with pytest.raises(ContractError, match="another base, or with other settings"):
            opened.load_adapter_file(tmp_path / "foreign.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"torn\.safetensors"):
        opened.load_adapter_file(tmp_path / "torn.safetensors")
    head = random_head("new", ("a", "b"), "2" * 64)
    with pytest.raises(ContractError, match="head of task 'new'"):
        opened.swap(opened.adapter, [head])
    wide = random_head("new", ("a", "b"), bundle.adapter.layout.contract, hidden=HIDDEN + 1)
    with pytest.raises(ContractError, match="width 33"):
        opened.swap(opened.adapter, [wide])
    assert set(opened.heads) == set(bundle.heads)
    np.testing.assert_array_equal(opened.logits(TEXTS, COLOURS), before)


def test_a_question_of_the_wrong_kind_is_refused(opened: Bundle) -> None:
    with pytest.raises(TaskError, match="no task 'weather': it has 'colour/of: it', 'spam', 'trivia'"):
        opened.predict(TEXTS, "weather")
    with pytest.raises(TaskError, match=r"use choose\(\)"):
        opened.predict(TEXTS, "trivia")
    with pytest.raises(TaskError, match=r"use predict\(\)"):
        opened.choose("what is _ ?", ["red", "blue"], "spam")
    with pytest.raises(TaskError, match="has no choices"):
        opened.choose("what is _ ?", [], "trivia")
    with pytest.raises(TaskError, match="give a list of texts"):
        opened.predict("who wrote the play", "spam")


def test_neither_torch_nor_transformers_nor_onnx_is_needed(bundle: Written) -> None:
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from fedkron.edge.runtime import Bundle\n"
        "bundle = Bundle.open(Path(sys.argv[1]), threads=1)\n"
        "texts = ['who wrote the play']\n"
        "answers = [bundle.predict(texts, 'spam', merged=form)[0].probability for form in (True, False)]\n"
        "heavy = {'torch', 'transformers', 'onnx', 'flwr'} & sys.modules.keys()\n"
        "print(json.dumps([answers, sorted(heavy)]))\n"
    )
    command = [sys.executable, "-c", program, str(bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (merged, unmerged), heavy = json.loads(done.stdout)
    assert heavy == []
    assert merged == pytest.approx(unmerged, abs=1e-5)
    assert done.stderr == ""


# What is refused when a bundle is opened. A case damages a copy.


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return edit


def flip_a_byte(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


def truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("manifest.json"), BundleError, "is not a bundle"),
        (truncate("manifest.json"), BundleError, "is not JSON"),
        (
            edited(lambda m: m.update(format="fedkron-adapter")),
            BundleError,
            "its format is 'fedkron-adapter'",
        ),
        (edited(lambda m: m.update(version=2)), BundleError, "version 2, known here is 1"),
        (edited(lambda m: m.pop("tasks")), BundleError, "damaged"),
        (edited(lambda m: m["files"].pop("unmerged.onnx")), BundleError, "unmerged.onnx is not among"),
        (edited(lambda m: m["files"].update({"../x": "0" * 64})), BundleError, "outside the bundle"),
        (edited(lambda m: m["files"].update({"/x": "0" * 64})), BundleError, "outside the bundle"),
        (edited(lambda m: m.update(contract="0" * 64)), ContractError, "does not match the layout"),
        (edited(lambda m: m["layout"].update(base="0" * 64)), ContractError, "does not match the layout"),
        (flip_a_byte("adapter.safetensors"), BundleError, r"adapter\.safetensors is not what was exported"),
        (flip_a_byte("unmerged.onnx"), BundleError, r"unmerged\.onnx is not what was exported"),
        (flip_a_byte("merged.bin"), BundleError, r"merged\.bin is not what was exported"),
        (flip_a_byte("tokenizer.json"), BundleError, r"tokenizer\.json is not what was exported"),
        (truncate("unmerged.bin"), BundleError, r"unmerged\.bin is not what was exported"),
        (remove("heads/spam.safetensors"), BundleError, r"spam\.safetensors is missing"),
        (remove("merged-spam.onnx"), BundleError, r"merged-spam\.onnx is missing"),
    ],
)
def test_a_damaged_bundle_is_not_opened(
    copied: Path, damage: Callable[[Path], None], error: type[FedKronError], message: str
) -> None:
    damage(copied)
    with pytest.raises(error, match=message):
        Bundle.open(copied)


def test_a_folder_that_does_not_exist_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "nowhere")


def test_a_bundle_whose_adapter_was_replaced_by_a_foreign_one_is_not_opened(
    bundle: Written, copied: Path
) -> None:
    _, foreign = with_adapter(bundle.base.backbone, SPECS["lora"], bundle.base.fingerprint, seed=2)
    save_adapter(copied / "adapter.safetensors", foreign)
    content = json.loads((copied / "manifest.json").read_text())
    content["files"]["adapter.safetensors"] = sha256(copied / "adapter.safetensors")
    (copied / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ContractError, match="the adapter has contract"):
        Bundle.open(copied)


def test_a_bundle_works_wherever_it_is_moved(copied: Path, opened: Bundle) -> None:
    moved = copied.rename(copied.with_name("moved"))
    for merged in True, False:
        actual = Bundle.open(moved, threads=1).logits(TEXTS, "spam", merged=merged)
        np.testing.assert_array_equal(actual, opened.logits(TEXTS, "spam", merged=merged))
