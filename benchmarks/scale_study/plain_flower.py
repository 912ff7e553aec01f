"""The peer: a plain Flower app that does the same training, and sends LoRA-8 factors as float32 arrays.

What a run of it takes beyond the training is Flower's own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if Path(sys.argv[0]).name.startswith("flwr-simulation"):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.chdir(Path(__file__).resolve().parent)

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clients import training
from clients.node import Node, this_node
from clients.worker import Worker, load_worker, tokenized
from fedkron.adapters import adapter_state, load_adapter_state
from fedkron.base import TaskModel
from fedkron.layout import State
from fedkron.settings import Settings

DONE = "done"
"""File that says that the last round is over: to ask Flower would cost a process start each time."""

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the factors and the head."""
    settings, node, worker, model = _model(message, context)
    examples = tokenized(worker, node.task.train, settings.train.max_length)
    loss = training.train(model, examples, settings.train, worker.pad_id, seed=node.partition)
    context.state["head"] = _arrays({k: v.numpy() for k, v in model.head.state_dict().items()})
    metrics = MetricRecord({"loss": loss, "num-examples": len(examples)})
    return Message(
        RecordDict({"arrays": _arrays(adapter_state(model.backbone)), "metrics": metrics}), reply_to=message
    )


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure accuracy."""
    settings, node, worker, model = _model(message, context)
    examples = tokenized(worker, node.task.test, settings.train.max_length)
    found = training.evaluate(model, examples, worker.pad_id)
    metrics = MetricRecord({"accuracy": found.accuracy, "num-examples": len(examples)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of FedAvg."""
    settings = Settings.from_run_config(context.run_config)
    worker = _worker(settings)
    strategy = FedAvg(fraction_train=settings.fraction_train, fraction_evaluate=settings.fraction_evaluate)
    strategy.start(grid, _arrays(adapter_state(worker.adapted)), num_rounds=settings.num_server_rounds)
    Path(settings.output_dir, DONE).touch()


def _worker(settings: Settings) -> Worker:
    train = settings.train
    return load_worker(settings.base, settings.adapter, settings.device, train.truncation_side)


def _model(message: Message, context: Context) -> tuple[Settings, Node, Worker, TaskModel]:
    settings = Settings.from_run_config(context.run_config)
    node = this_node(context.node_config, settings, context.run_id)
    worker = _worker(settings)
    model = worker.task_model(len(node.task.labels))
    if "head" in context.state:
        head = context.state.array_records["head"]
        model.head.load_state_dict({k: torch.from_numpy(v.numpy().copy()) for k, v in head.items()})
    record = message.content.array_records["arrays"]
    load_adapter_state(model.backbone, {name: array.numpy() for name, array in record.items()})
    return settings, node, worker, model


def _arrays(state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in state.items()})
