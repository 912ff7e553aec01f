"""Adapters and heads at rest: safetensors files whose metadata says what they belong to.

The formats are specified in docs/formats.md. No pickle, no torch: a server and a device read them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedkron.atomic import write_atomically
from fedkron.errors import AdapterError, ContractError, FedKronError
from fedkron.layout import AdapterLayout, State, flatten

ADAPTER_VERSION = 2
HEAD_VERSION = 1
ADAPTER_FORMAT = "fedkron-adapter"
HEAD_FORMAT = "fedkron-head"
METADATA_KEY = "fedkron"
"""The key in the safetensors metadata; its value is one JSON object."""
EXACT_FORM_OF = "exact form of contract"
"""The key in an adapter's `info` for the contract of an adapter of another kind with the same ΔW."""

Metadata = dict[str, Any]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter with its layout and the name of its base.

    `info` is free text by name (round, aggregation, …); `spec` the settings it was made with
    (as far as they are known), as JSON values; `lineage` how it came to be, one line a step, the
    oldest first.
    """

    state: State
    layout: AdapterLayout
    base_name: str
    info: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()

    @property
    def head_contracts(self) -> frozenset[str]:
        """Contracts of the heads that go with it: its own, and that of the adapter it is an exact form of."""
        return frozenset({self.layout.contract, self.info.get(EXACT_FORM_OF, self.layout.contract)})


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
    """Write an adapter file atomically: same adapter, same bytes.

    Raises `AdapterError`, writing nothing, when the state does not fit the layout or is not finite.
    """
    flatten(adapter.state, adapter.layout)
    write_atomically(path, _packed(adapter.state, _adapter_metadata(adapter)))


def load_adapter(path: Path) -> AdapterFile:
    """Read an adapter file.

    Raises `AdapterError` when it is missing, damaged or of another format, `ContractError` when its
    contract is not that of its own layout.
    """
    with naming_the_file(path):
        tensors, metadata = unpacked(path, ADAPTER_FORMAT, ADAPTER_VERSION)
        layout = AdapterLayout.from_json(json.dumps(metadata["layout"]))
        if layout.contract != metadata["contract"]:
            raise ContractError("the contract does not match the layout: the file was altered")
        flatten(tensors, layout)
        adapter = AdapterFile(
            tensors,
            layout,
            metadata["base"],
            metadata["info"],
            metadata["spec"],
            tuple(metadata["lineage"]),
        )
        _check_same(metadata, _adapter_metadata(adapter))
        return adapter


def save_head(path: Path, head: HeadFile) -> None:
    """Write a head file atomically: same head, same bytes.

    Raises `AdapterError`, writing nothing, when its parts do not belong together or are not finite.
    """
    _check_head(head)
    write_atomically(path, _packed({"weight": head.weight, "bias": head.bias}, _head_metadata(head)))


def load_head(path: Path) -> HeadFile:
    """Read a head file; raises `AdapterError` when it is missing, damaged or of another format."""
    with naming_the_file(path):
        tensors, metadata = unpacked(path, HEAD_FORMAT, HEAD_VERSION)
        if tensors.keys() != {"weight", "bias"}:
            raise AdapterError(f"a head has tensors weight and bias, this has {', '.join(sorted(tensors))}")
        head = HeadFile(
            tensors["weight"],
            tensors["bias"],
            metadata["task"],
            metadata["task_kind"],
            tuple(metadata["labels"]),
            metadata["contract"],
        )
        _check_same(metadata, _head_metadata(head))
        _check_head(head)
        return head


def file_format(path: Path) -> str:
    """Which of our formats a safetensors file has (`not given` for others).

    Raises `AdapterError` when it is missing or not a safetensors file.
    """
    with naming_the_file(path), safe_open(path, framework="numpy") as file:
        return str(_metadata(file).get("format", "not given"))


def _adapter_metadata(adapter: AdapterFile) -> Metadata:
    return {
        "format": ADAPTER_FORMAT,
        "version": ADAPTER_VERSION,
        "contract": adapter.layout.contract,
        "layout": json.loads(adapter.layout.to_json()),
        "base": str(adapter.base_name),
        "info": {str(key): str(value) for key, value in adapter.info.items()},
        "spec": {str(key): value for key, value in adapter.spec.items()},
        "lineage": [str(step) for step in adapter.lineage],
    }


def _head_metadata(head: HeadFile) -> Metadata:
    return {
        "format": HEAD_FORMAT,
        "version": HEAD_VERSION,
        "contract": str(head.contract),
        "task": str(head.task),
        "task_kind": str(head.task_kind),
        "labels": [str(label) for label in head.labels],
    }


def _check_head(head: HeadFile) -> None:
    weight, bias, labels = head.weight, head.bias, head.labels
    match head.task_kind:
        case "classification":
            fits = len(labels) in (0, bias.size)
        case "multiple_choice":
            fits = bias.size == 1 and not labels
        case unknown:
            raise AdapterError(f"task kind {unknown!r} is neither classification nor multiple_choice")
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not fits:
        raise AdapterError(
            f"weight {list(weight.shape)}, bias {list(bias.shape)} and {len(labels)} labels do not belong "
            f"together in a head for {head.task_kind}"
        )


def _check_finite(tensors: State) -> None:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise AdapterError(f"tensor {name!r} holds values that are not finite")


def _check_same(found: Metadata, expected: Metadata) -> None:
    # Whatever has a key that we do not know, or a value of another type, comes out different.
    if found != expected:
        different = sorted(
            key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
        )
        raise AdapterError(f"metadata {', '.join(different)} is not as this version writes it")


def _packed(tensors: State, metadata: Metadata) -> bytes:
    _check_finite(tensors)
    # Not ascontiguousarray, which makes a vector of a scalar.
    contiguous = {name: np.asarray(tensor, np.float32, order="C") for name, tensor in tensors.items()}
    # One key only: safetensors writes several in random order.
    return save(contiguous, {METADATA_KEY: json.dumps(metadata, sort_keys=True, separators=(",", ":"))})


def _metadata(file: safe_open) -> Metadata:
    found = file.metadata()  # type: ignore[no-untyped-call]
    metadata: Metadata = json.loads((found or {}).get(METADATA_KEY, "{}"))
    return metadata


def unpacked(path: Path, expected_format: str, known_version: int) -> tuple[State, Metadata]:
    """Tensors and metadata of one of our safetensors files, checked for format, version and finite
    float32.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = _metadata(file)
        if (found := metadata.get("format", "not given")) != expected_format:
            raise AdapterError(f"not a {expected_format} file (its format is {found!r})")
        if (version := metadata["version"]) != known_version:
            raise AdapterError(
                f"format version is {version!r}, known here is {known_version}: update fedkron"
            )
        names = file.keys()
        for name in names:
            # Asked before the tensor is read: numpy does not have all types that safetensors has.
            if (dtype := file.get_slice(name).get_dtype()) != "F32":
                raise AdapterError(f"tensor {name!r} is {dtype}, expected F32")
        tensors: State = {name: file.get_tensor(name) for name in names}
    _check_finite(tensors)
    return tensors, metadata


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Every error says which file it is about, and damage of any sort is an `AdapterError`."""
    try:
        yield
    except FedKronError as error:
        raise type(error)(f"{path}: {error}") from error
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a safetensors file: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{path}: its metadata is damaged: {error!r}") from error
