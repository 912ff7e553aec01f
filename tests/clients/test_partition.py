"""Sharing tasks among nodes: properties that hold for every task, number of nodes and seed."""

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clients.tasks import (
    PARTITIONERS,
    Classified,
    MultipleChoice,
    Task,
    load_task,
    node_share,
    select_task,
    subset,
)
from fedkron.errors import ConfigError, TaskError

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def classification(size: int, classes: int = 3) -> Task:
    examples = tuple(Classified(f"text {number}", number * classes // size) for number in range(size))
    return Task("letters", "classification", tuple("abcdefgh"[:classes]), examples, examples[:5])


def multiple_choice(size: int) -> Task:
    examples = tuple(MultipleChoice(f"question {number}", ("a", "b"), 0) for number in range(size))
    return Task("quiz", "multiple_choice", (), examples, examples[:5])


@few
@given(
    task=st.builds(classification, st.integers(20, 200)) | st.builds(multiple_choice, st.integers(20, 200)),
    count=st.integers(1, 6),
    partitioner=st.sampled_from(PARTITIONERS),
    seed=seeds,
)
def test_shares_are_disjoint_not_empty_and_cover_the_training_split(
    task: Task, count: int, partitioner: str, seed: int
) -> None:
    assume(task.kind == "classification" or partitioner == "iid")
    shares = [
        node_share(task, index, count, partitioner=partitioner, alpha=5.0, seed=seed)
        for index in range(count)
    ]
    assert Counter(example for share in shares for example in share.train) == Counter(task.train)
    for share in shares:
        assert share.train
        assert (share.name, share.kind, share.labels, share.test) == (
            task.name,
            task.kind,
            task.labels,
            task.test,
        )


@few
@given(count=st.integers(2, 5), partitioner=st.sampled_from(PARTITIONERS), seed=seeds)
def test_share_depends_on_its_arguments_and_not_on_global_random_state(
    count: int, partitioner: str, seed: int
) -> None:
    task = classification(60)
    np.random.seed(1)  # noqa: NPY002 (the global state is what must not matter)
    random.seed(1)
    first = node_share(task, 1, count, partitioner=partitioner, alpha=1.0, seed=seed)
    assert node_share(task, 1, count, partitioner=partitioner, alpha=1.0, seed=seed) == first


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_another_seed_gives_another_share(partitioner: str) -> None:
    task = classification(200)
    one, other = (node_share(task, 0, 2, partitioner=partitioner, alpha=1.0, seed=seed) for seed in (1, 2))
    assert one.train != other.train


def test_iid_shares_have_equal_sizes_and_the_labels_of_the_whole_even_where_the_file_is_sorted() -> None:
    task = classification(900)
    for index in range(3):
        share = node_share(task, index, 3, partitioner="iid", alpha=1.0, seed=0)
        counts = Counter(example.label for example in share.train)
        assert len(share.train) == 300
        assert all(70 <= counts[label] <= 130 for label in range(3))


@few
@given(examples=st.integers(1, 300), count=st.integers(1, 20), seed=seeds)
def test_iid_shares_are_those_of_flower_s_partitioner(examples: int, count: int, seed: int) -> None:
    assume(count <= examples)
    task = multiple_choice(examples)
    reference = IidPartitioner(num_partitions=count)
    reference.dataset = Dataset.from_dict({"row": np.random.default_rng(seed).permutation(examples)})
    for index in range(count):
        rows = sorted(reference.load_partition(index)["row"])
        share = node_share(task, index, count, partitioner="iid", alpha=1.0, seed=seed)
        assert share.train == tuple(task.train[row] for row in rows)


def test_dirichlet_shares_are_the_more_skewed_the_smaller_alpha() -> None:
    task = classification(900)

    def largest_label_share(alpha: float) -> float:
        shares = [
            node_share(task, index, 3, partitioner="dirichlet", alpha=alpha, seed=seed).train
            for index in range(3)
            for seed in range(5)
        ]
        return float(
            np.mean([max(Counter(e.label for e in share).values()) / len(share) for share in shares])
        )

    assert largest_label_share(0.1) > 0.6 > largest_label_share(100.0)


def test_a_single_node_gets_the_task_itself() -> None:
    task = multiple_choice(3)
    assert node_share(task, 0, 1, partitioner="dirichlet", alpha=1.0, seed=0) is task


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_fewer_examples_than_nodes_is_an_error(partitioner: str) -> None:
    with pytest.raises(TaskError, match="3 training examples, too few for 4 nodes"):
        node_share(classification(3), 0, 4, partitioner=partitioner, alpha=1.0, seed=0)


def test_alpha_so_small_that_a_node_stays_empty_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"Raise alpha"):
        node_share(classification(30, classes=2), 0, 12, partitioner="dirichlet", alpha=1e-3, seed=0)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (lambda: node_share(classification(9), 0, 2, partitioner="shard", alpha=1, seed=0), "iid, dirichlet"),
        (lambda: node_share(classification(9), 2, 2, partitioner="iid", alpha=1, seed=0), "Share 2 of 2"),
        (lambda: node_share(classification(9), -1, 2, partitioner="iid", alpha=1, seed=0), "Share -1 of 2"),
        (lambda: node_share(classification(9), 0, 2, partitioner="dirichlet", alpha=0, seed=0), "alpha is 0"),
        (
            lambda: node_share(classification(9), 0, 2, partitioner="dirichlet", alpha=float("nan"), seed=0),
            "alpha is nan",
        ),
        (
            lambda: node_share(multiple_choice(9), 0, 2, partitioner="dirichlet", alpha=1, seed=0),
            "multiple choice",
        ),
        (lambda: subset(classification(9), -1, 0, 0), "max_train is -1"),
        (lambda: subset(classification(9), 0, -5, 0), "max_test is -5"),
        (lambda: select_task([], 0, 1), "no tasks"),
        (lambda: select_task(["a"], 3, 3), "Node 3 of 3"),
        (lambda: select_task(["a"], -1, 3), "Node -1 of 3"),
    ],
)
def test_settings_out_of_range_are_named_with_their_value(share: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        share()


def test_tasks_are_dealt_to_the_nodes_in_turn() -> None:
    sources = ["demo:trec", "demo:spam", "demo:film"]
    assert [select_task(sources, node, 5) for node in range(5)] == [
        ("demo:trec", 0, 2),
        ("demo:spam", 0, 2),
        ("demo:film", 0, 1),
        ("demo:trec", 1, 2),
        ("demo:spam", 1, 2),
    ]


@few
@given(sources=st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), partitions=st.integers(1, 12))
def test_every_node_gets_a_place_of_its_own_among_those_with_its_task(
    sources: list[str], partitions: int
) -> None:
    dealt = [select_task(sources, node, partitions) for node in range(partitions)]
    nodes_with = Counter(source for source, _, _ in dealt)
    assert [source for source, _, _ in dealt] == [sources[node % len(sources)] for node in range(partitions)]
    assert all(count == nodes_with[source] for source, _, count in dealt)
    for source, count in nodes_with.items():
        assert sorted(index for other, index, _ in dealt if other == source) == list(range(count))


@few
@given(size=st.integers(5, 60), max_train=st.integers(0, 80), max_test=st.integers(0, 8), seed=seeds)
def test_subset_is_a_sample_of_the_wanted_size_in_the_original_order(
    size: int, max_train: int, max_test: int, seed: int
) -> None:
    task = classification(size)
    small = subset(task, max_train, max_test, seed)
    assert len(small.train) == (min(max_train, size) if max_train else size)
    assert len(small.test) == (min(max_test, 5) if max_test else 5)
    assert [example for example in task.train if example in set(small.train)] == list(small.train)
    assert subset(task, max_train, max_test, seed) == small
    assert subset(task, max_train, 0, seed).train == small.train


def test_subset_with_another_seed_is_another_sample_of_about_the_same_labels() -> None:
    task = load_task("demo:spam")
    one, other = subset(task, 300, 100, seed=1), subset(task, 300, 100, seed=2)
    assert one.train != other.train
    share = [sum(example.label for example in sample.train) / 300 for sample in (one, other)]
    whole = sum(example.label for example in task.train) / len(task.train)
    assert share == pytest.approx([whole, whole], abs=0.08)
