"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from simulations.compression_study.jobs import Outcome
from simulations.compression_study.schemes import BASELINE, FORGETFUL, PLAIN, REFERENCE, Scheme
from simulations.compression_study.summary import SMOOTH, Difference, Line, Spread, Traffic, mean_over_tasks

Tried = Mapping[str, Mapping[float, Outcome]]
"""Outcomes of tuning by adapter kind and learning rate."""


def show(lines: Sequence[Line], tried: Tried, console: Console) -> None:
    """Print four tables: tuning, accuracy, bytes, and accuracy round by round."""
    console.print(_tuning(tried))
    console.print(_accuracy(lines))
    console.print(
        f"A head alone on the frozen base: {100 * lines[0].head_only:.2f} %. Without feedback: what a codec "
        "leaves out is thrown away, up and down.\n",
        highlight=False,
    )
    console.print(_bytes(lines))
    console.print(_curves(lines))


def title(scheme: Scheme) -> str:
    """A scheme's name among others."""
    if scheme.exchange == PLAIN:
        return f"{scheme.name}, plain Flower"
    suffix = ", no feedback" if scheme.exchange == FORGETFUL else ""
    codecs = dict.fromkeys((scheme.upload, scheme.broadcast))
    return f"Kron-LoRA {' up, '.join(codecs)}{' down' if len(codecs) > 1 else ''}{suffix}"


def _tuning(tried: Tried) -> Table:
    rates = sorted({rate for by_rate in tried.values() for rate in by_rate})
    table = _table("Accuracy in % by learning rate", "adapter", *map("{:g}".format, rates))
    for kind, by_rate in tried.items():
        means = (mean_over_tasks(by_rate[rate], SMOOTH) for rate in rates)
        table.add_row(kind, *(f"{100 * mean:.2f}" for mean in means))
    return table


def _accuracy(lines: Sequence[Line]) -> Table:
    table = _table(
        "Accuracy in %: mean over tasks ± standard deviation over seeds;\n"
        "differences in points over the last two rounds ± standard error, paired by seed and task",
        *("scheme", "rate", "last round", "last two", "loss"),
        *(f"− {title(other)}" for other in (REFERENCE, BASELINE)),
    )
    for line in lines:
        table.add_row(
            title(line.scheme),
            f"{line.learning_rate:g}",
            _percent(line.last),
            _percent(line.smooth),
            f"{line.loss.mean:.3f}",
            *(_points(line.against[other.name]) for other in (REFERENCE, BASELINE)),
        )
    return table


def _bytes(lines: Sequence[Line]) -> Table:
    table = _table(
        f"Serialized Flower messages per client and round, and × fewer bytes than {BASELINE.name}",
        *("scheme", "kB up", "kB down", "last round: up", "down", "× up", "× down", "× both"),
    )
    for line in lines:
        times = (line.smaller.up, line.smaller.down, line.smaller.both) if line.smaller else ()
        cells = [f"{ratio:.1f}" for ratio in times] or ["–"] * 3
        table.add_row(title(line.scheme), *_kilobytes(line.traffic), *_kilobytes(line.steady), *cells)
    return table


def _curves(lines: Sequence[Line]) -> Table:
    rounds = range(1, len(lines[0].curve) + 1)
    table = _table("Accuracy in % after each round", "scheme", *map(str, rounds))
    for line in lines:
        table.add_row(title(line.scheme), *(f"{100 * accuracy:.2f}" for accuracy in line.curve))
    return table


def _percent(spread: Spread) -> str:
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"


def _points(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    error = "" if difference.standard_error is None else f" ± {100 * difference.standard_error:.2f}"
    return f"{100 * difference.mean:+.2f}{error}"


def _kilobytes(traffic: Traffic) -> tuple[str, str]:
    return f"{traffic.up / 1000:,.1f}", f"{traffic.down / 1000:,.1f}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"scheme", "adapter"} else "right")
    return table
