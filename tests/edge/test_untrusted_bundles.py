"""A bundle that somebody made up reads and writes nothing outside of its folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from edge_cases import Written, another_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkron.edge.bundle_adapters import add_to_bundle, file_stem
from fedkron.edge.manifest import read_manifest, sha256, verify_files
from fedkron.edge.runtime import Bundle
from fedkron.errors import BundleError

OUTSIDE = [
    "../secret",
    "a/../../secret",
    "/etc/hostname",
    "..\\secret",
    "adapters\\..\\..\\secret",
    "C:\\secret",
    "C:secret",
    "//host/share/secret",
    "\\\\host\\share\\secret",
    "base.bin\0",
    "..",
]


@pytest.fixture
def copied(bundle: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def relist(folder: Path, *, more: dict[str, str] | None = None) -> None:
    """Make the manifest fit the files as they are, as whoever made them up would."""
    content = json.loads((folder / "manifest.json").read_text())
    content["files"] = {name: sha256(folder / name) for name in content["files"]} | (more or {})
    (folder / "manifest.json").write_text(json.dumps(content))


def run_alone(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "run.py"), "red", "--task", "spam", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_are_not_listed(name: str, copied: Path) -> None:
    relist(copied, more={name: "0" * 64})
    with pytest.raises(BundleError, match="lies outside the bundle"):
        read_manifest(copied)
    content = json.loads((copied / "manifest.json").read_text())
    content["adapters"][0]["file"] = name
    (copied / "manifest.json").write_text(json.dumps(content))
    assert "lies outside the bundle" in run_alone(copied).stderr


@pytest.mark.parametrize("name", ["tokenizer.json", "base.bin", "unmerged.onnx", "adapters"])
def test_a_link_out_of_the_bundle_is_refused(name: str, copied: Path, tmp_path: Path) -> None:
    shutil.move(copied / name, tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link out of the bundle"):
        Bundle.open(copied)
    assert "is a link out of the bundle" in run_alone(copied).stderr


def test_a_link_within_the_bundle_and_to_it_is_fine(copied: Path, tmp_path: Path) -> None:
    (copied / "tokenizer.json").rename(copied / "other.json")
    (copied / "tokenizer.json").symlink_to("other.json")
    (tmp_path / "link").symlink_to(copied)
    verify_files(tmp_path / "link", read_manifest(tmp_path / "link"))
    assert run_alone(tmp_path / "link").returncode == 0


def move_weights_to(folder: Path, location: str) -> None:
    """Let the graph's weights lie somewhere else."""
    model = onnx.load(folder / "unmerged.onnx", load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    assert {entry.value for entry in entries if entry.key == "location"} == {"base.bin"}
    for entry in entries:
        if entry.key == "location":
            entry.value = location
    onnx.save_model(model, folder / "unmerged.onnx")
    relist(folder)


@pytest.mark.parametrize("location", ["../secret", "a/../../secret", "{root}/secret", "link", "."])
def test_weights_outside_of_the_bundle_are_not_read(location: str, copied: Path, tmp_path: Path) -> None:
    # The very weights: whatever read them would answer.
    shutil.copy(copied / "base.bin", tmp_path / "secret")
    (copied / "link").symlink_to(tmp_path / "secret")
    move_weights_to(copied, location.format(root=tmp_path))
    opened = Bundle.open(copied, threads=1)
    with pytest.raises(BundleError, match="is not a graph that ONNX Runtime opens"):
        opened.predict(["red"], "spam")
    alone = run_alone(copied)
    assert (alone.returncode, alone.stdout) == (1, "")
    assert "cannot be opened" in alone.stderr


@settings(deadline=None, max_examples=200)
@given(name=st.text(st.characters(codec="utf-8") | st.sampled_from("./\\:\0~"), max_size=30))
def test_names_of_adapters_and_tasks_stay_in_file_names(name: str) -> None:
    stem = f"{file_stem(name)}.safetensors"
    assert Path(stem).name == stem
    assert set(stem).isdisjoint("/\\:\0")


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["../../x", "/x", "..", ".", "a\\b", "C:x", "a/../b"]))
def test_an_added_adapter_lies_in_the_bundle(name: str, bundle: Written, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "copy", dirs_exist_ok=True))
    head = bundle.heads["spam"]
    entry = add_to_bundle(folder, name, another_adapter(bundle.adapter, seed=4), [head])
    assert (folder / entry.file).parent == folder / "adapters"
    assert (folder / entry.file).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    verify_files(folder, read_manifest(folder))
    shutil.rmtree(folder)
