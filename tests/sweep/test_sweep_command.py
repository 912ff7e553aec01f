"""`fedkron sweep` where nothing has to run: what it lists, keeps and refuses."""

import json
from pathlib import Path

import pytest
from federation_cases import federate, grid_of, run_config_for
from filelock import FileLock
from sweep_cases import put

from fedkron.cli import main
from fedkron.commands.run_settings import app_config, localized
from fedkron.runlog import read_run
from fedkron.sweep.grid import Cell, read_grid
from fedkron.sweep.journal import COMPLETED, FAILED, LOCK, Journal
from fedkron.sweep.processes import spawn

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, tiny_bert: Path, tasks: Path) -> Path:
    """Two codecs and two seeds, with the other settings of `finished_run`."""
    config = run_config_for(tmp_path, tiny_bert, tasks / "animals", tasks / "colours")
    own = {key: value for key, value in config.items() if key not in ("output-dir", "run-name")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in own.items()]
    file = tmp_path / "grid.toml"
    file.write_text("\n".join(["[run]", *lines, '[grid]\n"codec.upload" = ["int4", "fp32"]\nseed = [0, 1]']))
    return file


def sweep(file: Path, *options: str) -> int:
    return main(["sweep", str(file), "--app", str(ROOT), "--output-dir", str(file.parent), *options])


def cells_in(file: Path) -> list[Cell]:
    return list(read_grid(file, app_config(ROOT), localized).cells)


def test_a_dry_run_lists_the_cells_with_their_bytes_and_runs_nothing(
    file: Path, capsys: Capture, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    assert sweep(file, "--dry-run", "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["codec.upload"], cell["seed"]) for cell in cells] == [
        ("int4", 0),
        ("int4", 1),
        ("fp32", 0),
        ("fp32", 1),
    ]
    assert {cell["status"] for cell in cells} == {"new"}
    assert not (tmp_path / "grid").exists()
    for cell, codec in ((cells[0], "int4"), (cells[2], "fp32")):
        config = run_config_for(
            tmp_path / codec, tiny_bert, tasks / "animals", tasks / "colours", changes={"codec.upload": codec}
        )
        real = federate(config, grid_of(config, 2)).log.bytes_by_round[2]
        assert cell["round_bytes_up"] == pytest.approx(real.payload_up, rel=0.15)
    assert sweep(file, "--dry-run") == 0
    assert "4 cells (4 new)" in capsys.readouterr().out


def test_what_is_done_is_kept_and_what_has_failed_is_told_and_not_tried_again(
    file: Path, finished_run: Path, capsys: Capture
) -> None:
    *good, bad = cells_in(file)
    journal = Journal(file.parent / "grid")
    for cell in (*good, bad):
        journal.started(cell)
    for cell in good:
        put(finished_run, cell, journal)
        journal.ended(cell, COMPLETED, 3.0, 1000, None)
    journal.ended(bad, FAILED, 3.0, 1000, "no such base")
    before = (journal.folder / "journal.jsonl").read_bytes()
    assert sweep(file) == 1
    shown = capsys.readouterr()
    assert "1 of 4 cells failed" in shown.err
    assert "no such base" in shown.err
    accuracy = read_run(finished_run).rounds[-1].accuracy
    assert f"{accuracy:.3f} ± 0.000" in shown.out
    assert (journal.folder / "journal.jsonl").read_bytes() == before
    assert (journal.folder / "cells.parquet").exists()
    assert sweep(file, "--json") == 1
    assert [cell["status"] for cell in json.loads(capsys.readouterr().out)["cells"]] == [
        *["completed"] * 3,
        "failed",
    ]


def test_a_file_that_asks_for_less_leaves_the_other_cells_alone(
    file: Path, finished_run: Path, capsys: Capture
) -> None:
    cells = cells_in(file)
    journal = Journal(file.parent / "grid")
    for cell in cells:
        journal.started(cell)
        put(finished_run, cell, journal)
        journal.ended(cell, COMPLETED, 3.0, 1000, None)
    file.write_text(file.read_text().replace("seed = [0, 1]", "seed = [1]"))
    assert sweep(file) == 0
    assert "Not in the file any more, and left as they are: 2 cells" in capsys.readouterr().out
    assert all(journal.run_folder(cell).exists() for cell in cells)


def test_what_a_killed_sweep_has_left_running_is_ended(file: Path, finished_run: Path) -> None:
    cells = cells_in(file)
    journal = Journal(file.parent / "grid")
    for cell in cells:
        put(finished_run, cell, journal)
    run, log = journal.run_folder(cells[0]), journal.log_file(cells[0])
    orphan = spawn(["sleep", "60"], run, log, {})
    stranger = spawn(["sleep", "60"], file.parent / "other", log, {})
    try:
        assert sweep(file) == 0
        assert orphan.poll() is not None
        assert stranger.poll() is None
    finally:
        orphan.kill()
        stranger.kill()
        stranger.wait()


def test_two_sweeps_do_not_write_to_one_folder(file: Path, capsys: Capture) -> None:
    (file.parent / "grid").mkdir()
    with FileLock(file.parent / "grid" / LOCK):
        assert sweep(file) == 1
    assert "another `fedkron sweep` is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed = [0, 1]", 'seed = ["a"]'), "2 of 2 cells cannot run"),
        (
            ('tasks = "', 'tasks = "no/such/folder,'),
            "4 of 4 cells cannot run:\n  task folder no/such/folder does not exist",
        ),
    ],
)
def test_nothing_is_written_for_a_file_that_is_wrong(
    change: tuple[str, str], words: str, file: Path, capsys: Capture
) -> None:
    file.write_text(file.read_text().replace(*change))
    assert sweep(file) == 1
    assert words in capsys.readouterr().err
    assert not (file.parent / "grid").exists()


def test_no_jobs_are_refused(file: Path, capsys: Capture) -> None:
    assert sweep(file, "--jobs", "0") == 1
    assert "--jobs is 0" in capsys.readouterr().err
