"""The quantization claim of Kron-LoRA (arXiv 2508.01961), measured: does it lose less than LoRA at few bits?

The claim: the factors of Kron-LoRA have a smaller dynamic range (max-norm) than LoRA's, so the steps of a
uniform quantizer are smaller, and 8 or 4 bits cost less. Here both adapters (rank 8, all linear layers of
MiniLM) are trained on the same texts of real tasks, each with the learning rate that a validation part of
the training texts prefers. Then the trained factors themselves are quantized, and what is left is measured
on test texts by which nothing was chosen.

A quantizer of b bits is symmetric and uniform with the step Δ = max|w| / (2^(b−1) − 1) and rounds to the
nearest level: 2 bits leave {−Δ, 0, Δ}. `per-tensor` has one step per factor, `per-channel` one per row of
the factor as it is stored (A: d_A2 rows, B1: d_out/d_A2, B2: r, lora_A: r, lora_B: d_out).

A step proves little by itself: c·A and B1/c make the same ΔW for every c ≠ 0, with other steps but the same
relative error. max|w| / rms(w) does not depend on c, so it is shown as well.

The full run takes about 45 minutes on one core; set OMP_NUM_THREADS=1 to keep it there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from benchmarks.quantization.comparison import KINDS, WAYS, Record, compare, means, verdict
from benchmarks.quantization.quantizer import crest, max_norm, over_layers, quantize, steps
from benchmarks.quantization.tables import show
from clients.batches import Tokenized, tokenize
from clients.tasks import Task, load_task, subset
from clients.training import Evaluation, evaluate, train
from clients.worker import Worker, load_worker
from fedkron.adapters import adapted_layers, adapter_state, load_adapter_state
from fedkron.demo import DEMO_TASKS
from fedkron.layout import State
from fedkron.settings import AdapterSettings, TrainSettings

BASE = "demo:all-minilm-l6-v2"


@dataclass(frozen=True)
class Study:
    """Tasks, and per task: texts to train on (a third of them to validate), test texts, what is tried."""

    tasks: tuple[str, ...] = tuple(f"demo:{name}" for name in DEMO_TASKS)
    train: int = 720
    test: int = 500
    epochs: int = 3
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    seeds: int = 2
    max_length: int = 48


QUICK = Study(("demo:trec", "demo:tweets"), 96, 64, 2, (3e-4, 1e-3), 1, 32)


@dataclass(frozen=True)
class Split:
    """The tokenized texts of one task and seed, and the outputs that a head needs."""

    train: list[Tokenized]
    validation: list[Tokenized]
    test: list[Tokenized]
    outputs: int


@dataclass(frozen=True)
class Trained:
    """One training run: its factors, its head, and how it did on the validation texts."""

    learning_rate: float
    factors: State
    head: nn.Linear
    validation: Evaluation


def main() -> None:
    """Train, quantize, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="two tasks, few texts, one seed")
    parser.add_argument("--tasks", nargs="+", metavar="SOURCE", help="tasks to use instead of the demo's")
    parser.add_argument("--seeds", type=int, help="training runs with the learning rate that was found")
    options = parser.parse_args()
    given = {key: value for key in ("tasks", "seeds") if (value := getattr(options, key)) is not None}
    study = replace(QUICK if options.quick else Study(), **given)
    if study.seeds < 1:
        parser.error(f"--seeds is {study.seeds}: it must be at least 1")
    adapters = measure(study)
    pairs = compare(adapters)
    report = {"study": asdict(study), "adapters": adapters, "pairs": pairs, "means": means(pairs)}
    report["verdict"] = verdict(pairs)
    if options.json == "-":
        print(json.dumps(report, indent=1))
    else:
        show(report)
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")


# ---------------------------------------------------------------- training


def measure(study: Study) -> list[Record]:
    """A record for every task, kind and seed; the learning rate is chosen with the first seed."""
    workers = {kind: load_worker(BASE, AdapterSettings(kind=kind), "cpu", "right") for kind in KINDS}
    parts = len(study.tasks) * len(KINDS) * (len(study.learning_rates) + study.seeds)
    records: list[Record] = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=parts)
        for source in study.tasks:
            task = load_task(source)
            for kind, worker in workers.items():
                splits = [draw(task, worker, study, seed) for seed in range(study.seeds)]
                grid = []
                for rate in study.learning_rates:
                    progress.update(bar, description=f"{task.name}, {kind}, learning rate {rate:g}")
                    grid.append(fit(worker, splits[0], study, rate, seed=0))
                    progress.advance(bar)
                best = max(grid, key=lambda run: (run.validation.accuracy, -run.validation.loss))
                tried = {f"{run.learning_rate:g}": asdict(run.validation) for run in grid}
                for seed, split in enumerate(splits):
                    progress.update(bar, description=f"{task.name}, {kind}, seed {seed}")
                    run = best if seed == 0 else fit(worker, split, study, best.learning_rate, seed)
                    origin = {"task": task.name, "kind": kind, "seed": seed, "majority": task.majority}
                    records.append({**origin, "tried": tried, **figures(worker, split, run)})
                    progress.advance(bar)
    return records


def draw(task: Task, worker: Worker, study: Study, seed: int) -> Split:
    """Random texts: of the training split to train and, disjoint, to validate; of the test split to test."""
    texts = random.Random(seed).sample(task.train, min(study.train, len(task.train)))
    third = len(texts) // 3
    parts = (texts[third:], texts[:third], subset(task, 0, study.test, seed).test)
    training, validation, test = (tokenize(part, worker.tokenizer, study.max_length) for part in parts)
    return Split(training, validation, test, len(task.labels) or 1)


def fit(worker: Worker, split: Split, study: Study, learning_rate: float, seed: int) -> Trained:
    """Train fresh factors and a fresh head."""
    torch.manual_seed(seed)
    for _, layer in adapted_layers(worker.adapted):
        layer.reset_factors()
    model = worker.task_model(split.outputs)
    settings = TrainSettings(epochs=study.epochs, batch_size=16, learning_rate=learning_rate)
    train(model, split.train, settings, worker.pad_id, seed)
    validation = evaluate(model, split.validation, worker.pad_id)
    return Trained(learning_rate, adapter_state(model.backbone), copy.deepcopy(model.head), validation)


# ---------------------------------------------------------------- measuring


def figures(worker: Worker, split: Split, run: Trained) -> Record:
    """What a trained adapter is like, and what is left of it at every width and granularity."""
    model = worker.task_model(split.outputs)
    model.head = run.head

    def accuracy_and_deltas(state: State) -> tuple[float, list[torch.Tensor]]:
        load_adapter_state(model.backbone, state)
        deltas = [layer.delta().detach() for _, layer in adapted_layers(model.backbone)]
        return evaluate(model, split.test, worker.pad_id).accuracy, deltas

    accuracy, exact = accuracy_and_deltas(run.factors)
    quantized = {}
    for way, (bits, granularity) in WAYS.items():
        rounded = {name: quantize(factor, bits, granularity) for name, factor in run.factors.items()}
        left, deltas = accuracy_and_deltas(rounded)
        errors = [float((d - e).norm() / e.norm()) for d, e in zip(deltas, exact, strict=True)]
        used = {name: steps(factor, bits, granularity) for name, factor in run.factors.items()}
        quantized[way] = {
            "accuracy": left,
            "points_lost": 100 * (accuracy - left),
            # ‖ΔŴ − ΔW‖_F / ‖ΔW‖_F
            "error": median(errors),
            "step": over_layers(used, lambda step: float(step.mean())),
            # Packed levels, and a float32 per step.
            "bytes": sum(math.ceil(w.size * bits / 8) + 4 * used[n].size for n, w in run.factors.items()),
        }
    norms = {name: max_norm(factor) for name, factor in run.factors.items()}
    return {
        "learning_rate": run.learning_rate,
        "accuracy": accuracy,
        "parameters": sum(factor.size for factor in run.factors.values()),
        "max_norm": over_layers(run.factors, max_norm),
        "crest": over_layers(run.factors, crest),
        "layers": {
            path: {name: norms[f"{path}.{name}"] for name in layer.factor_names}
            for path, layer in adapted_layers(model.backbone)
        },
        "quantized": quantized,
    }


if __name__ == "__main__":
    main()
