"""What a sweep knows of its cells after it was cut off, from its journal and from their folders."""

import json
import shutil
from pathlib import Path

import pytest
from sweep_cases import cells_of, put

from fedkron.errors import RunError
from fedkron.rundir import OUTCOME, SETTINGS
from fedkron.sweep.journal import COMPLETED, FAILED, INTERRUPTED, JOURNAL, NEW, Journal


def test_the_state_of_a_cell_survives_the_sweep(finished_run: Path, tmp_path: Path) -> None:
    done, broken, cut, never = cells = cells_of(finished_run, *({"seed": seed} for seed in range(4)))
    journal = Journal(tmp_path)
    for cell in (done, broken, cut):
        journal.started(cell)
    put(finished_run, done, journal)
    journal.ended(done, COMPLETED, 3.0, 1000, None)
    journal.ended(broken, FAILED, 1.0, 9000, "no such thing")
    (put(finished_run, cut, journal) / OUTCOME).unlink()
    again = Journal(tmp_path)
    assert [again.state(cell).status for cell in cells] == [COMPLETED, FAILED, INTERRUPTED, NEW]
    assert again.state(broken).error == "no such thing"
    assert (again.state(done).attempts, again.state(done).seconds) == (1, 3.0)
    assert again.peak_bytes() == 1000  # what failed may have needed more to go on
    assert again.strangers({"cell0": done}) == ["cell1", "cell2"]
    assert not (tmp_path / "runs" / never.name).exists()


def test_a_run_that_ended_after_the_sweep_was_killed_is_done(finished_run: Path, tmp_path: Path) -> None:
    (cell,) = cells_of(finished_run, {})
    journal = Journal(tmp_path)
    journal.started(cell)
    put(finished_run, cell, journal)
    assert Journal(tmp_path).state(cell).status == COMPLETED


def test_a_run_with_fewer_rounds_than_asked_for_is_not_done(finished_run: Path, tmp_path: Path) -> None:
    (cell,) = cells_of(finished_run, {"num-server-rounds": 3})
    journal = Journal(tmp_path)
    put(finished_run, cell, journal)
    assert journal.state(cell).status == INTERRUPTED


def test_who_deletes_a_run_wants_it_again(finished_run: Path, tmp_path: Path) -> None:
    (cell,) = cells_of(finished_run, {})
    journal = Journal(tmp_path)
    journal.started(cell)
    folder = put(finished_run, cell, journal)
    journal.ended(cell, COMPLETED, 3.0, 1000, None)
    shutil.rmtree(folder)
    assert journal.state(cell).status == NEW


def test_a_run_with_other_settings_is_not_taken_for_a_cell(finished_run: Path, tmp_path: Path) -> None:
    (cell,) = cells_of(finished_run, {})
    journal = Journal(tmp_path)
    folder = put(finished_run, cell, journal)
    changed = json.loads((folder / SETTINGS).read_bytes()) | {"train.epochs": 7}
    (folder / SETTINGS).write_text(json.dumps(changed))
    with pytest.raises(RunError, match=r"train\.epochs = 7, this cell has 1"):
        journal.state(cell)
    (folder / SETTINGS).write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        journal.state(cell)


def test_a_line_that_was_cut_off_counts_for_nothing(finished_run: Path, tmp_path: Path) -> None:
    first, second = cells_of(finished_run, {"seed": 1}, {"seed": 2})
    journal = Journal(tmp_path)
    journal.started(first)
    journal.ended(first, FAILED, 1.0, 0, "why")
    whole = (tmp_path / JOURNAL).read_bytes()
    journal.started(second)
    line = (tmp_path / JOURNAL).read_bytes().removeprefix(whole)
    for length in range(len(line)):
        (tmp_path / JOURNAL).write_bytes(whole + line[:length])
        again = Journal(tmp_path)
        assert (again.state(first).status, again.state(second).status) == (FAILED, NEW)
        assert (tmp_path / JOURNAL).read_bytes() == whole


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"format": "fedkron-ledger"}\n')
    with pytest.raises(RunError, match="not the journal of a sweep"):
        Journal(tmp_path)
