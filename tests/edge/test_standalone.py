"""`run.py` in a bundle: alone on a machine, it answers as the runtime does, and trusts nothing."""

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_cases import SPECS, WORDS, Written, with_adapter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from fedkron.edge import standalone
from fedkron.edge.device_adapter import DeviceAdapter, device_adapter, save_device_adapter
from fedkron.edge.manifest import read_manifest, sha256
from fedkron.edge.runtime import Bundle, Prediction
from fedkron.exchange import save_adapter

TEXTS = ["who wrote the play", "", "What is a PIPE?", " ".join(WORDS), "unknown words — naïve ☂"]
COLOURS = "colour/of: it"

RunAlone = Callable[..., subprocess.CompletedProcess[str]]
RunHere = Callable[..., tuple[int, str, str]]
"""Exit code, output, errors."""


def other_adapter(bundle: Written) -> DeviceAdapter:
    """Another adapter for the same base, for two of the tasks."""
    _, adapter = with_adapter(bundle.base.backbone, SPECS["kron_lora"], bundle.base.fingerprint, seed=2)
    manifest = read_manifest(bundle.folder)
    heads = [bundle.heads["spam"], bundle.heads["trivia"]]
    return device_adapter("other", adapter, heads, manifest.slot, manifest.hidden_size)


@pytest.fixture(scope="module")
def other(bundle: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "mine.safetensors"
    save_device_adapter(path, other_adapter(bundle))
    return path


@pytest.fixture(scope="module")
def reference(bundle: Written, other: Path) -> Bundle:
    opened = Bundle.open(bundle.folder, threads=1)
    opened.load(other, "other")
    return opened


@pytest.fixture
def copied(bundle: Written, other: Path, tmp_path: Path) -> Path:
    """The bundle elsewhere, with a second adapter."""
    folder = shutil.copytree(bundle.folder, tmp_path / "else where")
    shutil.copy(other, folder / "adapters" / "other.safetensors")
    entry = {"name": "other", "file": "adapters/other.safetensors", "onnx_adapters": {}}
    edit_manifest(folder, lambda m: m["adapters"].append(entry))
    edit_manifest(folder, lambda m: m["files"].update({entry["file"]: sha256(other)}))
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def three_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with onnxruntime, numpy and tokenizers."""
    folder = tmp_path_factory.mktemp("site")
    for name in "onnxruntime", "numpy", "tokenizers":
        spec = importlib.util.find_spec(name)
        assert spec is not None
        (package,) = spec.submodule_search_locations
        for path in Path(package), Path(f"{package}.libs"):
            if path.exists():
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def run_alone(copied: Path, three_packages: Path) -> RunAlone:
    """Call run.py where nothing but the standard library and these packages can be imported."""

    def run(*arguments: object, lines: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-P", copied / "run.py", *arguments, "--threads", "1"]
        environment = {**os.environ, "PYTHONPATH": str(three_packages)}
        return subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=environment, check=False, input=lines
        )

    return run


@pytest.fixture
def run_here(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Call run.py in this process."""
    spec = importlib.util.spec_from_file_location("run", copied / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run", module)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments), "--threads", "1"])
        capsys.readouterr()
        code = module.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def check_same(answer: dict[str, Any], expected: Prediction) -> None:
    assert answer["label"] == expected.label
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_nothing_but_three_packages_is_needed(run_alone: RunAlone, reference: Bundle) -> None:
    for package in "fedkron", "torch", "transformers", "safetensors", "onnx":
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is not None)"
        assert subprocess.run([sys.executable, "-S", "-P", "-c", code], check=False).returncode == 0
    done = run_alone(*TEXTS, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert [(a["task"], a["input"]) for a in answers] == [(t, x) for t in (COLOURS, "spam") for x in TEXTS]
    predictions = [p for task in (COLOURS, "spam") for p in reference.predict(TEXTS, task)]
    for answer, prediction in zip(answers, predictions, strict=True):
        check_same(answer, prediction)


def test_a_damaged_adapter_ends_the_process_with_a_sentence(run_alone: RunAlone, copied: Path) -> None:
    flip_a_byte(copied / "adapters" / "default.safetensors")
    done = run_alone("red")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("run.py: ")
    assert "SHA-256 differs" in done.stderr
    assert done.stderr.count("\n") == 1


def test_lines_of_standard_input_are_texts(run_alone: RunAlone, reference: Bundle) -> None:
    done = run_alone("--task", "spam", lines="red cat\n\nwhat\n")
    labels = [p.label for p in reference.predict(["red cat", "what"], "spam")]
    assert [line.split()[1] for line in done.stdout.splitlines()] == labels


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("task", [COLOURS, "spam"])
def test_answers_are_those_of_the_runtime(
    run_here: RunHere, reference: Bundle, task: str, merged: bool
) -> None:
    rng = np.random.default_rng(0)
    texts = [*TEXTS, *(" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(40))]
    code, out, _ = run_here(*texts, "--task", task, "--json", *(["--merged"] if merged else []))
    assert code == 0
    for answer, prediction in zip(
        json.loads(out), reference.predict(texts, task, merged=merged), strict=True
    ):
        check_same(answer, prediction)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("question", ["what is the _ ?", "who wrote", "_ or _"])
def test_choices_are_those_of_the_runtime(
    run_here: RunHere, reference: Bundle, question: str, merged: bool
) -> None:
    choices = ["red", "green", "blue cat", "one _ two"]
    flags = [f"--choice={choice}" for choice in choices] + (["--merged"] if merged else [])
    code, out, _ = run_here(question, *flags, "--json")
    assert code == 0
    (answer,) = json.loads(out)
    check_same(answer, reference.choose(question, choices, "trivia", merged=merged))


def test_another_adapter_answers_by_name_and_by_file(
    run_here: RunHere, reference: Bundle, other: Path
) -> None:
    expected = reference.predict(TEXTS, "spam", adapter="other")
    assert expected != reference.predict(TEXTS, "spam")
    for wanted in "other", other:
        code, out, _ = run_here(*TEXTS, "--adapter", wanted, "--json")
        assert code == 0
        for answer, prediction in zip(json.loads(out), expected, strict=True):
            check_same(answer, prediction)


def test_the_list_has_adapters_and_tasks(run_here: RunHere, reference: Bundle) -> None:
    code, out, _ = run_here("--list", "--json")
    assert code == 0
    assert json.loads(out) == [
        {
            "adapter": name,
            "tasks": [
                {"name": task, "kind": head.kind, "labels": list(head.labels)}
                for task, head in reference.tasks(name).items()
            ],
        }
        for name in ("default", "other")
    ]
    assert "other: spam (classification), trivia (multiple_choice)" in run_here("--list")[1]


# What is refused. A case damages the copied bundle, and says how to ask it.


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink])
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("unmerged.onnx", []),
        ("base.bin", []),
        ("tokenizer.json", []),
        ("adapters/default.safetensors", []),
        ("adapters/other.safetensors", ["--adapter", "other"]),
        ("merged-spam.onnx", ["--merged"]),
        ("merged.bin", ["--merged"]),
    ],
)
def test_a_damaged_or_missing_file_is_refused_when_it_is_used(
    run_here: RunHere, copied: Path, name: str, flags: list[str], damage: Callable[[Path], None]
) -> None:
    damage(copied / name)
    code, out, error = run_here("red", "--task", "spam", *flags)
    assert (code, out) == (1, "")
    assert Path(name).name in error
    assert "copy it again" in error


def test_a_damaged_file_that_is_not_used_does_not_matter(run_here: RunHere, copied: Path) -> None:
    for name in "merged.bin", "merged-spam.onnx", "adapters/other.safetensors":
        flip_a_byte(copied / name)
    assert run_here("red")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="fedkron-adapter"), "known here is 'fedkron-bundle', 2"),
        (lambda m: m.update(version=3), "known here is 'fedkron-bundle', 2"),
        (lambda m: m.update(contract="0" * 64), "contract"),
        (lambda m: m.update(slot_hash="0" * 64), "slot_hash"),
        (lambda m: m["input"].update(kind="language_model"), "use `fedkron predict`"),
        (lambda m: m["input"].update(kind="image"), "use `fedkron predict`"),
        (lambda m: m.pop("input"), "manifest.json is missing or damaged"),
        (lambda m: m.pop("adapters"), "manifest.json is missing or damaged"),
        (lambda m: m["adapters"][0].pop("file"), "manifest.json is missing or damaged"),
        (lambda m: m["adapters"][0].update(file="../x"), "outside the bundle"),
        (lambda m: m["adapters"][0].update(file="/etc/hostname"), "outside the bundle"),
        (lambda m: m["adapters"][0].update(file="adapters\\default.safetensors"), "outside the bundle"),
        (lambda m: m["adapters"][0].update(file=7), "missing or damaged"),
        (lambda m: m["files"].pop("unmerged.onnx"), "unmerged.onnx"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    run_here: RunHere, copied: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(copied, change)
    code, out, error = run_here("red")
    assert (code, out) == (1, "")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\ud800"])
def test_a_manifest_that_is_something_else_is_refused(run_here: RunHere, copied: Path, content: str) -> None:
    (copied / "manifest.json").write_text(content, errors="surrogatepass")
    code, out, error = run_here("red")
    assert (code, out) == (1, "")
    assert "manifest.json is missing or damaged" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["red", "--task", "weather"], "no classification task weather but 'colour/of: it'"),
        (["red", "--task", "trivia"], "--choice goes with choices"),
        (["red", "--task", "spam", "--choice", "a", "--choice", "b"], "no multiple_choice task spam"),
        (["red", "--adapter", "nobody"], "no adapter of this bundle: it has default, other"),
        (["red", "--merged", "--adapter", "other"], "no merged graph of adapter 'other'"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    run_here: RunHere, arguments: list[str], message: str
) -> None:
    code, out, error = run_here(*arguments)
    assert (code, out) == (1, "")
    assert message in error


# Adapter files from elsewhere. The writer here follows docs/formats.md, not the code.


def packed(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].tobytes())
    return save(tensors, {"fedkron": json.dumps(metadata | {"checksum": digest.hexdigest()})})


def unpacked(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    metadata = json.loads(header["__metadata__"]["fedkron"])
    del metadata["checksum"]
    return metadata, load(content)


def test_a_file_written_as_the_format_says_is_taken(run_here: RunHere, other: Path, tmp_path: Path) -> None:
    (tmp_path / "again.safetensors").write_bytes(packed(*unpacked(other)))
    assert run_here("red", "--adapter", tmp_path / "again.safetensors")[0] == 0


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, _: m.update(format="fedkron-head"), "known here is 'fedkron-device-adapter', 1"),
        (lambda m, _: m.update(version=2), "known here is 'fedkron-device-adapter', 1"),
        (lambda m, _: m.update(contract="0" * 64), "was made for another base"),
        (lambda m, _: m.update(slot_hash="0" * 64), "was made for another base"),
        (lambda m, _: m.pop("contract"), "missing or damaged"),
        (lambda m, _: m["tasks"][0].update(kind="regression"), "missing or damaged"),
        (lambda m, _: m["tasks"][0].update(labels=["one"]), "missing or damaged"),
        (lambda m, _: m["tasks"][1].update(labels=["one"]), "missing or damaged"),
        (lambda m, _: m["tasks"].append(m["tasks"][0]), "missing or damaged"),
        (lambda m, _: m["tasks"].pop(), "export the adapter again"),
        (lambda _, t: t.update(slot=t["slot"][1:]), "export the adapter again"),
        (lambda _, t: t.update(slot=t["slot"].astype(np.float16)), "export the adapter again"),
        (lambda _, t: t.update(slot=t["slot"][None]), "export the adapter again"),
        (lambda _, t: t.update(input_ids=t["slot"]), "export the adapter again"),
        (lambda _, t: t.pop("slot"), "export the adapter again"),
        (lambda _, t: t["slot"].__setitem__(3, np.nan), "not finite"),
        (lambda _, t: t["head.0"].__setitem__((0, 0), np.inf), "not finite"),
        (lambda _, t: t.update({"head.0": t["head.0"][:, 1:].copy()}), "missing or damaged"),
        (lambda _, t: t.update({"head.0": t["head.0"].astype(np.int8)}), "missing or damaged"),
        (lambda _, t: t.update({"head.0": t["head.0"].ravel()}), "missing or damaged"),
        (lambda _, t: t.update({"head.0": t["head.0"].astype(np.float64)}), "missing or damaged"),
    ],
)
def test_an_adapter_that_does_not_belong_is_refused_even_with_a_right_checksum(
    run_here: RunHere, other: Path, tmp_path: Path, change: Change, message: str
) -> None:
    metadata, tensors = unpacked(other)
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    change(metadata, tensors)
    path = tmp_path / "changed.safetensors"
    path.write_bytes(packed(metadata, tensors))
    code, out, error = run_here("red", "--task", "spam", "--adapter", path)
    assert (code, out) == (1, "")
    assert message in error
    assert error.count("\n") == 1


def test_labels_and_values_that_were_changed_fail_the_checksum(
    run_here: RunHere, other: Path, tmp_path: Path
) -> None:
    content = other.read_bytes()
    swapped = content.replace(b"ham", b"egg")
    for changed in swapped, content[:-1] + bytes([content[-1] ^ 1]):
        assert changed != content
        (tmp_path / "changed.safetensors").write_bytes(changed)
        code, _, error = run_here("red", "--task", "spam", "--adapter", tmp_path / "changed.safetensors")
        assert code == 1
        assert "its checksum differs" in error


def test_other_files_are_not_adapters(run_here: RunHere, bundle: Written, tmp_path: Path) -> None:
    save_adapter(tmp_path / "training.safetensors", bundle.adapter)
    onnx_adapter = next(bundle.folder.glob("adapters/*.onnx_adapter"))
    for path in tmp_path / "training.safetensors", onnx_adapter, bundle.folder / "tokenizer.json":
        code, out, error = run_here("red", "--adapter", path)
        assert (code, out) == (1, "")
        assert path.name in error


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16, np.int8, np.uint8]), hnp.array_shapes(min_dims=0, min_side=0)
    ),
    hnp.arrays(np.float32, hnp.array_shapes()),
)
def test_safetensors_files_are_read_as_the_library_reads_them(first: np.ndarray, second: np.ndarray) -> None:
    content = save({"a": first, "b": second}, {"fedkron": '{"x":1}'})
    metadata, tensors = standalone.read_safetensors(content)
    assert metadata == {"x": 1}
    expected = load(content)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name], tensor)


def with_header(header: object, data: bytes = bytes(16)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, *, dtype: str = "F32", shape: object = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


META = {"__metadata__": {"fedkron": "{}"}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        with_header([]),
        with_header({"a": entry(0, 16, shape=[4])}),
        with_header({"__metadata__": {"fedkron": 1}}),
        with_header({"__metadata__": {"fedkron": "{"}}),
        with_header({"__metadata__": []}),
        with_header(META | {"a": entry(0, 8), "b": entry(4, 16, shape=[3])}),
        with_header(META | {"a": entry(0, 8), "b": entry(0, 8)}),
        with_header(META | {"a": entry(0, 4, shape=[1]), "b": entry(8, 16)}),
        with_header(META | {"a": entry(0, 8)}),
        with_header(META | {"a": entry(0, 24, shape=[6])}),
        with_header(META | {"a": entry(0, 16, shape=[2])}),
        with_header(META | {"a": entry(16, 0, shape=[-4])}),
        with_header(META | {"a": entry(0, 16, shape=[-2, -2])}),
        with_header(META | {"a": entry(-8, 16, shape=[6])}),
        with_header(META | {"a": entry(0, 16, shape=[2**62, 2**62])}),
        with_header(META | {"a": entry(0, 16, shape="4")}),
        with_header(META | {"a": entry(0, 16, shape=[4.0])}),
        with_header(META | {"a": entry(0, 16, shape=[None])}),
        with_header(META | {"a": entry(0, 16, dtype="BF16", shape=[8])}),
        with_header(META | {"a": entry(0, 16, dtype="<f4", shape=[4])}),
        with_header(META | {"a": {"dtype": "F32", "shape": [4]}}),
        with_header(META | {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}),
        with_header(META | {"a": {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}}),
        with_header(META | {"a": [0, 16]}),
    ],
)
def test_hostile_safetensors_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "hostile.safetensors").write_bytes(content)
    with pytest.raises(standalone.RefusedError, match=r"hostile\.safetensors is missing or damaged"):
        standalone.read_adapter(tmp_path / "hostile.safetensors", {})


@given(data=st.data())
def test_no_change_of_a_byte_gives_another_adapter(data: st.DataObject, bundle: Written, other: Path) -> None:
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    content = bytearray(other.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    # Half of them in the header, which is a small part of the file.
    position = data.draw(st.integers(0, header) | st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path = other.with_name("changed.safetensors")
    path.write_bytes(content)
    expected = standalone.read_adapter(other, manifest)
    try:
        found = standalone.read_adapter(path, manifest)
    except standalone.RefusedError:
        return
    # White space of the JSON may have changed, or what no one reads.
    assert found.slot.keys() == expected.slot.keys()
    assert all(np.array_equal(found.slot[name], array) for name, array in expected.slot.items())
    assert found.tasks.keys() == expected.tasks.keys()
    for name, task in expected.tasks.items():
        assert (found.tasks[name].kind, found.tasks[name].labels) == (task.kind, task.labels)
        assert np.array_equal(found.tasks[name].head, task.head)
