"""`fedkron publish`, `list`, `verify` and `pull`, from a real run to a device without torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_cases import Capture, Command, Finished
from federation_cases import federate, grid_of, run_config_for
from huggingface_hub import ModelCard

from fedkron.cli import main
from fedkron.edge.adapter_folder import AdapterFolder
from fedkron.edge.manifest import read_manifest, verify_files
from fedkron.edge.runtime import Bundle
from fedkron.exchange import load_adapter, load_head
from fedkron.ledger import totals
from fedkron.rundir import ADAPTER, HEAD, NODES, OUTCOME, ROUNDS, SETTINGS, group_directory
from fedkron.runlog import read_run

PUBLISH, LIST, VERIFY, PULL = map(Command, ("publish", "list", "verify", "pull"))
ROOT = Path(__file__).parents[2]
TEXTS = ["the purr is near", "my bark was a yes"]
LICENCE = ("--license", "apache-2.0", "--base", "org/tiny")


@pytest.fixture(autouse=True)
def _nobody_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKRON_KNOWN_PUBLISHERS", str(tmp_path / "known"))


def heads_of(run: Path) -> dict[str, Path]:
    return {load_head(path).task: path for path in sorted((run / NODES).glob(f"*/{HEAD}"))}


def test_what_a_run_says_is_published(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    store, log = tmp_path / "store", read_run(finished.run)
    made = PUBLISH.facts_of(capsys, finished.run, store, "--name", "zoo", *LICENCE)
    (listed,) = LIST.facts_of(capsys, store)["adapters"]  # type: ignore[misc]
    checked = VERIFY.facts_of(capsys, store, "zoo", "--trust", made["public_key"])
    assert checked["trusted"] is True
    assert listed["sha256"] == checked["sha256"] == made["sha256"]
    adapter, last = load_adapter(finished.run / ADAPTER), log.rounds[-1]
    assert checked["contract"] == adapter.layout.contract
    assert checked["base"] == {"name": "org/tiny", "fingerprint": adapter.layout.base, "license": None}
    assert checked["license"] == "Apache-2.0"
    assert checked["tasks"] == sorted(last.tasks) == ["animals", "quiz"]
    found = {(m["task"], m["name"]): m["value"] for m in checked["metrics"]}  # type: ignore[attr-defined]
    for task, figures in last.tasks.items():
        assert found[task, "accuracy"] == figures.accuracy
        assert found[task, "head-only-accuracy"] == figures.head_only_accuracy
    spent = totals(log.transfers)
    assert checked["traffic"] == {
        "up": spent.message_up,
        "down": spent.message_down,
        "baseline": spent.baseline,
    }
    assert checked["training"]["rounds"] == 2  # type: ignore[index]
    assert checked["lineage"]["steps"] == list(adapter.lineage)  # type: ignore[index]
    # No head, and no path of this machine.
    assert sorted(file["path"] for file in checked["files"]) == ["README.md", ADAPTER]  # type: ignore[attr-defined]
    for path in store.rglob("*"):
        if path.is_file():
            assert str(finished.base).encode() not in path.read_bytes()
    assert (
        PUBLISH.facts_of(capsys, finished.run, store, "--name", "zoo", *LICENCE, "--parent", "zoo@1")[
            "release"
        ]
        == 2
    )
    assert VERIFY.facts_of(capsys, store, "zoo")["lineage"]["parents"] == [  # type: ignore[index]
        {"name": "zoo", "release": 1, "sha256": made["sha256"]}
    ]
    assert "zoo@2" in LIST.output_of(capsys, store)


def test_what_privacy_has_cost_is_published(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    run, store = shutil.copytree(finished.run, tmp_path / "run"), tmp_path / "store"
    config = json.loads((run / SETTINGS).read_text())
    (run / SETTINGS).write_text(json.dumps({**config, "privacy.kind": "central"}))
    *before, last = (run / ROUNDS).read_text().splitlines()
    spent = {"epsilon": 3.5, "delta": 1e-5, "rounds": 2, "clipping_norm": 1.0}
    lines = [*before, json.dumps(json.loads(last) | {"privacy": spent})]
    (run / ROUNDS).write_text("\n".join(lines) + "\n")
    PUBLISH.output_of(capsys, run, store, "--name", "zoo", *LICENCE)
    checked = VERIFY.facts_of(capsys, store, "zoo")
    assert checked["privacy"] == {"kind": "central", "epsilon": 3.5, "delta": 1e-5, "rounds": 2}
    (run / OUTCOME).write_text('{"status": "failed", "error": "too few nodes"}')
    assert "too few nodes" in PUBLISH.error_of(capsys, run, store, "--name", "zoo", *LICENCE)
    PUBLISH.output_of(capsys, run / ADAPTER, store, "--name", "zoo", *LICENCE)


def test_the_card_is_one_that_the_hub_reads(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    key = PUBLISH.facts_of(capsys, finished.run, store, "--name", "zoo", *LICENCE)["public_key"]
    PULL.output_of(capsys, store, "zoo", "-o", out, "--trust", key)
    card = ModelCard.load(out / "README.md")
    assert (card.data.base_model, card.data.license, card.data.library_name) == (
        "org/tiny",
        "apache-2.0",
        "fedkron",
    )
    assert "federated-learning" in (card.data.tags or [])
    assert card.data.eval_results is not None
    figures = read_run(finished.run).rounds[-1].tasks
    assert {r.dataset_name: r.metric_value for r in card.data.eval_results} == {
        task: found.accuracy for task, found in figures.items()
    }
    manifest = json.loads((out / "publication.json").read_text())
    for digest in [manifest["contract"], *(f["sha256"] for f in manifest["files"] if f["role"] != "card")]:
        assert digest in card.text


def answers(bundle: Bundle, name: str, task: str = "animals") -> np.ndarray:
    return bundle.logits(TEXTS, task, adapter=name)


def test_pulled_into_a_bundle_it_answers_as_in_the_run(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    """With heads published, with own heads, with those of the bundle; and as encoded by the publisher."""
    store, bundle, heads = tmp_path / "store", tmp_path / "bundle", heads_of(finished.run)
    shutil.copytree(finished.bundle, bundle)
    given = [option for path in heads.values() for option in ("--head", path)]
    published = {
        "with-heads": given,
        "ready": [*given, "--for", bundle],
        "bare": [],
    }
    for name, options in published.items():
        made = PUBLISH.facts_of(capsys, finished.run, store, "--name", name, *LICENCE, *options)
    trust = ("--trust", made["public_key"])
    for name in published:
        PULL.output_of(capsys, store, name, "--into", bundle, *trust)
    PULL.output_of(
        capsys, store, "bare", "--into", bundle, "--name", "own", "--head", heads["animals"], *trust
    )
    # Of an adapter that is published ready for this bundle, nothing else is fetched.
    manifest = json.loads((store / "adapters/ready/1.json").read_text())
    (blob,) = (f["sha256"] for f in manifest["files"] if f["role"] == "adapter")
    content = (store / "blobs" / blob).read_bytes()
    (store / "blobs" / blob).unlink()
    PULL.output_of(capsys, store, "ready", "--into", bundle, "--name", "again", *trust)
    (store / "blobs" / blob).write_bytes(content)
    verify_files(bundle, read_manifest(bundle))
    opened = Bundle.open(bundle, threads=1)
    names = ["default", *published, "own", "again"]
    assert list(opened.adapters) == names
    for name in names:
        for task in ("animals", "quiz"):
            np.testing.assert_array_equal(answers(opened, name, task), answers(opened, "default", task))


def test_what_does_not_fit_changes_nothing(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    store, bundle = tmp_path / "store", tmp_path / "bundle"
    shutil.copytree(finished.bundle, bundle)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    error = PUBLISH.error_of(capsys, finished.run, store, "--name", "zoo", "--license", "mit")
    assert "path of this machine" in error
    assert "SPDX" in PUBLISH.error_of(
        capsys, finished.run, store, "--name", "zoo", "--license", "free as in beer", "--base", "org/tiny"
    )
    assert not store.exists()
    lora = tmp_path / "lora.safetensors"
    assert main(["convert", str(finished.run), "-o", str(lora), "--kind", "lora"]) == 0
    PUBLISH.output_of(capsys, lora, store, "--name", "lora", *LICENCE)
    key = PUBLISH.facts_of(capsys, finished.run, store, "--name", "zoo", *LICENCE)["public_key"]
    trust = ("--trust", key)
    assert "not trusted here" in PULL.error_of(capsys, store, "zoo", "--into", bundle)
    assert "not trusted here" in PULL.error_of(capsys, store, "zoo", "--into", bundle, "--trust", "0" * 64)
    assert "another settings" in PULL.error_of(capsys, store, "lora", "--into", bundle, *trust)
    assert "that of the export" in PULL.error_of(
        capsys, store, "zoo", "--into", bundle, "--name", "default", *trust
    )
    assert "--name is for --into" in PULL.error_of(capsys, store, "zoo", "-o", tmp_path / "x", "--name", "y")
    after = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert after == before
    assert not (tmp_path / "known").exists()


def test_a_key_is_believed_from_its_first_use_on_if_told_so(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    own = ("--name", "zoo", *LICENCE)
    PUBLISH.output_of(capsys, finished.run, store, *own)
    PULL.output_of(capsys, store, "zoo", "-o", out, "--trust-first-use")
    PULL.output_of(capsys, store, "zoo", "-o", out)
    PUBLISH.output_of(capsys, finished.run, store, *own, "--key", tmp_path / "somebody-else.pem")
    for more in ((), ("--trust-first-use",)):
        assert "known for it is" in PULL.error_of(capsys, store, "zoo", "-o", out, *more)
    assert "known for it is" in VERIFY.error_of(capsys, store, "zoo")
    PULL.output_of(capsys, store, "zoo@1", "-o", out)


def test_an_older_release_needs_to_be_named(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    store, bundle, incoming = tmp_path / "store", tmp_path / "bundle", tmp_path / "incoming"
    shutil.copytree(finished.bundle, bundle)
    incoming.mkdir()
    for _ in range(2):
        made = PUBLISH.facts_of(capsys, finished.run, store, "--name", "zoo", *LICENCE)
    places = (("--into", bundle), ("--into", bundle, "--adapters", incoming))
    trust = ("--trust", made["public_key"])
    for place in places:
        PULL.output_of(capsys, store, "zoo", *place, *trust)
    (store / "adapters/zoo/2.json").unlink()
    for place in places:
        for latest in ("zoo", "zoo@latest"):
            assert "the latest on offer is 1" in PULL.error_of(capsys, store, latest, *place, *trust)
        PULL.output_of(capsys, store, "zoo@1", *place, *trust)
    # What is exported over it is not the publication any more.
    head = heads_of(finished.run)["animals"]
    file = finished.run / ADAPTER
    assert main(["export", str(file), "--head", str(head), "--into", str(bundle), "--name", "zoo"]) == 0
    verify_files(bundle, read_manifest(bundle))
    assert not list((bundle / "adapters").glob("*.publication.json"))


def test_a_device_without_torch_pulls_what_its_service_then_answers_with(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    store, bundle, incoming = tmp_path / "store", tmp_path / "bundle", tmp_path / "incoming"
    shutil.copytree(finished.bundle, bundle)
    incoming.mkdir()
    made = PUBLISH.facts_of(capsys, finished.run, store, "--name", "zoo", *LICENCE)
    program = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "flwr", "onnx", "peft", "datasets"):
            raise ModuleNotFoundError(f"{name} is not on this device", name=name)

sys.meta_path.insert(0, Missing())
from fedkron.cli import main
sys.exit(main(sys.argv[1:]))
"""
    common = ["zoo", "--into", str(bundle), "--trust", str(made["public_key"])]
    opened = Bundle.open(bundle, threads=1)
    with AdapterFolder(incoming, opened).followed():
        for options in ([], ["--adapters", str(incoming)]):
            command = [sys.executable, "-c", program, "pull", str(store), *common, *options]
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert done.returncode == 0, done.stderr
    # It refreshes when it is told to, too: no waiting here.
    AdapterFolder(incoming, opened).refresh()
    np.testing.assert_array_equal(answers(opened, "zoo"), answers(opened, "default"))
    again = Bundle.open(bundle, threads=1)
    np.testing.assert_array_equal(answers(again, "zoo"), answers(opened, "default"))


def test_each_group_of_a_run_has_an_adapter_to_publish(
    tmp_path: Path, tiny_bert: Path, tasks: Path, capsys: Capture
) -> None:
    sources, changes = (tasks / "animals", tasks / "quiz"), {"groups.by": "task"}
    config = run_config_for(tmp_path / "runs", tiny_bert, *sources, changes=changes)
    run, store = federate(config, grid_of(config, 2)).folder, tmp_path / "store"
    assert "has an adapter for each of animals, quiz: say which with --group" in PUBLISH.error_of(
        capsys, run, store, "--name", "zoo", *LICENCE
    )
    assert "has no group 'birds': it has animals, quiz" in PUBLISH.error_of(
        capsys, run, store, "--name", "zoo", *LICENCE, "--group", "birds"
    )
    assert not store.exists()
    last = read_run(run).rounds[-1]
    for group in ("animals", "quiz"):
        PUBLISH.output_of(capsys, run, store, "--name", group, *LICENCE, "--group", group)
        PULL.output_of(capsys, store, group, "-o", tmp_path / group, "--trust-first-use")
        pulled = load_adapter(tmp_path / group / ADAPTER).state
        own = load_adapter(group_directory(run, group) / ADAPTER).state
        mean = load_adapter(run / ADAPTER).state
        assert all(np.array_equal(pulled[name], own[name]) for name in own)
        assert any(not np.array_equal(pulled[name], mean[name]) for name in own)
        checked = VERIFY.facts_of(capsys, store, group)
        assert checked["tasks"] == [group]
        found = {m["name"]: m["value"] for m in checked["metrics"]}  # type: ignore[attr-defined]
        assert found["accuracy"] == last.tasks[group].accuracy
