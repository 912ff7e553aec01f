"""Tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from simulations.poison_study.attacks import BACKDOOR, NO_ATTACK, REFUSED
from simulations.poison_study.jobs import Attack, title
from simulations.poison_study.summary import Figure, Line
from simulations.study.tables import NOTHING, table_of


def show(lines: Sequence[Line], console: Console) -> None:
    """Print, case by case, accuracy and the backdoor's success, then what became of NaN."""
    for case in dict.fromkeys(line.case for line in lines):
        found = [line for line in lines if line.case == case and line.attack.name not in REFUSED]
        seeds = max(line.seeds for line in found)
        console.print(
            _table(
                f"{case}: accuracy in % after the last round (± standard error); seeds: {seeds}",
                found,
                lambda line: line.accuracy,
            )
        )
        backdoors = [line for line in found if line.attack.name in (NO_ATTACK, BACKDOOR)]
        console.print(_table(f"{case}: success of the backdoor in %", backdoors, lambda line: line.success))
    console.print(_refused([line for line in lines if line.attack.name in REFUSED]))


def cell(figure: Figure | None) -> str:
    """In percent, ± the standard error."""
    if figure is None:
        return NOTHING
    error = "" if figure.standard_error is None else f" ± {100 * figure.standard_error:.1f}"
    return f"{100 * figure.mean:.1f}{error}"


def _table(name: str, lines: Sequence[Line], figure: Callable[[Line], Figure | None]) -> Table:
    attacks: list[Attack] = list(dict.fromkeys(line.attack for line in lines))
    table = table_of(name, "way", *map(title, attacks))
    cells = {(line.defence, line.attack): cell(figure(line)) for line in lines}
    for defence in dict.fromkeys(line.defence for line in lines):
        table.add_row(
            f"{defence.aggregation} {defence.rule}",
            *(cells.get((defence, attack), NOTHING) for attack in attacks),
        )
    return table


def _refused(lines: Sequence[Line]) -> Table:
    table = table_of("NaN: accuracy in %, and what the server says", "way", "accuracy", "refused", "reason")
    for line in lines:
        table.add_row(title(line.attack), cell(line.accuracy), str(line.refused), line.reason)
    return table
