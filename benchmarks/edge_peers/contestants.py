"""Who takes part in the comparison of latencies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from onnx import ModelProto

from benchmarks.edge_peers import ort_lora, peft_torch
from benchmarks.edge_peers.cases import Batch, Logits
from benchmarks.edge_peers.forms import Workshop
from benchmarks.edge_peers.latency import Contestant
from benchmarks.edge_peers.optimum_merged import PooledAfterwards
from fedkron.base import Base
from fedkron.edge.fold import attach_head
from fedkron.edge.graph import copy_model, save_model
from fedkron.edge.session import open_session
from fedkron.exchange import AdapterFile, HeadFile


def ours(
    workshop: Workshop, kron: Sequence[AdapterFile], lora: Sequence[AdapterFile], encodings: Sequence[str]
) -> list[Contestant]:
    """The base, merged, a slot in each encoding; LoRA in a float32 slot if any is given."""
    slots = [workshop.slotted(f"slot {encoding}", encoding, kron) for encoding in encodings]
    if lora:
        slots.append(workshop.slotted("slot fp32 with LoRA-8", "fp32", lora))
    return [workshop.bare(), workshop.merged(kron[0]), *(contestant for pair in slots for contestant in pair)]


def base_by_default(features: ModelProto, folder: Path, head: HeadFile, threads: int) -> Contestant:
    """The base with ONNX Runtime's own settings."""
    graph = copy_model(features)
    attach_head(graph, head.weight, head.bias)
    path = folder / "default.onnx"
    save_model(graph, path)
    session = by_default(path, threads)

    def call(inputs: Batch) -> Logits:
        logits: Logits = session.run(None, inputs.feeds)[0]
        return logits

    return Contestant("base, ONNX Runtime's settings", "base", call, [])


def lora_session(
    features: ModelProto, folder: Path, adapter: AdapterFile, head: HeadFile, threads: int
) -> tuple[Any, Path]:
    """A session that ONNX Runtime's own adapters can be active in, and its graph."""
    graph = ort_lora.with_overridable_lora(features, adapter.layout, *head.weight.shape)
    path = folder / "overridable.onnx"
    save_model(graph, path)
    return open_session(path, threads), path


def onnxruntimes(session: Any, file: Path, adapter: AdapterFile) -> Contestant:  # noqa: ANN401
    """ONNX Runtime's own way, the adapter active since before the call."""
    held, options = ort_lora.active(file)

    def call(inputs: Batch) -> Logits:
        assert held is not None  # it must live as long as it is used
        logits: Logits = session.run(None, inputs.feeds, options)[0]
        return logits

    return Contestant("ONNX Runtime's LoraAdapter, LoRA-8", "peer", call, [adapter])


def optimums(graph: Path, head: HeadFile, adapter: AdapterFile, threads: int) -> list[Contestant]:
    """Optimum's export as it is, and with the options of our runtime."""
    sessions = {"ONNX Runtime's settings": by_default(graph, threads), "ours": open_session(graph, threads)}
    return [
        Contestant(f"Optimum merged, {name}", "peer", _pooled(PooledAfterwards(session, head)), [adapter])
        for name, session in sessions.items()
    ]


def pefts(base: Base, model: Any, head: HeadFile, adapter: AdapterFile) -> list[Contestant]:  # noqa: ANN401
    """torch with PEFT's layers, and with the adapter merged into the weights."""
    merged = peft_torch.model_with(base, [adapter]).merge_and_unload()
    return [
        Contestant("PEFT in torch, merged", "peer", peft_torch.runner(merged, head), [adapter]),
        Contestant("PEFT in torch, LoRA-8", "peer", peft_torch.runner(model, head), [adapter]),
    ]


def by_default(graph: Path, threads: int) -> Any:  # noqa: ANN401
    """A session with ONNX Runtime's own settings, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _pooled(model: PooledAfterwards) -> Any:  # noqa: ANN401
    return lambda inputs: model(inputs.feeds)
