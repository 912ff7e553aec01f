"""Who a node is: which task, which share, which folder."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from clients.node import this_node
from clients.tasks import load_task
from fedkron.errors import ConfigError, TaskError
from fedkron.rundir import START_DIRECTORY
from fedkron.settings import Settings


def settings_for(tasks: Path, *names: str, **changes: object) -> Settings:
    sources = ",".join(str(tasks / name) for name in names)
    return Settings.from_run_config({"tasks": sources, "output-dir": "/outputs", "run-name": "r", **changes})


def config(partition: int, partitions: int) -> dict[str, object]:
    return {"partition-id": partition, "num-partitions": partitions}


def test_tasks_are_dealt_in_turn_and_shared_by_the_nodes_that_have_the_same(tasks: Path) -> None:
    settings = settings_for(tasks, "animals", "colours")
    nodes = [this_node(config(partition, 3), settings, 5) for partition in range(3)]
    assert [node.task.name for node in nodes] == ["animals", "colours", "animals"]
    assert [node.partition for node in nodes] == [0, 1, 2]
    assert [len(node.task.train) for node in nodes] == [24, 48, 24]
    whole = load_task(str(tasks / "animals")).train
    assert Counter(nodes[0].task.train) + Counter(nodes[2].task.train) == Counter(whole)
    assert nodes[0].task.test == nodes[2].task.test


def test_node_config_may_name_a_task_of_its_own_which_the_node_has_whole(tasks: Path) -> None:
    settings = settings_for(tasks, "animals")
    node = this_node({**config(1, 2), "task": str(tasks / "quiz")}, settings, 5)
    assert node.task.name == "quiz"
    assert len(node.task.train) == 48


def test_examples_are_limited_as_the_settings_say(tasks: Path) -> None:
    changes = {"train.max-train-examples": 5, "train.max-test-examples": 3}
    node = this_node(config(0, 1), settings_for(tasks, "animals", **changes), 5)
    assert (len(node.task.train), len(node.task.test)) == (5, 3)


def test_every_node_has_a_folder_of_its_own_even_where_two_tasks_have_the_same_name(
    tasks: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tasks / "colours", tmp_path / "animals")
    settings = settings_for(tasks, "animals", str(other))
    folders = [this_node(config(partition, 4), settings, 5).directory for partition in range(4)]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {Path("/outputs/r/nodes")}


def test_relative_outputs_go_to_the_start_directory_and_nameless_runs_by_their_id(
    tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(START_DIRECTORY, "/started/here")
    settings = settings_for(tasks, "animals", **{"output-dir": "out", "run-name": ""})
    directory = this_node(config(0, 1), settings, 77).directory
    assert directory.parent.parent == Path("/started/here/out/run-77")


@pytest.mark.parametrize(
    "node_config",
    [{}, {"partition-id": 0}, {"num-partitions": 2}, {"partition-id": "x", "num-partitions": 2}],
)
def test_incomplete_node_config_is_refused_with_how_to_start_a_node(
    tasks: Path, node_config: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"--node-config \"partition-id=0 num-partitions=2\""):
        this_node(node_config, settings_for(tasks, "animals"), 5)


def test_missing_task_folder_is_named(tasks: Path) -> None:
    with pytest.raises(TaskError, match="nowhere"):
        this_node(config(0, 1), settings_for(tasks, "nowhere"), 5)
