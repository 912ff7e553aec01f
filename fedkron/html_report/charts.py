"""The charts of one run: each a pure function of what the run wrote; None where there is nothing to show."""

from __future__ import annotations

from itertools import accumulate
from math import log10
from typing import Any

from plotly import graph_objects as go
from plotly.subplots import make_subplots

from fedkron.html_report.content import Chart, decimal, numbers
from fedkron.html_report.theme import GREY, colour, compared_line, label, marked_line
from fedkron.ledger import Totals, by_round, sections
from fedkron.report import BASELINE
from fedkron.report_ledger import kilobytes
from fedkron.runlog import RunLog


def accuracy_chart(log: RunLog) -> Chart | None:
    """Accuracy per task and round, and of a head on the frozen base."""
    evaluated = [entry for entry in log.rounds if entry.tasks]
    if not evaluated:
        return None
    figure = go.Figure()
    tasks = sorted({task for entry in evaluated for task in entry.tasks})
    for number, task in enumerate(tasks):
        own = [(entry.round, entry.tasks[task]) for entry in evaluated if task in entry.tasks]
        rounds = [round_ for round_, _ in own]
        common = {"x": rounds, "legendgroup": str(number)}
        accuracies = [figures.accuracy for _, figures in own]
        figure.add_scatter(**common, y=accuracies, name=label(task), **marked_line(number))
        head_only = [figures.head_only_accuracy for _, figures in own]
        figure.add_scatter(
            **common,
            y=head_only,
            name=f"{label(task)}: frozen base",
            showlegend=False,
            **compared_line(colour(number)),
        )
    rounds = [entry.round for entry in evaluated]
    if len(tasks) > 1:
        means = [entry.accuracy for entry in evaluated]
        mean = {"mode": "lines+markers", "line": {"color": GREY, "width": 4}, "marker": {"size": 9}}
        figure.add_scatter(x=rounds, y=means, name="mean of tasks", **mean)
    figure.add_scatter(x=[None], y=[None], name="dotted: frozen base", **compared_line())
    figure.update_layout(xaxis=round_axis(rounds), yaxis=share_axis("accuracy"), hovermode="x unified")
    rows = [
        [
            str(entry.round),
            *(decimal(entry.tasks[task].accuracy if task in entry.tasks else None) for task in tasks),
            decimal(entry.accuracy),
            decimal(entry.head_only_accuracy),
            decimal(entry.majority),
        ]
        for entry in evaluated
    ]
    headings = ["round", *tasks, "mean", "mean of frozen base + head", "mean of largest class"]
    return Chart(
        "Accuracy per task and round",
        "Measured by the nodes on their own test examples, with the adapter of the round. Dotted: a head "
        "that was trained on the frozen base with the same examples.",
        figure,
        numbers(headings, rows),
    )


def loss_chart(log: RunLog) -> Chart | None:
    """Training loss per round."""
    known = [(entry.round, entry.train_loss) for entry in log.rounds if entry.train_loss is not None]
    if not known:
        return None
    rounds, losses = [round_ for round_, _ in known], [loss for _, loss in known]
    figure = go.Figure()
    figure.add_scatter(x=rounds, y=losses, name="training loss", **marked_line(0))
    figure.update_layout(
        xaxis=round_axis(rounds), yaxis={"title": {"text": "loss"}, "rangemode": "tozero"}, showlegend=False
    )
    return Chart(
        "Training loss",
        "Mean over the nodes' training examples, as they saw them in local training.",
        figure,
        numbers(["round", "loss"], [[str(round_), decimal(loss, 4)] for round_, loss in known]),
    )


def bytes_chart(log: RunLog) -> Chart | None:
    """Bytes per round and direction, stacked by section."""
    if not log.transfers:
        return None
    found = {number: sections(own) for number, own in by_round(log.transfers).items()}
    rounds = list(found)
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=["up", "down"]
    )
    kinds = ("factors", "head", "headers", "envelope")
    shown = [
        kind for kind in kinds if any(getattr(one, kind) for both in found.values() for one in both.values())
    ]
    for row, direction in enumerate(("up", "down"), start=1):
        for number, kind in enumerate(kinds):
            if kind not in shown:
                continue
            sizes = [getattr(both[direction], kind) for both in found.values()]  # type: ignore[index]
            bars = go.Bar(
                x=rounds,
                y=sizes,
                name=kind,
                marker={"color": colour(number)},
                legendgroup=kind,
                showlegend=row == 1,
                hovertemplate="round %{x}: %{y:.3s}B",
            )
            figure.add_trace(bars, row=row, col=1)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(tickformat="~s", ticksuffix="B", rangemode="tozero")
    figure.update_layout(yaxis2={"matches": "y"})
    figure.update_xaxes(round_axis(rounds) | {"title": None})
    figure.update_xaxes(title={"text": "round"}, row=2)
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    rows = [
        [str(number), direction, *(kilobytes(getattr(both[direction], kind)) for kind in kinds)]
        for number, both in found.items()
        for direction in ("up", "down")
    ]
    return Chart(
        "Bytes per round",
        "Serialized Flower messages of all nodes. Factors and head are what is learned, headers are the rest "
        "of our payload, the envelope is Flower's.",
        figure,
        numbers(["round", "direction", *kinds], rows),
    )


def cumulative_chart(log: RunLog) -> Chart | None:
    """All bytes so far, against LoRA-8 in float32."""
    so_far = cumulative(log)
    if not so_far:
        return None
    rounds = list(so_far)
    figure = go.Figure()
    ours = [cost.messages for cost in so_far.values()]
    baseline = [cost.baseline for cost in so_far.values()]
    figure.add_scatter(x=rounds, y=baseline, name=BASELINE, **marked_line(1))
    figure.add_scatter(x=rounds, y=ours, name="this run", **marked_line(0))
    figure.update_layout(xaxis=round_axis(rounds), yaxis=bytes_axis([*ours, *baseline]))
    rows = [
        [str(number), kilobytes(cost.messages), kilobytes(cost.baseline), decimal(cost.factor, 1)]
        for number, cost in so_far.items()
    ]
    return Chart(
        f"Cumulative bytes against {BASELINE}",
        f"Both directions, all nodes, logarithmic. {BASELINE}: the raw tensors of LoRA of rank 8 on the same "
        "layers in the same messages, without any envelope.",
        figure,
        numbers(["round", "this run", BASELINE, "× smaller"], rows),
    )


def accuracy_against_bytes_chart(log: RunLog) -> Chart | None:
    """What the bytes have brought."""
    points = accuracy_and_bytes(log)
    if not points:
        return None
    sizes = [size for _, size, _ in points]
    figure = go.Figure()
    figure.add_scatter(
        x=sizes,
        y=[accuracy for *_, accuracy in points],
        name="mean accuracy",
        customdata=[number for number, *_ in points],
        hovertemplate="round %{customdata}: %{y:.3f} after %{x:.3s}B",
        **marked_line(0),
    )
    last = next(entry for entry in reversed(log.rounds) if entry.tasks)
    ends = [min(sizes), max(sizes)]
    head_only = last.head_only_accuracy
    figure.add_scatter(x=ends, y=[head_only, head_only], name="frozen base + head", **compared_line())
    figure.update_layout(
        xaxis=bytes_axis(sizes) | {"title": {"text": "bytes so far, all nodes, up and down"}},
        yaxis=share_axis("mean accuracy"),
    )
    rows = [[str(number), kilobytes(size), decimal(accuracy)] for number, size, accuracy in points]
    return Chart(
        "Accuracy against bytes",
        "Mean accuracy over tasks after each round, against all bytes that were sent until then.",
        figure,
        numbers(["round", "bytes so far", "mean accuracy"], rows),
    )


def projection_chart(log: RunLog) -> Chart | None:
    """What the projection on one adapter lost per round."""
    known = [(e.round, e.projection_error) for e in log.rounds if e.projection_error is not None]
    if not known:
        return None
    rounds, errors = [round_ for round_, _ in known], [error for _, error in known]
    figure = go.Figure()
    figure.add_scatter(x=rounds, y=errors, name="projection error", **marked_line(0))
    figure.update_layout(
        xaxis=round_axis(rounds), yaxis={"title": {"text": "relative error"}, "rangemode": "tozero"}
    )
    return Chart(
        "Projection error",
        "How far the adapter of a round is from the exact mean of the nodes' ΔW, relative to that.",
        figure,
        numbers(["round", "relative error"], [[str(round_), decimal(error, 4)] for round_, error in known]),
    )


def privacy_chart(log: RunLog) -> Chart | None:
    """The budget that is spent after each round."""
    spent = [(entry.round, entry.privacy) for entry in log.rounds if entry.privacy is not None]
    if not spent or any(budget.epsilon is None for _, budget in spent):
        return None
    rounds = [round_ for round_, _ in spent]
    figure = go.Figure()
    figure.add_scatter(x=rounds, y=[budget.epsilon for _, budget in spent], name="ε", **marked_line(0))
    figure.update_layout(xaxis=round_axis(rounds), yaxis={"title": {"text": "ε"}, "rangemode": "tozero"})
    delta = spent[-1][1].delta
    rows = [
        [str(round_), decimal(budget.epsilon), str(budget.rounds), f"{budget.clipping_norm:.3g}"]
        for round_, budget in spent
    ]
    return Chart(
        "Privacy budget",
        f"ε at δ = {delta:g}, of the node that was asked most often. Measurements are not protected.",
        figure,
        numbers(["round", "ε", "times asked", "clipping norm"], rows),
    )


def cumulative(log: RunLog) -> dict[int, Totals]:
    """All bytes until each round, with those before the first in it."""
    costs = log.bytes_by_round
    return dict(zip(costs, accumulate(costs.values(), Totals.__add__), strict=True))


def accuracy_and_bytes(log: RunLog) -> list[tuple[int, int, float]]:
    """Round, bytes so far, mean accuracy: for each round that was evaluated and whose bytes are known."""
    so_far = cumulative(log)
    return [
        (entry.round, so_far[entry.round].messages, entry.accuracy)
        for entry in log.rounds
        if entry.tasks and entry.round in so_far
    ]


def round_axis(rounds: list[int]) -> dict[str, Any]:
    """An axis of whole rounds."""
    few = len(set(rounds)) <= 12
    return {"title": {"text": "round"}, "tickformat": "d", **({"dtick": 1} if few else {})}


def share_axis(title: str) -> dict[str, Any]:
    """An axis of shares in [0, 1], cut to where they are."""
    return {"title": {"text": title}, "tickformat": ".2f", "hoverformat": ".3f"}


def bytes_axis(sizes: list[int]) -> dict[str, Any]:
    """A logarithmic axis of bytes, with its ticks at 1, 2 and 5, or at powers of ten where that is enough."""
    positive = [size for size in sizes if size > 0] or [1]
    low, high = min(positive), max(positive)
    powers = [10**n for n in range(len(str(low)) - 1, len(str(high)) + 1)]
    fine = [power * digit for power in powers for digit in (1, 2, 5)]
    ticks = powers if high / low > 1000 else fine
    margin = max(1.15, (high / low) ** 0.06)
    reach = [log10(low / margin), log10(high * margin)]
    shown = [tick for tick in ticks if reach[0] <= log10(tick) <= reach[1]]
    labels = [_tick(tick) for tick in shown or positive]
    return {
        "type": "log",
        "tickvals": shown or positive,
        "ticktext": labels,
        "hoverformat": ".3s",
        "range": reach,
    }


def _tick(size: int) -> str:
    unit, name = next((u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B")) if size >= u)
    return f"{size / unit:.4g} {name}"
