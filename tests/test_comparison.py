"""Runs side by side: in the terminal, as JSON, and what they are called."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from federation_cases import federate, grid_of, run_config_for

from fedkron.cli import main
from fedkron.comparison import differing_settings, run_names, summary
from fedkron.rundir import REPORT_PAGE, ROUNDS
from fedkron.runlog import RunLog, read_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> tuple[RunLog, RunLog]:
    folder = tmp_path_factory.mktemp("compared")
    found = []
    for changes in ({"run-name": "coarse"}, {"run-name": "fine", "codec.upload": "int8", "seed": 4}):
        config = run_config_for(folder, tiny_bert, tasks / "animals", tasks / "quiz", changes=changes)
        found.append(federate(config, grid_of(config, 2)).log)
    return found[0], found[1]


def test_only_settings_that_differ_are_named_and_not_the_place(runs: tuple[RunLog, RunLog]) -> None:
    assert differing_settings(runs) == {"codec.upload": ["ecsq", "int8"], "seed": [0, 4]}
    assert differing_settings(runs[:1]) == {}


def test_runs_of_the_same_name_are_called_by_their_paths(runs: tuple[RunLog, RunLog]) -> None:
    other = replace(runs[0], folder=Path("elsewhere/coarse"))
    assert run_names(runs) == ["coarse", "fine"]
    assert run_names([runs[0], other, runs[1]]) == [str(runs[0].folder), "elsewhere/coarse", "fine"]


def test_tables_and_json_say_what_each_run_came_to(runs: tuple[RunLog, RunLog], capsys: Capture) -> None:
    folders = [str(log.folder) for log in runs]
    assert main(["report", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in found["runs"]] == folders
    assert found["differing_settings"]["codec.upload"] == {"coarse": "ecsq", "fine": "int8"}
    for one, run, log in zip(found["summaries"], found["runs"], runs, strict=True):
        assert one["accuracy"] == run["rounds"][-1]["accuracy"]
        assert one["bytes_up"] == run["total_bytes"]["message_up"]
        assert one["factor"] == pytest.approx(run["total_bytes"]["factor"])
        # Two rounds of two nodes.
        assert one["bytes_per_node_round"] == pytest.approx((one["bytes_up"] + one["bytes_down"]) / 4)
        heads = [task["head_only_accuracy"] for task in run["rounds"][-1]["tasks"].values()]
        assert one["gain"] == pytest.approx(one["accuracy"] - sum(heads) / 2)
        assert summary(log).rounds == 2
    page = runs[0].folder.parent / "comparison.html"
    assert not page.exists()
    assert main(["report", *folders]) == 0
    printed = capsys.readouterr().out
    assert str(page) in printed.replace("\n", "")
    assert page.exists()
    assert all(name in printed for name in ("coarse", "fine", "codec.upload", "int8"))
    assert max(map(len, printed.splitlines()[:8])) <= 80


def test_the_page_of_a_run_lies_in_its_folder_or_where_it_is_wanted(
    runs: tuple[RunLog, RunLog], tmp_path: Path, capsys: Capture
) -> None:
    folder = runs[0].folder
    assert main(["report", str(folder), "--html", str(tmp_path / "deep" / "page.html")]) == 0
    assert not (folder / REPORT_PAGE).exists()
    assert main(["report", str(folder)]) == 0
    assert (folder / REPORT_PAGE).read_bytes() == (tmp_path / "deep" / "page.html").read_bytes()
    (tmp_path / "taken").mkdir()
    assert main(["report", str(folder), "--html", str(tmp_path / "taken")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_ledgers_and_sockets_are_for_one_at_a_time(runs: tuple[RunLog, RunLog], capsys: Capture) -> None:
    ledger = str(runs[0].folder / "ledger.jsonl")
    assert main(["report", ledger, str(runs[1].folder)]) == 1
    assert "by itself" in capsys.readouterr().err
    assert main(["report", ledger, "--html", "page.html"]) == 1
    assert "no page" in capsys.readouterr().err


def test_folder_of_before_nodes_were_written_down_is_still_read(
    runs: tuple[RunLog, RunLog], tmp_path: Path, capsys: Capture
) -> None:
    for file in runs[0].folder.glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lines = [json.loads(line) for line in (tmp_path / ROUNDS).read_text().splitlines()]
    assert all(line.pop("nodes") for line in lines)
    (tmp_path / ROUNDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [entry.nodes for entry in read_run(tmp_path).rounds] == [{}, {}]
    assert main(["report", str(tmp_path), "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert [(node["node"], node["rounds"], node["bytes_up"] > 0) for node in nodes] == [
        ("1000", None, True),
        ("1001", None, True),
    ]
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / REPORT_PAGE).exists()
