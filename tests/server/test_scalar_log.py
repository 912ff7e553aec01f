"""TensorBoard reads back what the run wrote down elsewhere."""

import json
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from federation_cases import federate, grid_of, run_config_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedkron.ledger import Ledger
from fedkron.rundir import CHECKPOINT, LEDGER, ROUNDS, TENSORBOARD
from fedkron.runlog import RunLog, read_run
from server.scalar_log import ScalarLog


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tasks: Path) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("scalars")
    odd = shutil.copytree(tasks / "quiz", folder / "a quiz/of: ours".replace("/", "-"))
    changes = {"aggregation": "merged", "num-server-rounds": 3}
    return run_config_for(folder, tiny_bert, tasks / "animals", odd, folder / "nowhere", changes=changes)


@pytest.fixture(scope="module")
def finished(config: Mapping[str, object]) -> RunLog:
    return federate(config, grid_of(config, 3)).log


def read_back(folder: Path) -> dict[str, dict[int, float]]:
    """Values by step, of each tag."""
    events = EventAccumulator(str(folder / TENSORBOARD), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_as_files(folder: Path, rounds: int) -> None:
    found = read_back(folder)
    written, transfers = lines(folder / ROUNDS), lines(folder / LEDGER)[1:]
    assert [line["round"] for line in written] == list(range(1, rounds + 1))
    assert set(map(tuple, found.values())) == {tuple(range(1, rounds + 1))}
    for line in written:
        evaluated = [report["metrics"] for report in line["evaluated"].values()]
        own = [t for t in transfers if t["round"] == line["round"]]
        so_far = [t for t in transfers if t["round"] <= line["round"]]
        expected = {
            "accuracy/mean": sum(metrics["accuracy"] for metrics in evaluated) / 2,
            "accuracy/animals": line["evaluated"]["animals"]["metrics"]["accuracy"],
            "frozen_base_and_head/mean": sum(metrics["head-only-accuracy"] for metrics in evaluated) / 2,
            "train/loss": sum(report["metrics"]["loss"] for report in line["trained"].values()) / 2,
            "bytes/up": sum(t["message_bytes"] for t in own if t["direction"] == "up"),
            "bytes/down": sum(t["message_bytes"] for t in own if t["direction"] == "down"),
            "bytes_so_far/up": sum(t["message_bytes"] for t in so_far if t["direction"] == "up"),
            "bytes_so_far/LoRA-8_fp32": sum(t["baseline_bytes"] for t in so_far),
            "bytes_so_far/factor": sum(t["baseline_bytes"] for t in so_far)
            / sum(t["message_bytes"] for t in so_far),
            "nodes/trained": 2,
            "nodes/failures": len(line["failures"]),
            "aggregation/projection_error": line["projection_error"],
            "time/seconds": line["seconds"],
        }
        assert {tag: found[tag][line["round"]] for tag in expected} == pytest.approx(expected, rel=1e-6)


def test_scalars_are_the_figures_of_the_files(finished: RunLog) -> None:
    assert_same_as_files(finished.folder, 3)
    found = read_back(finished.folder)
    assert not any(tag.startswith("privacy/") for tag in found)
    assert len([tag for tag in found if tag.startswith("accuracy/")]) == 3  # with the odd name, and the mean


def test_a_run_that_goes_on_takes_back_what_was_cut_off(
    finished: RunLog, config: Mapping[str, object]
) -> None:
    # A round that was written, but is in no checkpoint; and a file that ends within an event.
    folder = finished.folder
    extra = ScalarLog(folder, Ledger(folder / LEDGER), done=3)
    (figures,) = read_run(folder).rounds[2:]
    object.__setattr__(figures, "round", 4)
    extra.write(figures)
    (file,) = [path for path in (folder / TENSORBOARD).iterdir() if path.name.endswith(".1")]
    file.write_bytes(file.read_bytes()[:-7])
    assert 4 in read_back(folder)["accuracy/mean"]
    assert (folder / CHECKPOINT).exists()
    more = {**config, "resume": True, "num-server-rounds": 5}
    federate(more, grid_of(more, 3))
    assert_same_as_files(folder, 5)


def test_a_full_disk_ends_the_round_instead_of_stopping_a_thread(finished: RunLog, tmp_path: Path) -> None:
    log = ScalarLog(tmp_path, Ledger())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # bytes a file may have
    try:
        with pytest.raises(OSError, match="too large"):
            log.write(finished.rounds[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    log.write(finished.rounds[0])
    assert read_back(tmp_path)["train/loss"]
