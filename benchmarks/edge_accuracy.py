"""What a base in 8 bits and an adapter in few bits cost: accuracy on real test texts, bytes, latency.

The demo's federation trains an adapter on real tasks (or --run names a finished run). It is exported in every
form of the base, with every encoding of the slot and merged, and answers all test texts of its tasks. torch
with the same adapter is the truth: `difference` is the largest of all differences of two logits, `same` the
share of texts with the same answer. MB are those of a graph with all its weights, of one task where it is
merged; kB those of the adapter with the heads of all tasks.

`latency` is that of the longest text, alone in its batch, on one thread: medians, relative to the float32
base with the adapter merged into it, whose calls alternate with the others. Such a ratio is good for one CPU
only: integer products are as fast as its instructions for them.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from flwr.common.logger import FLOWER_LOGGER
from rich import box
from rich.table import Table
from torch import nn

from clients.tasks import load_task
from fedkron.adapters import attach_layout, load_adapter_state
from fedkron.base import Base, load_base, text_features
from fedkron.commands.export_source import Source, read_source
from fedkron.commands.run_settings import localized, read_settings
from fedkron.edge.bundle import write_bundle
from fedkron.edge.manifest import UNMERGED
from fedkron.edge.quantize import BASE_FORMS
from fedkron.edge.runtime import Bundle
from fedkron.edge.slot_encoding import ENCODINGS
from fedkron.edge.store import DEFAULT
from fedkron.runlog import read_run
from simulations.study.command import tables_console
from simulations.study.programs import run_programs

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "simulations" / "demo.toml"
QUICK = (
    'tasks="demo:trec,demo:spam" num-server-rounds=1 train.max-train-examples=32 train.max-test-examples=8'
)
QUICK_ENCODINGS = ("int8",)
QUICK_TEXTS = 40
BATCH = 32
CALLS = 31
MERGED = "merged"

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Questions:
    """A task's test texts, their labels (n,) and what torch says, (n, outputs)."""

    texts: list[str]
    labels: npt.NDArray[np.int64]
    truth: Logits


@dataclass(frozen=True)
class Row:
    """One way to run the adapter. `slot` is an encoding, or says that there is none."""

    base_form: str
    slot: str
    graph_bytes: int
    adapter_bytes: int
    accuracy: dict[str, float]
    difference: float
    same_answers: float
    latency: float

    @property
    def mean(self) -> float:
        """Mean accuracy over tasks."""
        return fmean(self.accuracy.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, help="folder of a finished run (default: train one, 1 to 2 minutes)"
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument(
        "--quick", action="store_true", help="two tasks, few texts, one encoding (under 50 s)"
    )
    parser.add_argument("--texts", type=int, help="test texts per task (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = tables_console(options.json)
    with TemporaryDirectory() as folder:
        run = options.run or train(Path(folder), quick=options.quick)
        encodings = QUICK_ENCODINGS if options.quick else tuple(ENCODINGS)
        truth, rows = measure(
            run, Path(folder), encodings, texts=QUICK_TEXTS if options.quick else options.texts
        )
    console.print(table(truth, rows))
    figures = {"torch": truth, "rows": [asdict(row) for row in rows]}
    if options.json == "-":
        print(json.dumps(figures, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def train(folder: Path, *, quick: bool) -> Path:
    """The demo's federation, in this process; returns its run folder."""
    FLOWER_LOGGER.setLevel(logging.WARNING)
    place = f'output-dir={json.dumps(str(folder))} run-name="run"'
    settings = localized(read_settings(ROOT, [str(DEMO), *([QUICK] if quick else []), place]))
    return run_programs(settings, len(settings.task_sources), data="edge_accuracy")


def measure(
    run: Path, folder: Path, encodings: Sequence[str], *, texts: int | None
) -> tuple[dict[str, float], list[Row]]:
    """torch's accuracy by task, and a row for each form. Bundles are written to `folder`, one at a time."""
    source = read_source(run, None, ())
    base = load_base(source.adapter.base_name)
    base.tokenizer.truncation_side = source.trained.truncation_side
    questions = _questions(run, source, base, texts)
    longest = max((text for q in questions.values() for text in q.texts), key=lambda text: len(text.split()))

    task = next(iter(questions))
    reference = None
    rows = []
    for base_form, encoding in product(BASE_FORMS, encodings):
        place = write_bundle(
            folder / f"{base_form}-{encoding}",
            base,
            source.adapter,
            source.heads,
            max_length=source.trained.max_length,
            encoding=encoding,
            base_form=base_form,
            merged=encoding == encodings[0],  # a merged graph has no slot: one of each base is enough
            report=lambda _: None,
        )
        bundle = Bundle.open(place, threads=1)
        reference = reference or partial(bundle.logits, [longest], task, merged=True)
        for merged in (True, False) if bundle.manifest.merged else (False,):
            answers = {name: bundle.logits(q.texts, name, merged=merged) for name, q in questions.items()}
            graph = bundle.manifest.merged[task] if merged else UNMERGED
            candidate = partial(bundle.logits, [longest], task, merged=merged)
            rows.append(
                Row(
                    base_form,
                    MERGED if merged else encoding,
                    graph_bytes=_graph_bytes(place / graph),
                    adapter_bytes=bundle.adapters[DEFAULT].nbytes,
                    latency=_latency(candidate, reference),
                    **_agreement(answers, questions),
                )
            )
    return {name: _accuracy(q.truth, q) for name, q in questions.items()}, rows


def table(truth: dict[str, float], rows: Sequence[Row]) -> Table:
    """All rows, for people."""
    result = Table(title="Real test texts, by form of base and adapter", title_justify="left", box=box.SIMPLE)
    result.add_column("base")
    result.add_column("adapter")
    for heading in ("MB", "kB", *truth, "mean", "difference", "same", "latency"):
        result.add_column(heading, justify="right")
    figures = [f"{accuracy:.3f}" for accuracy in (*truth.values(), fmean(truth.values()))]
    result.add_row("torch", "attached", "", "", *figures, "", "", "", end_section=True)
    for row in rows:
        result.add_row(
            row.base_form,
            row.slot,
            f"{row.graph_bytes / 1e6:.1f}",
            "" if row.slot == MERGED else f"{row.adapter_bytes / 1e3:.0f}",
            *(f"{accuracy:.3f}" for accuracy in (*row.accuracy.values(), row.mean)),
            f"{row.difference:.1e}",
            f"{row.same_answers:.1%}",
            f"{row.latency:.2f}",
        )
    return result


def _questions(run: Path, source: Source, base: Base, limit: int | None) -> dict[str, Questions]:
    heads = {head.task: head for head in source.heads}
    backbone = attach_layout(copy.deepcopy(base.backbone), source.adapter.layout)
    factors = {name: source.adapter.state[name] for name in source.adapter.layout.factor_names}
    load_adapter_state(backbone, factors)
    questions = {}
    for task in map(load_task, read_run(run).settings.task_sources):
        head, examples = heads[task.name], task.test[:limit]
        texts = [example.text for example in examples]
        features = torch_features(backbone.eval(), base, texts, source.trained.max_length)
        truth = features @ head.weight.T + head.bias
        questions[task.name] = Questions(texts, np.array([example.label for example in examples]), truth)
    return questions


@torch.inference_mode()
def torch_features(backbone: nn.Module, base: Base, texts: Sequence[str], max_length: int) -> Logits:
    """Features of texts, (n, hidden), with the tokenizer of `transformers`."""
    parts = []
    for start in range(0, len(texts), BATCH):
        tokens = base.tokenizer(
            list(texts[start : start + BATCH]),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        parts.append(text_features(backbone, tokens["input_ids"], tokens["attention_mask"]))
    features: Logits = torch.cat(parts).numpy()
    return features


def _agreement(answers: dict[str, Logits], questions: dict[str, Questions]) -> dict[str, Any]:
    pairs = [(answers[task], q) for task, q in questions.items()]
    same = [answer.argmax(axis=1) == q.truth.argmax(axis=1) for answer, q in pairs]
    return {
        "accuracy": {task: _accuracy(answers[task], q) for task, q in questions.items()},
        "difference": max(float(np.abs(answer - q.truth).max()) for answer, q in pairs),
        "same_answers": float(np.concatenate(same).mean()),
    }


def _accuracy(logits: Logits, questions: Questions) -> float:
    return float((logits.argmax(axis=1) == questions.labels).mean())


def _graph_bytes(graph: Path) -> int:
    """Of the graph, and of its weights in other files."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return graph.stat().st_size + sum(int(entry.value) for entry in entries if entry.key == "length")


def _latency(candidate: Callable[[], object], reference: Callable[[], object]) -> float:
    """Median seconds of the one by those of the other, in turns."""
    seconds: dict[Callable[[], object], list[float]] = {candidate: [], reference: []}
    for _ in range(CALLS + 1):
        for call, measured in seconds.items():
            start = time.perf_counter()
            call()
            measured.append(time.perf_counter() - start)
    # The first call loads the graph.
    return median(seconds[candidate][1:]) / median(seconds[reference][1:])


if __name__ == "__main__":
    main()
