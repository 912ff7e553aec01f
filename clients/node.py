"""Which node this is and which data it has, from Flower's node config and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from clients.tasks import Task, load_task, node_share, select_task, subset
from fedkron.aggregation import Size
from fedkron.errors import ConfigError
from fedkron.rundir import node_directory
from fedkron.settings import OWN_SIZES, AdapterSettings, Settings


@dataclass(frozen=True)
class Node:
    """This node's data, its number in the federation, its adapter, and the folder for what stays here."""

    partition: int
    task: Task
    directory: Path
    adapter: AdapterSettings

    @property
    def size(self) -> Size:
        """Size of its adapter; the server fills in what is left open."""
        return Size(self.adapter.rank, self.adapter.d_a2 or None)


def this_node(node_config: Mapping[str, object], settings: Settings, run_id: int) -> Node:
    """Find out who we are.

    The node config holds `partition-id` and `num-partitions`; the task is dealt by them from the
    settings' list, unless the node config names its own `task` (a path on this machine, say). A `rank` or
    `d-a2` there is the size of this node's own adapter, where the settings allow for that.

    Raises `ConfigError` for an incomplete or wrong node config, `TaskError` for data that cannot be used.
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
    adapter = _own_size(settings.adapter, node_config)
    task = _data(source, index, count, settings)
    return Node(partition, task, node_directory(settings, run_id, task.name, partition), adapter)


def _own_size(adapter: AdapterSettings, node_config: Mapping[str, object]) -> AdapterSettings:
    own = {key: node_config[key] for key in ("rank", "d-a2") if key in node_config}
    if own and adapter.sizes != OWN_SIZES:
        given = ", ".join(f"{key}={value}" for key, value in own.items())
        raise ConfigError(
            f"this node's config has {given}, but all nodes have adapters of the same size: "
            "set the run-config key adapter.sizes = 'own'"
        )
    for key, value in own.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"node config {key!r} is {value!r}: it must be a whole number above 0")
    rank = int(own.get("rank", adapter.rank))  # type: ignore[call-overload]
    d_a2 = int(own.get("d-a2", adapter.d_a2))  # type: ignore[call-overload]
    # The factor α/r stays: a small adapter is then a part of the large one.
    return replace(adapter, rank=rank, alpha=adapter.alpha * rank / adapter.rank, d_a2=d_a2)


@lru_cache(maxsize=128)  # one process serves many nodes and rounds
def _data(source: str, index: int, count: int, settings: Settings) -> Task:
    whole = _whole(source, settings)
    parts = settings.partition
    share = node_share(whole, index, count, partitioner=parts.kind, alpha=parts.alpha, seed=settings.seed)
    return subset(share, settings.train.max_train_examples, settings.train.max_test_examples, settings.seed)


@lru_cache(maxsize=16)  # read once for all nodes of a run that have a share of it
def _whole(source: str, settings: Settings) -> Task:  # noqa: ARG001
    return load_task(source)
