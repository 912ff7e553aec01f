"""What training needs of memory: each contestant in a fresh process, so that none inherits another's heap."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.adapter_contest.layers import bytes_without, saved_storages
from simulations.paper.throughput_study.bases import Base, backbone_of, random_batch
from simulations.paper.throughput_study.contestants import loss_of, model_of, optimizer_of, training_step

STEPS = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes besides the base.

    `kept` is what autograd keeps from the forward for the backward pass: all storages that torch's
    saved-tensor hooks see, once each, without parameters and the batch. `gradients` and `optimizer` are the
    tensors there after a step. `step_peak` is how much the process (on CUDA: torch's allocator) grew beyond
    what it had before the first of three steps.
    """

    base: str
    contestant: str
    trained_parameters: int
    kept: int
    gradients: int
    optimizer: int
    step_peak: int


def measure_memory(name: str, base: Base, contestant: str, device: str) -> Memory:
    """Measure in a process of its own; raises what that raises."""
    # Not forked: a copy of a process that has loaded torch may hang, and has that process's heap.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measure, name, base, contestant, device).result()


def _measure(name: str, base: Base, contestant: str, device_name: str) -> Memory:
    torch.set_num_threads(1)
    device = torch.device(device_name)
    model = model_of(backbone_of(base, device), contestant)
    optimizer = optimizer_of(model)
    ids, labels = random_batch(base, device)
    step = training_step(model, optimizer, ids, labels)
    before = _restart_peak(device)
    for _ in range(STEPS):
        step()
    step_peak = _peak(device) - before
    trained = [p for p in model.parameters() if p.requires_grad]
    state = [value for of_one in optimizer.state.values() for value in of_one.values()]
    storages = saved_storages(partial(loss_of, model, ids, labels))
    return Memory(
        name,
        contestant,
        trained_parameters=sum(p.numel() for p in trained),
        kept=bytes_without(storages, [*model.parameters(), *model.buffers(), ids, labels]),
        gradients=sum(p.grad.nbytes for p in trained if p.grad is not None),
        optimizer=sum(value.nbytes for value in state if isinstance(value, torch.Tensor)),
        step_peak=step_peak,
    )


def _restart_peak(device: torch.device) -> int:
    """Forget the peak so far; returns the bytes that are in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _CLEAR.write_text(_RESET_PEAK)  # Linux: the peak of the resident set starts anew from its present size
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
