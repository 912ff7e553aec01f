"""What an adapter is worth to a node: with the head that it has, and with one that is trained anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clients import training
from clients.batches import tokenize
from clients.node import Node
from clients.worker import load_worker
from fedkron.adapters import load_adapter_state
from fedkron.exchange import load_head
from fedkron.layout import State
from fedkron.rundir import HEAD
from fedkron.settings import AdapterSettings, Settings


@dataclass(frozen=True)
class Accuracies:
    """Shares of right answers in [0, 1] on a node's test texts."""

    kept: float
    fitted: float


def accuracies(node: Node, state: State, adapter: AdapterSettings, settings: Settings) -> Accuracies:
    """Measure an adapter on a node of a finished run, by the nodes' own code.

    `kept` is with the head on the node's disk. For `fitted` the base and the adapter are frozen, and a new
    head is trained for as many epochs as the run had, on the node's own training texts.
    """
    worker = load_worker(settings.base, adapter, settings.device, settings.train.truncation_side)
    head = load_head(node.directory / HEAD)
    outputs = len(head.bias)
    model = worker.task_model(outputs)
    load_adapter_state(model.backbone, state)
    model.head.load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})
    train, test = (
        tokenize(texts, worker.tokenizer, settings.train.max_length)
        for texts in (node.task.train, node.task.test)
    )
    # This also switches dropout off, in the backbone that the new head is trained on.
    kept = training.evaluate(model, test, worker.pad_id)
    fitted = training.evaluate_head_only(
        model.backbone,
        train,
        test,
        outputs,
        settings.train,
        pad_id=worker.pad_id,
        epochs=settings.num_server_rounds * settings.train.epochs,
        seed=settings.seed,
    )
    return Accuracies(kept.accuracy, fitted.accuracy)
