"""From runs to articles: what is shown, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fedkron.comparison import Summary, differing_settings, summary
from fedkron.html_report import charts, comparison_charts, facts, node_charts
from fedkron.html_report.content import Article, Section, Table, Tile, decimal, duration
from fedkron.report_ledger import kilobytes
from fedkron.runlog import RunLog

T = TypeVar("T")


def run_article(log: RunLog, name: str) -> Article:
    """All that there is of one run; what it has nothing of is left out."""
    failures = node_charts.failures_table(log)
    sections = (
        Section("The run", facts=facts.head(log)),
        Section(
            "What it brought",
            _there(charts.accuracy_chart(log), charts.loss_chart(log)),
            _there(_tasks_table(log)),
        ),
        Section(
            "What it cost",
            _there(
                charts.accuracy_against_bytes_chart(log),
                charts.cumulative_chart(log),
                charts.bytes_chart(log),
            ),
        ),
        Section(
            "Nodes",
            _there(node_charts.taking_part_chart(log), node_charts.node_bytes_chart(log)),
            _there(node_charts.contributions_table(log), _groups_table(log)),
        ),
        Section(
            "Refused uploads and failures",
            tables=_there(failures),
            text="" if failures else "None." if log.rounds else "",
        ),
        Section("Aggregation", _there(charts.projection_chart(log))),
        Section("Privacy", _there(charts.privacy_chart(log)), text=_privacy_text(log)),
        Section("Settings and files", folded=(facts.settings_table(log), facts.files_table(log))),
    )
    found = summary(log, name)
    shown = tuple(section for section in sections if _has_content(section))
    return Article(name, found.status, log.error or "", _tiles(found), shown)


def comparison_article(logs: Mapping[str, RunLog]) -> Article:
    """Runs side by side."""
    found = [summary(log, name) for name, log in logs.items()]
    drawn = _there(
        comparison_charts.accuracies_chart(logs),
        comparison_charts.accuracies_against_bytes_chart(logs),
        comparison_charts.cumulatives_chart(logs),
    )
    sections = (
        Section("Figures at the end", tables=(_summaries_table(found),)),
        Section("Settings that differ", tables=_there(_differing_table(logs)), text=_same_text(logs)),
        Section("Side by side", drawn),
    )
    shown = tuple(section for section in sections if _has_content(section))
    return Article(f"{len(found)} runs side by side", "", "", (), shown)


def _has_content(section: Section) -> bool:
    return bool(section.charts or section.tables or section.folded or section.facts or section.text)


def _there(*items: T | None) -> tuple[T, ...]:
    return tuple(item for item in items if item is not None)


def _tiles(found: Summary) -> tuple[Tile, ...]:
    tiles = []
    if found.accuracy is not None:
        head_only, majority = decimal(found.head_only_accuracy), decimal(found.majority)
        compared = f"head on frozen base {head_only}, largest class {majority}"
        tiles.append(Tile("mean accuracy", decimal(found.accuracy), compared))
    if found.gain is not None:
        tiles.append(Tile("gain", f"{100 * found.gain:+.1f} points", "over a head on the frozen base"))
    if found.factor is not None and found.bytes_per_node_round is not None:
        tiles.append(Tile("bytes", f"{found.factor:.1f}× smaller", "than LoRA-8 fp32 in the same messages"))
        all_bytes = kilobytes(found.bytes_up + found.bytes_down)
        per_node = kilobytes(round(found.bytes_per_node_round))
        tiles.append(Tile("per node and round", per_node, f"up and down, evaluation too; {all_bytes} in all"))
    failures = "no upload refused" if not found.failures else f"{found.failures} refused or failed"
    tiles.append(Tile("rounds", str(found.rounds), f"{failures}; {duration(found.seconds)}"))
    if found.epsilon is not None:
        tiles.append(Tile("privacy budget", f"ε = {found.epsilon:.3g}", "for the node asked most often"))
    return tuple(tiles)


def _tasks_table(log: RunLog) -> Table | None:
    evaluated = next((entry for entry in reversed(log.rounds) if entry.tasks), None)
    if evaluated is None:
        return None
    rows = tuple(
        (
            name,
            decimal(task.majority),
            decimal(task.head_only_accuracy),
            decimal(task.accuracy),
            f"{task.accuracy - task.head_only_accuracy:+.3f}",
            str(task.clients),
        )
        for name, task in evaluated.tasks.items()
    )
    headings = ("task", "largest class", "frozen base + head", "federated adapter", "gain", "nodes")
    return Table(f"Accuracy after round {evaluated.round}", headings, rows)


def _groups_table(log: RunLog) -> Table | None:
    if not log.groups:
        return None
    rows = tuple((group, ", ".join(nodes)) for group, nodes in log.groups.items())
    return Table("Groups with an adapter of their own", ("group", "nodes"), rows)


def _privacy_text(log: RunLog) -> str:
    spent = next((entry.privacy for entry in reversed(log.rounds) if entry.privacy), None)
    if spent is None or spent.epsilon is not None:
        return ""
    return "No differential privacy: updates are clipped, but without noise nothing is guaranteed."


def _summaries_table(found: list[Summary]) -> Table:
    rows = tuple(
        (
            one.run,
            one.status,
            str(one.rounds),
            decimal(one.accuracy),
            "–" if one.gain is None else f"{one.gain:+.3f}",
            kilobytes(one.bytes_up),
            kilobytes(one.bytes_down),
            decimal(one.factor, 1),
            str(one.failures),
            decimal(one.epsilon),
            duration(one.seconds),
        )
        for one in found
    )
    measured = ("mean accuracy", "gain", "up", "down", "× smaller", "failures", "ε", "duration")
    headings = ("run", "status", "rounds", *measured)
    # A column in which nobody has anything says nothing.
    kept = [i for i in range(len(headings)) if any(row[i] != "–" for row in rows)]
    return Table("", tuple(headings[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _differing_table(logs: Mapping[str, RunLog]) -> Table | None:
    differing = differing_settings(list(logs.values()))
    if not differing:
        return None
    rows = tuple((key, *map(str, values)) for key, values in differing.items())
    return Table("", ("setting", *logs), rows, words=True)


def _same_text(logs: Mapping[str, RunLog]) -> str:
    return "" if differing_settings(list(logs.values())) else "All runs have the same settings."
