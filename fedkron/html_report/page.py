"""The page: one file with all that it needs, and nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from fedkron.atomic import write_atomically
from fedkron.comparison import run_names
from fedkron.errors import RunError
from fedkron.html_report.articles import comparison_article, run_article
from fedkron.html_report.content import Article, Chart
from fedkron.html_report.theme import templates
from fedkron.runlog import RunLog

NUMERIC = re.compile(r"[+-]?\d[\d.,]*( kB| MB)?|–")
"""Cells that stand to the right."""


def write_page(logs: Sequence[RunLog], path: Path) -> None:
    """Write the page of a run, or of several side by side. Raises `RunError` where that cannot be done."""
    content = page(logs).encode()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"the page cannot be written to {path}: {error.strerror}") from None


def page(logs: Sequence[RunLog]) -> str:
    """The page as HTML: one run, or a comparison with each run below it."""
    named = dict(zip(_unique(run_names(logs)), logs, strict=True))
    runs = [run_article(log, name) for name, log in named.items()]
    comparison = comparison_article(named) if len(runs) > 1 else None
    articles = [*([comparison] if comparison else []), *runs]
    charts = _charts(articles)
    script = _text("page.js")
    return _template().render(
        title=(comparison or runs[0]).title,
        comparison=comparison,
        runs=runs,
        policy=_policy(get_plotlyjs(), script),
        style=Markup(_text("page.css")),
        plotly=Markup(get_plotlyjs()),
        script=Markup(script),
        templates=_json(templates()),
        figures=_json({f"chart-{n}": _plain(chart) for n, chart in enumerate(charts.values())}),
        numeric=lambda cell: NUMERIC.fullmatch(cell) is not None,
        keys={place: f"chart-{n}" for n, place in enumerate(charts)},
    )


def _unique(names: list[str]) -> list[str]:
    """The same run twice is shown twice."""
    return [name if names.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _charts(articles: Sequence[Article]) -> dict[tuple[str, str], Chart]:
    """All charts by their titles and those of their articles."""
    return {
        (chart.title, article.title): chart
        for article in articles
        for section in article.sections
        for chart in section.charts
    }


def _plain(chart: Chart) -> dict[str, object]:
    content = chart.figure.to_plotly_json()
    layout = {key: value for key, value in content["layout"].items() if key != "template"}
    return {"data": content["data"], "layout": layout}


def _json(content: object) -> Markup:
    """JSON that can stand in a script element: names come from nodes, and must not end it."""
    text = json.dumps(content, separators=(",", ":"), cls=PlotlyJSONEncoder)  # NaN becomes null
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(*scripts: str) -> str:
    """A Content-Security-Policy that lets these scripts run, and nothing load anything.

    Plotly sets styles of elements, and makes pictures of charts to download.
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _text(name: str) -> str:
    return (files("fedkron.html_report") / name).read_text(encoding="utf-8")


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("page.html.jinja"))
