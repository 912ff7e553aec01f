"""Training steps of all contestants in one process, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.adapter_contest.timing import Seconds, interleaved
from simulations.paper.throughput_study.bases import Base, backbone_of, random_batch, sharing_weights
from simulations.paper.throughput_study.contestants import model_of, optimizer_of, training_step


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step of each contestant on a base, one value a round."""

    base: str
    batch_tokens: int
    threads: int
    device: str
    seconds: Seconds


def measure_speed(
    name: str, base: Base, contestants: Sequence[str], device: torch.device, *, budget: float, visits: int
) -> Speed:
    """Time steps for about `budget` seconds, so many times; all rounds count alike."""
    backbone = backbone_of(base, device)
    ids, labels = random_batch(base, device)
    steps = {}
    for contestant in contestants:
        model = model_of(sharing_weights(backbone), contestant)
        steps[contestant] = training_step(model, optimizer_of(model), ids, labels)
    found = [interleaved(steps, device, budget) for _ in range(visits)]
    seconds = {who: [second for one in found for second in one[who]] for who in steps}
    return Speed(name, base.batch_tokens, torch.get_num_threads(), device.type, seconds)
