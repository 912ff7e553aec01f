"""One task's texts in one place, trained by the nodes' own code, without any exchange."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from clients import training
from clients.batches import Tokenized, tokenize
from clients.tasks import load_task, subset
from clients.worker import Worker, load_worker
from fedkron.adapters import adapted_layers
from fedkron.base import TaskModel
from fedkron.settings import TrainSettings
from simulations.paper.study.jobs import Job, Outcome
from simulations.study.data import sources

Texts = tuple[list[Tokenized], list[Tokenized]]
"""Training and test texts."""


def train_alone(job: Job) -> Outcome:
    """Run a job to its end: as many epochs as its workload has rounds, with one optimizer.

    The same job has the same outcome, except for the seconds that it took.
    """
    started = time.perf_counter()
    with TemporaryDirectory(prefix="fedkron-study-") as folder:
        settings = job.settings(sources(job.workload.tasks, job.split, job.seed, Path(folder)), folder)
        (source,) = settings.task_sources
        limits = settings.train
        task = subset(load_task(source), limits.max_train_examples, limits.max_test_examples, job.seed)
    worker = load_worker(settings.base, settings.adapter, settings.device, limits.truncation_side)
    texts, test = (tokenize(part, worker.tokenizer, limits.max_length) for part in (task.train, task.test))
    outputs = len(task.labels) or 1
    model = _new_model(worker, job.seed, outputs)
    course = _Course(model, test, worker.pad_id, limits, math.ceil(len(texts) / limits.batch_size))
    training.train(
        model, texts, replace(limits, epochs=job.workload.rounds), worker.pad_id, job.seed, each_step=course
    )
    return Outcome(
        tasks=(task.name,),
        accuracy=tuple((measured.accuracy,) for measured in course.epochs),
        loss=tuple((measured.loss,) for measured in course.epochs),
        head_only=(_head_only_accuracy(job, worker, outputs, limits, (texts, test)),),
        up=(),
        down=(),
        seconds=time.perf_counter() - started,
        steps=(tuple(course.steps),),
    )


class _Course:
    """Takes down the loss of every step, and measures the model after each epoch."""

    def __init__(
        self, model: TaskModel, test: list[Tokenized], pad_id: int, train: TrainSettings, steps_per_epoch: int
    ) -> None:
        self._model, self._test, self._pad_id, self._precision = model, test, pad_id, train.precision
        self._steps_per_epoch = steps_per_epoch
        self.steps: list[float] = []
        self.epochs: list[training.Evaluation] = []

    def __call__(self, loss: float) -> None:
        self.steps.append(loss)
        if len(self.steps) % self._steps_per_epoch == 0:
            measured = training.evaluate(self._model, self._test, self._pad_id, precision=self._precision)
            self.epochs.append(measured)
            self._model.train()


def _new_model(worker: Worker, seed: int, outputs: int) -> TaskModel:
    torch.manual_seed(seed)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    return worker.task_model(outputs)


# The same whichever adapter is trained, and as slow as an epoch.
_head_only: dict[Hashable, float] = {}


def _head_only_accuracy(job: Job, worker: Worker, outputs: int, train: TrainSettings, texts: Texts) -> float:
    key = (job.workload, job.seed, job.split)
    if key not in _head_only:
        _head_only[key] = training.evaluate_head_only(
            worker.bare,
            *texts,
            outputs,
            train,
            pad_id=worker.pad_id,
            epochs=job.workload.rounds,
            seed=job.seed,
        ).accuracy
    return _head_only[key]
