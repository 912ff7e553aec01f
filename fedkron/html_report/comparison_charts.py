"""Several runs in one chart each."""

from __future__ import annotations

from collections.abc import Mapping

from plotly import graph_objects as go

from fedkron.html_report.charts import accuracy_and_bytes, bytes_axis, cumulative, round_axis, share_axis
from fedkron.html_report.content import Chart, decimal, numbers
from fedkron.html_report.theme import GREY, colour, compared_line, label, marked_line
from fedkron.report import BASELINE
from fedkron.report_ledger import kilobytes
from fedkron.runlog import RunLog

Named = Mapping[str, RunLog]


def accuracies_chart(logs: Named) -> Chart | None:
    """Mean accuracy per round, a line a run."""
    lines = {
        name: [(e.round, e.accuracy, e.head_only_accuracy) for e in log.rounds if e.tasks]
        for name, log in logs.items()
    }
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return None
    figure = go.Figure()
    for number, name in enumerate(logs):
        if name not in lines:
            continue
        rounds, accuracies, head_only = zip(*lines[name], strict=True)
        common = {"x": rounds, "legendgroup": str(number)}
        figure.add_scatter(**common, y=accuracies, name=label(name), **marked_line(number))
        dotted = {"name": f"{label(name)}: frozen base", "showlegend": False}
        figure.add_scatter(**common, y=head_only, **dotted, **compared_line(colour(number)))
    figure.add_scatter(x=[None], y=[None], name="dotted: frozen base", **compared_line())
    every_round = [round_ for line in lines.values() for round_, *_ in line]
    figure.update_layout(
        xaxis=round_axis(every_round), yaxis=share_axis("mean accuracy"), hovermode="x unified"
    )
    rows = [
        [name, str(round_), decimal(accuracy), decimal(head_only)]
        for name, line in lines.items()
        for round_, accuracy, head_only in line
    ]
    return Chart(
        "Mean accuracy per round",
        "Mean over the tasks of each run. Compare runs of the same tasks only.",
        figure,
        numbers(["run", "round", "mean accuracy", "frozen base + head"], rows),
    )


def accuracies_against_bytes_chart(logs: Named) -> Chart | None:
    """Mean accuracy against all bytes so far, a line a run."""
    points = {name: accuracy_and_bytes(log) for name, log in logs.items()}
    if not any(points.values()):
        return None
    figure = go.Figure()
    for number, (name, own) in enumerate(points.items()):
        figure.add_scatter(
            x=[size for _, size, _ in own],
            y=[accuracy for *_, accuracy in own],
            customdata=[round_ for round_, *_ in own],
            hovertemplate="round %{customdata}: %{y:.3f} after %{x:.3s}B",
            name=label(name),
            **marked_line(number),
        )
    sizes = [size for own in points.values() for _, size, _ in own]
    figure.update_layout(
        xaxis=bytes_axis(sizes) | {"title": {"text": "bytes so far, all nodes, up and down"}},
        yaxis=share_axis("mean accuracy"),
    )
    rows = [
        [name, str(round_), kilobytes(size), decimal(accuracy)]
        for name, own in points.items()
        for round_, size, accuracy in own
    ]
    return Chart(
        "Accuracy against bytes",
        "Up and to the left is better. Bytes of serialized Flower messages, logarithmic.",
        figure,
        numbers(["run", "round", "bytes so far", "mean accuracy"], rows),
    )


def cumulatives_chart(logs: Named) -> Chart | None:
    """All bytes so far per round, a line a run, and the largest baseline."""
    found = {name: cumulative(log) for name, log in logs.items() if log.transfers}
    if not found:
        return None
    figure = go.Figure()
    for number, name in enumerate(logs):
        if name in found:
            sizes = [cost.messages for cost in found[name].values()]
            figure.add_scatter(x=list(found[name]), y=sizes, name=label(name), **marked_line(number))
    most = max(found.values(), key=lambda costs: max(cost.baseline for cost in costs.values()))
    baseline = [cost.baseline for cost in most.values()]
    figure.add_scatter(x=list(most), y=baseline, name=BASELINE, **compared_line(GREY))
    rounds = [number for costs in found.values() for number in costs]
    all_sizes = [cost.messages for costs in found.values() for cost in costs.values()]
    figure.update_layout(xaxis=round_axis(rounds), yaxis=bytes_axis([*all_sizes, *baseline]))
    rows = [
        [name, str(number), kilobytes(cost.messages), kilobytes(cost.baseline), decimal(cost.factor, 1)]
        for name, costs in found.items()
        for number, cost in costs.items()
    ]
    return Chart(
        f"Cumulative bytes against {BASELINE}",
        f"Both directions, all nodes, logarithmic. {BASELINE} is that of the run with the most of it; the "
        "table has each run's own.",
        figure,
        numbers(["run", "round", "bytes so far", BASELINE, "× smaller"], rows),
    )
