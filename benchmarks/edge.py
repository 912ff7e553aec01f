"""An adapter on a device: latency, switching, memory, size and start, next to what others offer.

All is about MiniLM (22 million parameters) with random adapters of rank 8 on its 36 linear layers, as strong
as trained ones, and a head of 6 labels. Latency is that of a graph with its inputs at hand, in one process
and in turns, in another order each round; ratios are taken round by round. Every contestant's logits are
compared with torch's. Contestants:

* merged: the adapter folded into the base; slot: the base with a slot, in which an adapter is given with each
  call, in float32, float16, 8 or 4 bits, for all rows of a batch or for each row its own; LoRA in the same
  slot; the same on bases with 8-bit weights;
* ONNX Runtime's own way: plain LoRA as initializers that a run overrides (`LoraAdapter`, `.onnx_adapter`), in
  a graph made here from the same export;
* Optimum's export of the merged model, with --optimum, with ONNX Runtime's own settings and with ours;
* PEFT in torch, merged and not.

Memory and start are measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.edge_peers.course import FULL, QUICK, Course
from benchmarks.edge_peers.measure import measure
from benchmarks.edge_peers.optimum_merged import HOW_TO
from benchmarks.edge_peers.report import Report, goals, show


def main() -> None:
    """Measure and print."""
    json_path, course = _options()
    torch.set_num_threads(course.threads)
    with (
        Console(stderr=True).status("") as status,
        TemporaryDirectory() as folder,
    ):
        found = measure(course, Path(folder), status.update)
    report = Report(
        machine=_machine(),
        threads=course.threads,
        **vars(found),
        goals=goals(found.latencies, found.switches, found.memory),
    )
    figures = json.dumps(asdict(report), indent=1)
    if json_path == "-":
        print(figures)
    else:
        console = Console(width=None if sys.stdout.isatty() else 150)
        console.print("  ".join(f"{name} {value}" for name, value in _machine().items()), highlight=False)
        show(report, console)
        if course.optimum is None:
            console.print(HOW_TO, highlight=False, markup=False, soft_wrap=True)
    if json_path not in (None, "-"):
        Path(json_path).write_text(figures, encoding="utf-8")


def _options() -> tuple[str | None, Course]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="fewer forms, batches, adapters and rounds")
    parser.add_argument("--threads", type=int, default=1, help="that a call may use (1)")
    parser.add_argument("--optimum", type=Path, metavar="PYTHON", help="a Python that has optimum-onnx")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}: use at least 1")
    course = QUICK if options.quick else FULL
    return options.json, replace(course, threads=options.threads, optimum=options.optimum)


def _machine() -> dict[str, object]:
    versions = {name: version(name) for name in ("onnxruntime", "onnx", "torch", "transformers", "peft")}
    return {"machine": platform.machine(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main()
