"""Updates as clients make them: what a few local steps change in an adapter, on real tasks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from clients.batches import tokenize
from clients.tasks import load_task, subset
from clients.training import train
from clients.worker import Worker, load_worker
from fedkron.adapters import adapted_layers, adapter_layout, adapter_state
from fedkron.base import TaskModel
from fedkron.layout import AdapterLayout, Vector, flatten
from fedkron.settings import AdapterSettings, TrainSettings

BASE = "demo:all-minilm-l6-v2"
STARTS = ("first", "later")
"""A client's first round, from initialisation, and the next one: a new optimizer on what was learnt."""

_BATCH = 16
_LAYOUT = "layout/"  # in front of the adapter kind: a layout among the arrays of a file


@dataclass(frozen=True)
class Plan:
    """What is trained: every kind on every task with every learning rate, in batches of 16 texts."""

    tasks: tuple[str, ...] = ("demo:trec", "demo:spam", "demo:film", "demo:tweets")
    kinds: tuple[str, ...] = ("kron_lora", "lora")
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    steps: tuple[int, ...] = (1, 4, 10, 40, 100)
    max_length: int = 48


QUICK = Plan(tasks=("demo:trec", "demo:spam"), learning_rates=(1e-3,), steps=(1, 4, 8), max_length=24)


@dataclass(frozen=True)
class Origin:
    """Where an update comes from: one operating point of the study."""

    kind: str
    task: str
    learning_rate: float
    start: str
    steps: int

    def __str__(self) -> str:
        place = f"{self.kind}, {self.task}, learning rate {self.learning_rate:g}"
        return f"{place}, {self.start} round, {self.steps} {'step' if self.steps == 1 else 'steps'}"


@dataclass(frozen=True, eq=False)
class Update:
    """What the factors of an adapter learnt in some local steps: float32, (parameters,)."""

    origin: Origin
    vector: Vector


@dataclass(frozen=True, eq=False)
class Updates:
    """Updates, and for each adapter kind the layout of their vectors."""

    layouts: dict[str, AdapterLayout]
    updates: list[Update]


def trained(plan: Plan, done: Callable[[str], None]) -> Updates:
    """Train; `done` hears about every adapter that is finished."""
    workers = {kind: load_worker(BASE, AdapterSettings(kind=kind), "cpu", "right") for kind in plan.kinds}
    layouts = {kind: adapter_layout(w.adapted, w.fingerprint) for kind, w in workers.items()}
    updates: list[Update] = []
    for source in plan.tasks:
        task = subset(load_task(source), max(plan.steps) * _BATCH, 0, seed=0)
        for kind, worker in workers.items():
            texts = tokenize(task.train, worker.tokenizer, plan.max_length)
            for rate in plan.learning_rates:
                model = _fresh_model(worker, len(task.labels) or 1)
                epochs = math.ceil(max(plan.steps) * _BATCH / len(texts))
                settings = TrainSettings(epochs, _BATCH, rate)
                for seed, start in enumerate(STARTS):
                    with learnt(model, layouts[kind], plan.steps) as vectors:
                        train(model, texts, settings, worker.pad_id, seed)
                    updates += [
                        Update(Origin(kind, task.name, rate, start, k), v) for k, v in vectors.items()
                    ]
                done(f"{task.name}, {kind}, learning rate {rate:g}")
    return Updates(layouts, updates)


@contextmanager
def learnt(model: TaskModel, layout: AdapterLayout, steps: Sequence[int]) -> Iterator[dict[int, Vector]]:
    """What a training inside changes in the factors, by the number of its steps.

    After each of these numbers of steps a shorter training would have ended just there.
    """
    before = flatten(adapter_state(model.backbone), layout)
    changes: dict[int, Vector] = {}
    counter = itertools.count(1)

    def look(*_: object) -> None:
        if (step := next(counter)) in steps:
            changes[step] = flatten(adapter_state(model.backbone), layout) - before

    hook = register_optimizer_step_post_hook(look)
    try:
        yield changes
    finally:
        hook.remove()


def save(updates: Updates, path: Path) -> None:
    """Write everything to an `.npz` file."""
    arrays = {"/".join(map(str, astuple(update.origin))): update.vector for update in updates.updates}
    texts = {f"{_LAYOUT}{kind}": np.array(layout.to_json()) for kind, layout in updates.layouts.items()}
    with path.open("wb") as file:
        np.savez(file, **texts, **arrays)


def load(path: Path) -> Updates:
    """Inverse of `save`."""
    with np.load(path) as file:
        names = [name for name in file.files if not name.startswith(_LAYOUT)]
        layouts = {
            name.removeprefix(_LAYOUT): AdapterLayout.from_json(str(file[name]))
            for name in file.files
            if name.startswith(_LAYOUT)
        }
        return Updates(layouts, [Update(_origin(name), file[name]) for name in names])


def _origin(name: str) -> Origin:
    kind, task, rate, start, steps = name.split("/")
    return Origin(kind, task, float(rate), start, int(steps))


def _fresh_model(worker: Worker, outputs: int) -> TaskModel:
    torch.manual_seed(0)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    return worker.task_model(outputs)
