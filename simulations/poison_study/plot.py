"""Accuracy against each attack: a row for each case, a column for each space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedkron.aggregation import ROBUST_RULES
from simulations.poison_study.attacks import REFUSED
from simulations.poison_study.jobs import title
from simulations.poison_study.summary import Line
from simulations.study.figure import figure

MARKERS = dict(zip(ROBUST_RULES, "osv^D*X", strict=True))
"""A rule has the same marker and colour in every picture."""


def plot(lines: Sequence[Line], file: Path) -> None:
    """Draw accuracy in percent by attack, a marker for each rule. Bars: standard error over seeds."""
    shown = [line for line in lines if line.attack.name not in REFUSED]
    cases = list(dict.fromkeys(line.case for line in shown))
    spaces = list(dict.fromkeys(line.defence.aggregation for line in shown))
    size = (4.5 * len(spaces), 3.6 * len(cases))
    with figure(file, nrows=len(cases), ncols=len(spaces), figsize=size, squeeze=False, sharey=True) as rows:
        for case, row in zip(cases, rows, strict=True):
            attacks = list(dict.fromkeys(line.attack for line in shown if line.case == case))
            for space, axes in zip(spaces, row, strict=True):
                axes.set_title(f"{case}, {space}")
                axes.set_xticks(range(len(attacks)), map(title, attacks), rotation=35, ha="right")
                axes.grid(visible=True, alpha=0.2)
                for number, (rule, marker) in enumerate(MARKERS.items()):
                    drawn = [
                        line
                        for line in shown
                        if (line.case, line.defence.aggregation, line.defence.rule) == (case, space, rule)
                    ]
                    axes.errorbar(
                        # Side by side, so that equal ones do not hide each other.
                        [attacks.index(line.attack) + 0.09 * (number - 3) for line in drawn],
                        [100 * line.accuracy.mean for line in drawn],
                        yerr=[100 * (line.accuracy.standard_error or 0) for line in drawn],
                        fmt=marker,
                        markersize=4,
                        elinewidth=0.6,
                        label=rule,
                    )
            row[0].set_ylabel("accuracy in %")
        rows[0][-1].legend(fontsize=7, loc="lower left")
