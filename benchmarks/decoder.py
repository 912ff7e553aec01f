"""A real language model on a device: exported, against torch, and how fast it writes.

SmolLM2-135M-Instruct (LLaMA type, 30 layers, tied embedding; float32) with Kron-LoRA on all linear layers,
lm_head too. It is exported once with its key-value cache; adapters, of random numbers, go into its slot.
Logits are those of real texts of the demo, greedy tokens the answers to its questions. All times are taken
in the same process and in turns, in another order each round. `--quick` keeps the first 2 layers, which
no longer write sense.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from onnxruntime import OrtValue
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.adapter_contest.timing import Spread
from benchmarks.language_model import smollm2
from benchmarks.language_model.agreement import graph_writes, logit_difference, torch_writes
from benchmarks.language_model.speed import (
    Seconds,
    graph,
    graph_with_binding,
    graph_with_numpy_cache,
    timed,
    torch_eager,
)
from fedkron.adapters import AdapterSpec, adapted_layers, adapter_layout, adapter_state, attach
from fedkron.demo import resolve_task
from fedkron.edge.decoder import export_decoder, language_model_input
from fedkron.edge.generation import Generator
from fedkron.edge.graph import copy_model, move_weights, save_model
from fedkron.edge.session import open_session
from fedkron.edge.slot import SlotLayout
from fedkron.edge.slot_encoding import ENCODINGS
from fedkron.edge.slot_graph import insert_slot
from fedkron.layout import AdapterLayout, State

MAX_LENGTH = 2048
SIZE = 0.05
"""Standard deviation of the factors that are zero in a new adapter: enough to change most answers."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    layers: int | None
    texts: int
    prompts: int
    tokens: int
    rounds: int


FULL, QUICK = Sizes(None, 16, 16, 32, 5), Sizes(2, 4, 4, 12, 3)


@dataclasses.dataclass(frozen=True)
class Exported:
    """The model as a graph without and with a slot, both open, and what that took."""

    bare: Generator
    slotted: Generator
    slot: SlotLayout
    figures: dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="2 layers, fewer texts, tokens and rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of ONNX Runtime")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        report = measure(QUICK if options.quick else FULL, Path(folder), options.threads)
    if options.json == "-":
        print(json.dumps(report, indent=1))
    else:
        show(report, Console(width=None if sys.stdout.isatty() else 120))
    if options.json not in (None, "-"):
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")


def measure(sizes: Sizes, folder: Path, threads: int) -> dict[str, Any]:
    """All figures."""
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("export", total=sizes.rounds + 3)
        model, tokenizer = smollm2.load(sizes.layers)
        adapted, layout, state = with_adapter(model)
        exported = export(model, tokenizer, layout, folder, threads)
        arrays = {name: array[None] for name, array in exported.slot.pack(state).items()}
        zeros = {name: array[None] for name, array in exported.slot.zeros().items()}
        forms = {
            "no slot": (exported.bare, {}, model),
            "empty slot": (exported.slotted, zeros, model),
            "adapter in the slot": (exported.slotted, arrays, adapted),
        }
        progress.update(bar, advance=1, description="logits")
        texts = [ids for ids in encoded(tokenizer, "film", "{}") if len(ids) > sizes.tokens][: sizes.texts]
        logits = {
            name: logit_difference(generator, adapter, truth, texts, sizes.tokens)
            for name, (generator, adapter, truth) in forms.items()
        }
        progress.update(bar, advance=1, description="tokens")
        question = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        prompts = encoded(tokenizer, "trec", question)[: sizes.prompts]
        expected = {
            id(truth): torch_writes(truth, tokenizer, prompts, sizes.tokens) for truth in (model, adapted)
        }
        written = {
            name: (graph_writes(generator, adapter, prompts, sizes.tokens), expected[id(truth)])
            for name, (generator, adapter, truth) in forms.items()
        }
        progress.update(bar, advance=1, description="speed")
        prompt = [token for ids in prompts for token in ids][:128]
        speaking = {
            "torch": torch_eager(model, prompt, sizes.tokens),
            "torch, adapter": torch_eager(adapted, prompt, sizes.tokens),
            "graph, no slot": graph(exported.bare, {}, prompt, sizes.tokens),
            "graph, no slot, numpy cache": graph_with_numpy_cache(exported.bare, {}, prompt, sizes.tokens),
            "graph, no slot, bound cache": graph_with_binding(exported.bare, {}, prompt, sizes.tokens),
            "graph, empty slot": graph(exported.slotted, zeros, prompt, sizes.tokens),
            "graph, adapter in the slot": graph(exported.slotted, arrays, prompt, sizes.tokens),
        }
        seconds = timed(speaking, sizes.rounds, lambda: progress.advance(bar))
    bare, ours = expected[id(model)], expected[id(adapted)]
    return {
        "machine": machine(threads),
        "model": {
            "layers": exported.bare.form.layers,
            "parameters": model.num_parameters(),
            "adapter parameters": layout.size,
            "adapter layers": len(layout.modules),
        },
        "export": exported.figures,
        "adapter bytes": {
            encoding: slot_bytes(dataclasses.replace(exported.slot, encoding=encoding))
            for encoding in ENCODINGS
        },
        "switch": switch(exported.slot, state),
        "texts": {"logits": len(texts), "steps": sizes.tokens, "prompts": len(prompts)},
        "answers that the adapter changes": sum(a != b for a, b in zip(bare, ours, strict=True)),
        "agreement": {
            name: {
                "logits": logits[name],
                "equal answers": sum(a == b for a, b in zip(*written[name], strict=True)),
            }
            for name in forms
        },
        "speed": {
            "prompt tokens": len(prompt),
            "new tokens": sizes.tokens,
            "rows": {name: speed(seconds, name) for name in speaking},
        },
    }


def with_adapter(model: PreTrainedModel) -> tuple[PreTrainedModel, AdapterLayout, State]:
    """A copy of the model with a random adapter, and the adapter."""
    adapted = attach(copy.deepcopy(model), AdapterSpec())
    generator = torch.Generator().manual_seed(0)
    for _, layer in adapted_layers(adapted):
        for factor in layer.factors().values():
            if not factor.any():
                nn.init.normal_(factor, std=SIZE, generator=generator)
    return adapted.eval(), adapter_layout(adapted, base="SmolLM2"), adapter_state(adapted)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    layout: AdapterLayout,
    folder: Path,
    threads: int,
) -> Exported:
    """Both graphs, which share one file of weights."""
    start = time.perf_counter()
    decoder = export_decoder(model)
    exported = time.perf_counter()
    move_weights(decoder, folder / "base.bin")
    save_model(decoder, folder / "bare.onnx")
    written = time.perf_counter()
    slotted = copy_model(decoder)
    slot = insert_slot(slotted, layout, "fp32")
    save_model(slotted, folder / "slotted.onnx")
    inserted = time.perf_counter()
    sessions = [open_session(folder / name, threads) for name in ("bare.onnx", "slotted.onnx")]
    opened = time.perf_counter()
    form = language_model_input(model, tokenizer, MAX_LENGTH)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    figures = {
        "export seconds": exported - start,
        "write seconds": written - exported,
        "slot seconds": inserted - written,
        "open seconds": (opened - inserted) / 2,
        "bare bytes": (folder / "bare.onnx").stat().st_size,
        "slotted bytes": (folder / "slotted.onnx").stat().st_size,
        "weight bytes": (folder / "base.bin").stat().st_size,
    }
    bare, with_slot = (Generator(session, backend, form) for session in sessions)
    return Exported(bare, with_slot, slot, figures)


def encoded(tokenizer: PreTrainedTokenizerFast, task: str, form: str) -> list[list[int]]:
    """The test texts of a task of the demo as token ids."""
    lines = (resolve_task(f"demo:{task}") / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ids: list[list[int]] = tokenizer([form.format(json.loads(line)["text"]) for line in lines[:200]])[
        "input_ids"
    ]
    return ids


def slot_bytes(slot: SlotLayout) -> int:
    """Bytes of an adapter in a slot."""
    return sum(size * np.dtype(dtype).itemsize for size, dtype in slot.arrays.values())


def switch(slot: SlotLayout, state: State) -> dict[str, float]:
    """Seconds to arrange an adapter for the slot, once, and to hand it to the graph, for each switch."""
    packing, handing = [], []
    for _ in range(20):
        start = time.perf_counter()
        arrays = slot.pack(state)
        packed = time.perf_counter()
        values = {name: OrtValue.ortvalue_from_numpy(array[None]) for name, array in arrays.items()}
        handing.append(time.perf_counter() - packed)
        packing.append(packed - start)
        assert values
    return {"pack seconds": median(packing), "hand over seconds": median(handing)}


def speed(seconds: Seconds, name: str) -> dict[str, Any]:
    """Tokens a second, and times over that of torch with the same adapter, taken round by round."""
    first, later = seconds[name]
    truth = seconds["torch, adapter" if "adapter" in name else "torch"]
    return {
        "prompt": dataclasses.asdict(Spread.of(first)),
        "tokens a second": dataclasses.asdict(Spread.of([1 / value for value in later])),
        "prompt over torch": median(a / b for a, b in zip(first, truth[0], strict=True)),
        "token over torch": median(a / b for a, b in zip(later, truth[1], strict=True)),
    }


def machine(threads: int) -> dict[str, object]:
    """Where the times were taken."""
    versions = {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")}
    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": threads, **versions}


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    console.print("  ".join(f"{name} {value}" for name, value in report["machine"].items()), highlight=False)
    export, model, moving = report["export"], report["model"], report["switch"]
    console.print(
        f"SmolLM2 with {model['layers']} layers, {model['parameters']:,} parameters; adapter on "
        f"{model['adapter layers']} linear layers, {model['adapter parameters']:,} parameters\n"
        f"Export {export['export seconds']:.1f} s, writing {export['write seconds']:.1f} s, slot "
        f"{export['slot seconds']:.1f} s, opening {export['open seconds']:.1f} s; weights "
        f"{export['weight bytes'] / 1e6:.1f} MB, graph {export['bare bytes'] / 1e3:.0f} kB, with a slot "
        f"{export['slotted bytes'] / 1e3:.0f} kB\nAdapter "
        + ", ".join(f"{name} {size / 1e3:.0f} kB" for name, size in report["adapter bytes"].items())
        + f"; arranged in {1e3 * moving['pack seconds']:.1f} ms, once; a switch takes "
        f"{1e6 * moving['hand over seconds']:.0f} µs",
        highlight=False,
    )
    texts = report["texts"]
    agreement = table(
        f"Against torch: logits of the last {texts['steps']} tokens of {texts['logits']} texts, and greedy "
        f"answers to {texts['prompts']} questions ({report['answers that the adapter changes']} of them "
        "changed by the adapter)",
        ("", "largest difference", "largest logit", "equal answers"),
    )
    for name, row in report["agreement"].items():
        difference, largest = row["logits"]
        agreement.add_row(
            name, f"{difference:.1e}", f"{largest:.1f}", f"{row['equal answers']} of {texts['prompts']}"
        )
    console.print(agreement)
    times = report["speed"]
    speeds = table(
        f"A prompt of {times['prompt tokens']} tokens and {times['new tokens']} new ones, one row: medians "
        "with quartiles; × is the time over that of torch with the same adapter",
        ("", "prompt ms", "×", "tokens/s", "×"),
    )
    for name, row in times["rows"].items():
        prompt, tokens = (Spread(**row[key]) for key in ("prompt", "tokens a second"))
        speeds.add_row(
            name,
            f"{1e3 * prompt.median:.0f}",
            f"{row['prompt over torch']:.2f}",
            str(tokens),
            f"{row['token over torch']:.2f}",
        )
    console.print(speeds)


def table(title: str, headings: tuple[str, ...]) -> Table:
    """An empty table; the first column is text."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in headings:
        made.add_column(heading, justify="right" if heading else "left")
    return made


if __name__ == "__main__":
    main()
