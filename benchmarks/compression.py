"""Speed of encode and decode for an adapter of Mistral-7B, against a memory copy, bitsandbytes and torchao.

The adapter is Kron-LoRA of rank 8 on all linear layers of the 32 decoder layers (without lm_head), 5.7
million parameters; the update is Gaussian. fedkron's calls are the public ones: from named tensors to a whole
payload, with the check for NaN and the checksum, and back. The other libraries get one flat tensor and blocks
of 64, as `int4` and `int8` have; theirs are quantized weights, without a checksum and entropy coding. All run
on the CPU in the same process and in turns, in another order each round; ratios are taken round by round.
fedkron's codecs are numpy on one thread. torchao is used where it is installed; it is no dependency.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from transformers import AutoConfig, AutoModel

from benchmarks.compression_contest.contestants import contestants, torchao_is_installed
from benchmarks.compression_contest.report import rows, show
from benchmarks.compression_contest.timing import timed
from fedkron.adapters import AdapterSpec, adapter_layout, attach
from fedkron.layout import AdapterLayout

ROUNDS, LAYERS = 15, 32
QUICK_ROUNDS, QUICK_LAYERS = 5, 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="4 decoder layers, 5 rounds")
    parser.add_argument("--rounds", type=int, help="samples of each call, at least 2 (default 15)")
    options = parser.parse_args()
    layers, rounds = (QUICK_LAYERS, QUICK_ROUNDS) if options.quick else (LAYERS, ROUNDS)
    rounds = options.rounds or rounds
    if rounds < 2:
        parser.error(f"--rounds is {rounds}: quartiles need at least 2")
    layout = mistral(layers)
    vector = np.random.default_rng(0).standard_normal(layout.size, np.float32) * np.float32(1e-3)
    everybody = list(contestants(vector, layout, _threads()))
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("timing", total=rounds)
        timings = timed(everybody, rounds, lambda: progress.advance(bar))
    found = rows(timings, layout.size)
    report = {
        "machine": _machine(),
        "parameters": layout.size,
        "rows": [asdict(row) for row in found],
    }
    if options.json == "-":
        print(json.dumps(report, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 150)
        console.print("  ".join(f"{name} {value}" for name, value in _machine().items()), highlight=False)
        missing = [] if torchao_is_installed() else ["torchao: not installed"]
        show(found, layout.size, missing, console)
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")


def mistral(layers: int) -> AdapterLayout:
    """Layout of Kron-LoRA on a Mistral-7B with so many decoder layers; no weight is ever allocated."""
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("mistral", num_hidden_layers=layers))
    return adapter_layout(attach(model, AdapterSpec()), base="")


def _threads() -> tuple[int, ...]:
    """Numbers of threads for those that can use more than one."""
    return (1, 2) if (os.cpu_count() or 1) > 1 else (1,)


def _machine() -> dict[str, object]:
    packages = [name for name in ("numpy", "torch", "bitsandbytes", "torchao") if find_spec(name)]
    versions = {name: version(name) for name in packages}
    return {"machine": platform.machine(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main()
