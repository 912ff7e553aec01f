"""Which texts a federation sees: to tune, no test text may have a say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from clients.tasks import Example, Task, load_task

TEST, VALIDATION = "test", "validation"
"""What a federation is measured on: the tasks' test texts, or training texts that are held out."""


def sources(tasks: Sequence[str], split: str, seed: int, folder: Path) -> list[str]:
    """Where tasks are read from; what has to be written for that goes below `folder`."""
    return SPLITS[split](tasks, seed, folder)


def _as_they_are(tasks: Sequence[str], seed: int, folder: Path) -> list[str]:  # noqa: ARG001
    return list(tasks)


def _held_out(tasks: Sequence[str], seed: int, folder: Path) -> list[str]:
    return [str(hold_out(task, seed, folder / str(number))) for number, task in enumerate(tasks)]


def hold_out(source: str, seed: int, folder: Path) -> Path:
    """Write a task whose test split is a random third of the training texts, and whose training split is
    the rest; returns its folder, which has the task's name."""
    task = load_task(source)
    texts = random.Random(seed).sample(task.train, len(task.train))
    third = len(texts) // 3
    return write_task(replace(task, train=tuple(texts[third:]), test=tuple(texts[:third])), folder)


def write_task(task: Task, folder: Path) -> Path:
    """Write a task to a folder of its name in this one, as nodes read it; returns that folder."""
    place = folder / task.name
    place.mkdir(parents=True)
    _write_rows(place / "train.jsonl", task.train)
    _write_rows(place / "test.jsonl", task.test)
    if task.labels:
        (place / "labels.json").write_text(json.dumps(task.labels), encoding="utf-8")
    return place


def _write_rows(file: Path, examples: Sequence[Example]) -> None:
    rows = "".join(json.dumps(asdict(example)) + "\n" for example in examples)
    file.write_text(rows, encoding="utf-8")


SPLITS: Mapping[str, Callable[[Sequence[str], int, Path], list[str]]] = {
    TEST: _as_they_are,
    VALIDATION: _held_out,
}
