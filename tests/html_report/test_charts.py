"""What charts show, against the lines that the run wrote; and colours against their backgrounds."""

import json
from itertools import accumulate
from pathlib import Path

import pytest

from fedkron.contributions import contributions
from fedkron.html_report import charts, node_charts
from fedkron.html_report.content import Chart
from fedkron.html_report.theme import BACKGROUNDS, COLOURS, GREY, LONGEST_LABEL, label
from fedkron.rundir import LEDGER, ROUNDS
from fedkron.runlog import RunLog


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def transfers(log: RunLog) -> list[dict]:
    return lines(log.folder / LEDGER)[1:]


def trace(chart: Chart | None, name: str) -> dict:
    assert chart is not None
    (found,) = [one.to_plotly_json() for one in chart.figure.data if one.name == name]
    return found


def test_accuracy_has_a_line_per_task_and_its_baseline(eventful: RunLog) -> None:
    chart = charts.accuracy_chart(eventful)
    written = [line["evaluated"] for line in lines(eventful.folder / ROUNDS)]
    assert len(written[0]) == 2
    for task in written[0]:
        shown = trace(chart, label(task))
        assert list(shown["x"]) == [1, 2, 3]
        assert list(shown["y"]) == [line[task]["metrics"]["accuracy"] for line in written]
        baseline = trace(chart, f"{label(task)}: frozen base")
        assert list(baseline["y"]) == [line[task]["metrics"]["head-only-accuracy"] for line in written]


def test_bars_of_a_direction_add_up_to_its_messages(eventful: RunLog) -> None:
    chart = charts.bytes_chart(eventful)
    assert chart is not None
    for axis, direction in (("y", "up"), ("y2", "down")):
        bars = [one for one in chart.figure.data if one.yaxis == axis]
        for place, number in enumerate((1, 2, 3)):
            own = [t for t in transfers(eventful) if (t["round"], t["direction"]) == (number, direction)]
            assert sum(bar.y[place] for bar in bars) == sum(t["message_bytes"] for t in own) > 0


def test_cumulative_bytes_and_accuracy_against_them(eventful: RunLog) -> None:
    def so_far(key: str) -> list[int]:
        return list(
            accumulate(sum(t[key] for t in transfers(eventful) if t["round"] == n) for n in (1, 2, 3))
        )

    cumulative = charts.cumulative_chart(eventful)
    assert list(trace(cumulative, "this run")["y"]) == so_far("message_bytes")
    assert list(trace(cumulative, "LoRA-8 fp32")["y"]) == so_far("baseline_bytes")
    against = trace(charts.accuracy_against_bytes_chart(eventful), "mean accuracy")
    assert list(against["x"]) == so_far("message_bytes")
    assert list(against["y"]) == [entry.accuracy for entry in eventful.rounds]


def test_nodes_have_what_they_sent_and_did(eventful: RunLog) -> None:
    found = contributions(eventful)
    assert [one.rounds for one in found] == [0, 3, 3]
    failed, *sound = found
    assert failed.failures == 6  # training and evaluation
    assert (failed.node, failed.examples, failed.accuracy) == ("1002", 0, None)
    last = lines(eventful.folder / ROUNDS)[-1]["nodes"]
    for one, node in zip(sound, ("1001", "1000"), strict=True):
        assert one.node == f"{last[node]['task']}-{last[node]['partition']}"
        own = [t for t in transfers(eventful) if t["node"] == node]
        assert one.bytes_up == sum(t["message_bytes"] for t in own if t["direction"] == "up")
        assert one.bytes_down == sum(t["message_bytes"] for t in own if t["direction"] == "down")
        assert one.examples == 3 * 48
        assert one.accuracy == last[node]["evaluated"]["accuracy"]
    chart = node_charts.taking_part_chart(eventful)
    assert chart is not None
    assert [row[1:] for row in chart.numbers.rows] == [("failed",) * 3, ("counted",) * 3, ("counted",) * 3]


def test_projection_and_budget_have_charts_where_there_are_any(eventful: RunLog, private: RunLog) -> None:
    errors = [line["projection_error"] for line in lines(eventful.folder / ROUNDS)]
    assert list(trace(charts.projection_chart(eventful), "projection error")["y"]) == errors
    budget = [line["privacy"]["epsilon"] for line in lines(private.folder / ROUNDS)]
    assert list(trace(charts.privacy_chart(private), "ε")["y"]) == budget
    assert charts.projection_chart(private) is None
    assert charts.privacy_chart(eventful) is None


@pytest.mark.parametrize("sizes", [[0, 3], [900, 1100], [20_000, 119_000], [1, 10**12], [5 * 10**9]])
def test_a_logarithmic_axis_has_ticks_in_its_range(sizes: list[int]) -> None:
    axis = charts.bytes_axis(sizes)
    low, high = (10**end for end in axis["range"])
    assert 1 <= len(axis["tickvals"]) <= 13
    assert all(low <= tick <= high for tick in axis["tickvals"])
    assert len(axis["tickvals"]) == len(set(axis["ticktext"]))
    assert low < min(size for size in sizes if size) <= max(sizes) < high


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", BACKGROUNDS.values())
@pytest.mark.parametrize("colour", [*COLOURS, GREY])
def test_every_colour_can_be_seen_on_every_background(colour: str, background: str) -> None:
    lighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3  # graphical objects, WCAG 2.2 1.4.11


def test_a_label_is_short_and_no_markup() -> None:
    assert label("<b>&") == "&lt;b&gt;&amp;"
    assert label("clinic-a-very-long-name-of-a-task-17").endswith("task-17")
    assert len(label("x" * 500)) == LONGEST_LABEL
