"""Heads that go with an adapter: files of training, checked, and what a device holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedkron.errors import AdapterError, BundleError, ContractError
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT, AdapterLayout


@dataclass(frozen=True, eq=False)
class TaskHead:
    """A task on a device: name, kind, labels by index, and the head.

    `weights` is (outputs, hidden + 1), float32 or float16: per output its weights and its bias.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    weights: npt.NDArray[np.floating]


def task_head(head: HeadFile, dtype: str) -> TaskHead:
    """What a device holds of a head; raises `AdapterError` for values that are not finite in this dtype."""
    with np.errstate(over="ignore"):
        weights = np.column_stack([head.weight, head.bias]).astype(dtype)
    if not np.isfinite(weights).all():
        raise AdapterError(
            f"the head of task {head.task!r} has values that are not finite, or too large for {dtype}"
        )
    return TaskHead(head.task, head.task_kind, head.labels, weights)


def head_file(head: TaskHead, contract: str) -> HeadFile:
    """Inverse of `task_head`."""
    weights = head.weights.astype(np.float32)
    return HeadFile(weights[:, :-1], weights[:, -1], head.name, head.kind, head.labels, contract)


def check_exportable(layout: AdapterLayout) -> None:
    """Raise `BundleError` when something besides factors and a shared head is trained in full."""
    others = [tensor.name for tensor in layout.dense if tensor.name not in (HEAD_WEIGHT, HEAD_BIAS)]
    if others:
        raise BundleError(
            f"tensor {others[0]!r} is trained in full ({len(others)} such): a graph has a slot for factors "
            "and a head only"
        )


def shared_head(adapter: AdapterFile, task: str, labels: Sequence[str]) -> HeadFile:
    """The head within an adapter that has one: of a classification, or without labels of multiple choice.

    Raises `ContractError` when the adapter has no head, or one with another number of outputs.
    """
    if not adapter.layout.has_head:
        raise ContractError("this adapter has no head: give the head file of the task")
    weight, bias = adapter.state[HEAD_WEIGHT], adapter.state[HEAD_BIAS]
    if (len(labels) or 1) != len(bias):
        raise ContractError(f"task {task!r} has {len(labels)} labels, the adapter's head {len(bias)} outputs")
    kind = "classification" if labels else "multiple_choice"
    return HeadFile(weight, bias, task, kind, tuple(labels), adapter.layout.contract)


def matching_heads(adapter: AdapterFile, heads: Sequence[HeadFile], hidden: int) -> dict[str, HeadFile]:
    """Heads by task, each checked against the adapter and the base's width `hidden`.

    If the adapter has a shared head, its weights take the place of those in the files. Raises
    `ContractError` for a head of another contract or size, `BundleError` when two are for one task.
    """
    matching: dict[str, HeadFile] = {}
    for head in heads:
        where = f"the head of task {head.task!r}"
        if head.contract not in adapter.head_contracts:
            raise ContractError(
                f"{where} was trained with an adapter of contract {head.contract[:12]}…, this adapter has "
                f"{adapter.layout.contract[:12]}…: use the head and the adapter of one run"
            )
        if head.weight.shape[1] != hidden:
            raise ContractError(f"{where} has width {head.weight.shape[1]}, the base {hidden}")
        if head.task_kind == "multiple_choice" and len(head.bias) != 1:
            raise ContractError(f"{where} has {len(head.bias)} outputs, a choice has one score")
        if head.task in matching:
            raise BundleError(f"two heads are for task {head.task!r}: give one per task")
        matching[head.task] = _with_shared_weights(adapter, head)
    return matching


def _with_shared_weights(adapter: AdapterFile, head: HeadFile) -> HeadFile:
    if not adapter.layout.has_head:
        return head
    shared = shared_head(adapter, head.task, head.labels)
    return replace(head, weight=shared.weight, bias=shared.bias)
