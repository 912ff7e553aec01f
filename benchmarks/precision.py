"""What bf16 is worth on a CPU: time and accuracy of training in each `train.precision` and `base-dtype`.

Kron-LoRA (rank 8, every linear layer of MiniLM) and PEFT's LoRA-8 are trained on texts of real tasks by the
nodes' own code, all in this process, in turns; times are those of the epochs alone. Accuracy is that on test
texts after the last epoch, measured in the same arithmetic. Seeds differ in texts, initial adapter and order.
Where the CPU has no instructions for bf16, it is slower than float32.

    python -m benchmarks.precision --json precision.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from torch import nn

from clients import training
from clients.batches import tokenize
from clients.tasks import load_task, subset
from clients.worker import Worker, load_worker
from fedkron.adapters import adapted_layers
from fedkron.base import TaskModel
from fedkron.demo import prepare_demo
from fedkron.settings import BFLOAT16, FLOAT32, AdapterSettings, TrainSettings
from simulations.paper.throughput_study.bases import sharing_weights
from simulations.study.command import tables_console, write
from simulations.study.tables import table_of

BASE = "demo:all-minilm-l6-v2"
OURS, PEFT = "Kron-LoRA", "PEFT LoRA-8"


@dataclass(frozen=True)
class Way:
    """An adapter, `train.precision` and `base-dtype`."""

    adapter: str
    precision: str
    dtype: str


REFERENCE = Way(OURS, FLOAT32, FLOAT32)
WAYS = (
    REFERENCE,
    Way(OURS, BFLOAT16, FLOAT32),
    Way(OURS, BFLOAT16, BFLOAT16),
    Way(PEFT, FLOAT32, FLOAT32),
    Way(PEFT, BFLOAT16, FLOAT32),
)


@dataclass(frozen=True)
class Size:
    """Texts per task and seed, and how long they are trained on."""

    tasks: tuple[str, ...] = ("demo:trec", "demo:film")
    train: int = 240
    test: int = 300
    epochs: int = 3
    seeds: int = 3
    max_length: int = 64


QUICK = Size(("demo:film",), train=64, test=64, epochs=1, seeds=1, max_length=32)


@dataclass(frozen=True)
class Row:
    """What came of a way on a task: a value for each seed, and the base's bytes."""

    task: str
    way: Way
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    base_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="one task, few texts, one seed")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    prepare_demo()
    rows = measure(QUICK if options.quick else Size())
    show(rows, tables_console(options.json))
    if options.json:
        write(json.dumps([asdict(row) for row in rows], indent=1), options.json)
    return 0


def measure(size: Size) -> list[Row]:
    """Train every way on every task, seed by seed."""
    found: dict[tuple[str, Way], list[tuple[float, float]]] = defaultdict(list)
    workers = {dtype: _worker(dtype) for dtype in (FLOAT32, BFLOAT16)}
    jobs = [(seed, task, way) for seed in range(size.seeds) for task in size.tasks for way in WAYS]
    for seed, task, way in track(jobs, "training", console=Console(stderr=True)):
        found[task, way].append(_train(workers[way.dtype], task, way, seed, size))
    held = {
        dtype: sum(p.numel() * p.element_size() for p in worker.bare.parameters())
        for dtype, worker in workers.items()
    }
    return [
        Row(task, way, *(tuple(values) for values in zip(*pairs, strict=True)), held[way.dtype])
        for (task, way), pairs in found.items()
    ]


def _worker(dtype: str) -> Worker:
    # Both are needed in turns, and the cache keeps one base.
    return load_worker.__wrapped__(BASE, AdapterSettings(), "cpu", "right", dtype)


def _train(worker: Worker, source: str, way: Way, seed: int, size: Size) -> tuple[float, float]:
    """Seconds of all epochs, and accuracy afterwards."""
    task = subset(load_task(source), size.train, size.test, seed)
    train, test = (tokenize(part, worker.tokenizer, size.max_length) for part in (task.train, task.test))
    torch.manual_seed(seed)
    model = _model(worker, way, len(task.labels))
    settings = TrainSettings(epochs=size.epochs, batch_size=16, learning_rate=1e-3, precision=way.precision)
    started = time.perf_counter()
    training.train(model, train, settings, worker.pad_id, seed)
    seconds = time.perf_counter() - started
    return seconds, training.evaluate(model, test, worker.pad_id, precision=way.precision).accuracy


def _model(worker: Worker, way: Way, outputs: int) -> TaskModel:
    if way.adapter == OURS:
        for _, layer in adapted_layers(worker.adapted):
            layer.reset_factors()
        return worker.task_model(outputs)
    linears = [path for path, module in worker.bare.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=linears)
    return TaskModel(get_peft_model(sharing_weights(worker.bare), config).get_base_model(), outputs)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a row for each way and task; ratios are by seed."""
    table = table_of(
        "Training in other arithmetic (medians over seeds and, in brackets, quartiles)",
        *("task", "adapter", "products", "base held in", "base, MB", "time / float32 Kron-LoRA"),
        "accuracy %",
    )
    references = {row.task: row for row in rows if row.way == REFERENCE}
    for row in rows:
        ratios = np.divide(row.seconds, references[row.task].seconds)
        table.add_row(
            row.task,
            row.way.adapter,
            row.way.precision,
            row.way.dtype,
            f"{row.base_bytes / 1e6:.1f}",
            _middle(ratios.tolist()),
            f"{100 * np.mean(row.accuracy):.1f}",
        )
    console.print(table)


def _middle(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
