"""What single nodes did in a run: who took part when, and how many bytes that were."""

from __future__ import annotations

from typing import Any

from plotly import graph_objects as go

from fedkron.contributions import Contribution, contributions, node_names
from fedkron.html_report.charts import round_axis
from fedkron.html_report.content import Chart, Table, decimal, numbers
from fedkron.html_report.theme import colour, label
from fedkron.report_ledger import kilobytes
from fedkron.runlog import NodeFigures, RunLog

MOST_BARS = 40
"""More nodes than this have a table only: bars would be thinner than their names."""

ABSENT, COUNTED, FAILED, ASKED = "not asked", "counted", "failed", "evaluated only"
STATES = {ABSENT: "#8888881a", COUNTED: colour(0), FAILED: colour(1), ASKED: "#808080"}


def contributions_table(log: RunLog) -> Table | None:
    """A line per node."""
    found = contributions(log)
    if not found:
        return None
    rows = tuple(
        (
            one.node,
            decimal(one.rounds, 0),
            decimal(one.failures, 0),
            "–" if one.examples is None else f"{one.examples:,}",
            kilobytes(one.bytes_up),
            kilobytes(one.bytes_down),
            decimal(one.train_loss),
            decimal(one.update_norm),
            decimal(one.accuracy),
        )
        for one in found
    )
    measured = ("last loss", "last update norm", "last accuracy")
    headings = ("node", "rounds", "failures", "examples trained on", "up", "down", *measured)
    return Table("Nodes over all rounds", headings, rows)


def node_bytes_chart(log: RunLog) -> Chart | None:
    """Bytes up and down per node."""
    found = contributions(log)
    if not 0 < len(found) <= MOST_BARS:
        return None
    figure = go.Figure()
    rows = list(range(len(found)))
    for number, (direction, sizes) in enumerate(
        (("up", [one.bytes_up for one in found]), ("down", [one.bytes_down for one in found]))
    ):
        figure.add_bar(
            y=rows,
            x=sizes,
            orientation="h",
            name=direction,
            marker={"color": colour(number)},
            hovertemplate="%{x:.3s}B",
        )
    figure.update_layout(
        barmode="stack",
        height=150 + 26 * len(found),
        xaxis={"tickformat": "~s", "ticksuffix": "B"},
        yaxis=_node_axis([one.node for one in found]),
    )
    return Chart(
        "Bytes per node", "Serialized Flower messages over all rounds.", figure, _bytes_numbers(found)
    )


def _bytes_numbers(found: list[Contribution]) -> Table:
    rows = [[one.node, kilobytes(one.bytes_up), kilobytes(one.bytes_down)] for one in found]
    return numbers(["node", "up", "down"], rows)


def taking_part_chart(log: RunLog) -> Chart | None:
    """Who took part in which round."""
    entries = [entry for entry in log.rounds if entry.nodes]
    if not entries:
        return None
    names = node_names(log)
    rows = sorted(set(names.values()))
    rounds = [entry.round for entry in entries]
    seen = {(names[node], entry.round): figures for entry in entries for node, figures in entry.nodes.items()}
    states = [[_state(seen.get((row, number))) for number in rounds] for row in rows]
    codes = list(STATES)
    figure = go.Figure()
    figure.add_heatmap(
        x=rounds,
        y=list(range(len(rows))),
        z=[[codes.index(state) for state in line] for line in states],
        text=[
            [
                f"{label(row)}, {_told(state, seen.get((row, n)))}"
                for state, n in zip(line, rounds, strict=True)
            ]
            for row, line in zip(rows, states, strict=True)
        ],
        hovertemplate="round %{x}, %{text}<extra></extra>",
        colorscale=_steps(list(STATES.values())),
        zmin=-0.5,
        zmax=len(STATES) - 0.5,
        showscale=False,
        xgap=2 if len(rounds) <= MOST_BARS else 0,
        ygap=2 if len(rows) <= MOST_BARS else 0,
    )
    for state in [state for state in STATES if any(state in line for line in states)]:
        square = {"size": 11, "symbol": "square", "color": STATES[state]}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=square, name=state)
    figure.update_layout(
        height=min(150 + 22 * len(rows), 640),
        xaxis=round_axis(rounds) | {"showgrid": False},
        yaxis=_node_axis(rows) | {"showgrid": False},
    )
    told = [
        [row, *(line[number] for number in range(len(rounds)))]
        for row, line in zip(rows, states, strict=True)
    ]
    return Chart(
        "Who took part",
        "A square for each node and round: its update counted, it failed or was refused, or was not asked.",
        figure,
        numbers(["node", *(f"round {number}" for number in rounds)], told),
    )


def failures_table(log: RunLog) -> Table | None:
    """Refused uploads and other failures with their reasons."""
    rows = tuple((str(entry.round), reason) for entry in log.rounds for reason in entry.failures)
    return Table("", ("round", "what was refused or failed, and why"), rows) if rows else None


def _node_axis(names: list[str]) -> dict[str, Any]:
    """Names from top to bottom, by position: two of them may be alike once they are shortened."""
    axis: dict[str, Any] = {"range": [len(names) - 0.5, -0.5], "zeroline": False}
    if len(names) > MOST_BARS:
        return axis | {"showticklabels": False, "title": {"text": f"{len(names)} nodes"}}
    return axis | {"tickvals": list(range(len(names))), "ticktext": list(map(label, names))}


def _state(figures: NodeFigures | None) -> str:
    if figures is None:
        return ABSENT
    if figures.failures:
        return FAILED
    return COUNTED if figures.examples is not None else ASKED


def _told(state: str, figures: NodeFigures | None) -> str:
    if figures is None or figures.examples is None:
        return state
    known = [f"{figures.examples} examples"]
    known += [f"loss {figures.train_loss:.3f}"] if figures.train_loss is not None else []
    known += [f"norm {figures.update_norm:.3g}"] if figures.update_norm is not None else []
    known += [f"accuracy {figures.accuracy:.3f}"] if figures.accuracy is not None else []
    return f"{state}, {', '.join(known)}"


def _steps(colours: list[str]) -> list[tuple[float, str]]:
    """A colour scale without transitions."""
    share = 1 / len(colours)
    return [(share * (i + end), tint) for i, tint in enumerate(colours) for end in (0, 1)]
