"""Latency of every form of a base with an adapter, and how far its answers are from torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.adapter_contest.timing import Spread, ratio
from benchmarks.edge_peers.cases import Batch, Logits, answers, answers_by_row
from benchmarks.edge_peers.turns import Effort, in_turns
from fedkron.base import Base
from fedkron.exchange import AdapterFile, HeadFile

BASE = "base"
"""Name of the contestant that all are compared with: float32, no adapter, an ordinary head."""

EXACT = 1e-4
"""Largest difference of a logit, of about 10, that float32 arithmetic in another order may make."""


@dataclass(frozen=True)
class Contestant:
    """Something that gives logits.

    `kind` is base, merged or slot, or peer for what is not ours. `adapters` has what it should compute:
    nothing for the bare base, one adapter for all rows, or one for each row. `bare` is the name of the same
    form without adapter, `one` that with one adapter for all rows. `exact` ones have torch's answers.
    """

    name: str
    kind: str
    call: Callable[[Batch], Logits]
    adapters: Sequence[AdapterFile]
    bare: str = BASE
    one: str = ""
    exact: bool = True


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call, and its ratios: to the float32 base, to the same base form without adapter, and
    for different adapters in one batch to one adapter for all.

    `different_adapters` are in one batch; `difference` is the largest of a logit to torch's, in float32
    with the adapter attached, and `magnitude` torch's largest logit.
    """

    name: str
    kind: str
    bare: str
    batch: str
    texts: int
    tokens: int
    different_adapters: int
    milliseconds: Spread
    over_base: Spread
    over_bare: Spread
    over_one: Spread | None
    difference: float
    magnitude: float


def latencies(
    base: Base,
    head: HeadFile,
    contestants: Sequence[Contestant],
    inputs: Batch,
    effort: Effort,
) -> list[Latency]:
    """All contestants that take this batch: those with an adapter for each row need as many rows.

    Raises `RuntimeError` when one that should be exact computes something else: its time would say nothing.
    """
    texts, tokens = inputs.ids.shape
    fitting = [c for c in contestants if len(c.adapters) in {0, 1, texts}]
    different = {_key(c): c for c in fitting}
    truths = {key: _truth(base, head, c, inputs) for key, c in different.items()}
    errors = {c.name: float(np.abs(c.call(inputs) - truths[_key(c)]).max()) for c in fitting}
    if wrong := [c.name for c in fitting if c.exact and errors[c.name] > EXACT]:
        raise RuntimeError(f"{wrong[0]} is off by {errors[wrong[0]]:.1e} from torch, {inputs.name} tokens")
    steps = {c.name: lambda call=c.call: call(inputs) for c in fitting}
    seconds = in_turns(steps, effort)
    return [
        Latency(
            contestant.name,
            contestant.kind,
            contestant.bare,
            inputs.name,
            texts,
            tokens,
            len(contestant.adapters),
            Spread.of([1e3 * value for value in seconds[contestant.name]]),
            ratio(seconds, contestant.name, BASE),
            ratio(seconds, contestant.name, contestant.bare),
            ratio(seconds, contestant.name, contestant.one) if contestant.one else None,
            errors[contestant.name],
            float(np.abs(truths[_key(contestant)]).max()),
        )
        for contestant in fitting
    ]


def _key(contestant: Contestant) -> tuple[int, ...]:
    return tuple(map(id, contestant.adapters))


def _truth(base: Base, head: HeadFile, contestant: Contestant, inputs: Batch) -> Logits:
    several = contestant.adapters
    if len(several) > 1:
        return answers_by_row(base, several, head, inputs)
    return answers(base, several[0] if several else None, head, inputs)
