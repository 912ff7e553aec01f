"""What it costs to use another adapter than the call before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.adapter_contest.timing import Spread
from benchmarks.edge_peers.cases import TASK, Batch, text_of
from benchmarks.edge_peers.ort_lora import activated, active
from benchmarks.edge_peers.peft_torch import runner
from benchmarks.edge_peers.turns import Effort, changing, each
from fedkron.edge.runtime import Bundle, head_feed
from fedkron.edge.store import slot_feeds
from fedkron.exchange import HeadFile

ROWS = 8


@dataclass(frozen=True)
class Switch:
    """Milliseconds: what a call takes longer when the one before used another adapter; what choosing among
    loaded adapters takes, a part of every call; and loading one from its file, checks included.
    """

    name: str
    adapters: int
    change: Spread | None
    select: Spread
    load: Spread | None


def ours(folder: Path, files: Sequence[Path], tokens: int, threads: int, effort: Effort) -> list[Switch]:
    """A bundle with as many adapters as there are files: one at a time, and eight in a batch."""
    bundle = Bundle.open(folder, threads=threads)
    load = each(lambda index: bundle.load(files[index]), len(files), effort)
    names, text = [path.stem for path in files], text_of(tokens)
    change = changing(lambda index: bundle.logits([text], TASK, adapter=names[index]), len(names), effort)

    def select(index: int, rows: int = 1) -> None:
        held = [bundle.adapters[names[(index + row) % len(names)]] for row in range(rows)]
        slot_feeds(held)
        head_feed([adapter.tasks[TASK] for adapter in held])

    one = each(select, len(names), effort)
    several = each(lambda index: select(index, ROWS), len(names), effort)
    return [
        Switch("fedkron", len(names), _milliseconds(change), _milliseconds(one), _milliseconds(load)),
        Switch(f"fedkron, {ROWS} in a batch", len(names), None, _milliseconds(several), None),
    ]


def onnxruntimes(session: Any, files: Sequence[Path], inputs: Batch, effort: Effort) -> Switch:  # noqa: ANN401
    """ONNX Runtime's own adapters, activated before the calls that are timed."""
    load = each(lambda index: active(files[index]), len(files), effort)
    held = [active(path) for path in files]
    select = each(lambda index: activated(held[index][0]), len(held), effort)
    change = changing(lambda index: session.run(None, inputs.feeds, held[index][1]), len(held), effort)
    return Switch(
        "ONNX Runtime's LoraAdapter, LoRA-8",
        len(held),
        _milliseconds(change),
        _milliseconds(select),
        _milliseconds(load),
    )


def pefts(model: Any, head: HeadFile, adapters: int, inputs: Batch, effort: Effort) -> Switch:  # noqa: ANN401
    """PEFT's `set_adapter`, called only where the adapter changes, and then a part of the call."""
    run, active_now = runner(model, head), 0

    def use(index: int) -> None:
        nonlocal active_now
        if index != active_now:
            model.set_adapter(str(index), inference_mode=True)
            active_now = index
        run(inputs)

    select = each(lambda index: model.set_adapter(str(index), inference_mode=True), adapters, effort)
    active_now = adapters - 1
    change = changing(use, adapters, effort)
    return Switch("PEFT in torch, LoRA-8", adapters, _milliseconds(change), _milliseconds(select), None)


def _milliseconds(seconds: Spread) -> Spread:
    return Spread(1e3 * seconds.median, 1e3 * seconds.lower, 1e3 * seconds.upper)
