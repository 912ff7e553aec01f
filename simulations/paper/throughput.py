"""Throughput and memory of training with Kron-LoRA, against LoRA-8, KronA and PEFT's adapters.

Whole training steps (forward, backward, AdamW) with an adapter on every linear layer and a head on top, on
MiniLM, DistilBERT and one layer of Mistral-7B: random weights, so nothing is downloaded. All contestants are
timed in this process, in turns, and ratios are taken round by round; what each keeps in memory is measured
in a process of its own.

    python -m simulations.paper.throughput --json throughput.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from simulations.paper.throughput_study.bases import BASES, DISTILBERT, MINILM, MISTRAL
from simulations.paper.throughput_study.contestants import CONTESTANTS, KRON_LORA, LORA, PEFT_LORA
from simulations.paper.throughput_study.memory import measure_memory
from simulations.paper.throughput_study.report import figures, show_memory, show_speed
from simulations.paper.throughput_study.speed import measure_speed
from simulations.study.command import tables_console, write

FULL = {
    "bases": [MINILM, DISTILBERT, MISTRAL],
    "contestants": list(CONTESTANTS),
    "texts": 0,
    "budget": 20.0,
    "visits": 4,
}
QUICK = {
    "bases": [MINILM],
    "contestants": [KRON_LORA, LORA, PEFT_LORA],
    "texts": 2,
    "budget": 2.0,
    "visits": 1,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    console = tables_console(options.json)
    speeds, memories = [], []
    for name in options.bases:
        base = BASES[name].with_texts(options.texts)
        contestants = options.contestants
        speed = measure_speed(name, base, contestants, device, budget=options.budget, visits=options.visits)
        show_speed(speed, console)
        of_base = [measure_memory(name, base, contestant, options.device) for contestant in contestants]
        show_memory(of_base, console)
        speeds.append(speed)
        memories += of_base
    if options.json:
        write(json.dumps(figures(speeds, memories), indent=1), options.json)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.paper.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument(
        "--quick", action="store_true", help="MiniLM, three contestants, few texts and rounds"
    )
    parser.add_argument("--bases", nargs="+", metavar="NAME", choices=BASES, help=", ".join(BASES))
    parser.add_argument(
        "--contestants", nargs="+", metavar="NAME", choices=CONTESTANTS, help=", ".join(CONTESTANTS)
    )
    parser.add_argument("--texts", type=int, help="texts in a batch (0: as many as is usual for the base)")
    parser.add_argument("--budget", type=float, help="seconds for the timings of a base, each time")
    parser.add_argument("--visits", type=int, help="how many times")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.set_defaults(**FULL)
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device here")
    return options


if __name__ == "__main__":
    sys.exit(main())
