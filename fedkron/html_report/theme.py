"""How charts look: colours that are told apart on white and on black, and by who does not see colours."""

from __future__ import annotations

from html import escape
from typing import Any

COLOURS = ("#0f7ac9", "#d5620a", "#0a8f7c", "#c2408f", "#7b6ad6", "#8a7b00", "#d33c35", "#5c8a1e")
"""Of lines and bars, one a task, run or section; each has a contrast of at least 3 to both backgrounds."""

GREY = "#808080"
"""Of what a figure is compared with."""

BACKGROUNDS = {"light": "#ffffff", "dark": "#16191f"}
"""Of the boxes that charts stand in."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")
LONGEST_LABEL = 22

_INK = {"light": "#1d2129", "dark": "#e6e8ec"}
_GRID = {"light": "#e1e4e8", "dark": "#2f343d"}


def colour(number: int) -> str:
    """The colour of the n-th of several."""
    return COLOURS[number % len(COLOURS)]


def marked_line(number: int) -> dict[str, Any]:
    """Colour, symbol and (beyond as many as there are colours) dash of the n-th of several lines."""
    return {
        "line": {"color": colour(number), "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
        "marker": {
            "color": colour(number),
            "symbol": SYMBOLS[number % len(SYMBOLS)],
            "size": 7,
            "maxdisplayed": 30,
        },
        "mode": "lines+markers",
    }


def compared_line(tint: str = GREY) -> dict[str, Any]:
    """Of what a figure is compared with: thin and dotted."""
    return {"mode": "lines", "line": {"color": tint, "dash": "dot", "width": 1.5}}


def label(name: str) -> str:
    """A name as plotly is to show it: shortened in the middle, and escaped, as it takes HTML for markup."""
    half = LONGEST_LABEL // 2
    return escape(name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[1 - half :]}")


def templates() -> dict[str, dict[str, Any]]:
    """Plotly templates for `light` and `dark`: ink, grid and background."""
    return {mode: _template(mode) for mode in BACKGROUNDS}


def _template(mode: str) -> dict[str, Any]:
    axis = {
        "gridcolor": _GRID[mode],
        "linecolor": _GRID[mode],
        "zerolinecolor": _GRID[mode],
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    return {
        "layout": {
            "paper_bgcolor": BACKGROUNDS[mode],
            "plot_bgcolor": BACKGROUNDS[mode],
            "font": {"color": _INK[mode], "family": "system-ui, sans-serif", "size": 13},
            "colorway": list(COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": BACKGROUNDS[mode], "font": {"color": _INK[mode]}},
            "margin": {"l": 8, "r": 12, "t": 24, "b": 8},
            "legend": {
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
                "entrywidth": 150,
                "traceorder": "normal",
            },
            "dragmode": False,
        }
    }
