"""Which node this is and which data it has, from Flower's node config and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clients.tasks import Task, load_task, node_share, select_task, subset
from fedkron.errors import ConfigError
from fedkron.rundir import node_directory
from fedkron.settings import Settings


@dataclass(frozen=True)
class Node:
    """This node's data, its number in the federation, and the folder for what stays here."""

    partition: int
    task: Task
    directory: Path


def this_node(node_config: Mapping[str, object], settings: Settings, run_id: int) -> Node:
    """Find out who we are.

    The node config holds `partition-id` and `num-partitions`; the task is dealt by them from the
    settings' list, unless the node config names its own `task` (a path on this machine, say).

    Raises `ConfigError` for an incomplete node config, `TaskError` for data that cannot be used.
    """
    try:
        partition, partitions = int(node_config["partition-id"]), int(node_config["num-partitions"])  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"node config {dict(node_config)} lacks partition-id and num-partitions: start the SuperNode "
            'with --node-config "partition-id=0 num-partitions=2"'
        ) from None
    source, index, count = select_task(settings.task_sources, partition, partitions)
    if "task" in node_config:
        source, index, count = str(node_config["task"]), 0, 1
    task = _data(source, index, count, settings)
    return Node(partition, task, node_directory(settings, run_id, task.name, partition))


@lru_cache(maxsize=16)  # one process serves many nodes and rounds
def _data(source: str, index: int, count: int, settings: Settings) -> Task:
    whole = load_task(source)
    parts = settings.partition
    share = node_share(whole, index, count, partitioner=parts.kind, alpha=parts.alpha, seed=settings.seed)
    return subset(share, settings.train.max_train_examples, settings.train.max_test_examples, settings.seed)
