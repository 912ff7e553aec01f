"""Reports: figures against sums over the files of a real run, and what a person gets to read."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from federation_cases import federate, grid_of, run_config_for
from rich.console import Console

from fedkron.errors import FedKronError, RunError
from fedkron.report import BASELINE, figures, kilobytes, show
from fedkron.rundir import LEDGER, OUTCOME, ROUNDS, SETTINGS
from fedkron.runlog import read_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> Path:
    """The folder of a run over two tasks in two rounds, in which the last of three nodes always fails."""
    config = run_config_for(
        tmp_path_factory.mktemp("runs"), tiny_bert, tasks / "animals", tasks / "quiz", tasks / "[/nowhere]"
    )
    return federate(config, grid_of(config, 3)).folder


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> Path:
    """The folder of a run that ended in its first round."""
    config = run_config_for(tmp_path_factory.mktemp("runs"), tiny_bert, tasks / "[/nowhere]")
    with pytest.raises(RunError):
        federate(config, grid_of(config, 1))
    return Path(str(config["output-dir"])) / "run"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(folder: Path) -> str:
    text = StringIO()
    show(read_run(folder), Console(file=text, width=200))
    return text.getvalue()


def sums(transfers: list[dict]) -> dict[str, float]:
    """Totals by adding up the ledger's lines, one plain loop."""
    found = dict.fromkeys(("payload_down", "payload_up", "message_down", "message_up", "baseline"), 0)
    for transfer in transfers:
        for part in ("factor_bytes", "head_bytes", "header_bytes"):
            found[f"payload_{transfer['direction']}"] += transfer[part]
        found[f"message_{transfer['direction']}"] += transfer["message_bytes"]
        found["baseline"] += transfer["baseline_bytes"]
    return {**found, "factor": found["baseline"] / (found["message_down"] + found["message_up"])}


# ------------------------------------------------------------------ figures


def test_bytes_are_the_sums_over_the_ledger_in_all_and_by_round(finished: Path) -> None:
    _, *transfers = lines(finished / LEDGER)
    result = figures(read_run(finished))
    assert result["total_bytes"] == pytest.approx(sums(transfers))
    assert result["total_bytes"]["payload_up"] > 0
    for entry in result["rounds"]:
        own = [transfer for transfer in transfers if transfer["round"] == entry["round"]]
        assert entry["bytes"] == pytest.approx(sums(own))
    assert (
        sum(entry["bytes"]["message_up"] for entry in result["rounds"]) == result["total_bytes"]["message_up"]
    )


def test_sections_are_the_sums_over_the_ledger_and_what_is_left_of_messages_is_the_envelope(
    finished: Path,
) -> None:
    _, *transfers = lines(finished / LEDGER)
    result = figures(read_run(finished))
    assert result["sections"].keys() == {"down", "up"}
    for direction, section in result["sections"].items():
        own = [transfer for transfer in transfers if transfer["direction"] == direction]
        assert section["factors"] == sum(transfer["factor_bytes"] for transfer in own) > 0
        assert section["head"] == sum(transfer["head_bytes"] for transfer in own)
        assert section["headers"] == sum(transfer["header_bytes"] for transfer in own)
        assert sum(section.values()) == result["total_bytes"][f"message_{direction}"]


def test_rounds_are_those_that_the_server_wrote_down(finished: Path) -> None:
    written = lines(finished / ROUNDS)
    result = figures(read_run(finished))
    assert (result["run"], result["status"], result["error"]) == (str(finished), "completed", None)
    assert [entry["round"] for entry in result["rounds"]] == [1, 2]
    for entry, line in zip(result["rounds"], written, strict=True):
        assert entry["tasks"].keys() == {"animals", "quiz"}
        for task, report in line["evaluated"].items():
            assert entry["tasks"][task] == {
                "accuracy": report["metrics"]["accuracy"],
                "head_only_accuracy": report["metrics"]["head-only-accuracy"],
                "majority": report["metrics"]["majority"],
                "clients": 1,
            }
        accuracies = [report["metrics"]["accuracy"] for report in line["evaluated"].values()]
        assert entry["accuracy"] == pytest.approx(sum(accuracies) / 2)
        losses = [report["metrics"]["loss"] for report in line["trained"].values()]
        assert entry["train_loss"] == pytest.approx(sum(losses) / 2)  # both have 48 examples
        assert list(entry["failures"]) == line["failures"]
        assert len(entry["failures"]) == 2


def test_figures_are_strict_json_for_finished_and_failed_runs(finished: Path, failed: Path) -> None:
    for folder in (finished, failed):
        result = figures(read_run(folder))
        assert json.loads(json.dumps(result, allow_nan=False))["status"] == result["status"]


def test_failed_run_says_so_with_its_reason(failed: Path) -> None:
    result = figures(read_run(failed))
    assert (result["status"], result["rounds"]) == ("failed", [])
    assert result["error"].startswith("RunError: round 1: 1 of 1 clients failed in training")
    assert result["total_bytes"]["message_down"] > 0  # the broadcast was sent
    assert result["total_bytes"]["payload_up"] == 0


def test_round_without_evaluation_has_no_accuracy(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    changes = {"fraction-evaluate": 0.0, "num-server-rounds": 1}
    config = run_config_for(tmp_path, tiny_bert, tasks / "animals", changes=changes)
    folder = federate(config, grid_of(config, 1)).folder
    (entry,) = figures(read_run(folder))["rounds"]
    assert (entry["accuracy"], entry["tasks"]) == (None, {})
    assert entry["train_loss"] > 0
    assert "nan" not in shown(folder)


# ------------------------------------------------------------------ what a person reads


def test_tables_show_accuracy_bytes_and_gain(finished: Path) -> None:
    text, log = shown(finished), read_run(finished)
    last = log.rounds[-1]
    for name, task in last.tasks.items():
        gain = f"{task.accuracy - task.head_only_accuracy:+.3f}"
        row = next(line for line in text.splitlines() if {name, gain} <= set(line.split()))
        for share in (task.majority, task.head_only_accuracy, task.accuracy):
            assert f"{share:.3f}" in row
    total = figures(log)["total_bytes"]
    assert f"{kilobytes(total['message_up'])} up and {kilobytes(total['message_down'])} down" in text
    assert f"{total['factor']:.1f}× smaller" in text
    assert BASELINE in text
    assert f"{last.accuracy:.3f}" in text
    _, where = text.split("Where the bytes went")
    sections = figures(log)["sections"]
    for direction in ("down", "up"):
        row = next(line for line in where.splitlines() if direction in line.split())
        cells = [kilobytes(size) for size in sections[direction].values()]
        assert " ".join(row.split()).endswith(" ".join([*cells, kilobytes(total[f"message_{direction}"])]))


def test_projection_errors_and_groups_are_shown_where_there_are_any(
    finished: Path, tmp_path: Path, tiny_bert: Path, tasks: Path
) -> None:
    assert "proj. error" not in shown(finished)
    changes = {"aggregation": "merged", "groups.by": "task"}
    config = run_config_for(tmp_path, tiny_bert, tasks / "animals", tasks / "quiz", changes=changes)
    folder = federate(config, grid_of(config, 2)).folder
    output = shown(folder)
    assert "proj. error" in output
    for entry in lines(folder / "rounds.jsonl"):
        assert f"{entry['projection_error']:.3f}" in output
    assert "Adapter of their own (animals): animals-0" in output
    assert "Adapter of their own (quiz): quiz-1" in output


def test_failures_are_shown_as_they_are_even_with_square_brackets(finished: Path, failed: Path) -> None:
    text = " ".join(shown(finished).split())
    assert text.count("failure node 1002: ") == 4  # training and evaluation, two rounds
    assert "[/nowhere]" in text
    text = " ".join(shown(failed).split())
    assert "The run failed: RunError: round 1: 1 of 1 clients failed in training" in text
    assert "[/nowhere]" in text


def test_task_named_like_markup_is_shown_by_its_name(tmp_path: Path, tiny_bert: Path, tasks: Path) -> None:
    source = shutil.copytree(tasks / "animals", tmp_path / "[red]")
    config = run_config_for(tmp_path / "runs", tiny_bert, source, changes={"num-server-rounds": 1})
    text = shown(federate(config, grid_of(config, 1)).folder)
    assert text.count("[red]") == 2  # in both tables


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 kB"),
        (1449, "1.4 kB"),
        (99_949, "99.9 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (1_000_000, "1.00 MB"),
        (12_345_678, "12.3 MB"),
        (1_234_567_890, "1,234.6 MB"),
    ],
)
def test_bytes_are_shown_in_units_of_a_thousand(count: int, text: str) -> None:
    assert kilobytes(count) == text


# ------------------------------------------------------------------ runs that go on, and damaged ones


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_run_without_outcome_is_running(copy: Path) -> None:
    (copy / OUTCOME).unlink()
    log = read_run(copy)
    assert log.outcome is None
    assert figures(log)["status"] == "running"


def test_line_that_is_still_being_written_is_left_out(copy: Path) -> None:
    whole = (copy / ROUNDS).read_text()
    (copy / ROUNDS).write_text(whole[:-20])
    assert [entry.round for entry in read_run(copy).rounds] == [1]


def test_run_that_has_only_begun_has_no_rounds_yet(copy: Path) -> None:
    for name in (OUTCOME, ROUNDS, LEDGER):
        (copy / name).unlink()
    log = read_run(copy)
    assert (log.rounds, log.transfers) == ((), ())
    assert json.dumps(figures(log), allow_nan=False)
    assert "No message has been sent." in shown(copy)
    (copy / LEDGER).touch()  # opened, and nothing written yet
    assert read_run(copy).transfers == ()


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no settings": lambda folder: (folder / SETTINGS).unlink(),
    "settings that are not JSON": lambda folder: (folder / SETTINGS).write_text("base = 1"),
    "settings that are a list": lambda folder: (folder / SETTINGS).write_text("[1]"),
    "settings that are not known": replaced(SETTINGS, '"seed"', '"sede"'),
    "an outcome that is not JSON": lambda folder: (folder / OUTCOME).write_text("{"),
    "an outcome that is a number": lambda folder: (folder / OUTCOME).write_text("7"),
    "a round that is not JSON": replaced(ROUNDS, '{"round": 1', '{"round" 1'),
    "a round without its number": replaced(ROUNDS, '"round"', '"around"'),
    "a round without accuracy": replaced(ROUNDS, '"accuracy"', '"precision"'),
    "a round that is a number": lambda folder: (folder / ROUNDS).write_text("7\n"),
    "a ledger that is not JSON": replaced(LEDGER, '"factor_bytes"', "factor_bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_folder_is_refused_with(name: str, copy: Path) -> None:
    DAMAGES[name](copy)
    with pytest.raises(FedKronError):
        read_run(copy)


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path} is not a run folder: there is no settings.json in it"):
        read_run(tmp_path)
