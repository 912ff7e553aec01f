"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.quantization.comparison import KINDS, PAIRED, WAYS, Record, means


def show(report: Record) -> None:
    """Print three tables and the verdict."""
    console = Console()
    adapters, pairs = report["adapters"], report["pairs"]
    tasks = list(dict.fromkeys(pair["task"] for pair in pairs))
    groups = {(task, kind): _select(adapters, task=task, kind=kind) for task in tasks for kind in KINDS}

    title = "Trained adapters: max|w| (max|w| / rms) of the factors, median over the layers"
    trained = _table(title, "task", "kind", "rate", "accuracy", "A", *(f"{k} or {p}" for k, p in PAIRED))
    for (task, kind), records in groups.items():
        norms, crests = (
            {name: fmean(record[key][name] for record in records) for name in records[0][key]}
            for key in ("max_norm", "crest")
        )
        columns = ("A", "B1", "B2") if kind == "kron_lora" else ("", "lora_B", "lora_A")
        cells = [f"{norms[name]:.3g} ({crests[name]:.2f})" if name else "" for name in columns]
        accuracy = fmean(record["accuracy"] for record in records)
        trained.add_row(task, kind, f"{records[0]['learning_rate']:g}", f"{accuracy:.1%}", *cells)
    console.print(trained)

    title = "Steps Δ_Kron/Δ_LoRA, median over the layers"
    ratios = _table(title, "task", "largest of a layer", *(f"{left}/{right}" for left, right in PAIRED))
    names = ("step", *(f"step {left}/{right}" for left, right in PAIRED))
    for task in tasks:
        mean = means(_select(pairs, task=task))
        ratios.add_row(task, *(f"{mean[name]:.2f}" for name in names))
    ratios.add_row("mean", *(f"{report['means'][name]:.2f}" for name in names))
    console.print(ratios)

    title = "After quantization: relative error of ΔW, and percentage points of accuracy lost"
    lost = _table(title, "task", "kind", "way", "kB", "error", "points")
    for kind in KINDS:
        groups["mean", kind] = _select(adapters, kind=kind)
    for (task, kind), records in groups.items():
        for way in WAYS:
            left = [record["quantized"][way] for record in records]
            size, error, points = (fmean(q[key] for q in left) for key in ("bytes", "error", "points_lost"))
            lost.add_row(task, kind, way, f"{size / 1000:.0f}", f"{error:.4f}", f"{points:+.2f}")
    console.print(lost)
    console.print(report["verdict"])


def _select(records: Sequence[Record], **wanted: str) -> list[Record]:
    return [record for record in records if all(record[key] == value for key, value in wanted.items())]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"task", "kind", "way"} else "right")
    return table
