"""Speed and memory of adapted layers, side by side: fedkron, PEFT and LyCORIS around the same frozen weight.

Every contestant has rank 8. All run in the same process, in turns, in an order that changes with each
round; ratios are taken round by round. A forward pass is timed under `inference_mode`, a training step of a
layer is forward and backward with the gradient of its input, and of a whole MiniLM also AdamW. For bf16
the base and its input are bf16 and the factors float32, as both libraries keep them by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.adapter_contest.bank import measure_bank, show_bank
from benchmarks.adapter_contest.cases import (
    DTYPES,
    SHAPES,
    Plan,
    Saved,
    Timing,
    layer_cases,
    minilm,
    model_cases,
)
from benchmarks.adapter_contest.layers import BARE, PEFT_LORA
from benchmarks.adapter_contest.report import goals, show
from benchmarks.adapter_contest.timing import ratio

FULL = {
    "shapes": "minilm,distilbert,mistral",
    "tokens": "1,32,256,2048",
    "dtypes": "fp32,bf16",
    "threads": "1,2",
    "batches": "16x64,32x128",
    "budget": 1.0,
}
QUICK = {
    "shapes": "minilm,distilbert",
    "tokens": "1,256",
    "dtypes": "fp32",
    "threads": "1",
    "batches": "4x64",
    "budget": 0.25,
}


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.manual_seed(0)
    plan = _plan(options)
    found = _measure(plan)
    torch.set_num_threads(max(plan.threads))
    bank = measure_bank(minilm().to(plan.device), plan.device, plan.budget) if plan.batches else None
    timings = [item for item in found if isinstance(item, Timing)]
    saved = [item for item in found if isinstance(item, Saved)]
    report = {
        "machine": _machine(plan.device),
        "timings": [_figures(timing) for timing in timings],
        "saved": [asdict(item) for item in saved],
        "bank": None if bank is None else asdict(bank),
        "goals": [goal.as_json() for goal in goals(timings, saved)],
    }
    if options.json == "-":
        print(json.dumps(report, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 150)
        console.print(
            "  ".join(f"{name} {value}" for name, value in _machine(plan.device).items()), highlight=False
        )
        show(timings, saved, console)
        if bank is not None:
            show_bank(bank, console)
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")


def _measure(plan: Plan) -> list[Timing | Saved]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    found: list[Timing | Saved] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(plan))

        def started(name: str) -> None:
            progress.update(task, description=name)

        for cases in (layer_cases, model_cases):
            for item in cases(plan, started):
                found.append(item)
                progress.advance(task, isinstance(item, Timing))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--shapes", help=f"comma-separated, of {', '.join(SHAPES)} (none: an empty string)")
    parser.add_argument("--tokens", help="comma-separated numbers")
    parser.add_argument("--dtypes", help=f"comma-separated, of {', '.join(DTYPES)}")
    parser.add_argument("--threads", help="comma-separated numbers; on CUDA the first one only")
    parser.add_argument("--batches", help="of the whole model, comma-separated, texts x tokens")
    parser.add_argument(
        "--budget", type=float, help="seconds for each case, if that is enough for the least rounds"
    )
    parser.set_defaults(**FULL)
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args()
    if unknown := set(_items(options.shapes)) - set(SHAPES) | set(_items(options.dtypes)) - set(DTYPES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device here")
    return options


def _plan(options: argparse.Namespace) -> Plan:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    threads = [int(number) for number in _items(options.threads)]
    batches = [batch.split("x") for batch in _items(options.batches)]
    return Plan(
        shapes=[shape for base in _items(options.shapes) for shape in SHAPES[base]],
        tokens=[int(number) for number in _items(options.tokens)],
        dtypes=_items(options.dtypes),
        threads=threads[:1] if chosen == "cuda" else threads,
        batches=[(int(texts), int(length)) for texts, length in batches],
        device=torch.device(chosen),
        budget=options.budget,
    )


def _figures(timing: Timing) -> dict[str, object]:
    ratios = {
        f"over {to}": {name: asdict(ratio(timing.seconds, name, to)) for name in timing.seconds}
        for to in (BARE, PEFT_LORA)
    }
    return asdict(timing) | ratios


def _items(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


def _machine(device: torch.device) -> dict[str, str]:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        "cores": str(os.cpu_count()),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        **{name: _version(name) for name in ("torch", "peft", "lycoris-lora", "transformers")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
