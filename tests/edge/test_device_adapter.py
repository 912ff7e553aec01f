"""The file of an adapter for a device: what it holds, and that damage of any sort is noticed."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_cases import (
    ENCODINGS,
    SMALL,
    SMALL_HIDDEN,
    assert_same_adapter,
    small_adapter,
    small_device_adapter,
    small_heads,
    small_slot,
)
from safetensors.numpy import load, save

from fedkron.edge.device_adapter import (
    DeviceAdapter,
    device_adapter,
    load_device_adapter,
    save_device_adapter,
)
from fedkron.edge.heads import TaskHead
from fedkron.errors import AdapterError, BundleError, ContractError, FedKronError
from fedkron.exchange import save_adapter
from fedkron.layout import TensorLayout

Metadata = dict[str, Any]
Tensors = dict[str, np.ndarray]
Change = Callable[[Metadata, Tensors], object]


def read(path: Path, encoding: str = "fp32") -> DeviceAdapter:
    return load_device_adapter(path, small_slot(encoding), SMALL_HIDDEN)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_device_adapter(tmp_path / "adapter.safetensors", small_device_adapter("mine", 1))
    return tmp_path / "adapter.safetensors"


# By the specification, without our code.


def parts_of(path: Path) -> tuple[Metadata, Tensors]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["fedkron"]
    return json.loads(metadata["fedkron"]), load(content)


def canonical(content: Metadata) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def checksum(metadata: Metadata, tensors: Tensors) -> str:
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    numbers = b"".join(tensors[name].tobytes() for name in sorted(tensors))
    return hashlib.sha256(canonical(rest).encode() + numbers).hexdigest()


def write(path: Path, metadata: Metadata, tensors: Tensors) -> None:
    """A file whose checksum is right."""
    metadata = metadata | {"checksum": checksum(metadata, tensors)}
    path.write_bytes(save(tensors, {"fedkron": canonical(metadata)}))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_adapter_is_read_as_it_was_written(encoding: str, tmp_path: Path) -> None:
    adapter = small_device_adapter("naïve ☂", 1, encoding)
    save_device_adapter(tmp_path / "a.safetensors", adapter)
    found = read(tmp_path / "a.safetensors", encoding)
    assert found.name == "naïve ☂"
    assert_same_adapter(found, adapter)
    sizes = [array.nbytes for array in found.arrays.values()]
    assert found.nbytes == sum(sizes) + sum(head.weights.nbytes for head in found.heads)
    # Written again, it is the same file.
    save_device_adapter(tmp_path / "b.safetensors", found)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_is_what_the_specification_says(encoding: str, tmp_path: Path) -> None:
    slot, adapter = small_slot(encoding), small_adapter(1)
    save_device_adapter(tmp_path / "a.safetensors", small_device_adapter("mine", 1, encoding))
    metadata, tensors = parts_of(tmp_path / "a.safetensors")
    assert metadata.pop("checksum") == checksum(metadata, tensors)
    assert metadata == {
        "format": "fedkron-device-adapter",
        "version": 1,
        "adapter": "mine",
        "contract": SMALL.contract,
        "slot_hash": slot.hash,
        "tasks": [
            {"name": "colour", "kind": "classification", "labels": ["red", "green", "blue"]},
            {"name": "spam", "kind": "classification", "labels": []},
            {"name": "trivia", "kind": "multiple_choice", "labels": []},
        ],
    }
    for name, array in slot.pack(adapter.state).items():
        np.testing.assert_array_equal(tensors.pop(name), array)
    for number, head in enumerate(small_heads()):
        weights = tensors.pop(f"head.{number}")
        assert weights.dtype == ("float32" if encoding == "fp32" else "float16")
        np.testing.assert_allclose(weights[:, :-1], head.weight, rtol=1e-3)
        np.testing.assert_allclose(weights[:, -1], head.bias, rtol=1e-3)
    assert not tensors


def test_a_file_of_other_hands_is_read(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "other.safetensors", *parts_of(file))
    assert_same_adapter(read(tmp_path / "other.safetensors"), small_device_adapter("mine", 1))


# Damage.


def test_a_file_that_ends_early_or_late_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for length in (*range(0, len(content), 37), len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(AdapterError, match=r"adapter\.safetensors"):
            read(file)
    for more in (b"\0", content):
        file.write_bytes(content + more)
        with pytest.raises(AdapterError, match=r"adapter\.safetensors"):
            read(file)


@pytest.mark.parametrize("encoding", ["fp32", "int4"])
def test_no_bit_can_change_unnoticed(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_device_adapter(path, small_device_adapter("mine", 1, encoding))
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises((AdapterError, ContractError)):
            read(path, encoding)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"gone\.safetensors does not exist"):
        read(tmp_path / "gone.safetensors")


# Files whose checksum is right, but which are not for this slot, or are not ours.


def metadata_with(**changes: object) -> Change:
    return lambda metadata, _: metadata.update(changes)


def without(key: str) -> Change:
    return lambda metadata, _: metadata.pop(key)


def tensors_with(**changes: np.ndarray) -> Change:
    return lambda _, tensors: tensors.update(changes)


def without_tensor(name: str) -> Change:
    return lambda _, tensors: tensors.pop(name)


def task_with(**changes: object) -> Change:
    return lambda metadata, _: metadata["tasks"][0].update(changes)


def nan_in(name: str) -> Change:
    def spoil(_: Metadata, tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = np.nan

    return spoil


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


SIZE = small_slot().arrays["slot"][0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (metadata_with(format="fedkron-adapter"), AdapterError, "its format is 'fedkron-adapter'"),
        (without("format"), AdapterError, "its format is 'not given'"),
        (metadata_with(version=2), AdapterError, "version is 2, known here is 1: update"),
        (without("version"), AdapterError, "version"),
        (without("tasks"), AdapterError, "tasks"),
        (without("adapter"), AdapterError, "adapter"),
        (metadata_with(comment="hello"), AdapterError, "metadata is not as version 1 writes it"),
        (metadata_with(tasks=[]), AdapterError, r"'head\.0' is not part of a device adapter"),
        (metadata_with(tasks=["spam"]), AdapterError, "its metadata is damaged"),
        (metadata_with(adapter=None), AdapterError, "metadata is not as version 1 writes it"),
        (metadata_with(contract="0" * 64), ContractError, "trained on another base, or with other settings"),
        (metadata_with(slot_hash="0" * 64), ContractError, r"encoded for slot 000000000000…, .* \(fp32\)"),
        (task_with(name="spam"), AdapterError, "two heads are for one task"),
        (task_with(kind="regression"), AdapterError, r"head of task 'colour' \(regression"),
        (task_with(kind="multiple_choice", labels=[]), AdapterError, "multiple_choice"),
        (task_with(labels=["red", "green"]), AdapterError, "2 labels"),
        (task_with(labels=[1, 2, 3]), AdapterError, "metadata is not as"),
        (task_with(comment="hello"), AdapterError, "metadata is not as"),
        (without_tensor("slot"), AdapterError, "the slot takes"),
        (without_tensor("head.1"), AdapterError, r"head\.1"),
        (tensors_with(slot=zeros(SIZE - 1)), AdapterError, "the slot takes"),
        (tensors_with(slot=zeros(1, SIZE)), AdapterError, "the slot takes"),
        (tensors_with(slot=zeros(SIZE, dtype="float16")), AdapterError, "the slot takes"),
        (tensors_with(slot=zeros(SIZE, dtype="int8")), AdapterError, "the slot takes"),
        (tensors_with(slot=zeros(SIZE, dtype="float64")), AdapterError, "'slot' is F64"),
        (tensors_with(slot_floats=zeros(3)), AdapterError, "the slot takes"),
        (tensors_with(more=zeros(3)), AdapterError, "'more' is not part of a device adapter"),
        (tensors_with(**{"head.3": zeros(1, 9)}), AdapterError, r"'head\.3' is not part"),
        (tensors_with(**{"head.0": zeros(3, 8)}), AdapterError, "the base has width 8"),
        (tensors_with(**{"head.0": zeros(27)}), AdapterError, "the base has width 8"),
        (tensors_with(**{"head.0": zeros(3, 9, dtype="int8")}), AdapterError, "is int8 .* takes float32"),
        (
            tensors_with(**{"head.0": zeros(3, 9, dtype="float16")}),
            AdapterError,
            "is float16 .* takes float32",
        ),
        (tensors_with(**{"head.1": zeros(0, 9)}), AdapterError, "the base has width 8"),
        (tensors_with(**{"head.2": zeros(2, 9)}), AdapterError, "head of task 'trivia'"),
        (nan_in("slot"), AdapterError, "'slot' holds values that are not finite"),
        (nan_in("head.1"), AdapterError, r"'head\.1' holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_files_name(
    file: Path, change: Change, error: type[FedKronError], message: str
) -> None:
    metadata, tensors = parts_of(file)
    change(metadata, tensors)
    write(file, metadata, tensors)
    with pytest.raises(error, match=rf"adapter\.safetensors: .*{message}"):
        read(file)


@pytest.mark.parametrize("metadata", [None, {"fedkron": "not JSON"}, {"fedkron": "[1]"}, {"other": "{}"}])
def test_a_safetensors_file_of_somebody_else_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(save({"weight": zeros(2)}, metadata))
    with pytest.raises(AdapterError, match=r"theirs\.safetensors"):
        read(path)
    path.write_text("hello")
    with pytest.raises(AdapterError, match="is not a safetensors file"):
        read(path)


def test_an_adapter_file_of_training_is_not_a_device_adapter(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", small_adapter(1))
    with pytest.raises(AdapterError, match="not a fedkron-device-adapter file"):
        read(tmp_path / "a.safetensors")


def test_an_adapter_for_one_encoding_does_not_go_into_another(tmp_path: Path) -> None:
    for encoding in ENCODINGS:
        path = tmp_path / f"{encoding}.safetensors"
        save_device_adapter(path, small_device_adapter("mine", 1, encoding))
        for other in ENCODINGS:
            if other != encoding:
                with pytest.raises(ContractError, match=rf"\({other}\): export it for this bundle"):
                    read(path, other)


# Made from an adapter and heads of training.


def made(**changes: object) -> DeviceAdapter:
    adapter, heads = small_adapter(1), small_heads()
    parts: dict[str, Any] = {"adapter": adapter, "heads": heads} | changes
    return device_adapter("mine", parts["adapter"], parts["heads"], small_slot("fp16"), SMALL_HIDDEN)


def test_only_parts_that_belong_together_become_an_adapter() -> None:
    adapter, (head, *_) = small_adapter(1), small_heads()
    with pytest.raises(ContractError, match="trained on another base, or with other settings"):
        made(adapter=replace(adapter, layout=replace(SMALL, base="another")))
    with pytest.raises(ContractError, match="head of task 'colour' was trained with an adapter of contract"):
        made(heads=[replace(head, contract="0" * 64)])
    with pytest.raises(ContractError, match="width 7, the base 8"):
        made(heads=[replace(head, weight=head.weight[:, 1:])])
    with pytest.raises(BundleError, match="two heads are for task 'colour'"):
        made(heads=[head, head])
    with pytest.raises(AdapterError, match=r"'dense\.A' of the adapter's layout is missing"):
        made(adapter=replace(adapter, state={n: v for n, v in adapter.state.items() if n != "dense.A"}))
    with pytest.raises(AdapterError, match="too large for float16"):
        made(adapter=replace(adapter, state={n: v * 1e6 for n, v in adapter.state.items()}))


def test_what_is_trained_in_full_has_no_place_in_a_slot() -> None:
    layout = replace(SMALL, dense=(TensorLayout("norm.weight", (3,)),))
    adapter = replace(small_adapter(1), layout=layout)
    slot = replace(small_slot(), adapter=layout)
    with pytest.raises(BundleError, match=r"'norm\.weight' is trained in full"):
        device_adapter("mine", adapter, [], slot, SMALL_HIDDEN)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e5])
def test_a_head_that_float16_cannot_hold_is_refused(value: float) -> None:
    head = small_heads()[0]
    weight = head.weight.copy()
    weight[0, 0] = value
    with pytest.raises(AdapterError, match="head of task 'colour'"):
        made(heads=[replace(head, weight=weight)])


def test_an_adapter_without_heads_is_written_and_read(tmp_path: Path) -> None:
    save_device_adapter(tmp_path / "a.safetensors", made(heads=[]))
    assert read(tmp_path / "a.safetensors", "fp16").heads == ()


def test_a_failed_write_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    broken = TaskHead("spam", "classification", (object(), object()), zeros(2, 9))
    with pytest.raises(TypeError):
        save_device_adapter(file, replace(small_device_adapter("mine", 2), heads=(broken,)))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
