"""How far a sweep is, as a person or a program sees it; its cells are real processes."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from sweep_cases import cells_of, copying

from fedkron.commands.sweep_progress import Count, SweepJson, SweepLines, SweepLive, SweepProgress
from fedkron.sweep.grid import Cell
from fedkron.sweep.journal import COMPLETED, FAILED, Journal
from fedkron.sweep.workers import exactly, run_cells

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def show(progress: SweepProgress, finished_run: Path, folder: Path) -> tuple[Journal, Sequence[Cell]]:
    """Run two cells one after the other, of which the second fails, of four that one was done of before."""
    cells = cells_of(finished_run, {"seed": 0}, {"seed": 1})
    copy = copying(finished_run, folder, "time.sleep(0.7)")

    def command(cell: Cell, journal: Journal, share: int) -> Sequence[str]:
        words = copy(cell, journal, share)
        return (
            words if cell is cells[0] else ["sh", "-c", "sleep 0.7; echo 'fedkron: no [such] base'; exit 1"]
        )

    journal = Journal(folder / "sweep")
    with progress:
        run_cells(cells, journal, command, slots=exactly(1), watcher=progress, after_each=lambda: None)
    return journal, cells


def test_lines_tell_what_begins_and_what_came_of_it(finished_run: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    journal, cells = show(SweepLines(output, total=4, done=1), finished_run, tmp_path)
    assert [journal.state(cell).status for cell in cells] == [COMPLETED, FAILED]
    start, *rest = output.getvalue().splitlines()
    assert start == "1/4 cells are done"
    assert [re.sub(r"\d+:\d\d", "TIME", line) for line in rest] == [
        "started cell0",
        "2/4: cell0 completed after TIME, about TIME left",
        "started cell1",
        "3/4: cell1 failed after TIME: no [such] base, about TIME left",
    ]


def test_programs_get_an_object_for_each_event(finished_run: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    show(SweepJson(output, total=4, done=1), finished_run, tmp_path)
    events = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["sweep", "started", "ended", "started", "ended"]
    assert events[0] == {"event": "sweep", "cells": 4, "done": 1}
    assert (events[4]["cell"], events[4]["status"], events[4]["done"]) == ("cell1", "failed", 3)
    assert events[4]["error"] == "no [such] base"


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_what_is_running(width: int, finished_run: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, legacy_windows=False)
    show(SweepLive(console, total=4, done=1), finished_run, tmp_path)
    shown = ESCAPES.sub("", output.getvalue()).replace("\r", "\n")
    assert "cell0 round 2/2: evaluating 2/2" in shown
    assert re.search(r"cell0 completed after \d:\d\d\n", shown)
    assert "no [such] base" in shown
    assert "3/4 cells" in shown
    assert max(map(len, shown.split("\n"))) <= width


def test_time_left_is_told_at_the_pace_of_this_time() -> None:
    count = Count(total=10, done=4)
    assert count.seconds_left() is None
    count.add()
    count.add()
    count.began -= 20.0  # two in 20 seconds: four more take 40
    assert count.seconds_left() == pytest.approx(40.0, abs=1.0)
    assert count.remaining().startswith(", about 0:")
