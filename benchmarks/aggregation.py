"""From payloads to their mean: clients per second and memory, for 10 to 10,000 clients of Mistral-7B.

The adapter is Kron-LoRA of rank 8 on all linear layers, lm_head too, 5.7 million parameters. Clients send
Gaussian updates as payloads; 16 different ones are made, once, and sent in turn. They are checked and
averaged by `factorwise` on one thread, with compiled loops (numba) and with numpy alone, and where they are
few, decoded and combined by `merged`, too: each layer by itself, so 4 decoder layers of the 32 are enough.

Speed is measured in one process and in turns, in another order each round, and compared round by round with:

* Flower's own FedAvg (`aggregate_arrayrecords`) on LoRA-8 of the same layers as float32 arrays, 21.3 million
  parameters: the time of each further client, from the same reply 1 and 9 times;
* the memory limit, one multiply-add acc += w·x over a float32 accumulator of our parameters in place:
  numpy's, the faster one of two (it takes two calls and a product between them), and torch's, which is fused.

Growth is measured in a new process for each number of clients. --quick is about an adapter that fits into the
cache, where a pass over memory is cheap: its ratios are not those of the whole one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.aggregation_scale.clients import DIFFERENT, payloads, save
from benchmarks.aggregation_scale.first_use import first_use
from benchmarks.aggregation_scale.growth import Growth, measured
from benchmarks.aggregation_scale.models import RANK, lora_reply, mistral
from benchmarks.aggregation_scale.report import Report, goals, references, rows, show
from benchmarks.aggregation_scale.speed import contest

CODECS = ("int4", "int8", "ecsq")
CLIENTS, MOST_MERGED, ROUNDS, LAYERS = (10, 100, 1000, 10_000), 100, 9, 32
MERGED_LAYERS = 4
QUICK_CLIENTS, QUICK_MOST_MERGED, QUICK_ROUNDS, QUICK_LAYERS = (10, 100, 1000, 4000), 10, 3, 4


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(1)
    layout = mistral(options.layers)
    sent = {name: payloads(layout, name) for name in CODECS}
    reply = lora_reply(layout)
    numbers = sorted(set(options.clients))
    plan = [("factorwise", options.layers, clients) for clients in numbers]
    plan += [("merged", MERGED_LAYERS, clients) for clients in numbers if clients <= options.most_merged]
    growth: list[Growth] = []
    with Progress(console=Console(stderr=True)) as progress, TemporaryDirectory() as folder:
        bar = progress.add_task("speed", total=options.rounds + 1)
        contested = contest(layout, sent, reply, options.rounds, lambda: progress.advance(bar))
        bar = progress.add_task("growth", total=sum(clients for *_, clients in plan))
        for layers in {options.layers, MERGED_LAYERS}:
            smaller = mistral(layers)
            save(Path(folder) / str(layers), smaller, payloads(smaller, "int4"))
        for aggregation, layers, clients in plan:
            growth.append(measured(Path(folder) / str(layers), aggregation, "int4", layers, clients))
            progress.advance(bar, clients)
    sizes = {name: round(sum(map(len, blobs)) / len(blobs)) for name, blobs in sent.items()}
    codecs = rows(contested, sizes)
    reply_bytes = reply.array_records["arrays"].count_bytes()
    report = Report(
        machine=_machine(),
        parameters=layout.size,
        lora_parameters=layout.lora_size(RANK),
        flower_bytes_per_client=reply_bytes,
        different_payloads=DIFFERENT,
        codecs=codecs,
        references=references(contested),
        growth=growth,
        first_use=first_use(),
        goals=goals(codecs, growth),
    )
    figures = json.dumps(asdict(report), indent=1)
    if options.json == "-":
        print(figures)
    else:
        console = Console(width=None if sys.stdout.isatty() else 150)
        console.print("  ".join(f"{name} {value}" for name, value in _machine().items()), highlight=False)
        show(report, console)
    if options.json not in (None, "-"):
        Path(options.json).write_text(figures, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument(
        "--quick", action="store_true", help="4 decoder layers, at most 4000 clients, 3 rounds"
    )
    parser.add_argument("--clients", type=int, nargs="+", metavar="N", help="10 100 1000 10000")
    parser.add_argument("--rounds", type=int, help="samples of each speed, at least 2 (9)")
    parser.set_defaults(clients=CLIENTS, most_merged=MOST_MERGED, rounds=ROUNDS, layers=LAYERS)
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(
            clients=QUICK_CLIENTS, most_merged=QUICK_MOST_MERGED, rounds=QUICK_ROUNDS, layers=QUICK_LAYERS
        )
        options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}: quartiles need at least 2")
    if min(options.clients) < 1:
        parser.error(f"--clients has {min(options.clients)}: use at least one client")
    return options


def _machine() -> dict[str, object]:
    versions = {name: version(name) for name in ("numpy", "numba", "torch", "flwr")}
    return {"machine": platform.machine(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main()
