"""Bytes per round, measured side by side: a plain Flower app with LoRA-8 against fedkron.

The plain app is what FlowerTune does today: the LoRA-8 factors of every linear layer as float32 arrays in an
ArrayRecord, broadcast for training, uploaded, and broadcast again for evaluation. fedkron's figures are those
of the same run on `CompressedGrid`. All messages are serialized with Flower's own code, up and down together.

Initial factors are those of a new adapter; updates are normally distributed, of which no codec can make more
than of real ones (see benchmarks/rate_distortion.py), and no two chunks are alike (Flower sends equal ones
once). `first` is the first round, in which the whole initial adapter travels; `mean` is over all rounds.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModel

from fedkron.adapters import AdapterSpec, adapter_layout, attach
from fedkron.flower import CompressedGrid, compressed_exchange
from fedkron.flower.wire import message_bytes, round_of, to_arrays, to_state
from fedkron.layout import AdapterLayout, Vector, unflatten
from fedkron.report import kilobytes
from simulations.in_process import InProcessGrid

BASES = {
    "MiniLM (6 × 384)": {
        "model_type": "bert",
        "num_hidden_layers": 6,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "DistilBERT (6 × 768)": {"model_type": "distilbert"},
    "Mistral-7B (32 × 4096)": {"model_type": "mistral"},
}
CODECS = ("fp32", "fp16", "int8", "int4", "ecsq", "ecsq:1.5", "ecsq:1", "sign", "ecsq:0.7")
"""Codecs of upload and broadcast."""

ROUNDS = 10
KEY = "arrays"
UPDATE_SIZE = 0.003
"""Root mean square of an update, as AdamW makes them with a learning rate of 3e-4."""


class CountingGrid(InProcessGrid):
    """Adds up the serialized bytes that pass, in both directions."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__(app, 1, {})
        self.by_round: Counter[int] = Counter()
        self._round = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count, then deliver."""
        messages = list(messages)
        self._round = max(map(round_of, messages))
        self.by_round[self._round] += sum(map(message_bytes, messages))
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out, and count."""
        replies = list(super().pull_messages(message_ids))
        self.by_round[self._round] += sum(map(message_bytes, replies))
        return replies


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="without the 7B model")
    options = parser.parse_args()
    names = list(BASES)[:-1] if options.quick else list(BASES)
    rows = [row for name in names for row in measure(name)]
    if options.json == "-":
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measure(name: str) -> list[dict[str, Any]]:
    """One client and every codec: serialized bytes of all messages."""
    lora, kron = (_layout(BASES[name], kind) for kind in ("lora", "kron_lora"))
    # Each round of the plain app costs the same.
    baseline = _bytes_by_round(lora, ClientApp(), None, rounds=1)
    rows = [_row(name, "plain Flower, LoRA-8 fp32", lora, baseline, baseline)]
    for codec in CODECS:
        app = ClientApp(mods=[compressed_exchange])
        measured = _bytes_by_round(kron, app, codec, rounds=ROUNDS)
        rows.append(_row(name, f"fedkron, {codec}", kron, measured, baseline))
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table for each base."""
    console = Console()
    console.print(
        f"Serialized Flower bytes per client and round, up and down; train + evaluate, {ROUNDS} rounds"
    )
    for base in dict.fromkeys(row["base"] for row in rows):
        table = Table(title=base, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("scheme")
        for heading in ("parameters", "first", "mean", "last", "× mean", "× last"):
            table.add_column(heading, justify="right")
        for row in (row for row in rows if row["base"] == base):
            table.add_row(
                row["scheme"],
                f"{row['parameters']:,}",
                *(kilobytes(round(row["bytes"][name])) for name in ("first", "mean", "last")),
                *(f"{row['factor'][name]:.1f}" for name in ("mean", "last")),
            )
        console.print(table)


def _row(
    base: str, scheme: str, layout: AdapterLayout, measured: list[int], baseline: list[int]
) -> dict[str, Any]:
    counts = {"first": measured[0], "mean": fmean(measured), "last": measured[-1]}
    return {
        "base": base,
        "scheme": scheme,
        "parameters": layout.size,
        "bytes": counts,
        "factor": {name: baseline[0] / count for name, count in counts.items()},
    }


def _layout(config: dict[str, object], kind: str) -> AdapterLayout:
    options = dict(config)
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(str(options.pop("model_type")), **options))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return adapter_layout(attach(model, AdapterSpec(kind)), base="")


def _bytes_by_round(layout: AdapterLayout, app: ClientApp, codec: str | None, *, rounds: int) -> list[int]:
    rng = np.random.default_rng(0)

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001
        received = to_state(message.content.array_records[KEY])
        step = np.float32(UPDATE_SIZE)
        trained = {n: v + step * rng.standard_normal(v.shape, np.float32) for n, v in received.items()}
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({KEY: to_arrays(trained), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001
        metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    counting = CountingGrid(app)
    initial = to_arrays(unflatten(_new_adapter(layout), layout))
    grid: Grid = counting
    if codec is not None:
        compressed = CompressedGrid(counting, layout=layout, upload=codec, broadcast=codec)
        grid, initial = compressed, compressed.agreed(initial)
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy.start(grid, initial, num_rounds=rounds)
    return [counting.by_round[number] for number in sorted(counting.by_round)]


def _new_adapter(layout: AdapterLayout) -> Vector:
    """Random A and B2 (or lora_A), and zeros in the factor that makes ΔW zero."""
    rng = np.random.default_rng(1)
    zero = ("B1", "lora_B")
    sizes = {"A": 1.0, "B2": 0.04, "lora_A": 0.04}
    parts = [
        (0.0 if tensor.name.endswith(zero) else sizes[tensor.name.rpartition(".")[2]])
        * rng.standard_normal(tensor.size, np.float32)
        for tensor in layout.tensors
    ]
    return np.concatenate(parts).astype(np.float32)


if __name__ == "__main__":
    main()
