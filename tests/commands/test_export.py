"""`fedkron export`: forms of a bundle, and what its comparison with torch says about them."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_cases import Capture, Command, Finished

from fedkron.edge.runtime import Bundle
from fedkron.exchange import load_adapter, load_head, save_adapter

EXPORT, INSPECT = Command("export"), Command("inspect")


def test_the_bundle_of_a_run_has_all_tasks_and_agrees_with_torch(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "bundle"
    facts = EXPORT.facts_of(capsys, finished.run, "-o", folder)
    assert facts["bundle"] == str(folder)
    agreement = facts["agreement"]
    assert [(a["task"], a["form"]) for a in agreement] == [
        (task, form) for task in ("animals", "quiz") for form in ("merged", "unmerged")
    ]
    assert all(a["difference"] <= 1e-4 * a["magnitude"] and a["same_answers"] == 1 for a in agreement)
    # Same run, same bytes, as the one that was exported before.
    for path in finished.bundle.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(finished.bundle)).read_bytes() == path.read_bytes()


def test_a_small_bundle_is_smaller_and_near(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "small"
    facts = EXPORT.facts_of(capsys, finished.run, "-o", folder, "--slot", "int8", "--no-merged")
    assert [(a["task"], a["form"]) for a in facts["agreement"]] == [
        ("animals", "unmerged"),
        ("quiz", "unmerged"),
    ]
    assert all(0 < a["difference"] < 0.1 * a["magnitude"] for a in facts["agreement"])
    small, large = (f / "adapters" / "default.safetensors" for f in (folder, finished.bundle))
    assert small.stat().st_size < large.stat().st_size
    described = INSPECT.facts_of(capsys, folder)
    assert (described["slot"], described["base form"], described["merged"]) == ("int8", "fp32", [])


def test_an_adapter_is_added_to_a_bundle_under_its_name(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    bundle = tmp_path / "bundle"
    table = EXPORT.output_of(capsys, finished.run, "-o", bundle, "--no-merged")
    assert "unmerged" in table
    assert str(bundle) in table.replace("\n", "")
    adapter = load_adapter(finished.run / "adapter.safetensors")
    adapter.state.update({n: 3 * v for n, v in adapter.state.items() if n.endswith("B1")})
    save_adapter(tmp_path / "other.safetensors", adapter)
    head = finished.run / "nodes" / "animals-0" / "head.safetensors"
    add = (tmp_path / "other.safetensors", "--head", head, "--into", bundle)
    EXPORT.output_of(capsys, *add, "--name", "mine")
    opened = Bundle.open(bundle)
    assert {name: list(opened.tasks(name)) for name in opened.adapters} == {
        "default": ["animals", "quiz"],
        "mine": ["animals"],
    }
    opened.add("direct", adapter, [load_head(head)])
    texts = ["my bark is near", "purr"]
    np.testing.assert_array_equal(
        opened.logits(texts, "animals", adapter="mine"), opened.logits(texts, "animals", adapter="direct")
    )
    assert "--name" in EXPORT.error_of(capsys, *add)
    assert "choose another name" in EXPORT.error_of(capsys, *add, "--name", "default")


@pytest.mark.parametrize("flags", [["--slot", "int2"], ["--base-form", "int2"]])
def test_an_unknown_form_is_refused(finished: Finished, flags: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        EXPORT.output_of(capsys, finished.run, *flags)
    assert "invalid choice: 'int2'" in capsys.readouterr().err
    assert not (finished.run / "bundle").exists()


def test_inspect_describes_a_bundle_and_its_adapters(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    manifest = json.loads((finished.bundle / "manifest.json").read_text())
    file = finished.bundle / "adapters" / "default.safetensors"
    adapter = Bundle.open(finished.bundle).adapters["default"]
    described = INSPECT.facts_of(capsys, finished.bundle)
    assert described["contract"] == manifest["contract"]
    assert described["slot hash"] == manifest["slot_hash"]
    assert described["input"] == manifest["input"]
    assert described["merged"] == ["animals", "quiz"]
    assert described["adapters"] == {
        "default": {
            "bytes": adapter.nbytes,
            "tasks": {"animals": ["cat", "dog"], "quiz": "multiple_choice"},
        }
    }
    described = INSPECT.facts_of(capsys, file)
    assert (described["format"], described["adapter"]) == ("device adapter", "default")
    assert described["slot hash"] == manifest["slot_hash"]
    assert described["bytes"] == adapter.nbytes
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    assert "checksum" in INSPECT.error_of(capsys, tmp_path / "damaged.safetensors")
