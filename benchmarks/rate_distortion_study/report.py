"""Tables for people, and what the figures say about the goal and the block size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rate_distortion_study.compressors import (
    BLOCK_SIZES,
    CODECS,
    DEFAULT,
    NF4_BLOCK_SIZES,
    NF4_DOUBLE,
    SWEEP,
    int4_blocks,
    nf4_blocks,
)
from benchmarks.rate_distortion_study.measure import Point, Shape
from benchmarks.rate_distortion_study.updates import STARTS, Origin

GOAL = 0.35
"""Bits per parameter that the default low-bit codec may be above the bound, at every operating point."""

PEERS = (nf4_blocks(NF4_BLOCK_SIZES[0]), NF4_DOUBLE)
SIGN = "sign"


def worst(points: Iterable[Point]) -> Point:
    """The point that is farthest above the bound."""
    return max(points, key=lambda point: point.gap)


def verdict(points: Sequence[Point]) -> list[str]:
    """What the figures say, in sentences."""
    default = of(points, compressor=DEFAULT)
    missed = [point for point in default if point.gap > GOAL]
    found = worst(default)
    says = "missed" if missed else "reached"
    yes = len(default) - len(missed)
    return [
        f"Goal {says}: {DEFAULT} is within {GOAL} bit of the bound at {yes} of {len(default)} operating "
        f"points. "
        f"Worst: {found.gap:+.3f} ({found.origin}; {found.bits:.3f} bits, error {found.error:.4f}). "
        f"Median: {median(point.gap for point in default):+.3f}.",
        *(_block_size(points, kind) for kind in kinds(points)),
    ]


def show(shapes: Sequence[Shape], points: Sequence[Point], console: Console) -> None:
    """Print all tables and the verdict."""
    console.print(_shape_table(shapes, points))
    for steps in all_steps(points):
        console.print(_codec_table(points, steps))
    for kind in kinds(points):
        sweep = {name: name for name in SWEEP}
        title = f"{kind}, ecsq:BITS: bits above the bound, median (worst)"
        console.print(_gap_table(title, "codec", sweep, points, kind))
        blocks = {str(size): int4_blocks(size) for size in BLOCK_SIZES}
        title = f"{kind}, int4 with other block sizes: bits above the bound, median (worst)"
        console.print(_gap_table(title, "elements a block", blocks, points, kind))
    for sentence in verdict(points):
        console.print(sentence, highlight=False, soft_wrap=True)


def of(points: Iterable[Point], **wanted: object) -> list[Point]:
    """The points of a `compressor`, and of a `kind`, number of `steps` and so on."""
    compressor = wanted.pop("compressor", None)
    return [
        point for point in points if compressor in (None, point.compressor) and _matches(point.origin, wanted)
    ]


def kinds(points: Iterable[Point]) -> list[str]:
    """Adapter kinds, in the order they were measured."""
    return list(dict.fromkeys(point.origin.kind for point in points))


def all_steps(points: Iterable[Point]) -> list[int]:
    """Numbers of local steps, ascending."""
    return sorted({point.origin.steps for point in points})


def _matches(origin: Origin, wanted: dict[str, object]) -> bool:
    return all(getattr(origin, name) == value for name, value in wanted.items())


def _block_size(points: Sequence[Point], kind: str) -> str:
    """What each block size of int4 costs, compared with the best one for the same update."""
    gaps = {
        size: [point.gap for point in of(points, compressor=int4_blocks(size), kind=kind)]
        for size in BLOCK_SIZES
    }
    least = [min(of_update) for of_update in zip(*gaps.values(), strict=True)]
    excess = {size: [gap - low for gap, low in zip(gaps[size], least, strict=True)] for size in BLOCK_SIZES}
    best = min(excess, key=lambda size: fmean(excess[size]))
    listed = ", ".join(f"{size}: {fmean(bits):.3f} ({max(bits):.3f})" for size, bits in excess.items())
    return (
        f"int4, {kind}: blocks of {best} are best in the mean. Bits lost against the best size for each "
        f"update, mean (worst): {listed}."
    )


def _shape_table(shapes: Sequence[Shape], points: Sequence[Point]) -> Table:
    table = _table(
        "Updates: median (smallest–largest) over tasks and learning rates",
        "kind", "steps", "round", "parameters", "rms", "kurtosis", "error of sign, no feedback",
    )  # fmt: skip
    groups = dict.fromkeys((shape.origin.kind, shape.origin.steps, shape.origin.start) for shape in shapes)
    for kind, steps, start in sorted(groups, key=lambda group: (group[0], group[1], STARTS.index(group[2]))):
        wanted: dict[str, object] = {"kind": kind, "steps": steps, "start": start}
        some = [shape for shape in shapes if _matches(shape.origin, wanted)]
        table.add_row(
            kind,
            str(steps),
            start,
            f"{some[0].parameters:,}",
            _spread([shape.rms for shape in some], "{:.1e}"),
            _spread([shape.kurtosis for shape in some], "{:.2f}"),
            _spread([point.error for point in of(points, compressor=SIGN, **wanted)], "{:.3f}"),
        )
    return table


def _codec_table(points: Sequence[Point], steps: int) -> Table:
    names = kinds(points)
    table = _table(
        f"{steps} local {'step' if steps == 1 else 'steps'}: medians over tasks, learning rates and rounds",
        "codec",
        *(heading for name in names for heading in (f"{name}: bits", "error", "above bound", "worst")),
    )
    for compressor in (*CODECS, *PEERS):
        cells = []
        for kind in names:
            some = of(points, compressor=compressor, kind=kind, steps=steps)
            cells += [
                f"{median(point.bits for point in some):.3f}",
                f"{median(point.error for point in some):.2g}",
                _bits(median(point.gap for point in some)),
                _bits(worst(some).gap),
            ]
        table.add_row(compressor, *cells, style="bold" if compressor == DEFAULT else None)
    return table


def _gap_table(title: str, heading: str, rows: dict[str, str], points: Sequence[Point], kind: str) -> Table:
    counts = all_steps(points)
    table = _table(title, heading, *(f"{n} {'step' if n == 1 else 'steps'}" for n in counts), "all")
    for label, compressor in rows.items():
        groups = [of(points, compressor=compressor, kind=kind, steps=steps) for steps in counts]
        groups.append(of(points, compressor=compressor, kind=kind))
        cells = [f"{_bits(median(p.gap for p in some))} ({_bits(worst(some).gap)})" for some in groups]
        table.add_row(label, *cells)
    return table


def _bits(gap: float) -> str:
    return "lossless" if math.isinf(gap) else f"{gap:+.3f}"


def _spread(values: Sequence[float], form: str) -> str:
    shown = [form.format(value) for value in (median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]}–{shown[2]})"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"kind", "codec", "round"} else "right")
    return table
