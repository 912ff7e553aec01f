"""Bits against error on real updates: every codec, Shannon's bound, and bitsandbytes' NF4.

Kron-LoRA and, to compare, LoRA-8 on the linear layers of MiniLM are trained on real tasks for 1 to 100 local
steps: in a first round from initialisation, and in a later one that goes on from there with a new optimizer.
Every update is encoded and decoded by every codec. Bits are those of the whole payload, header included, per
parameter; the error is ‖x − x̂‖² / ‖x‖², without error feedback. Shannon's bound for a Gaussian at this error
is ½·log2(1/error) bits. Of all sources with the same variance a Gaussian needs the most bits: other updates,
most of all those of one step, which have one magnitude and two signs, can be coded with less. (In the very
first step nothing but weight decay moves the factors: the head is still zero.)

The goal: the default low-bit codec within 0.35 bit of the bound at every operating point. Fixed-rate int4 (by
block size) and NF4 with float32 scales, which has no header here, are measured on the same updates.

Training takes most of the time, about half an hour on one core: `--updates FILE` keeps what was trained.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.rate_distortion_study.compressors import DEFAULT, compressors
from benchmarks.rate_distortion_study.measure import Point, Shape, measured, shape
from benchmarks.rate_distortion_study.plot import draw
from benchmarks.rate_distortion_study.report import GOAL, of, show, verdict, worst
from benchmarks.rate_distortion_study.updates import QUICK, Plan, Updates, load, save, trained


def main() -> None:
    """Train or load, measure, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="two tasks, one learning rate, up to 8 steps")
    parser.add_argument("--plot", metavar="PATH", type=Path, help="draw it (.svg or .png)")
    parser.add_argument(
        "--updates",
        metavar="PATH",
        type=Path,
        help="use the updates in this .npz file; train and write it first if missing",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # batches are small, and the figures do not depend on the number of cores
    updates = _updates(options.updates, QUICK if options.quick else Plan())
    shapes = [shape(update) for update in updates.updates]
    points = _points(updates)
    if options.json == "-":
        print(json.dumps(_report(shapes, points), indent=1))
    else:
        show(shapes, points, Console(width=None if sys.stdout.isatty() else 150))
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(_report(shapes, points), indent=1), encoding="utf-8")
    if options.plot is not None:
        draw(points, options.plot)


def _updates(path: Path | None, plan: Plan) -> Updates:
    if path is not None and path.exists():
        return load(path)
    with Progress(console=Console(stderr=True)) as progress:
        count = len(plan.tasks) * len(plan.kinds) * len(plan.learning_rates)
        bar = progress.add_task("training", total=count)
        updates = trained(plan, lambda name: progress.update(bar, advance=1, description=f"trained {name}"))
    if path is not None:
        save(updates, path)
    return updates


def _points(updates: Updates) -> list[Point]:
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("encoding", total=len(updates.updates))
        return list(measured(updates, compressors(), lambda: progress.advance(bar)))


def _report(shapes: Sequence[Shape], points: Sequence[Point]) -> dict[str, object]:
    found = worst(of(points, compressor=DEFAULT))
    return {
        "updates": [asdict(shape) for shape in shapes],
        "points": [_figures(point) for point in points],
        "goal": {"codec": DEFAULT, "bits": GOAL, "reached": found.gap <= GOAL, "worst": _figures(found)},
        "verdict": verdict(points),
    }


def _figures(point: Point) -> dict[str, object]:
    # JSON has no infinity: a lossless point has no distance from the bound.
    return asdict(point) | {"gap": point.gap if math.isfinite(point.gap) else None}


if __name__ == "__main__":
    main()
