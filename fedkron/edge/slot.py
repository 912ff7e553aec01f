"""What a graph's slot holds: the factors of an adapter in wire order, then the rows of a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedkron.errors import BundleError, ContractError
from fedkron.exchange import AdapterFile, HeadFile
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT, AdapterLayout, Vector, flatten


def factor_size(layout: AdapterLayout) -> int:
    """Number of float32 elements in all factors together, which come first in wire order."""
    return layout.size - sum(tensor.size for tensor in layout.dense)


def slot_vector(adapter: AdapterFile, head: HeadFile) -> Vector:
    """The slot's content for one task: factors, then per output its `hidden` weights and its bias."""
    factors = flatten(adapter.state, adapter.layout)[: factor_size(adapter.layout)]
    return np.concatenate([factors, np.column_stack([head.weight, head.bias]).ravel()], dtype=np.float32)


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
