"""Tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from simulations.paper.forgetting_study.jobs import Outcome
from simulations.paper.forgetting_study.summary import Figure, Line
from simulations.study.tables import NOTHING, table_of

WIDE = 165
"""Columns of the table in a file or pipe: more than other studies have."""


def show(title: str, lines: Sequence[Line], head_only: str, console: Console) -> None:
    """Print what each way forgets."""
    table = table_of(
        f"{title}: accuracy in %, loss in nats, ± half of the 95 % interval over seeds; differences in "
        f"points, paired by seed and order, to Kron-LoRA or the federated mean of factors. {head_only}",
        *("way", "task", "seeds", "before", "after", "forgotten", "loss +", "other task", "both"),
        *("Δ forgotten", "Δ both"),
    )
    for line, after in zip(lines, [*lines[1:], None], strict=True):
        table.add_row(
            line.way,
            line.first or "both",
            str(line.drop.seeds),
            *(_percent(f) for f in (line.before, line.after, line.drop)),
            _nats(line.rise),
            *(_percent(f) for f in (line.other, line.both)),
            *(_percent(f) if f else NOTHING for f in (line.against, line.both_against)),
            end_section=after is not None and after.way != line.way,
        )
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def show_tuning(title: str, tried: Mapping[str, Mapping[float, Outcome]], console: Console) -> None:
    """Print the loss on held-out training texts by learning rate."""
    rates = sorted({rate for by_rate in tried.values() for rate in by_rate})
    table = table_of(
        f"{title}: loss (accuracy in %) on held-out training texts, adapters of one task each, by learning "
        "rate",
        *("adapter", *map("{:g}".format, rates)),
    )
    for name, by_rate in tried.items():
        cells = [_loss(by_rate[rate]) if rate in by_rate else NOTHING for rate in rates]
        table.add_row(name, *cells)
    console.print(table)


def _loss(outcome: Outcome) -> str:
    loss, accuracy = (sum(figures[-1]) / len(figures[-1]) for figures in (outcome.loss, outcome.accuracy))
    return f"{loss:.3f} ({100 * accuracy:.1f})"


def _percent(figure: Figure) -> str:
    half = "" if figure.half is None else f" ± {100 * figure.half:.1f}"
    return f"{100 * figure.mean:.1f}{half}"


def _nats(figure: Figure) -> str:
    half = "" if figure.half is None else f" ± {figure.half:.3f}"
    return f"{figure.mean:+.3f}{half}"
