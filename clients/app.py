"""The program on every node: train on the node's own data, evaluate on its own test split."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if Path(sys.argv[0]).name.startswith("flwr-simulation"):
    # Before torch is imported: where nodes share the cores, waiting threads that spin slow down all others. A
    # node that has its machine for itself is faster with them: each small product saves 100 µs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ray workers put the current folder first on their path. Unless that is this very app, they would
    # import whatever checkout the SuperLink was started in.
    os.environ.setdefault("FEDKRON_START_DIRECTORY", str(Path.cwd()))
    os.chdir(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import training
from clients.features import identity_of, kept_features
from clients.node import Node, this_node
from clients.privacy import private
from clients.worker import Worker, load_worker, tokenized
from fedkron.adapters import adapter_state, folded, load_adapter_state, only_trained
from fedkron.base import TaskModel
from fedkron.errors import ConfigError, ContractError
from fedkron.exchange import HeadFile, save_head
from fedkron.flower import ORIGIN, compressed_exchange, explained_errors
from fedkron.flower.durable_state import durable_state
from fedkron.flower.global_adapter import ARRAYS, TERMS
from fedkron.flower.introductions import introduction_of
from fedkron.flower.secure_client import answer_secure_queries, secure_exchange
from fedkron.flower.strategy import TRAINS
from fedkron.flower.wire import to_arrays, to_state
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT, AdapterLayout, State
from fedkron.rundir import HEAD
from fedkron.settings import Settings

CONFIG, METRICS = "config", "metrics"
LOCAL_HEAD, HEAD_ONLY = "fedkron.head", "fedkron.head-only"


def _own_folder(context: Context) -> Path:
    return _node(context)[1].directory


app = ClientApp(mods=[explained_errors, durable_state(_own_folder), compressed_exchange, secure_exchange])
answer_secure_queries(app)


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which task this node has, and which size its adapter is to have."""
    _, node = _node(context)
    return Message(introduction_of(node.task.name, node.partition, node.size), reply_to=message)


@app.train(mods=[private])
def train(message: Message, context: Context) -> Message:
    """Fine-tune the received adapter, or the part whose turn it is, and this node's head; answer with
    that.
    """
    settings, node, worker = setup = _setup(context)
    received = _records(message, ARRAYS)
    layout, model = _model(message, received, context, setup)
    examples = tokenized(worker, node.task.train, settings.train.max_length)
    # A seed of its own for every node and round, the same in every run.
    seed = _seed(settings.seed, node.partition, _round(message))
    trained = _trained_names(message, received)
    mu = float(_config(message).get("proximal-mu", 0.0))  # type: ignore[arg-type]
    names = {name for part in trained.values() for name in part}
    with only_trained(model.backbone, names), folded(model.backbone, _terms(message)):
        loss = training.train(model, examples, settings.train, worker.pad_id, seed, proximal_mu=mu)
    if settings.head == "local":
        _keep_head(context, node, layout, model)
    state = _state(model, layout)
    records = {key: to_arrays({name: state[name] for name in part}) for key, part in trained.items()}
    metrics = MetricRecord({"loss": loss, "num-examples": len(examples)})
    return Message(RecordDict({**records, METRICS: metrics, ORIGIN: _origin(node)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the received adapter with this node's head on this node's test split."""
    settings, node, worker = setup = _setup(context)
    received = _records(message, ARRAYS)
    layout, model = _model(message, received, context, setup)
    examples = tokenized(worker, node.task.test, settings.train.max_length)
    terms = _terms(message)
    features = kept_features(model.backbone, identity_of(layout.contract, *received.values(), *terms))
    with folded(model.backbone, terms):
        result = training.evaluate(
            model, examples, worker.pad_id, features, precision=settings.train.precision
        )
    metrics = MetricRecord(
        {
            "accuracy": result.accuracy,
            "loss": result.loss,
            "head-only-accuracy": _head_only_accuracy(context, settings, node, worker),
            "majority": node.task.majority,
            "num-examples": len(examples),
        }
    )
    return Message(RecordDict({METRICS: metrics, ORIGIN: _origin(node)}), reply_to=message)


def _node(context: Context) -> tuple[Settings, Node]:
    settings = Settings.from_run_config(context.run_config)
    node = this_node(context.node_config, settings, context.run_id)
    if settings.head == "shared" and node.task.labels != settings.shared_labels:
        raise ConfigError(
            f"run-config key 'head-labels' is {settings.head_labels!r}, but task {node.task.name!r} of node "
            f"{node.partition} has the labels {','.join(node.task.labels) or 'none (multiple choice)'}: "
            "a head can be shared only by tasks with the same labels"
        )
    return settings, node


class Setup(NamedTuple):
    """What a message is answered with."""

    settings: Settings
    node: Node
    worker: Worker


def _setup(context: Context) -> Setup:
    settings, node = _node(context)
    worker = load_worker(
        settings.base,
        node.adapter,
        settings.device,
        settings.train.truncation_side,
        settings.base_dtype,
    )
    return Setup(settings, node, worker)


def _model(
    message: Message, records: Mapping[str, State], context: Context, setup: Setup
) -> tuple[AdapterLayout, TaskModel]:
    """This node's model: the received adapter on the base, and the head (kept, shared, or new)."""
    settings, node, worker = setup
    layout = worker.layout
    if settings.shared_head_outputs:
        layout = _with_head(layout, settings.shared_head_outputs, worker.hidden_size)
    contract = _config(message).get("contract")
    if contract != layout.contract:
        raise ContractError(
            f"the server's adapter has contract {str(contract)[:12]}…, this node's base {settings.base!r} "
            f"needs {layout.contract[:12]}…: use the same base weights and adapter settings everywhere"
        )
    received = {name: values for part in records.values() for name, values in part.items()}
    model = worker.task_model(len(node.task.labels) or 1)
    if layout.has_head:
        _set_head(model, received.pop(HEAD_WEIGHT), received.pop(HEAD_BIAS))
    elif LOCAL_HEAD in context.state:
        kept = to_state(context.state.array_records[LOCAL_HEAD])
        _set_head(model, kept[HEAD_WEIGHT], kept[HEAD_BIAS])
    load_adapter_state(model.backbone, received)
    return layout, model


@lru_cache(maxsize=16)  # its contract takes milliseconds to compute
def _with_head(layout: AdapterLayout, outputs: int, hidden_size: int) -> AdapterLayout:
    return layout.with_head(outputs, hidden_size)


def _state(model: TaskModel, layout: AdapterLayout) -> State:
    state = adapter_state(model.backbone)
    return state | _head_state(model) if layout.has_head else state


def _head_state(model: TaskModel) -> State:
    return {
        HEAD_WEIGHT: model.head.weight.detach().cpu().numpy().copy(),
        HEAD_BIAS: model.head.bias.detach().cpu().numpy().copy(),
    }


def _set_head(model: TaskModel, weight: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.array(weight)))
        model.head.bias.copy_(torch.from_numpy(np.array(bias)))


def _keep_head(context: Context, node: Node, layout: AdapterLayout, model: TaskModel) -> None:
    """The head of a task never leaves its node: it stays in Flower's state and on this node's disk."""
    state = _head_state(model)
    context.state[LOCAL_HEAD] = ArrayRecord({name: Array(values) for name, values in state.items()})
    task = node.task
    head = HeadFile(state[HEAD_WEIGHT], state[HEAD_BIAS], task.name, task.kind, task.labels, layout.contract)
    save_head(node.directory / HEAD, head)


def _head_only_accuracy(context: Context, settings: Settings, node: Node, worker: Worker) -> float:
    """Measured once per node, then remembered: it does not depend on the federation."""
    if HEAD_ONLY not in context.state:
        train_examples, test_examples = (
            tokenized(worker, part, settings.train.max_length) for part in (node.task.train, node.task.test)
        )
        result = training.evaluate_head_only(
            worker.bare,
            train_examples,
            test_examples,
            len(node.task.labels) or 1,
            settings.train,
            pad_id=worker.pad_id,
            epochs=settings.num_server_rounds * settings.train.epochs,
            seed=_seed(settings.seed, node.partition, 0),
            features=kept_features(worker.bare, identity_of(worker.fingerprint)),
        )
        context.state[HEAD_ONLY] = MetricRecord({"accuracy": result.accuracy})
    return float(context.state.metric_records[HEAD_ONLY]["accuracy"])  # type: ignore[arg-type]


def _origin(node: Node) -> ConfigRecord:
    return ConfigRecord({"task": node.task.name, "partition": node.partition})


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records[CONFIG]


def _records(message: Message, kind: str) -> dict[str, State]:
    """The records of arrays of a kind: with this key, or one that goes on after a dot."""
    records = message.content.array_records
    return {key: to_state(records[key]) for key in records if key.partition(".")[0] == kind}


def _terms(message: Message) -> list[State]:
    """Kronecker terms of earlier rounds, which belong to the base by now."""
    return list(_records(message, TERMS).values())


def _trained_names(message: Message, received: Mapping[str, State]) -> dict[str, list[str]]:
    """The tensors that are to be trained, by the record in which they are to be answered."""
    trains: Sequence[str] = _config(message).get(TRAINS, list(received))  # type: ignore[assignment]
    return {key: list(received[key]) for key in trains}


def _round(message: Message) -> int:
    return int(_config(message)["server-round"])  # type: ignore[arg-type]


def _seed(seed: int, partition: int, round_: int) -> int:
    return int(np.random.SeedSequence([seed, partition, round_]).generate_state(1)[0])
