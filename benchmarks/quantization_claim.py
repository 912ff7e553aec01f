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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from clients.batches import Tokenized, tokenize
from clients.tasks import Task, load_task, subset
from clients.training import Evaluation, evaluate, train
from clients.worker import Worker, load_worker
from fedkron.adapters import adapted_layers, adapter_state, load_adapter_state
from fedkron.demo import DEMO_TASKS
from fedkron.layout import State
from fedkron.settings import AdapterSettings, TrainSettings

BASE = "demo:all-minilm-l6-v2"
KINDS = ("kron_lora", "lora")
GRANULARITIES: dict[str, int | None] = {"per-tensor": None, "per-channel": 1}
"""The axis of a factor along which all values share a step; None is all of it."""

WAYS = {f"{bits} bits {name}": (bits, name) for bits in (8, 4, 2) for name in GRANULARITIES}
PAIRED = (("B1", "lora_B"), ("B2", "lora_A"))
"""Factors that play the same part: left and right of the low-rank product."""

Factor = NDArray[np.float32]
Record = dict[str, Any]


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


# ---------------------------------------------------------------- the quantizer


def steps(factor: Factor, bits: int, granularity: str) -> Factor:
    """Δ = max|w| / (2^(bits−1) − 1) of a factor (rows, columns): (1, 1) per tensor, (rows, 1) per channel."""
    largest = np.abs(factor).max(axis=GRANULARITIES[granularity], keepdims=True)
    return np.asarray(largest / (2 ** (bits - 1) - 1), np.float32)


def quantize(factor: Factor, bits: int, granularity: str) -> Factor:
    """The factor after rounding to the nearest multiple of its step: float32, same shape."""
    step = steps(factor, bits, granularity)
    # A row of zeros has the step 0 and stays as it is.
    levels = np.divide(factor, step, out=np.zeros_like(factor), where=step > 0)
    return np.asarray(np.rint(levels) * step, np.float32)


def max_norm(factor: Factor) -> float:
    """max|w|, the dynamic range that the claim is about."""
    return float(np.abs(factor).max())


def crest(factor: Factor) -> float:
    """max|w| / rms(w): how far the largest value, which sets the step, stands out."""
    return max_norm(factor) / float(np.sqrt(np.square(factor).mean()))


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


def over_layers(state: State, figure: Callable[[Factor], float]) -> dict[str, float]:
    """Median over the layers of a figure of each factor, by the factor's name (the end of the tensor's)."""
    values: dict[str, list[float]] = {}
    for name, factor in state.items():
        values.setdefault(name.rpartition(".")[2], []).append(figure(factor))
    return {name: median(of_factor) for name, of_factor in values.items()}


# ---------------------------------------------------------------- comparing


def compare(adapters: Sequence[Record]) -> list[Record]:
    """Kron-LoRA against LoRA for every task and seed.

    Ratios, where less than 1 speaks for Kron-LoRA: `step` is the median over the layers of Δ_Kron/Δ_LoRA,
    per tensor, where Δ is the largest step of a layer's factors (the ratio is the same at every width),
    `step B1/lora_B` that of two factors, `error` the ratio of the relative errors of ΔW. Differences in
    percentage points: `accuracy` before quantization, `points` of what was lost (less than 0 is for it).
    """
    krons, loras = ([record for record in adapters if record["kind"] == kind] for kind in KINDS)
    pairs: list[Record] = []
    for kron, lora in zip(krons, loras, strict=True):
        layers = [(kron["layers"][path], lora["layers"][path]) for path in kron["layers"]]
        pair: Record = {"task": kron["task"], "seed": kron["seed"]}
        pair["accuracy"] = 100 * (kron["accuracy"] - lora["accuracy"])
        pair["step"] = median(max(k.values()) / max(p.values()) for k, p in layers)
        for left, right in PAIRED:
            pair[f"step {left}/{right}"] = median(k[left] / p[right] for k, p in layers)
        for way in WAYS:
            ours, plain = kron["quantized"][way], lora["quantized"][way]
            pair[f"error {way}"] = ours["error"] / plain["error"]
            pair[f"points {way}"] = ours["points_lost"] - plain["points_lost"]
        pairs.append(pair)
    return pairs


def by_task(pairs: Sequence[Record], figure: str) -> list[float]:
    """One value of a figure per task, the mean over its seeds; of a ratio the natural logarithm."""
    values: dict[str, list[float]] = {}
    for pair in pairs:
        value = math.log(pair[figure]) if _is_ratio(figure) else pair[figure]
        values.setdefault(pair["task"], []).append(value)
    return [fmean(of_task) for of_task in values.values()]


def means(pairs: Sequence[Record]) -> dict[str, float]:
    """Every figure of the pairs over the tasks: (geometric) mean of a ratio, mean of a difference."""
    names = [name for name in pairs[0] if name not in {"task", "seed"}]
    averages = {name: fmean(by_task(pairs, name)) for name in names}
    return {name: math.exp(a) if _is_ratio(name) else a for name, a in averages.items()}


def _is_ratio(figure: str) -> bool:
    return figure.startswith(("step", "error"))


def finding(values: Sequence[float]) -> str:
    """What the values of a figure `by_task` say: their mean must be two standard errors away from 0."""
    noise = 2 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return "for" if fmean(values) < -noise else "against" if fmean(values) > noise else "undecided"


def verdict(pairs: Sequence[Record]) -> str:
    """The claim in one sentence: the steps, then what is lost per tensor at 8 and at 4 bits."""
    ways = ("8 bits per-tensor", "4 bits per-tensor")
    names = ["step", *(f"step {left}/{right}" for left, right in PAIRED)]
    names += [f"{what} {way}" for what in ("error", "points") for way in ways]
    found = {name: finding(by_task(pairs, name)) for name in names}
    said = " and ".join(sorted(set(found.values()) - {"undecided"})) or "undecided about"
    mean = means(pairs)
    shown = {name: f"{mean[name]:.2f}×" if _is_ratio(name) else f"{mean[name]:+.2f}" for name in names}
    parts = ", ".join(f"{name} {shown[name]} ({found[name]})" for name in names)
    return (
        f"The figures are {said} the claim. Kron-LoRA, of an accuracy {mean['accuracy']:+.2f} points from "
        f"LoRA's, compared with it: {parts}."
    )


# ---------------------------------------------------------------- printing


def show(report: Record) -> None:
    """Print three tables and the verdict."""
    console = Console()
    adapters, pairs = report["adapters"], report["pairs"]
    tasks = list(dict.fromkeys(pair["task"] for pair in pairs))
    groups = {(task, kind): _select(adapters, task=task, kind=kind) for task in tasks for kind in KINDS}

    title = "Trained adapters: max|w| (max|w| / rms) of the factors, median over the layers"
    trained = _table(title, "task", "kind", "rate", "accuracy", "A", *(f"{k} or {p}" for k, p in PAIRED))
    for (task, kind), records in groups.items():
        norms, crests = (
            {name: fmean(record[key][name] for record in records) for name in records[0][key]}
            for key in ("max_norm", "crest")
        )
        columns = ("A", "B1", "B2") if kind == "kron_lora" else ("", "lora_B", "lora_A")
        cells = [f"{norms[name]:.3g} ({crests[name]:.2f})" if name else "" for name in columns]
        accuracy = fmean(record["accuracy"] for record in records)
        trained.add_row(task, kind, f"{records[0]['learning_rate']:g}", f"{accuracy:.1%}", *cells)
    console.print(trained)

    title = "Steps Δ_Kron/Δ_LoRA, median over the layers"
    ratios = _table(title, "task", "largest of a layer", *(f"{left}/{right}" for left, right in PAIRED))
    names = ("step", *(f"step {left}/{right}" for left, right in PAIRED))
    for task in tasks:
        mean = means(_select(pairs, task=task))
        ratios.add_row(task, *(f"{mean[name]:.2f}" for name in names))
    ratios.add_row("mean", *(f"{report['means'][name]:.2f}" for name in names))
    console.print(ratios)

    title = "After quantization: relative error of ΔW, and percentage points of accuracy lost"
    lost = _table(title, "task", "kind", "way", "kB", "error", "points")
    for kind in KINDS:
        groups["mean", kind] = _select(adapters, kind=kind)
    for (task, kind), records in groups.items():
        for way in WAYS:
            left = [record["quantized"][way] for record in records]
            size, error, points = (fmean(q[key] for q in left) for key in ("bytes", "error", "points_lost"))
            lost.add_row(task, kind, way, f"{size / 1000:.0f}", f"{error:.4f}", f"{points:+.2f}")
    console.print(lost)
    console.print(report["verdict"])


def _select(records: Sequence[Record], **wanted: str) -> list[Record]:
    return [record for record in records if all(record[key] == value for key, value in wanted.items())]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"task", "kind", "way"} else "right")
    return table


if __name__ == "__main__":
    main()
