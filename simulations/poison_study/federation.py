"""One job in this process: the real programs of server and nodes, some attack; then a measurement."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

import clients.app
import server.app
from clients import training
from clients.batches import tokenize
from clients.tasks import Classified, Task, load_task, node_share, subset
from clients.worker import load_worker
from fedkron.adapters import load_adapter_state
from fedkron.exchange import load_adapter
from fedkron.flower import compressed_exchange, explained_errors
from fedkron.flower.global_adapter import ARRAYS
from fedkron.flower.wire import to_state
from fedkron.layout import HEAD_BIAS, HEAD_WEIGHT, State
from fedkron.ledger import read_ledger, totals_by_round
from fedkron.rundir import ADAPTER, LEDGER, run_directory
from fedkron.runlog import read_run
from fedkron.settings import Settings, run_config
from simulations.in_process import InProcessGrid
from simulations.poison_study.attacks import (
    BACKDOOR,
    INSIDE,
    NO_ATTACK,
    OUTSIDE,
    TARGET,
    TEXT_ATTACKS,
    triggered,
)
from simulations.poison_study.jobs import Case, Job, Outcome
from simulations.study.data import write_task
from simulations.study.programs import RUN_ID


def federate(job: Job) -> Outcome:
    """Run a job to its end. The same job has the same outcome, except for the seconds that it took.

    Raises `RunError` when too many nodes fail.
    """
    started = time.perf_counter()
    tasks = list(_shares(job.case, job.seed))
    if job.attack.name in TEXT_ATTACKS:
        poison = TEXT_ATTACKS[job.attack.name]
        for node in range(job.attackers):
            texts = [text for text in tasks[node].train if isinstance(text, Classified)]
            tasks[node] = replace(tasks[node], train=tuple(poison(texts, len(tasks[node].labels))))
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(folder)
        run = _run(job, tasks, settings, Path(folder))
        state = load_adapter(run / ADAPTER).state
        entries = read_run(run).rounds
        totals = totals_by_round(read_ledger(run / LEDGER)).values()
    texts = tuple(text for text in _whole(job.case, job.seed).test if isinstance(text, Classified))
    clean = _measured(settings, state, texts)
    others = [Classified(triggered(text.text), TARGET) for text in texts if text.label != TARGET]
    has_backdoor = job.attack.name in (NO_ATTACK, BACKDOOR)
    failures = [reason for entry in entries for reason in entry.failures]
    return Outcome(
        tasks=(tasks[0].name,),
        accuracy=((clean.accuracy,),),
        loss=((clean.loss,),),
        head_only=(),
        up=tuple(total.message_up for total in totals),
        down=tuple(total.message_down for total in totals),
        seconds=time.perf_counter() - started,
        success=_measured(settings, state, others).accuracy if has_backdoor else None,
        refused=len(failures),
        reason=failures[0].partition(": ")[2] if failures else "",
    )


class _Grid(InProcessGrid):
    """Each node runs an app of its own: the nodes' real one, with an attacker's mods where it is one."""

    def __init__(
        self, apps: Sequence[ClientApp], nodes: Sequence[dict[str, object]], settings: Settings
    ) -> None:
        def answer(message: Message, context: Context) -> Message:
            return apps[int(context.node_config["partition-id"])](message, context)  # type: ignore[arg-type]

        super().__init__(answer, nodes, run_config(settings))  # type: ignore[arg-type]


def _run(job: Job, tasks: Sequence[Task], settings: Settings, folder: Path) -> Path:
    nodes: list[dict[str, object]] = []
    apps = []
    for number, task in enumerate(tasks):
        data = write_task(task, folder / f"node-{number}")
        nodes.append({"partition-id": number, "num-partitions": len(tasks), "task": str(data)})
        attacks = number < job.attackers
        texts = job.attack.name if attacks and job.attack.name in TEXT_ATTACKS else ""
        # Whatever the defence, all nodes are sent the same in the first round, and train the same.
        known = _recalled((job.case, job.seed, number, texts))
        apps.append(_app(known, job.attack.name if attacks else ""))
    server.app.app(_Grid(apps, nodes, settings), Context(RUN_ID, 1, {}, RecordDict(), run_config(settings)))
    return run_directory(settings, RUN_ID)


def _app(known: Mod, attack: str) -> ClientApp:
    outside = [OUTSIDE[attack]] if attack in OUTSIDE else []
    inside = [INSIDE[attack]] if attack in INSIDE else []
    app = ClientApp(mods=[explained_errors, *outside, compressed_exchange, *inside, known])
    app.train()(clients.app.train)
    return app


_answers: dict[tuple[object, bytes], RecordDict] = {}


def _recalled(key: object) -> Mod:
    """A mod that trains only once what a node with this key trains from the adapter of the first round."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.content.config_records["config"]["server-round"] != 1:
            return call_next(message, context)
        received = to_state(message.content.array_records[ARRAYS])
        digest = hashlib.sha256(b"".join(values.tobytes() for values in received.values())).digest()
        if (key, digest) not in _answers:
            _answers[key, digest] = call_next(message, context).content
        return Message(RecordDict(dict(_answers[key, digest])), reply_to=message)

    return mod


@lru_cache(maxsize=4)
def _whole(case: Case, seed: int) -> Task:
    """The task with as many test texts as are measured."""
    return subset(load_task(case.workload.tasks[0]), 0, case.workload.test_texts, seed)


@lru_cache(maxsize=4)
def _shares(case: Case, seed: int) -> tuple[Task, ...]:
    """Each node's own texts; of the test texts, which no node looks at, one."""
    load, whole = case.workload, subset(_whole(case, seed), 0, 1, seed)
    parts = [
        node_share(
            whole, node, load.clients, partitioner=case.partition.kind, alpha=case.partition.alpha, seed=seed
        )
        for node in range(load.clients)
    ]
    return tuple(subset(part, load.train_texts, 0, seed) for part in parts)


def _measured(settings: Settings, state: State, texts: Sequence[Classified]) -> training.Evaluation:
    """An adapter with its head on some texts, by the nodes' own code."""
    worker = load_worker(settings.base, settings.adapter, settings.device, settings.train.truncation_side)
    model = worker.task_model(len(settings.shared_labels))
    factors = {name: values for name, values in state.items() if name not in (HEAD_WEIGHT, HEAD_BIAS)}
    load_adapter_state(model.backbone, factors)
    head = {"weight": torch.tensor(state[HEAD_WEIGHT]), "bias": torch.tensor(state[HEAD_BIAS])}
    model.head.load_state_dict(head)
    examples = tokenize(texts, worker.tokenizer, settings.train.max_length)
    return training.evaluate(model, examples, worker.pad_id)
