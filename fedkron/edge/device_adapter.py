"""An adapter as a device holds it: the arrays that a graph takes, and its tasks' heads; specified in
docs/formats.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from fedkron.edge.heads import TaskHead, check_exportable, matching_heads, task_head
from fedkron.edge.slot import SLOT, SLOT_FLOATS, SlotLayout
from fedkron.errors import AdapterError, ContractError
from fedkron.exchange import AdapterFile, HeadFile, write_atomically
from fedkron.exchange.files import METADATA_KEY, naming_the_file
from fedkron.layout import flatten

DEVICE_FORMAT, DEVICE_VERSION = "fedkron-device-adapter", 1

Arrays = Mapping[str, npt.NDArray[Any]]
_DTYPES = {"F32": "float32", "F16": "float16", "I8": "int8", "U8": "uint8"}


@dataclass(frozen=True, eq=False)
class DeviceAdapter:
    """An adapter that is ready for a graph's slot.

    `arrays` are the graph's inputs without their leading axis (`SlotLayout.arrays`), `heads` its tasks.
    """

    name: str
    contract: str
    slot_hash: str
    arrays: Arrays
    heads: tuple[TaskHead, ...]

    @cached_property
    def tasks(self) -> Mapping[str, TaskHead]:
        """Heads by task."""
        return {head.name: head for head in self.heads}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays.values()) + sum(h.weights.nbytes for h in self.heads)

    @property
    def checksum(self) -> str:
        """SHA-256 (hex) of name, tasks and all numbers, as it stands in a file."""
        return _checksum(_metadata(self), _tensors(self))


def device_adapter(
    name: str, adapter: AdapterFile, heads: Sequence[HeadFile], slot: SlotLayout, hidden: int
) -> DeviceAdapter:
    """Encode an adapter, with its tasks' heads, for a graph with this slot on a base of width `hidden`.

    Heads stay float32 beside a float32 slot, and become float16 beside the others. Raises `ContractError`
    when they do not belong together, `AdapterError` when the state does not fit its layout or cannot be
    encoded.
    """
    if adapter.layout.contract != slot.adapter.contract:
        raise ContractError(
            f"the adapter has contract {adapter.layout.contract[:12]}…, this bundle "
            f"{slot.adapter.contract[:12]}…: it was trained on another base, or with other settings"
        )
    check_exportable(adapter.layout)
    flatten(adapter.state, adapter.layout)
    dtype = _head_dtype(slot)
    matching = matching_heads(adapter, heads, hidden)
    return DeviceAdapter(
        name,
        slot.adapter.contract,
        slot.hash,
        slot.pack(adapter.state),
        tuple(task_head(head, dtype) for head in matching.values()),
    )


def save_device_adapter(path: Path, adapter: DeviceAdapter) -> None:
    """Write the file atomically: same adapter, same bytes."""
    tensors = _tensors(adapter)
    metadata = _metadata(adapter)
    metadata["checksum"] = adapter.checksum
    write_atomically(path, save(tensors, {METADATA_KEY: _canonical(metadata)}))


def load_device_adapter(path: Path, slot: SlotLayout, hidden: int) -> DeviceAdapter:
    """Read a file, whole, and check that it is intact and fits a graph with this slot.

    Raises like `read_device_adapter`, and `ContractError` when it was made for another base, other
    settings or another encoding.
    """
    adapter = read_device_adapter(path)
    with naming_the_file(path):
        check_fits(adapter, slot, hidden)
    return adapter


def read_device_adapter(path: Path) -> DeviceAdapter:
    """Read a file, whole, and check that it is intact; `check_fits` says whether a graph can use it.

    Raises `AdapterError` when it is missing, damaged, altered or of another format.
    """
    with naming_the_file(path):
        return _read(path)


def check_fits(adapter: DeviceAdapter, slot: SlotLayout, hidden: int) -> None:
    """Raise `ContractError` when an adapter was made for another graph, `AdapterError` for wrong sizes."""
    if adapter.contract != slot.adapter.contract:
        raise ContractError(
            f"the adapter has contract {adapter.contract[:12]}…, this bundle {slot.adapter.contract[:12]}…: "
            "it was trained on another base, or with other settings"
        )
    if adapter.slot_hash != slot.hash:
        raise ContractError(
            f"the adapter was encoded for slot {adapter.slot_hash[:12]}…, this bundle has {slot.hash[:12]}… "
            f"({slot.encoding}): export it for this bundle"
        )
    found = {name: (array.size, array.dtype.name) for name, array in adapter.arrays.items()}
    if found != slot.arrays or any(array.ndim != 1 for array in adapter.arrays.values()):
        raise AdapterError(f"the arrays are {found}, the slot takes {dict(slot.arrays)}")
    for head in adapter.heads:
        _check_head(head, hidden, _head_dtype(slot))
    if len(adapter.tasks) < len(adapter.heads):
        raise AdapterError("two heads are for one task")


def _head_dtype(slot: SlotLayout) -> str:
    return "float32" if slot.encoding == "fp32" else "float16"


def _check_head(head: TaskHead, hidden: int, dtype: str) -> None:
    shape, outputs = head.weights.shape, len(head.weights)
    match head.kind:
        case "classification":
            fits = len(head.labels) in (0, outputs)
        case "multiple_choice":
            fits = outputs == 1 and not head.labels
        case _:
            fits = False
    found = head.weights.dtype.name
    if shape != (outputs, hidden + 1) or found != dtype or not outputs or not fits:
        raise AdapterError(
            f"the head of task {head.name!r} ({head.kind}, {len(head.labels)} labels) is {found} "
            f"{list(shape)}, the base has width {hidden} and takes {dtype}"
        )


def _tensors(adapter: DeviceAdapter) -> dict[str, npt.NDArray[Any]]:
    return dict(adapter.arrays) | {f"head.{i}": head.weights for i, head in enumerate(adapter.heads)}


def _metadata(adapter: DeviceAdapter) -> dict[str, Any]:
    return {
        "format": DEVICE_FORMAT,
        "version": DEVICE_VERSION,
        "adapter": adapter.name,
        "contract": adapter.contract,
        "slot_hash": adapter.slot_hash,
        "tasks": [{"name": h.name, "kind": h.kind, "labels": list(h.labels)} for h in adapter.heads],
    }


def _read(path: Path) -> DeviceAdapter:
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
        if (found := metadata.get("format", "not given")) != DEVICE_FORMAT:
            raise AdapterError(f"not a {DEVICE_FORMAT} file (its format is {found!r})")
        if (version := metadata["version"]) != DEVICE_VERSION:
            raise AdapterError(
                f"format version is {version!r}, known here is {DEVICE_VERSION}: update fedkron"
            )
        for name in file.keys():  # noqa: SIM118 - it is a file, not a mapping
            # Asked before the tensor is read: numpy does not have all types that safetensors has.
            if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                raise AdapterError(f"tensor {name!r} is {dtype}, expected one of {', '.join(_DTYPES)}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = metadata.pop("checksum")
    if checksum != _checksum(metadata, tensors):
        raise AdapterError("the checksum differs: the file is damaged or was altered, fetch it again")
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise AdapterError(f"tensor {name!r} holds values that are not finite")
    arrays = {name: tensors.pop(name) for name in (SLOT, SLOT_FLOATS) if name in tensors}
    heads = tuple(
        TaskHead(
            str(task["name"]), str(task["kind"]), tuple(map(str, task["labels"])), tensors.pop(f"head.{i}")
        )
        for i, task in enumerate(metadata["tasks"])
    )
    if tensors:
        raise AdapterError(f"tensor {min(tensors)!r} is not part of a device adapter")
    adapter = DeviceAdapter(
        str(metadata["adapter"]), str(metadata["contract"]), str(metadata["slot_hash"]), arrays, heads
    )
    if metadata != _metadata(adapter):
        raise AdapterError(f"metadata is not as version {DEVICE_VERSION} writes it")
    return adapter


def _checksum(metadata: dict[str, Any], tensors: Arrays) -> str:
    digest = hashlib.sha256(_canonical(metadata).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _canonical(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"))
