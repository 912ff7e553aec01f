"""Adapters and heads at rest: safetensors files whose metadata says what they belong to.

The formats are specified in docs/formats.md. No pickle, no torch: a server and a device read them too.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedkron.errors import AdapterError, ContractError
from fedkron.layout import AdapterLayout, State, flatten

FILE_VERSION = "1"
ADAPTER_FORMAT = "fedkron-adapter"
HEAD_FORMAT = "fedkron-head"


@dataclass(frozen=True)
class AdapterFile:
    """An adapter with its layout, the name of its base, and free text metadata (round, lineage, …)."""

    state: State
    layout: AdapterLayout
    base_name: str
    info: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadFile:
    """A task's head: `weight` (outputs, hidden) and `bias` (outputs), float32.

    `task_kind` is `classification` (one output per label) or `multiple_choice` (one output, no labels).
    `contract` is that of the adapter that the head was trained with.
    """

    weight: np.ndarray
    bias: np.ndarray
    task: str
    task_kind: str
    labels: tuple[str, ...]
    contract: str


def save_adapter(path: Path, adapter: AdapterFile) -> None:
    """Write an adapter file atomically; `AdapterError` when the state does not fit the layout."""
    flatten(adapter.state, adapter.layout)
    metadata = {
        "format": ADAPTER_FORMAT,
        "version": FILE_VERSION,
        "contract": adapter.layout.contract,
        "layout": adapter.layout.to_json(),
        "base": adapter.base_name,
        "info": json.dumps(adapter.info, sort_keys=True),
    }
    write_atomically(path, save(_contiguous(adapter.state), metadata))


def load_adapter(path: Path) -> AdapterFile:
    """Read an adapter file.

    Raises `AdapterError` when it is missing, damaged or of another format, `ContractError` when its
    contract is not that of its own layout.
    """
    tensors, metadata = _read(path, ADAPTER_FORMAT)
    layout = AdapterLayout.from_json(metadata["layout"])
    if layout.contract != metadata["contract"]:
        raise ContractError(f"{path}: the contract does not match the layout: the file was altered")
    flatten(tensors, layout)
    return AdapterFile(tensors, layout, metadata["base"], json.loads(metadata["info"]))


def save_head(path: Path, head: HeadFile) -> None:
    """Write a head file atomically."""
    metadata = {
        "format": HEAD_FORMAT,
        "version": FILE_VERSION,
        "contract": head.contract,
        "task": head.task,
        "task_kind": head.task_kind,
        "labels": json.dumps(head.labels),
    }
    write_atomically(path, save(_contiguous({"weight": head.weight, "bias": head.bias}), metadata))


def load_head(path: Path) -> HeadFile:
    """Read a head file; raises `AdapterError` when it is missing, damaged or of another format."""
    tensors, metadata = _read(path, HEAD_FORMAT)
    weight, bias = tensors["weight"], tensors["bias"]
    labels = tuple(json.loads(metadata["labels"]))
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or (labels and len(labels) != len(bias)):
        raise AdapterError(
            f"{path}: weight {list(weight.shape)}, bias {list(bias.shape)} and {len(labels)} labels "
            "do not belong together"
        )
    return HeadFile(weight, bias, metadata["task"], metadata["task_kind"], labels, metadata["contract"])


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private to its owner; give it what open() would have given.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _contiguous(tensors: State) -> State:
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def _read(path: Path, expected_format: str) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("format") != expected_format:
        raise AdapterError(
            f"{path} is not a {expected_format} file (its format is {metadata.get('format', 'not given')!r})"
        )
    if metadata["version"] != FILE_VERSION:
        raise AdapterError(
            f"{path} has format version {metadata['version']}, known here is {FILE_VERSION}: update fedkron"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise AdapterError(f"{path}: tensor {name!r} is {tensor.dtype}, expected float32")
        if not np.isfinite(tensor).all():
            raise AdapterError(f"{path}: tensor {name!r} holds values that are not finite")
    return tensors, metadata
