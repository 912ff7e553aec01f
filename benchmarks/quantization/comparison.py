"""Kron-LoRA against LoRA, task by task: ratios, differences, and what they say about the claim."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import product
from statistics import fmean, median
from typing import Any

from benchmarks.quantization.quantizer import GRANULARITIES

KINDS = ("kron_lora", "lora")
WAYS = {f"{bits} bits {name}": (bits, name) for bits in (8, 4, 2) for name in GRANULARITIES}
PAIRED = (("B1", "lora_B"), ("B2", "lora_A"))
"""Factors that play the same part: left and right of the low-rank product."""

Record = dict[str, Any]


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
    """What the values of a figure `by_task` say, by the exact sign-flip test (two-sided, 5 %).

    Without a difference between the kinds, each task's value could as well have had the other sign. The
    finding counts if at most 1 in 20 of all sign patterns gives so large a sum: fewer than six tasks
    decide nothing.
    """
    total = sum(values)
    flipped = (sum(map(operator.mul, signs, values)) for signs in product((1, -1), repeat=len(values)))
    # Sums that are equal but for rounding count as equal.
    chance = fmean(abs(other) >= abs(total) * (1 - 1e-9) for other in flipped)
    if chance > 0.05:
        return "undecided"
    return "for" if total < 0 else "against"


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
