"""Writing bundles: complete or not at all, and only from parts that belong together."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy as safetensors_numpy
from edge_cases import SPECS, Written, decoded_state, random_head, tiny_base, tiny_tokenizer, with_adapter
from transformers import CanineTokenizer

from fedkron.adapters import attach
from fedkron.base import Base
from fedkron.edge.bundle import write_bundle
from fedkron.edge.check import check_against_torch
from fedkron.edge.heads import shared_head
from fedkron.edge.manifest import read_manifest
from fedkron.edge.runtime import Bundle
from fedkron.errors import AdapterError, BundleError, ConfigError, ContractError, FedKronError
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT, AdapterLayout, TensorLayout

TEXTS = [
    "who wrote the play",
    "what is a pipe ?",
    "red cat blue dog one two three green is a what the who one",
]


def silent(_: str) -> None:
    """A report that nobody reads."""


def test_a_bundle_agrees_with_torch_in_both_forms_for_every_task(bundle: Written) -> None:
    heads = list(bundle.heads.values())
    agreements = check_against_torch(bundle.folder, bundle.base, bundle.adapter, heads, TEXTS)
    assert [(a.task, a.form) for a in agreements] == [
        (head.task, form) for head in heads for form in ("merged", "unmerged")
    ]
    for agreement in agreements:
        assert agreement.difference <= 1e-4 * agreement.magnitude
        assert agreement.same_answers == 1.0


def test_the_check_notices_an_adapter_that_is_not_the_one_in_the_bundle(bundle: Written) -> None:
    _, other = with_adapter(bundle.base.backbone, SPECS["kron_lora"], bundle.base.fingerprint, seed=2)
    agreements = check_against_torch(bundle.folder, bundle.base, other, [bundle.heads["spam"]], TEXTS)
    assert all(agreement.difference > 1e-2 * agreement.magnitude for agreement in agreements)


def test_checking_leaves_the_base_as_it_was(bundle: Written) -> None:
    before = {name: tensor.clone() for name, tensor in bundle.base.backbone.state_dict().items()}
    check_against_torch(bundle.folder, bundle.base, bundle.adapter, list(bundle.heads.values()), TEXTS)
    after = bundle.base.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_a_bundle_lists_every_file_with_its_hash_and_nothing_else_lies_there(bundle: Written) -> None:
    manifest = read_manifest(bundle.folder)
    present = {p.relative_to(bundle.folder).as_posix(): p for p in bundle.folder.rglob("*") if p.is_file()}
    assert manifest.files == {
        name: hashlib.sha256(p.read_bytes()).hexdigest()
        for name, p in present.items()
        if name != "manifest.json"
    }
    assert sorted(present) == sorted(
        [
            "adapters/default.colour-of-it.onnx_adapter",
            "adapters/default.safetensors",
            "adapters/default.spam.onnx_adapter",
            "adapters/default.trivia.onnx_adapter",
            "base.bin",
            "manifest.json",
            "merged-colour-of-it.onnx",
            "merged-spam.onnx",
            "merged-trivia.onnx",
            "merged.bin",
            "run.py",
            "tokenizer.json",
            "unmerged.onnx",
        ]
    )
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in present.values())
    assert bundle.steps


def test_a_manifest_is_plain_json(bundle: Written) -> None:
    content = json.loads((bundle.folder / "manifest.json").read_text())
    layout = bundle.adapter.layout
    assert (content["format"], content["version"]) == ("fedkron-bundle", 2)
    assert content["contract"] == layout.contract
    assert content["base"] == {"name": "tiny-bert", "fingerprint": bundle.base.fingerprint}
    assert (content["base_form"], content["hidden_size"]) == ("fp32", 32)
    assert AdapterLayout.from_json(json.dumps(content["layout"])) == layout
    assert content["slot"]["encoding"] == "fp32"
    assert sorted(path for group in content["slot"]["groups"] for path in group) == sorted(
        module.path for module in layout.modules
    )
    slot = {key: content["slot"][key] for key in ("encoding", "groups")} | {"contract": layout.contract}
    assert content["slot_hash"] == hashlib.sha256(json.dumps(slot, sort_keys=True).encode()).hexdigest()
    assert content["input"] == {
        "kind": "text",
        "names": ["input_ids", "attention_mask"],
        "max_length": 12,
        "pad_id": bundle.base.tokenizer.pad_token_id,
        "truncation_side": "right",
    }
    assert content["merged"] == [
        {"task": "colour/of: it", "file": "merged-colour-of-it.onnx"},
        {"task": "spam", "file": "merged-spam.onnx"},
        {"task": "trivia", "file": "merged-trivia.onnx"},
    ]
    assert content["adapters"] == [
        {
            "name": "default",
            "file": "adapters/default.safetensors",
            "onnx_adapters": {
                "colour/of: it": "adapters/default.colour-of-it.onnx_adapter",
                "spam": "adapters/default.spam.onnx_adapter",
                "trivia": "adapters/default.trivia.onnx_adapter",
            },
        }
    ]


def graph_of(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def stored_in(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """File and size of each weight outside the graph."""
    found = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = (entries["location"], int(entries["length"]))
    return found


def test_all_graphs_are_valid_onnx_and_say_what_they_are_for(bundle: Written) -> None:
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    tasks = {entry["file"]: entry["task"] for entry in manifest["merged"]}
    for path in bundle.folder.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
        model = graph_of(path)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        about = (
            {"fedkron.slot": manifest["slot_hash"]}
            if path.name == "unmerged.onnx"
            else {"fedkron.task": tasks[path.name]}
        )
        assert properties == {"fedkron.contract": bundle.adapter.layout.contract} | about
        inputs = [entry.name for entry in model.graph.input]
        more = ["slot", "head"] if path.name == "unmerged.onnx" else []
        assert inputs == ["input_ids", "attention_mask", *more]
        assert [output.name for output in model.graph.output] == ["logits"]


def test_what_an_adapter_does_not_change_is_stored_once(bundle: Written) -> None:
    adapted = {module.path for module in bundle.adapter.layout.modules}
    unmerged = stored_in(graph_of(bundle.folder / "unmerged.onnx"))
    assert {file for file, _ in unmerged.values()} == {"base.bin"}
    for path in bundle.folder.glob("merged-*.onnx"):
        merged = stored_in(graph_of(path))
        new = {name for name, (file, _) in merged.items() if file == "merged.bin"}
        assert len(new) == len(adapted)
        assert {name for name, _ in merged.items()} - new < unmerged.keys()
        assert all(merged[name] == unmerged[name] for name in merged.keys() - new)
    sizes = {"base.bin": unmerged, "merged.bin": {name: merged[name] for name in new}}
    for file, weights in sizes.items():
        # Each weight starts at a page of its own, at most.
        needed = sum(size for _, size in weights.values())
        assert needed <= (bundle.folder / file).stat().st_size <= needed + 4096 * len(weights)


def test_the_same_parts_give_the_same_bytes(bundle: Written, tmp_path: Path) -> None:
    heads = list(bundle.heads.values())
    again = write_bundle(tmp_path / "b", tiny_base(), bundle.adapter, heads, max_length=12, report=silent)
    for path in bundle.folder.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(bundle.folder)).read_bytes() == path.read_bytes(), path.name


@pytest.fixture(scope="module")
def small(bundle: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same parts with 4 bits in the slot, and without merged graphs."""
    folder = tmp_path_factory.mktemp("bundles") / "small"
    heads = list(bundle.heads.values())
    return write_bundle(
        folder, bundle.base, bundle.adapter, heads, encoding="int4", merged=False, report=silent
    )


def test_a_bundle_may_do_without_merged_graphs(bundle: Written, small: Path) -> None:
    assert not [path for path in small.iterdir() if "merged" in path.name and path.name != "unmerged.onnx"]
    assert json.loads((small / "manifest.json").read_text())["merged"] == []
    opened = Bundle.open(small)
    with pytest.raises(BundleError, match="has no merged graph of task 'spam': predict with merged=False"):
        opened.predict(TEXTS, "spam", merged=True)
    agreements = check_against_torch(small, bundle.base, bundle.adapter, [bundle.heads["spam"]], TEXTS)
    assert [a.form for a in agreements] == ["unmerged"]


def test_a_slot_of_4_bits_answers_as_torch_does_with_what_is_in_it(bundle: Written, small: Path) -> None:
    manifest = json.loads((small / "manifest.json").read_text())
    assert manifest["slot"]["encoding"] == "int4"
    tensors = safetensors_numpy.load_file(small / "adapters" / "default.safetensors")
    adapter_size = sum(t.nbytes for name, t in tensors.items() if name.startswith("slot"))
    assert adapter_size < 0.25 * 4 * bundle.adapter.layout.size
    layout = bundle.adapter.layout
    state = decoded_state(tensors, manifest["slot"]["groups"], layout, "int4")
    adapter = replace(bundle.adapter, state=state)
    heads = [
        replace(
            head,
            weight=head.weight.astype(np.float16).astype(np.float32),
            bias=head.bias.astype(np.float16).astype(np.float32),
        )
        for head in bundle.heads.values()
    ]
    for agreement in check_against_torch(small, bundle.base, adapter, heads, TEXTS):
        assert agreement.difference <= 1e-4 * agreement.magnitude
    # It is not the adapter that was trained, but near it.
    for agreement in check_against_torch(small, bundle.base, bundle.adapter, heads, TEXTS):
        assert 1e-3 * agreement.magnitude < agreement.difference < agreement.magnitude


def test_a_shared_head_comes_from_the_adapter(bundle: Written, tmp_path: Path) -> None:
    layout = bundle.adapter.layout.with_head(2, 32)
    rng = np.random.default_rng(5)
    head = {
        HEAD_WEIGHT: rng.standard_normal((2, 32)).astype(np.float32),
        HEAD_BIAS: rng.standard_normal(2).astype(np.float32),
    }
    adapter = AdapterFile(bundle.adapter.state | head, layout, "tiny")
    heads = [shared_head(adapter, task, ("no", "yes")) for task in ("spam", "fraud")]
    folder = write_bundle(tmp_path / "shared", bundle.base, adapter, heads, merged=False, report=silent)
    for agreement in check_against_torch(folder, bundle.base, adapter, heads, TEXTS):
        assert agreement.difference <= 1e-4 * agreement.magnitude
    # Another adapter brings its own head along.
    opened = Bundle.open(folder, threads=1)
    before = opened.logits(TEXTS, "spam")
    opened.add("other", replace(adapter, state=adapter.state | {HEAD_BIAS: head[HEAD_BIAS] + 1}))
    np.testing.assert_allclose(opened.logits(TEXTS, "spam", adapter="other"), before + 1, atol=1e-5)


# What is refused. A case takes the parts of a good bundle and changes one.

Parts = tuple[Base, AdapterFile, list[HeadFile]]


def another_base(good: Written) -> Parts:
    return replace(good.base, fingerprint="0" * 64), good.adapter, [good.heads["spam"]]


def an_attached_base(good: Written) -> Parts:
    base = tiny_base()
    attach(base.backbone, SPECS["lora"])
    return base, good.adapter, [good.heads["spam"]]


def a_foreign_head(good: Written) -> Parts:
    return good.base, good.adapter, [replace(good.heads["spam"], contract="1" * 64)]


def a_wide_head(good: Written) -> Parts:
    return good.base, good.adapter, [random_head("wide", ("a", "b"), good.heads["spam"].contract, hidden=48)]


def choices_with_two_scores(good: Written) -> Parts:
    return good.base, good.adapter, [replace(good.heads["spam"], task_kind="multiple_choice", labels=())]


def no_heads(good: Written) -> Parts:
    return good.base, good.adapter, []


def two_heads_for_one_task(good: Written) -> Parts:
    return good.base, good.adapter, [good.heads["spam"], good.heads["spam"]]


def tasks_with_one_file_name(good: Written) -> Parts:
    return good.base, good.adapter, [replace(good.heads["spam"], task=task) for task in ("a:b", "a/b")]


def a_missing_factor(good: Written) -> Parts:
    missing = good.adapter.layout.tensors[3].name
    state = {name: tensor for name, tensor in good.adapter.state.items() if name != missing}
    return good.base, replace(good.adapter, state=state), [good.heads["spam"]]


def a_module_trained_in_full(good: Written) -> Parts:
    layout = replace(good.adapter.layout, dense=(TensorLayout("pre_classifier.weight", (2, 2)),))
    return good.base, replace(good.adapter, layout=layout), [good.heads["spam"]]


def a_slow_tokenizer(good: Written) -> Parts:
    return replace(good.base, tokenizer=CanineTokenizer()), good.adapter, [good.heads["spam"]]


def no_padding_token(good: Written) -> Parts:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    return replace(good.base, tokenizer=tokenizer), good.adapter, [good.heads["spam"]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (another_base, ContractError, "use the same weights"),
        (an_attached_base, AdapterError, "has an adapter attached"),
        (a_foreign_head, ContractError, "head of task 'spam'"),
        (a_wide_head, ContractError, "width 48, the base 32"),
        (choices_with_two_scores, ContractError, "a choice has one score"),
        (no_heads, BundleError, "there is no head"),
        (two_heads_for_one_task, BundleError, "two heads are for task 'spam'"),
        (tasks_with_one_file_name, BundleError, "would share a file name"),
        (a_missing_factor, AdapterError, "is missing"),
        (a_module_trained_in_full, BundleError, "'pre_classifier.weight' is trained in full"),
        (a_slow_tokenizer, BundleError, "has no tokenizer.json"),
        (no_padding_token, BundleError, "no padding token"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_before_anything_is_written(
    bundle: Written,
    tmp_path: Path,
    change: Callable[[Written], Parts],
    error: type[FedKronError],
    message: str,
) -> None:
    base, adapter, heads = change(bundle)
    steps: list[str] = []
    with pytest.raises(error, match=message):
        write_bundle(tmp_path / "new" / "bundle", base, adapter, heads, report=steps.append)
    assert not steps
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_length", [0, 65])
def test_texts_longer_than_the_base_takes_are_refused(
    bundle: Written, tmp_path: Path, max_length: int
) -> None:
    heads = list(bundle.heads.values())
    with pytest.raises(ConfigError, match="takes 1 to 64 tokens"):
        write_bundle(tmp_path / "b", bundle.base, bundle.adapter, heads, max_length=max_length, report=silent)


def test_an_existing_folder_is_left_alone(bundle: Written, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    heads = list(bundle.heads.values())
    with pytest.raises(BundleError, match="choose another folder"):
        write_bundle(tmp_path, bundle.base, bundle.adapter, heads, report=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_fails_half_way_leaves_nothing_behind(bundle: Written, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if "slot" in step:
            assert list(tmp_path.iterdir())  # something is there by now
            raise KeyboardInterrupt

    heads = list(bundle.heads.values())
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", bundle.base, bundle.adapter, heads, report=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "int2"}, "slot encoding 'int2' is not known: choose fp32, fp16, int8, int4"),
        ({"base_form": "int2"}, "base form 'int2' is not known: choose fp32"),
    ],
)
def test_an_unknown_form_is_refused_before_anything_is_written(
    bundle: Written, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    heads = list(bundle.heads.values())
    with pytest.raises(ConfigError, match=message):
        write_bundle(
            tmp_path / "new" / "b", bundle.base, bundle.adapter, heads, report=pytest.fail, **settings
        )
    assert not list(tmp_path.iterdir())
