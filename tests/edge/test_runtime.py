"""Running bundles: right answers, hot swaps, and no trust in damaged or foreign files."""

import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from edge_cases import (
    HIDDEN,
    SPECS,
    WORDS,
    Written,
    another_adapter,
    assert_near,
    random_head,
    tiny_tokenizer,
    torch_answers,
    torch_features,
    with_adapter,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, DebertaV2Config

from fedkron.base import Base, fingerprint
from fedkron.edge.bundle import write_bundle
from fedkron.edge.device_adapter import device_adapter, save_device_adapter
from fedkron.edge.manifest import sha256
from fedkron.edge.runtime import Bundle
from fedkron.edge.slot import SlotLayout
from fedkron.errors import AdapterError, BundleError, ContractError, FedKronError, TaskError
from fedkron.exchange import AdapterFile, HeadFile, save_adapter
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


@settings(deadline=None)
@given(st.lists(st.text() | st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join), max_size=3))
def test_token_ids_are_those_of_transformers(bundle: Written, opened: Bundle, texts: list[str]) -> None:
    expected = [bundle.base.tokenizer(t, truncation=True, max_length=12)["input_ids"] for t in texts]
    assert opened.tokenize(texts) == expected


# Several adapters.


@pytest.fixture(scope="module")
def others(bundle: Written) -> dict[str, AdapterFile]:
    return {name: another_adapter(bundle.adapter, seed) for seed, name in enumerate(("one", "two"), start=1)}


@pytest.fixture
def several(bundle: Written, others: dict[str, AdapterFile]) -> Bundle:
    """With `one` and `two` beside `default`; `two` has its own head for spam, with three labels."""
    opened = Bundle.open(bundle.folder, threads=1)
    opened.add("one", others["one"])
    wide = random_head("spam", ("good", "odd", "bad"), bundle.adapter.layout.contract)
    opened.add("two", others["two"], [wide])
    return opened


def expected_logits(bundle: Written, adapter: AdapterFile, head: HeadFile) -> np.ndarray:
    """Of TEXTS, by torch."""
    tokens = bundle.base.tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    features = torch_features(
        bundle.base.backbone, adapter.layout, adapter.state, tokens["input_ids"], tokens["attention_mask"]
    )
    return features @ head.weight.T + head.bias


def test_each_adapter_answers_as_torch_does_with_it(
    bundle: Written, several: Bundle, others: dict[str, AdapterFile]
) -> None:
    assert list(several.adapters) == ["default", "one", "two"]
    assert several.adapters["one"].nbytes > 0
    head = bundle.heads[COLOURS]
    assert_near(several.logits(TEXTS, COLOURS), expected_logits(bundle, bundle.adapter, head))
    for name, adapter in others.items():
        actual = several.logits(TEXTS, COLOURS, adapter=name)
        assert_near(actual, expected_logits(bundle, adapter, head))
        assert np.abs(actual - several.logits(TEXTS, COLOURS)).max() > 1e-2 * np.abs(actual).max()


def test_each_text_may_have_its_own_adapter_and_task(several: Bundle) -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(70)]
    adapters = [str(name) for name in rng.choice(["default", "one", "two"], len(texts))]
    tasks = [str(task) for task in rng.choice([COLOURS, "spam"], len(texts))]
    together = several.predict(texts, tasks, adapter=adapters)
    for text, adapter, task, prediction in zip(texts, adapters, tasks, together, strict=True):
        (alone,) = several.predict([text], task, adapter=adapter)
        np.testing.assert_allclose(prediction.probabilities, alone.probabilities, atol=1e-4)
        assert len(prediction.probabilities) == len(several.tasks(adapter)[task].labels)
        assert prediction.label in several.tasks(adapter)[task].labels
    # One of both may be the same for all.
    same = several.predict(texts, COLOURS, adapter=adapters)
    assert {len(p.probabilities) for p in same} == {3}
    each = several.predict(texts, tasks, adapter="one")
    assert {len(p.probabilities) for p in each} == {2, 3}
    logits = several.logits(texts, COLOURS, adapter=adapters)
    np.testing.assert_allclose([p.probabilities for p in same], softmax(logits), atol=1e-5)


def test_another_adapter_may_choose(bundle: Written, several: Bundle, others: dict[str, AdapterFile]) -> None:
    texts = choice_texts("the _", TEXTS)
    prediction = several.choose("the _", TEXTS, "trivia", adapter="one")
    tokens = bundle.base.tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    features = torch_features(
        bundle.base.backbone,
        bundle.adapter.layout,
        others["one"].state,
        tokens["input_ids"],
        tokens["attention_mask"],
    )
    scores = (features @ bundle.heads["trivia"].weight.T + bundle.heads["trivia"].bias)[:, 0]
    np.testing.assert_allclose(prediction.probabilities, softmax(scores), atol=1e-4)
    assert prediction.label == TEXTS[scores.argmax()]


def test_merged_graphs_answer_for_the_adapter_of_the_export_only(several: Bundle) -> None:
    texts, tasks = [*TEXTS, *TEXTS], [COLOURS] * len(TEXTS) + ["spam"] * len(TEXTS)
    merged = several.predict(texts, tasks, merged=True)
    for one, other in zip(merged, several.predict(texts, tasks), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)
    with pytest.raises(BundleError, match=r"not adapter 'one'.*merged=False"):
        several.predict(TEXTS, COLOURS, adapter="one", merged=True)
    with pytest.raises(BundleError, match="not adapter 'one'"):
        several.predict(TEXTS, COLOURS, adapter=["default"] * (len(TEXTS) - 1) + ["one"], merged=True)


def test_a_replaced_default_adapter_answers_from_the_next_prediction_on(
    bundle: Written, others: dict[str, AdapterFile]
) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    before = opened.logits(TEXTS, COLOURS)
    opened.add("default", others["one"])
    assert_near(opened.logits(TEXTS, COLOURS), expected_logits(bundle, others["one"], bundle.heads[COLOURS]))
    # The merged graphs cannot know: they must not answer for the new adapter.
    with pytest.raises(BundleError, match=r"holds the adapter of the export.*merged=False"):
        opened.predict(TEXTS, COLOURS, merged=True)
    opened.add("default", bundle.adapter)
    np.testing.assert_array_equal(opened.logits(TEXTS, COLOURS), before)


def test_a_file_of_training_and_one_for_devices_give_the_same_answers(
    bundle: Written, others: dict[str, AdapterFile], tmp_path: Path
) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    save_adapter(tmp_path / "trained.safetensors", others["one"])
    assert opened.load(tmp_path / "trained.safetensors") == "trained"
    assert list(opened.tasks("trained")) == [COLOURS, "spam", "trivia"]
    save_device_adapter(tmp_path / "device.safetensors", opened.adapters["trained"])
    assert opened.load(tmp_path / "device.safetensors", "mine") == "mine"
    expected = expected_logits(bundle, others["one"], bundle.heads["spam"])
    for name in "trained", "mine":
        assert_near(opened.logits(TEXTS, "spam", adapter=name), expected)
    opened.unload("trained")
    with pytest.raises(TaskError, match="adapter 'trained' is not loaded: there are 'default', 'mine'"):
        opened.logits(TEXTS, "spam", adapter="trained")
    with pytest.raises(TaskError, match="'trained' is not loaded"):
        opened.unload("trained")
    opened.load(bundle.folder / "adapters" / "default.safetensors", "copy")
    np.testing.assert_array_equal(
        opened.logits(TEXTS, "spam", adapter="copy"), opened.logits(TEXTS, "spam", adapter="default")
    )


def test_a_new_adapter_may_bring_heads_for_new_tasks_with_any_number_of_labels(bundle: Written) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    contract = bundle.adapter.layout.contract
    labels = tuple(f"label {i}" for i in range(11))
    nameless = replace(random_head("unnamed", ("a", "b"), contract), labels=())
    heads = [random_head("new", labels, contract), nameless]
    opened.add("mine", bundle.adapter, heads)
    for head in (*heads, bundle.heads[COLOURS]):
        actual = opened.logits(TEXTS, head.task, adapter="mine")
        assert_near(actual, expected_logits(bundle, bundle.adapter, head))
    assert {p.label for p in opened.predict(TEXTS, "unnamed", adapter="mine")} <= {"0", "1"}
    with pytest.raises(TaskError, match="adapter 'default' has no task 'new'"):
        opened.predict(TEXTS, "new")


def test_a_foreign_adapter_or_head_is_refused_and_the_old_one_stays(bundle: Written, tmp_path: Path) -> None:
    opened = Bundle.open(bundle.folder, threads=1)
    before = opened.logits(TEXTS, COLOURS)
    backbone, spec = bundle.base.backbone, SPECS["kron_lora"]
    _, foreign = with_adapter(backbone, spec, "another base", seed=2)
    _, same_size = with_adapter(backbone, replace(spec, alpha=8.0), bundle.base.fingerprint, seed=2)
    path = tmp_path / "default.safetensors"
    for adapter in foreign, same_size:
        save_adapter(path, adapter)
        with pytest.raises(ContractError, match="another base, or with other settings"):
            opened.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"default\.safetensors"):
        opened.load(path)
    head = random_head("new", ("a", "b"), "2" * 64)
    with pytest.raises(ContractError, match="head of task 'new'"):
        opened.add("default", bundle.adapter, [head])
    wide = random_head("new", ("a", "b"), bundle.adapter.layout.contract, hidden=HIDDEN + 1)
    with pytest.raises(ContractError, match="width 33"):
        opened.add("default", bundle.adapter, [wide])
    assert set(opened.tasks()) == set(bundle.heads)
    np.testing.assert_array_equal(opened.logits(TEXTS, COLOURS), before)
    opened.logits(TEXTS, COLOURS, merged=True)


def test_an_answer_is_that_of_one_adapter_while_its_file_is_replaced(several: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "live.safetensors"
    answers = [several.logits(TEXTS, COLOURS, adapter=name) for name in ("one", "two")]
    save_device_adapter(path, several.adapters["one"])
    several.load(path)
    done = threading.Event()

    def replace_it() -> None:
        for turn in itertools.count():
            save_device_adapter(path, several.adapters[("one", "two")[turn % 2]])
            several.load(path)
            if done.is_set():
                return

    def ask(count: int) -> list[np.ndarray]:
        return [several.logits(TEXTS, COLOURS, adapter="live") for _ in range(count)]

    with ThreadPoolExecutor(4) as pool:
        writer = pool.submit(replace_it)
        askers = [pool.submit(ask, 100) for _ in range(3)]
        try:
            found = [answer for asker in askers for answer in asker.result()]
        finally:
            done.set()
        writer.result()
    seen = [[np.array_equal(answer, expected) for expected in answers] for answer in found]
    assert all(sum(same) == 1 for same in seen)
    assert len({same.index(True) for same in seen}) == 2


def test_many_threads_get_their_own_answers(bundle: Written) -> None:
    opened = Bundle.open(bundle.folder, threads=1)  # its sessions are opened by these threads
    with ThreadPoolExecutor(6) as pool:
        forms = [(task, merged) for task in (COLOURS, "spam") for merged in (True, False)] * 5
        answers = list(pool.map(lambda form: opened.logits(TEXTS, form[0], merged=form[1]), forms))
    for (task, merged), answer in zip(forms, answers, strict=True):
        np.testing.assert_array_equal(answer, opened.logits(TEXTS, task, merged=merged))


def test_a_question_of_the_wrong_kind_is_refused(opened: Bundle) -> None:
    with pytest.raises(TaskError, match="no task 'weather': it has 'colour/of: it', 'spam', 'trivia'"):
        opened.predict(TEXTS, "weather")
    with pytest.raises(TaskError, match="adapter 'mine' is not loaded: there are 'default'"):
        opened.predict(TEXTS, "spam", adapter="mine")
    with pytest.raises(TaskError, match="adapter 'mine' is not loaded"):
        opened.predict(TEXTS, "spam", adapter=["default"] * (len(TEXTS) - 1) + ["mine"])
    with pytest.raises(TaskError, match=f"2 adapters for {len(TEXTS)} inputs"):
        opened.predict(TEXTS, "spam", adapter=["default", "default"])
    with pytest.raises(TaskError, match=f"1 tasks for {len(TEXTS)} inputs"):
        opened.predict(TEXTS, ["spam"])
    with pytest.raises(TaskError, match=r"use choose\(\)"):
        opened.predict(TEXTS, ["spam"] * (len(TEXTS) - 1) + ["trivia"])
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
        "bundle.load(Path(sys.argv[1]) / 'adapters' / 'default.safetensors', 'copy')\n"
        "answers += [bundle.predict(texts, 'spam', adapter='copy')[0].probability]\n"
        "heavy = {'torch', 'transformers', 'onnx', 'flwr', 'PIL'} & sys.modules.keys()\n"
        "print(json.dumps([answers, sorted(heavy)]))\n"
    )
    command = [sys.executable, "-c", program, str(bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (merged, unmerged, copied), heavy = json.loads(done.stdout)
    assert heavy == []
    assert merged == pytest.approx(unmerged, abs=1e-5)
    assert copied == unmerged
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
        (edited(lambda m: m.update(version=1)), BundleError, "version 1, known here is 2"),
        (edited(lambda m: m.pop("adapters")), BundleError, "damaged"),
        (edited(lambda m: m["slot"].update(encoding="int2")), BundleError, "damaged.*'int2' is not known"),
        (edited(lambda m: m["slot"]["groups"].pop()), BundleError, "damaged.*groups of this slot"),
        (edited(lambda m: m["slot"]["groups"].reverse()), ContractError, "slot_hash does not match"),
        (edited(lambda m: m["slot"].update(encoding="fp16")), ContractError, "slot_hash does not match"),
        (edited(lambda m: m["input"].update(kind="sound")), BundleError, "kind 'sound' is not known"),
        (edited(lambda m: m["input"].update(names=["ids"])), BundleError, "is not that of a text base"),
        (edited(lambda m: m["files"].pop("unmerged.onnx")), BundleError, "unmerged.onnx is not among"),
        (edited(lambda m: m["files"].pop("base.bin")), BundleError, "base.bin is not among"),
        (edited(lambda m: m["files"].pop("merged.bin")), BundleError, "merged.bin is not among"),
        (edited(lambda m: m["files"].pop("tokenizer.json")), BundleError, "tokenizer.json is not among"),
        (
            edited(lambda m: m["files"].pop("adapters/default.safetensors")),
            BundleError,
            "default.safetensors is not among",
        ),
        (edited(lambda m: m["files"].update({"../x": "0" * 64})), BundleError, "outside the bundle"),
        (edited(lambda m: m["files"].update({"/x": "0" * 64})), BundleError, "outside the bundle"),
        (edited(lambda m: m.update(contract="0" * 64)), ContractError, "does not match the layout"),
        (edited(lambda m: m["layout"].update(base="0" * 64)), ContractError, "does not match the layout"),
        (flip_a_byte("adapters/default.safetensors"), BundleError, "is not what was exported"),
        (flip_a_byte("adapters/default.spam.onnx_adapter"), BundleError, "is not what was exported"),
        (flip_a_byte("unmerged.onnx"), BundleError, r"unmerged\.onnx is not what was exported"),
        (flip_a_byte("merged.bin"), BundleError, r"merged\.bin is not what was exported"),
        (flip_a_byte("tokenizer.json"), BundleError, r"tokenizer\.json is not what was exported"),
        (flip_a_byte("run.py"), BundleError, r"run\.py is not what was exported"),
        (truncate("base.bin"), BundleError, r"base\.bin is not what was exported"),
        (remove("adapters/default.safetensors"), BundleError, r"default\.safetensors is missing"),
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


@pytest.mark.parametrize("kind", SPECS)
def test_a_bundle_whose_adapter_was_replaced_by_a_foreign_one_is_not_opened(
    bundle: Written, copied: Path, kind: str
) -> None:
    file = copied / "adapters" / "default.safetensors"
    base = "another" if kind == "kron_lora" else bundle.base.fingerprint
    _, foreign = with_adapter(bundle.base.backbone, SPECS[kind], base, seed=2)
    slot = SlotLayout(foreign.layout, tuple((m.path,) for m in foreign.layout.modules), "fp32")
    save_device_adapter(file, device_adapter("default", foreign, [], slot, HIDDEN))
    content = json.loads((copied / "manifest.json").read_text())
    content["files"]["adapters/default.safetensors"] = sha256(file)
    (copied / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ContractError, match="the adapter has contract"):
        Bundle.open(copied)


def test_a_bundle_works_wherever_it_is_moved(copied: Path, opened: Bundle) -> None:
    moved = copied.rename(copied.with_name("moved"))
    for merged in True, False:
        actual = Bundle.open(moved, threads=1).logits(TEXTS, "spam", merged=merged)
        np.testing.assert_array_equal(actual, opened.logits(TEXTS, "spam", merged=merged))


def test_a_base_whose_rows_share_positions_answers_with_an_adapter_at_a_time(tmp_path: Path) -> None:
    # DeBERTa's position layers read one tensor for the whole batch: it cannot hold an adapter per row.
    torch.manual_seed(7)
    config = DebertaV2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=60,
        max_position_embeddings=72,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    )
    backbone = AutoModel.from_config(config).eval()
    base = Base("tiny-deberta", backbone, tiny_tokenizer(), fingerprint(backbone))
    adapted = {
        name: with_adapter(backbone, SPECS["kron_lora"], base.fingerprint, seed=seed)
        for seed, name in enumerate(("default", "second"))
    }
    head = random_head("spam", ("ham", "spam"), adapted["default"][1].layout.contract)
    folder = write_bundle(
        tmp_path / "deberta", base, adapted["default"][1], [head], max_length=12, report=lambda _: None
    )
    opened = Bundle.open(folder, threads=1)
    opened.add("second", adapted["second"][1])
    names = ["default", "second", "second", "default"]
    texts = ["who wrote the play", "red cat", "blue dog one two", "the pipe"]
    actual = opened.logits(texts, "spam", adapter=names)
    for text, name, row in zip(texts, names, actual, strict=True):
        expected = torch_answers(adapted[name][0], head, base, [text], max_length=12)[0]
        assert np.abs(row - expected).max() <= 1e-4 * np.abs(expected).max()
    slot = onnxruntime.InferenceSession(str(folder / "unmerged.onnx")).get_inputs()[2]
    assert (slot.name, slot.shape[0]) == ("slot", 1)  # so that no other host tries
