"""Adapters for ONNX Runtime's own API, read back with it."""

import json
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edge_cases import ENCODINGS, Written, small_device_adapter, small_slot

from fedkron.edge.onnx_adapter import model_version, save_onnx_adapter
from fedkron.edge.runtime import Bundle
from fedkron.edge.texts import load_tokenizer, text_batches

TEXTS = ["who wrote the play", "what is a pipe", "red"]


def read(path: Path) -> onnxruntime.AdapterFormat:
    return onnxruntime.AdapterFormat.read_adapter(str(path))


@pytest.mark.parametrize("task", ["colour", "spam", ""])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_holds_the_graphs_inputs_with_a_leading_axis(encoding: str, task: str, tmp_path: Path) -> None:
    adapter = small_device_adapter("mine", 1, encoding)
    save_onnx_adapter(tmp_path / "a.onnx_adapter", adapter, task)
    found = read(tmp_path / "a.onnx_adapter")
    expected = dict(adapter.arrays)
    if task:
        expected["head"] = adapter.tasks[task].weights.astype(np.float32)
    values = {name: value.numpy() for name, value in found.get_parameters().items()}
    assert values.keys() == expected.keys()
    for name, array in expected.items():
        assert values[name].dtype == array.dtype
        np.testing.assert_array_equal(values[name], array[None])
    assert found.get_model_version() == int(small_slot(encoding).hash[:8], 16) // 2
    assert found.get_adapter_version() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx_adapter"]


def test_the_version_of_a_slot_is_a_positive_int32() -> None:
    assert model_version("ffffffff" + "0" * 56) == 2**31 - 1
    assert model_version("0" * 64) == 0
    assert len({model_version(small_slot(encoding).hash) for encoding in ENCODINGS}) == len(ENCODINGS)


def test_same_adapter_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        save_onnx_adapter(tmp_path / name, small_device_adapter("mine", 1), "colour")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_replaced_does_not_change_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    save_onnx_adapter(path, small_device_adapter("mine", 1), "spam")
    before = read(path)
    slot = before.get_parameters()["slot"].numpy().copy()
    save_onnx_adapter(path, small_device_adapter("mine", 2), "spam")
    np.testing.assert_array_equal(before.get_parameters()["slot"].numpy(), slot)
    assert not np.array_equal(read(path).get_parameters()["slot"].numpy(), slot)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.onnx_adapter").mkdir()
    with pytest.raises(OSError, match="directory"):
        save_onnx_adapter(tmp_path / "a.onnx_adapter", small_device_adapter("mine", 2), "spam")
    assert [left.name for left in tmp_path.iterdir()] == ["a.onnx_adapter"]


# With the graph of a bundle, as a host without our code would run it.


def files_of(bundle: Written) -> dict[str, Path]:
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    (default,) = manifest["adapters"]
    return {task: bundle.folder / file for task, file in default["onnx_adapters"].items()}


def tokens_of(bundle: Written) -> dict[str, np.ndarray]:
    settings = Bundle.open(bundle.folder).manifest.input
    ((rows, tokens),) = text_batches(
        load_tokenizer(bundle.folder / "tokenizer.json", settings), settings, TEXTS
    )
    return {name: array[np.argsort(rows)] for name, array in tokens.items()}


@pytest.fixture(scope="module")
def session(bundle: Written) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(bundle.folder / "unmerged.onnx"))


def test_its_parameters_are_all_that_a_graph_needs_besides_the_tokens(
    bundle: Written, session: onnxruntime.InferenceSession
) -> None:
    files = files_of(bundle)
    assert list(files) == list(bundle.heads)
    for task, file in files.items():
        found = read(file)
        graph = session.get_modelmeta().custom_metadata_map
        assert found.get_model_version() == model_version(graph["fedkron.slot"])
        values = {name: value.numpy() for name, value in found.get_parameters().items()}
        (logits,) = session.run(None, tokens_of(bundle) | values)
        expected = Bundle.open(bundle.folder).logits(TEXTS, task)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_an_active_adapter_gives_the_graph_its_inputs(
    bundle: Written, session: onnxruntime.InferenceSession
) -> None:
    """The inputs are required, and Python's `run` asks for them before it looks at the active adapter."""
    opened = Bundle.open(bundle.folder)
    for task, file in files_of(bundle).items():
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(str(file))
        options = onnxruntime.RunOptions()
        options.add_active_adapter(adapter)
        with pytest.raises(ValueError, match="Required inputs"):
            session.run(None, tokens_of(bundle), options)
        # Whatever is given in their place is not used.
        places = {i.name: np.zeros((1, 1, 1)[: len(i.shape)], np.float32) for i in session.get_inputs()}
        (logits,) = session.run(None, places | tokens_of(bundle), options)
        np.testing.assert_allclose(logits, opened.logits(TEXTS, task), rtol=1e-5, atol=1e-5)


def test_many_threads_may_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    adapters = [small_device_adapter("mine", seed) for seed in range(4)]
    threads = [threading.Thread(target=save_onnx_adapter, args=(path, a, "spam")) for a in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slot = read(path).get_parameters()["slot"].numpy()[0]
    assert any(np.array_equal(slot, adapter.arrays["slot"]) for adapter in adapters)
    assert [left.name for left in tmp_path.iterdir()] == ["a.onnx_adapter"]
