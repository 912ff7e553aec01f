"""Bytes per round, measured side by side: a plain Flower app with LoRA-8 against fedkron.

The plain app is what FlowerTune does today: the LoRA-8 factors of every linear layer as float32 arrays in an
ArrayRecord, broadcast for training, uploaded, and broadcast again for evaluation. fedkron's figures are the
same three messages on `CompressedGrid`. All are serialized with Flower's own code. Factors and updates are
random: no two chunks are alike (Flower sends equal ones once), and quantized ones do not get smaller.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

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
from fedkron.flower.wire import message_bytes, to_arrays, to_state
from fedkron.layout import AdapterLayout, unflatten
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
CODECS = (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8"), ("int4", "int8"), ("int4", "int4"))
"""Pairs of upload and broadcast codec."""


class CountingGrid(InProcessGrid):
    """Adds up the serialized bytes that pass, in both directions."""

    bytes_passed = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count, then deliver."""
        messages = list(messages)
        self.bytes_passed += sum(map(message_bytes, messages))
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out, and count."""
        replies = list(super().pull_messages(message_ids))
        self.bytes_passed += sum(map(message_bytes, replies))
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


def measure(name: str) -> list[dict[str, object]]:
    """One client, one round, every codec pair: serialized bytes of all four messages."""
    lora, kron = (_layout(BASES[name], kind) for kind in ("lora", "kron_lora"))
    baseline = _round_bytes(lora, mods=False, codecs=None)
    rows: list[dict[str, object]] = [_row(name, "plain Flower, LoRA-8 fp32", lora, baseline, baseline)]
    for upload, broadcast in CODECS:
        label = f"fedkron, {upload} up, {broadcast} down"
        rows.append(
            _row(name, label, kron, _round_bytes(kron, mods=True, codecs=(upload, broadcast)), baseline)
        )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print a table."""
    table = Table(
        title="Serialized Flower bytes per client and round (train + evaluate)",
        title_justify="left",
        box=box.SIMPLE,
    )
    for heading in ("base", "scheme", "parameters", "bytes", "× smaller"):
        table.add_column(heading, justify="left" if heading in {"base", "scheme"} else "right")
    for row in rows:
        table.add_row(
            str(row["base"]),
            str(row["scheme"]),
            f"{row['parameters']:,}",
            kilobytes(int(str(row["bytes"]))),
            f"{row['factor']:.1f}",
        )
    Console().print(table)


def _row(base: str, scheme: str, layout: AdapterLayout, count: int, baseline: int) -> dict[str, object]:
    return {
        "base": base,
        "scheme": scheme,
        "parameters": layout.size,
        "bytes": count,
        "factor": baseline / count,
    }


def _layout(config: dict[str, object], kind: str) -> AdapterLayout:
    options = dict(config)
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(str(options.pop("model_type")), **options))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return adapter_layout(attach(model, AdapterSpec(kind)), base="")


def _round_bytes(layout: AdapterLayout, *, mods: bool, codecs: tuple[str, str] | None) -> int:
    rng = np.random.default_rng(0)

    def random_state() -> RecordDict:
        values = rng.standard_normal(layout.size, np.float32)
        return RecordDict({"arrays": to_arrays(unflatten(values, layout))})

    app = ClientApp(mods=[compressed_exchange] if mods else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001
        received = to_state(message.content.array_records["arrays"])
        trained = {n: v + rng.standard_normal(v.shape, np.float32) for n, v in received.items()}
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"arrays": to_arrays(trained), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})}), reply_to=message
        )

    counting = CountingGrid(app, 1, {})
    grid: Grid = counting
    if codecs is not None:
        grid = CompressedGrid(counting, layout=layout, upload=codecs[0], broadcast=codecs[1])
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    initial = random_state().array_records["arrays"]
    strategy.start(grid, initial, num_rounds=1)
    return counting.bytes_passed


if __name__ == "__main__":
    main()
