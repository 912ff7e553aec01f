"""Everything that is measured, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.adapter_contest.timing import Spread
from benchmarks.edge_peers import (
    cases,
    contestants,
    optimum_merged,
    ort_lora,
    peft_torch,
    starting,
    switching,
)
from benchmarks.edge_peers.course import Course
from benchmarks.edge_peers.forms import Workshop
from benchmarks.edge_peers.latency import Contestant, Latency, latencies
from benchmarks.edge_peers.memory import Held, held, varied
from benchmarks.edge_peers.sizes import sizes
from benchmarks.edge_peers.starting import Command
from benchmarks.edge_peers.switching import Switch
from fedkron.adapters import AdapterSpec
from fedkron.base import Base, load_base
from fedkron.edge.bundle import write_bundle
from fedkron.edge.features import export_features
from fedkron.edge.graph import move_weights
from fedkron.exchange import AdapterFile, HeadFile

ROWS = 8

Doing = Callable[[str], object]


@dataclass(frozen=True)
class Found:
    """All figures; sizes are bytes of parts by bundle, starts are seconds."""

    latencies: list[Latency]
    switches: list[Switch]
    memory: list[Held]
    sizes: dict[str, dict[str, int]]
    starts: dict[str, Spread]


@dataclass(frozen=True)
class Field:
    """The contestants, and what more is measured with of them. `starts` are the peers' first answers."""

    base: Base
    head: HeadFile
    contestants: list[Contestant]
    lora_session: Any
    lora_graph: Path
    lora: list[AdapterFile]
    peft: Any
    starts: dict[str, Command]


def measure(course: Course, folder: Path, doing: Doing) -> Found:
    """Measure in an empty folder. `doing` is told what comes next."""
    doing("contestants")
    base = load_base(cases.BASE)
    field = _field(course, folder, base)
    found = []
    for texts, tokens in course.batches:
        doing(f"latency, {texts} × {tokens}")
        inputs = cases.batch(texts, tokens)
        found += latencies(base, field.head, field.contestants, inputs, course.effort)

    doing("bundles")
    filled = {f"fedkron, 4 bits, d_A2 = {d_a2}": _bundle(base, folder, d_a2) for d_a2 in course.bundles}
    first, *_ = filled.values()
    weighed = {"fp32 base, int4 slot": sizes(first)}
    for form, encoding in course.weighed:
        bundle = _bundle(base, folder, course.bundles[0], form, encoding)
        weighed[f"{form} base, {encoding} slot"] = sizes(bundle)

    doing("memory")
    memory: list[Held] = []
    for name, bundle in filled.items():
        varied(bundle, _adapters_of(bundle), max(*course.numbers, course.switched))
        memory += held(name, "fedkron", bundle, _adapters_of(bundle), course.numbers)
    lora_files = _lora_files(folder / "lora", field, max(course.larger_numbers))
    name = "ONNX Runtime's LoraAdapter, LoRA-8"
    memory += held(name, "onnxruntime", field.lora_graph, folder / "lora", course.larger_numbers)

    doing("switching")
    texts, tokens = course.batches[0]
    inputs = cases.batch(texts, tokens)
    files = sorted(_adapters_of(first).iterdir())
    switches = [
        *switching.ours(first, files[: course.switched], tokens, course.threads, course.switches),
        switching.onnxruntimes(field.lora_session, lora_files[: course.switched], inputs, course.switches),
        switching.pefts(field.peft, field.head, len(field.lora), inputs, course.switches),
    ]
    doing("first answers")
    starts = starting.first_answers(starting.ours(first) | field.starts, course.starts)
    return Found(found, switches, memory, weighed, starts)


def _field(course: Course, folder: Path, base: Base) -> Field:
    kron, lora = (cases.adapters(base, spec, ROWS) for spec in (cases.KRON, cases.LORA))
    head = cases.head(kron[0].layout.contract, base.hidden_size)
    features = export_features(base.backbone)
    move_weights(features, folder / "base.bin")
    plain = Workshop(features, folder, head, "fp32", course.threads)
    taking_part = contestants.ours(plain, kron, lora, course.encodings)
    for form in course.forms:
        workshop = Workshop(features, folder, head, form, course.threads)
        taking_part += contestants.ours(workshop, kron, [], ["int4"])
    taking_part.append(contestants.base_by_default(features, folder, head, course.threads))

    session, graph = contestants.lora_session(features, folder, lora[0], head, course.threads)
    ort_lora.write_adapter(folder / "first.onnx_adapter", lora[0], head)
    taking_part.append(contestants.onnxruntimes(session, folder / "first.onnx_adapter", lora[0]))
    peft = peft_torch.model_with(base, lora)
    taking_part += contestants.pefts(base, peft, head, lora[0])
    peft.save_pretrained(folder / "peft", selected_adapters=["0"])
    base.backbone.save_pretrained(folder / "plain")
    base.tokenizer.save_pretrained(folder / "plain")
    starts = {"PEFT in torch, LoRA-8": starting.peft(folder / "plain", folder / "peft" / "0")}
    if course.optimum is not None:
        exported = optimum_merged.export(course.optimum, folder, base, kron[0])
        taking_part += contestants.optimums(exported, head, kron[0], course.threads)
        starts["Optimum merged"] = starting.optimum(course.optimum, folder / "saved", exported.parent)
    return Field(base, head, taking_part, session, graph, lora, peft, starts)


def _bundle(base: Base, folder: Path, d_a2: int, form: str = "fp32", encoding: str = "int4") -> Path:
    (adapter,) = cases.adapters(base, AdapterSpec(d_a2=d_a2), 1)
    head = cases.head(adapter.layout.contract, base.hidden_size)
    return write_bundle(
        folder / f"{form} base, {encoding} slot, d_A2 = {d_a2}",
        base,
        adapter,
        [head],
        encoding=encoding,
        base_form=form,
        report=lambda _: None,
    )


def _adapters_of(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}, adapters")


def _lora_files(folder: Path, field: Field, number: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"a{index:04}.onnx_adapter" for index in range(number)]
    for index, path in enumerate(paths):
        ort_lora.write_adapter(path, field.lora[index % len(field.lora)], field.head)
    return paths
