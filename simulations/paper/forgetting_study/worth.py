"""What an adapter is worth to a node, with the head that the node or the adapter has."""

from __future__ import annotations

import torch

from clients import training
from clients.batches import tokenize
from clients.node import Node
from clients.training import Evaluation
from clients.worker import load_worker
from fedkron.adapters import load_adapter_state
from fedkron.exchange import load_head
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT, State
from fedkron.rundir import HEAD
from fedkron.settings import AdapterSettings, Settings


def worth(node: Node, state: State, adapter: AdapterSettings, settings: Settings) -> Evaluation:
    """Measure an adapter on a node's test texts, by the nodes' own code.

    The head is the adapter's, if it has one, else the one on the node's disk.
    """
    worker = load_worker(settings.base, adapter, settings.device, settings.train.truncation_side)
    factors = {name: values for name, values in state.items() if name not in (HEAD_WEIGHT, HEAD_BIAS)}
    if HEAD_WEIGHT in state:
        weight, bias = state[HEAD_WEIGHT], state[HEAD_BIAS]
    else:
        head = load_head(node.directory / HEAD)
        weight, bias = head.weight, head.bias
    model = worker.task_model(len(bias))
    load_adapter_state(model.backbone, factors)
    model.head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    texts = tokenize(node.task.test, worker.tokenizer, settings.train.max_length)
    return training.evaluate(model, texts, worker.pad_id, precision=settings.train.precision)
