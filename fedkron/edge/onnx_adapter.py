"""Adapters for ONNX Runtime's own API (`LoraAdapter` in C, C++, C#, Java and Python): `.onnx_adapter`
files.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np

from fedkron.edge.device_adapter import DeviceAdapter
from fedkron.edge.slot import HEAD

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("a bundle needs onnxruntime and tokenizers: pip install 'fedkron[edge]'") from error

ADAPTER_VERSION = 1


def model_version(slot_hash: str) -> int:
    """What a file's `model_version` has to be for a graph: the first 31 bits of its slot's hash.

    ONNX Runtime does not compare it with anything: the host has to.
    """
    return int(slot_hash[:8], 16) >> 1


def save_onnx_adapter(path: Path, adapter: DeviceAdapter, task: str) -> None:
    """Write an adapter, with the head of one task if it has one, as the graph's inputs by name.

    Each has its leading axis, of length 1. The file appears whole: one that is overwritten in place would
    change the weights of whoever has mapped it.
    """
    inputs = {name: array[None] for name, array in adapter.arrays.items()}
    if task in adapter.tasks:
        inputs[HEAD] = adapter.tasks[task].weights.astype(np.float32)[None]
    # AdapterFormat does not keep what it is given alive: so the values have to be held here.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    content = onnxruntime.AdapterFormat()
    content.set_adapter_version(ADAPTER_VERSION)
    content.set_model_version(model_version(adapter.slot_hash))
    content.set_parameters(values)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        content.export_adapter(str(temporary))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
