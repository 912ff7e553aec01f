"""Who gets what: a task per node, a share of it where several nodes have the same one, a smaller sample."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from clients.examples import Classified, Example, Task
from fedkron.errors import ConfigError, TaskError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

PARTITIONERS = ("iid", "dirichlet")
"""Ways to share one task among nodes: at random, or with label proportions drawn from Dirichlet(alpha)."""


def select_task(sources: Sequence[str], partition: int, partitions: int) -> tuple[str, int, int]:
    """The task of simulated node `partition` of `partitions`: the sources are dealt in turn.

    Returns the source, this node's index among the nodes that have the same one, and their number.
    Raises `ConfigError` without sources, or for a node that does not exist.
    """
    if not sources:
        raise ConfigError("There are no tasks to choose from: name at least one, such as demo:trec.")
    if not 0 <= partition < partitions:
        raise ConfigError(f"Node {partition} of {partitions} does not exist: nodes count from 0.")
    dealt = [sources[node % len(sources)] for node in range(partitions)]
    source = dealt[partition]
    return source, dealt[:partition].count(source), dealt.count(source)


def node_share(task: Task, index: int, count: int, *, partitioner: str, alpha: float, seed: int) -> Task:
    """Share `index` of `count` of the task's training examples; the test split stays whole.

    The shares are disjoint, cover everything, hold at least one example each, and depend on nothing but
    the arguments. `partitioner` is `iid`, or `dirichlet` (arXiv 1905.12022), where `alpha` > 0 skews the
    labels the more the smaller it is. Raises `ConfigError` for an unknown partitioner, share or alpha, or
    for `dirichlet` where there are no labels; `TaskError` where there are too few examples.
    """
    if partitioner not in PARTITIONERS:
        raise ConfigError(f"Unknown partitioner {partitioner!r}: use one of {', '.join(PARTITIONERS)}.")
    if not 0 <= index < count:
        raise ConfigError(f"Share {index} of {count} does not exist: shares count from 0.")
    if count == 1:
        return task
    if count > len(task.train):
        raise TaskError(
            f"Task {task.name} has {len(task.train)} training examples, too few for {count} nodes. "
            "Use fewer nodes, or more tasks."
        )
    rows = (
        _iid(len(task.train), count, seed)[index].tolist()
        if partitioner == "iid"
        else _dirichlet(task, index, count, alpha, seed)
    )
    return replace(task, train=tuple(task.train[row] for row in sorted(rows)))


@lru_cache(maxsize=16)  # made once for all nodes that one process serves
def _iid(examples: int, count: int, seed: int) -> list[np.ndarray]:
    # The rows that flwr-datasets' IidPartitioner gives, whose import takes as long as all else of a node.
    return np.array_split(np.random.default_rng(seed).permutation(examples), count)


def _dirichlet(task: Task, index: int, count: int, alpha: float, seed: int) -> list[int]:
    labels = tuple(example.label for example in task.train if isinstance(example, Classified))
    if not labels:
        raise ConfigError(
            f"Task {task.name} is multiple choice: it has no labels for the partitioner 'dirichlet'. "
            "Use 'iid'."
        )
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha is {alpha}, but a Dirichlet distribution needs a finite number above 0.")
    try:
        partitioner = _dirichlet_partitioner(labels, count, float(alpha), seed)
    except ValueError as error:
        raise TaskError(
            f"Task {task.name} ({len(labels)} training examples) could not be shared among {count} nodes "
            f"with alpha {alpha}: some node was always left without an example. Raise alpha, use fewer "
            "nodes, or the partitioner 'iid'."
        ) from error
    return list(partitioner.load_partition(index)["row"])


@lru_cache(maxsize=16)  # it draws the shares of all nodes at once
def _dirichlet_partitioner(labels: tuple[int, ...], count: int, alpha: float, seed: int) -> Partitioner:
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=count, partition_by="label", alpha=alpha, min_partition_size=1, seed=seed
    )
    partitioner.dataset = Dataset.from_dict({"row": range(len(labels)), "label": labels})
    with warnings.catch_warnings():
        # It draws again, up to ten times, where a share came out empty, and warns each time.
        warnings.simplefilter("ignore")
        partitioner.load_partition(0)
    return partitioner


def subset(task: Task, max_train: int, max_test: int, seed: int) -> Task:
    """A random sample of at most so many examples of each split, in their own order; 0 keeps them all.

    Depends on nothing but the arguments. Raises `ConfigError` for a negative number.
    """
    for name, value in (("max_train", max_train), ("max_test", max_test)):
        if value < 0:
            raise ConfigError(f"{name} is {value}: give a number of examples, or 0 for all of them.")
    return replace(task, train=_sample(task.train, max_train, seed), test=_sample(task.test, max_test, seed))


def _sample(examples: tuple[Example, ...], most: int, seed: int) -> tuple[Example, ...]:
    if most == 0 or most >= len(examples):
        return examples
    rows = random.Random(seed).sample(range(len(examples)), most)
    return tuple(examples[row] for row in sorted(rows))
